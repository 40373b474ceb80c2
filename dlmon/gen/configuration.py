"""docs/configuration.md, from the agent's settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from dlmon.gen.markdown import code, document, head, table


class SettingLike(Protocol):
    """What the document says of a setting (`dlmon.agent.settings.Setting` has it)."""

    @property
    def path(self) -> tuple[str, ...]:
        """Its keys from the top."""

    @property
    def key(self) -> str:
        """The path with dots."""

    @property
    def default(self) -> object:
        """A number, a string or a tuple of strings."""

    @property
    def description(self) -> str:
        """What it does."""

    @property
    def flag(self) -> str:
        """The flag that overrides it, or ""."""

    @property
    def allowed(self) -> str:
        """What is allowed, in words."""


def render(settings: Iterable[SettingLike]) -> str:
    """Return the document.

    Args:
        settings: All of them, in the order of the schema.
    """
    listed = list(settings)
    rows = [
        (
            code(entry.key),
            code(_value(entry.default)),
            entry.allowed,
            code(entry.flag),
            entry.description,
        )
        for entry in listed
    ]
    return document(
        [
            *head("Configuration of the agent", "dlmon/agent/config.py"),
            "`dlmon agent --config FILE` reads YAML. Every key is optional, an empty file is fine.",
            "A flag wins over the file, the file over the default. An unknown key, a duplicate, a",
            "wrong type or a value that is not allowed stops the agent at start with file, line,",
            "key, value and what is allowed.",
            "",
            *table(("key", "default", "allowed", "flag", "meaning"), rows),
            "## The file with every default",
            "",
            "```yaml",
            *_example(listed),
            "```",
        ]
    )


def _value(value: object) -> str:
    """Return a value as YAML."""
    if value is None:
        return "null"
    return f"[{', '.join(value)}]" if isinstance(value, tuple) else str(value)


def _example(settings: list[SettingLike]) -> list[str]:
    lines: list[str] = []
    section: tuple[str, ...] = ()
    for entry in settings:
        *sections, name = entry.path
        if tuple(sections) != section:
            section = tuple(sections)
            lines.append(f"{section[-1]}:")
        lines.append(f"{'  ' * len(sections)}{name}: {_value(entry.default)}")
    return lines
