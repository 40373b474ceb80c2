"""The Snapshot as JSON, for the page, `dlmon top --url` and whoever asks."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Mapping, Sequence

from dlmon import __version__
from dlmon.agent.hangs import Hang
from dlmon.agent.state import Latest
from dlmon.analysis.findings import FINDINGS
from dlmon.observe.snapshot import Finding, Loader, Refused, Snapshot

_FIELDS: dict[type, tuple[str, ...]] = {}


def snapshot_json(latest: Latest, interval_seconds: float, *, trusted: bool) -> bytes:
    """Return the last snapshot as JSON.

    Its keys are the attributes of `Snapshot`, and `agent` with `version`, `interval_seconds` and
    `age_seconds`; a loader has `wait_ratio` too. Phases, states and the keys that they are, are
    lower-case names; a finding has `severity` too. What is not known, and what is no finite number,
    is null.

    Args:
        latest: The snapshot, and when it was taken.
        interval_seconds: From one snapshot to the next.
        trusted: Whether the client may see paths of files that were refused.
    """
    document = plain(latest.snapshot if trusted else _without_paths(latest.snapshot))
    assert isinstance(document, dict)
    document["agent"] = {
        "version": __version__,
        "interval_seconds": interval_seconds,
        "age_seconds": latest.age_seconds(),
    }
    return _encoded(document)


def findings_json(snapshot: Snapshot) -> bytes:
    """Return what is wrong, as JSON: `time`, and `findings`, the gravest first."""
    return _encoded({"time": snapshot.time, "findings": plain(snapshot.findings)})


def hangs_json(hangs: Sequence[Hang], *, trusted: bool) -> bytes:
    """Return the hangs that are kept, as JSON.

    Args:
        hangs: The newest first.
        trusted: Whether the client may see stacks.
    """
    shown = hangs if trusted else [_without_stacks(hang) for hang in hangs]
    return _encoded({"hangs": plain(tuple(shown))})


def _encoded(document: object) -> bytes:
    # ASCII, so that a lone surrogate in a name is an escape and not an error.
    return json.dumps(document, allow_nan=False, separators=(",", ":")).encode("ascii")


def _without_stacks(hang: Hang) -> Hang:
    processes = tuple(dataclasses.replace(seen, stacks=()) for seen in hang.processes)
    return dataclasses.replace(hang, processes=processes)


def _without_paths(snapshot: Snapshot) -> Snapshot:
    """Leave of refused files only why: the message has the path in it."""
    refused = tuple(Refused("", entry.reason, "") for entry in snapshot.refused)
    return dataclasses.replace(snapshot, refused=refused)


def encoded(document: object) -> bytes:
    """Return frozen data as JSON, as `snapshot_json` has it."""
    return _encoded(plain(document))


def plain(value: object) -> object:
    """Turn frozen data into what JSON has, as `snapshot_json` has it."""
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if value is None or isinstance(value, str | int):  # bool is an int
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(plain(key)): plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [plain(entry) for entry in value]
    fields: dict[str, object] = {name: plain(getattr(value, name)) for name in _names(type(value))}
    if isinstance(value, Loader):
        fields["wait_ratio"] = plain(value.wait_ratio)
    elif isinstance(value, Finding):
        fields["severity"] = FINDINGS[value.name].severity.value
    return fields


def _names(kind: type) -> tuple[str, ...]:
    names = _FIELDS.get(kind)
    if names is None:
        names = _FIELDS[kind] = tuple(field.name for field in dataclasses.fields(kind))
    return names
