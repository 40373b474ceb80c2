"""Reads the configuration file; whatever is wrong in it is said with its line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from dlmon.agent.settings import Rule, Setting, Value
from dlmon.errors import ConfigError

_MAX_BYTES = 1 << 20
_TAG = "tag:yaml.org,2002:"
_NULL = _TAG + "null"
_KINDS = {
    _NULL: "nothing",
    _TAG + "bool": "a yes/no value",
    _TAG + "int": "a whole number",
    _TAG + "float": "a number",
    _TAG + "str": "a string",
    _TAG + "timestamp": "a date",
    _TAG + "map": "a mapping",
    _TAG + "seq": "a list",
}


def read_values(path: Path, settings: Sequence[Setting]) -> dict[tuple[str, ...], Value]:
    """Return what a YAML file sets, by path of keys; an empty file sets nothing.

    Args:
        path: The file, 1 MiB at most.
        settings: All that there are.

    Raises:
        ConfigError: It cannot be read, is no YAML, or has an unknown or duplicate key, a wrong type
            or a value that is not allowed. The message has file, line, key, value and what is
            allowed.
    """
    root = _compose(path)
    if root is None or root.tag == _NULL:
        return {}
    return dict(_Reader(path, settings).section(root, ()))


def _compose(path: Path) -> yaml.Node | None:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"{path}: larger than 1 MiB; is this the agent's configuration?")
    try:
        node: yaml.Node | None = yaml.compose(content, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        context = f" {error.context}" if error.context else ""
        raise ConfigError(
            f"{path}:{line}: no valid YAML{context}: {error.problem};"
            " a value with `: `, `[` or `{` needs quotes"
        ) from error
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{path}: no valid YAML: {problem}") from error
    return node


class _Reader:
    """Walks the nodes of one file along the settings."""

    def __init__(self, path: Path, settings: Sequence[Setting]) -> None:
        self._path = path
        self._settings = {entry.path: entry for entry in settings}
        self._sections = {entry.path[:-1] for entry in settings}

    def section(
        self, node: yaml.Node, path: tuple[str, ...]
    ) -> Iterator[tuple[tuple[str, ...], Value]]:
        """Yield what a mapping sets, the sections in it included."""
        if node.tag == _NULL:
            return  # `web:` with nothing below it
        if not isinstance(node, yaml.MappingNode) or node.tag != _TAG + "map":
            raise self._error(
                node, path, f"{_shown(node)}; expected a mapping with {self._keys(path)}"
            )
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            own = (*path, self._key(key_node, path, seen))
            if own in self._sections:
                yield from self.section(value_node, own)
            else:
                yield own, self._value(value_node, self._settings[own])

    def _key(self, node: yaml.Node, path: tuple[str, ...], seen: dict[str, int]) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._error(node, path, f"{_shown(node)} as a key; expected {self._keys(path)}")
        key = str(node.value)
        own = (*path, key)
        if own not in self._settings and own not in self._sections:
            raise self._error(node, own, f"unknown key{self._hint(own)}; known: {self._keys(path)}")
        if key in seen:
            raise self._error(node, own, f"given twice, first in line {seen[key]}; keep one")
        seen[key] = node.start_mark.line + 1
        return key

    def _value(self, node: yaml.Node, entry: Setting) -> Value:
        if entry.rule.optional and node.tag == _NULL:
            return None
        value = _typed(node, entry.rule)
        if value is None or not entry.rule.permits(value):
            message = f"{_shown(node)} is not allowed; expected {entry.allowed}"
            raise self._error(node, entry.path, message)
        return value

    def _keys(self, path: tuple[str, ...]) -> str:
        depth = len(path)
        known = [*self._settings, *self._sections]
        return ", ".join(
            dict.fromkeys(own[depth] for own in known if own[:depth] == path and len(own) > depth)
        )

    def _hint(self, path: tuple[str, ...]) -> str:
        """Suggest the key that was probably meant."""
        elsewhere = [".".join(own) for own in self._settings if own[-1] == path[-1]]
        known = {".".join(own): own for own in (*self._settings, *self._sections) if own}
        here = [own[-1] for own in known.values() if own[:-1] == path[:-1]]
        close = elsewhere or difflib.get_close_matches(path[-1], here, n=1)
        if not close:
            close = difflib.get_close_matches(".".join(path), list(known), n=1)
        return f" (did you mean {close[0]}?)" if close else ""

    def _error(self, node: yaml.Node, path: tuple[str, ...], message: str) -> ConfigError:
        key = f" {'.'.join(path)}:" if path else ""
        return ConfigError(f"{self._path}:{node.start_mark.line + 1}:{key} {message}")


def _typed(node: yaml.Node, rule: Rule) -> Value | None:
    """Return a node's value as the rule's type, None if it has another."""
    if rule.kind == "list":
        return _strings(node)
    if not isinstance(node, yaml.ScalarNode):
        return None
    text = str(node.value)
    if rule.choices:
        return text  # YAML reads a bare `off` as a boolean; here it is the word
    if rule.kind == "str":
        return text if node.tag == _TAG + "str" else None
    if node.tag == _TAG + "int" or (rule.kind == "float" and node.tag == _TAG + "float"):
        return _number(node)
    return None


def _strings(node: yaml.Node) -> tuple[str, ...] | None:
    if not isinstance(node, yaml.SequenceNode):
        return None
    if any(item.tag != _TAG + "str" for item in node.value):
        return None
    return tuple(str(item.value) for item in node.value)


def _number(node: yaml.ScalarNode) -> float | int | None:
    try:
        value: float | int = yaml.constructor.SafeConstructor().construct_object(node)
    except (ValueError, IndexError):  # `!!int x`, `!!int ""`, or more digits than Python converts
        return None
    return value


def _shown(node: yaml.Node) -> str:
    kind = _KINDS.get(node.tag, "a value of an unknown type")
    if isinstance(node, yaml.ScalarNode) and node.value:
        text = str(node.value)
        return f"{text if len(text) <= 60 else text[:57] + '...'!r} ({kind})"
    return kind
