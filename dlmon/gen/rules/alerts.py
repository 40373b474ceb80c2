"""Every alert, in the order of the file and of docs/alerts.md."""

from __future__ import annotations

from dlmon.gen.rules import agents, deaths, hangs, memory, speed
from dlmon.gen.rules.model import Alert

ALERTS: tuple[Alert, ...] = tuple(
    value
    for module in (hangs, deaths, memory, speed, agents)
    for value in vars(module).values()
    if isinstance(value, Alert)
)
