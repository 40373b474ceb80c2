"""The configuration that is shipped in deploy/, written for one Prometheus and one Alertmanager.

It is used as it is. What differs from one place to another is said here: who is scraped, where
Alertmanager is, whom it tells, and, for tests and demonstrations, how fast time goes.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parent.parent.parent / "deploy"

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_PART = re.compile(r"(\d+)(ms|[smhdw])")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")
_WINDOW = re.compile(r"(?<=\[)[0-9a-z]+(?=[\]:])|(?<=:)[0-9a-z]+(?=\])|(?<=offset )[0-9a-z]+")
_AGE = re.compile(r"(time\(\) - [\w:]+\)? [<>] )(\d+)")
_PROMETHEUS_KEYS = frozenset({"scrape_interval", "scrape_timeout", "evaluation_interval"})
_RULE_KEYS = frozenset({"interval", "for", "keep_firing_for"})
_ALERTMANAGER_KEYS = frozenset({"group_wait", "group_interval", "repeat_interval"})


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stack is, and how it differs from what is shipped.

    Attributes:
        agents: `host:port` of each agent.
        alertmanager: `host:port` of Alertmanager.
        webhook: A URL that receiver `default` is to tell, None for nobody.
        faster: Every duration is divided by this: intervals, windows, `for`, ages compared with
            `time() - …`, and how long Alertmanager waits. 1 leaves all as it is shipped.
    """

    agents: Sequence[str]
    alertmanager: str
    webhook: str | None = None
    faster: float = 1.0


def write(folder: Path, place: Place) -> tuple[Path, Path]:
    """Write the configuration of both into a folder.

    Args:
        folder: Must exist; gets `prometheus` and `alertmanager`.
        place: What differs from deploy/.

    Returns:
        The files for Prometheus's and Alertmanager's `--config.file`.
    """
    prometheus, alertmanager = folder / "prometheus", folder / "alertmanager"
    for target in (prometheus, alertmanager):
        shutil.copytree(DEPLOY / target.name, target)
    _write(prometheus / "targets" / "agents.yml", [{"targets": list(place.agents)}])
    _write(prometheus / "targets" / "alertmanagers.yml", [{"targets": [place.alertmanager]}])
    files = prometheus / "prometheus.yml", alertmanager / "alertmanager.yml"
    if place.webhook is not None:
        _change(files[1], lambda config: _tell(config, place.webhook))
    if place.faster != 1.0:
        _change(files[0], lambda node: _hasten(node, _PROMETHEUS_KEYS, place.faster))
        _change(files[1], lambda node: _hasten(node, _ALERTMANAGER_KEYS, place.faster))
        for rules in (prometheus / "rules").glob("*.yml"):
            _change(rules, lambda node: _hasten(node, _RULE_KEYS, place.faster))
    return files


def _tell(config: Any, url: str | None) -> Any:
    for receiver in config["receivers"]:
        if receiver["name"] == "default":
            receiver["webhook_configs"] = [{"url": url, "send_resolved": True}]
    return config


def _hasten(node: Any, keys: frozenset[str], faster: float) -> Any:
    """Return a YAML node with the durations under these keys, and in `expr`, divided."""
    if isinstance(node, list):
        return [_hasten(item, keys, faster) for item in node]
    if not isinstance(node, dict):
        return node
    return {key: _divided(key, value, keys, faster) for key, value in node.items()}


def _divided(key: str, value: Any, keys: frozenset[str], faster: float) -> Any:
    if key in keys:
        return _shorter(value, faster)
    if key == "expr":
        windows = _WINDOW.sub(lambda found: _shorter(found[0], faster), value)
        return _AGE.sub(lambda found: f"{found[1]}{int(found[2]) / faster:g}", windows)
    return _hasten(value, keys, faster)


def _shorter(duration: str, faster: float) -> str:
    if not _DURATION.fullmatch(duration):
        raise ValueError(f"{duration!r}: expected a duration such as 15s or 1h30m")
    seconds = sum(int(number) * _SECONDS[unit] for number, unit in _PART.findall(duration))
    return f"{round(seconds / faster * 1000)}ms"


def _change(path: Path, change: Callable[[Any], Any]) -> None:
    _write(path, change(yaml.safe_load(path.read_text(encoding="utf-8"))))


def _write(path: Path, content: Any) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False, width=1000), encoding="utf-8")
