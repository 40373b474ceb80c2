"""Grafana's own typed models, as the checker of a dashboard's JSON.

The SDK's `from_json` takes what it knows and asks no questions. So: what a model gives back must be
what it was given (no key it does not know), and every attribute must be of the type it declares.
"""

from __future__ import annotations

import enum
import json
import types
import typing
import warnings
from collections.abc import Iterator
from typing import Any

with warnings.catch_warnings():
    # Version 2 of the schema is meant for the newest Grafana alone; files are in version 1.
    warnings.simplefilter("ignore", DeprecationWarning)
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

register_default_plugins()


def differences(board: dict[str, Any]) -> Iterator[str]:
    """What Grafana's models do not know, or not so."""
    model = Dashboard.from_json(board)
    back = json.loads(json.dumps(model, cls=JSONEncoder))
    yield from _lost(board, back, "")
    yield from _mistyped(model, "")


def _lost(given: Any, back: Any, path: str) -> Iterator[str]:
    """What was given and did not come back; what the model adds by default is no matter."""
    if isinstance(given, dict) and isinstance(back, dict):
        for key, value in given.items():
            if key not in back:
                if value is not None:
                    yield f"{path}.{key}: unknown"
            else:
                yield from _lost(value, back[key], f"{path}.{key}")
    elif isinstance(given, list) and isinstance(back, list) and len(given) == len(back):
        for one, other in zip(given, back, strict=True):
            yield from _lost(one, other, path)
    elif given != back:
        yield f"{path}: {given!r} became {back!r}"


def _mistyped(model: Any, path: str) -> Iterator[str]:
    """Attributes of models whose value is not what their annotation says."""
    if isinstance(model, list):
        for one in model:
            yield from _mistyped(one, path)
    elif isinstance(model, dict):
        for key, value in model.items():
            yield from _mistyped(value, f"{path}.{key}")
    elif type(model).__module__.startswith("grafana_foundation_sdk.models"):
        if isinstance(model, enum.Enum):
            return
        for name, declared in typing.get_type_hints(type(model)).items():
            value = getattr(model, name)
            if not _fits(value, declared):
                yield f"{path}.{name}: {value!r} is no {declared}"
            yield from _mistyped(value, f"{path}.{name}")


def _fits(value: Any, declared: Any) -> bool:
    """Say if a value is of a declared type; an object still in JSON must make a model of it."""
    origin, arguments = typing.get_origin(declared), typing.get_args(declared)
    if declared in (object, Any):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in arguments)
    if origin is typing.Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and all(_fits(one, arguments[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(v, arguments[1]) for v in value.values())
    return _is(value, declared)


def _is(value: Any, declared: Any) -> bool:
    """Say if a value is of a class; JSON has numbers and texts for enumerations."""
    if isinstance(declared, type) and issubclass(declared, enum.Enum):
        return value in [member.value for member in declared]
    if declared is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if declared is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if isinstance(value, dict) and hasattr(declared, "from_json"):
        return _model_fits(declared.from_json(value), value)
    return isinstance(value, declared)


def _model_fits(model: Any, given: dict[str, Any]) -> bool:
    back = json.loads(json.dumps(model, cls=JSONEncoder))
    return not [*_lost(given, back, ""), *_mistyped(model, "")]
