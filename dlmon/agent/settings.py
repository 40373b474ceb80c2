"""What a setting is: one description, default and range for file, flags and document."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

Value = float | int | str | tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Rule:
    """What a setting's values may be.

    Attributes:
        kind: `int`, `float`, `str` or `list`, a list of strings.
        minimum, maximum: Both included; None for no bound. For a list they bound its length.
        choices: If not empty, the only values.
        parse: For a string: raises ValueError unless it is of the form `form`.
        form: What `parse` accepts, in words.
        optional: It may be null, which is None.
    """

    kind: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    parse: Callable[[str], object] | None = None
    form: str = "a string that is not empty"
    optional: bool = False

    def allowed(self) -> str:
        """Say in words what is allowed."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.kind == "list":
            return "a list of one or more strings, none of them empty"
        if self.kind == "str":
            return self.form + ", or null" * self.optional
        noun = "a whole number" if self.kind == "int" else "a number"
        if self.minimum is None or self.maximum is None:
            return noun
        return f"{noun} from {self.minimum:,.10g} to {self.maximum:,.10g}"

    def permits(self, value: Value) -> bool:
        """Tell whether a value of the right type is allowed."""
        if value is None:
            return self.optional
        if isinstance(value, str):
            return value in self.choices if self.choices else self._parses(value)
        if isinstance(value, tuple):
            return bool(value) and all(value)
        low = -math.inf if self.minimum is None else self.minimum
        high = math.inf if self.maximum is None else self.maximum
        return low <= value <= high

    def _parses(self, text: str) -> bool:
        if self.parse is None:
            return bool(text)
        try:
            self.parse(text)
        except ValueError:
            return False
        return True


@dataclass(frozen=True, slots=True)
class Setting:
    """One key of the configuration file.

    Attributes:
        path: Its keys from the top, for example `("web", "listen_address")`.
        rule: What its values may be.
        default: Its value when the file does not have it.
        description: What it does, in whole sentences.
        flag: The command-line flag that overrides it, "" if none.
    """

    path: tuple[str, ...]
    rule: Rule
    default: Value
    description: str
    flag: str = ""

    @property
    def key(self) -> str:
        """The path with dots."""
        return ".".join(self.path)

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""
        return self.rule.allowed()


def setting(
    default: Value,
    description: str,
    *,
    flag: str = "",
    **rule: typing.Any,
) -> typing.Any:  # the type of a dataclass field's default is the field's
    """Declare a field of a configuration dataclass that is a setting.

    Args:
        default: As in `Setting`.
        description: As in `Setting`.
        flag: As in `Setting`.
        rule: The attributes of its `Rule`, but for `kind`, which is the field's type.
    """
    metadata = {"description": description, "flag": flag, "rule": rule}
    return dataclasses.field(default=default, metadata=metadata)


_KINDS: Mapping[object, str] = {
    int: "int",
    float: "float",
    str: "str",
    str | None: "str",
    tuple[str, ...]: "list",
}


def settings_of(schema: type, path: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Yield every setting of a configuration dataclass, those of its sections included."""
    types = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        own = (*path, field.name)
        kind = types[field.name]
        if dataclasses.is_dataclass(kind):
            assert isinstance(kind, type)
            yield from settings_of(kind, own)
            continue
        optional = type(None) in typing.get_args(kind)
        rule = Rule(_KINDS[kind], **field.metadata["rule"], optional=optional)
        description, flag = field.metadata["description"], field.metadata["flag"]
        yield Setting(own, rule, typing.cast("Value", field.default), description, flag)


def build(schema: type[typing.Any], values: Mapping[tuple[str, ...], Value]) -> typing.Any:
    """Make a configuration dataclass from values by path; what is missing has its default."""
    return _build(schema, values, ())


def _build(
    schema: type[typing.Any], values: Mapping[tuple[str, ...], Value], path: tuple[str, ...]
) -> typing.Any:
    types = typing.get_type_hints(schema)
    arguments: dict[str, object] = {}
    for field in dataclasses.fields(schema):
        own = (*path, field.name)
        if dataclasses.is_dataclass(types[field.name]):
            arguments[field.name] = _build(types[field.name], values, own)
        elif own in values:
            arguments[field.name] = values[own]
    return schema(**arguments)
