"""The agent's configuration: its schema, and where a value of it comes from."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dlmon.agent.address import FORM as ADDRESS_FORM
from dlmon.agent.address import parse as parse_address
from dlmon.agent.admission import Detail
from dlmon.agent.configfile import read_values
from dlmon.agent.settings import Setting, Value, build, setting, settings_of
from dlmon.catalog import AGENT_SERIES_DROPPED, WORKER_UP
from dlmon.errors import UsageError
from dlmon.segment.files import SEARCHED, searched

_DROPPED = AGENT_SERIES_DROPPED.name


@dataclass(frozen=True, slots=True)
class Web:
    """The HTTP server."""

    listen_address: str = setting(
        "127.0.0.1:10356",
        "Where the HTTP server listens: `host:port`, `[::1]:port`, or `:port` for every address of"
        " the machine. Port 0 takes any free port; the agent prints which. Anyone who can connect"
        " may read metrics and snapshot: there is no password.",
        parse=parse_address,
        form=ADDRESS_FORM,
        flag="--web.listen-address",
    )


@dataclass(frozen=True, slots=True)
class Metrics:
    """What /metrics shows."""

    per_worker: str = setting(
        Detail.FULL.value,
        "How many series each worker has: all (`full`), those that alerts need (`lean`) or none"
        " (`off`). docs/metrics.md says which are which. The page and the API always show all.",
        choices=(Detail.FULL.value, Detail.LEAN.value, Detail.OFF.value),
        flag="--metrics.per-worker",
    )


def _absolute(path: str) -> None:
    if not os.path.isabs(path):
        raise ValueError(path)


@dataclass(frozen=True, slots=True)
class Memory:
    """How often PSS and USS of workers are read, which holds a worker up: 14 ms per GB it has."""

    pss_interval_seconds: float = setting(
        60,
        "Seconds between two scans of a worker at least, four times as often while its memory"
        " grows, more seldom the longer its scans take.",
        minimum=0.1,
        maximum=86400,
    )
    pss_cpu_budget_ratio: float = setting(
        0.005,
        "The share of one core that all scans together may take; 0 scans nothing, and PSS and USS"
        " are then absent.",
        minimum=0,
        maximum=1,
    )


@dataclass(frozen=True, slots=True)
class Keep:
    """How long things stay."""

    dead_seconds: float = setting(
        3600,
        "For how many seconds a rank that died without saying goodbye stays visible, and the last"
        " words of ranks and workers stay in `/api/v1/deaths`.",
        minimum=0,
        maximum=604800,
    )
    history_seconds: float = setting(
        900,
        "How many seconds of every rank, loader and worker are remembered for `/api/v1/history` and"
        " for last words; 0 for none. A worker takes 50 bytes a point, at most 1,800 points.",
        minimum=0,
        maximum=86400,
    )
    evidence_dir: str | None = setting(
        None,
        "A directory in which the last words of ranks and workers are kept too, one file each, the"
        " newest 200, readable for the agent's user only. Made if it is not there.",
        parse=_absolute,
        form="an absolute path",
    )


@dataclass(frozen=True, slots=True)
class Limits:
    """What one job, user or node may cost."""

    loaders_per_rank: int = setting(
        64,
        f"Loaders read of one rank; the rest is counted in `{_DROPPED}`, reason `rank`.",
        minimum=1,
        maximum=4096,
    )
    segments_per_user: int = setting(
        2048,
        f"Segments read of one user; the rest is counted in `{_DROPPED}`, reason `user`."
        " So are, of one directory, names of unread files above four times as many, each of which"
        " has its turn.",
        minimum=1,
        maximum=65536,
    )
    series: int = setting(
        20000,
        "Series that `/metrics` shows. Above it workers lose their detail, those of dead ranks"
        f" first; `{WORKER_UP.name}`, loaders and ranks always stay. What was lost is counted in"
        f" `{_DROPPED}`, reason `series_limit`.",
        minimum=100,
        maximum=10000000,
    )


@dataclass(frozen=True, slots=True)
class Hangs:
    """When something counts as hung."""

    floor_seconds: float = setting(
        60,
        "Nothing is reported as hung before it has made no progress for so many seconds. From here"
        " on it depends on how long the loader's fetches, waits and steps usually take.",
        minimum=1,
        maximum=86400,
    )
    ceiling_seconds: float = setting(
        1800,
        "After so many seconds without progress it is hung, however slow the loader usually is"
        " (but not below `hangs.floor_seconds`).",
        minimum=1,
        maximum=604800,
    )


@dataclass(frozen=True, slots=True)
class Stacks:
    """The Python stacks of what is hung."""

    enabled: str = setting(
        "true",
        "Whether stacks of hung workers and of their rank are taken (`true` or `false`): by py-spy,"
        " three times, without stopping them. /proc state, wait channel and system call always"
        " are.",
        choices=("true", "false"),
    )
    per_hour: int = setting(
        20,
        "Hangs per hour of which stacks are taken.",
        minimum=1,
        maximum=3600,
    )


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be configured; the defaults are those of `dlmon agent` without a file."""

    interval_seconds: float = setting(
        1,
        "Seconds from one look at the node to the next. A look that takes longer skips the ones it"
        " has missed. As a flag: a duration such as `500ms`, `1s` or `2m`.",
        minimum=0.1,
        maximum=60,
        flag="--interval",
    )
    dirs: tuple[str, ...] = setting(
        SEARCHED,
        "Directories searched for segments, and for directories `dlmon-<uid>` with segments. If"
        " the file has none, `DLMON_DIR` from the environment is searched first. The flag can be"
        " given more than once and replaces the file's.",
        flag="--dir",
    )
    web: Web = field(default_factory=Web)
    metrics: Metrics = field(default_factory=Metrics)
    memory: Memory = field(default_factory=Memory)
    keep: Keep = field(default_factory=Keep)
    limits: Limits = field(default_factory=Limits)
    hangs: Hangs = field(default_factory=Hangs)
    stacks: Stacks = field(default_factory=Stacks)


SETTINGS: tuple[Setting, ...] = tuple(settings_of(Config))
"""Every setting, in the order of the schema."""

FLAGS: Mapping[str, Setting] = {entry.flag: entry for entry in SETTINGS if entry.flag}
"""The settings that a command-line flag overrides."""

_DURATION = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?P<unit>ms|s|m|h)")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def load(
    path: str | None,
    flags: Mapping[str, str | Sequence[str]],
    environ: Mapping[str, str] = os.environ,
) -> Config:
    """Make the configuration: a flag wins over the file, the file over the default.

    Args:
        path: The YAML file, or None for none.
        flags: The flags that were given, by name (see `FLAGS`).
        environ: Where `DLMON_DIR` is looked up.

    Raises:
        ConfigError: The file has an unknown key, a wrong type or a value that is not allowed.
        UsageError: The same of a flag.
    """
    values: dict[tuple[str, ...], Value] = {("dirs",): searched(environ)}
    if path is not None:
        values.update(read_values(Path(path), SETTINGS))
    for flag, text in flags.items():
        values[FLAGS[flag].path] = _parse_flag(FLAGS[flag], text)
    config: Config = build(Config, values)
    return config


def _parse_flag(entry: Setting, text: str | Sequence[str]) -> Value:
    value: Value
    if not isinstance(text, str):
        value = tuple(os.path.abspath(item) if item else item for item in text)
    elif entry.rule.kind == "float":
        value = parse_duration(text, entry.flag)
    else:
        value = text
    if not entry.rule.permits(value):
        raise UsageError(f"{entry.flag}: {text!r} is not allowed; expected {entry.allowed}")
    return value


def parse_duration(text: str, flag: str) -> float:
    """Return the seconds of a duration such as `1s`, `500ms` or `2m`.

    Raises:
        UsageError: It is no number with one of the units ms, s, m, h; the message names `flag`.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{flag}: {text!r} is no duration; expected a number with a unit (ms, s, m or h),"
            " for example 1s or 500ms"
        )
    return float(match["number"]) * _UNIT_SECONDS[match["unit"]]
