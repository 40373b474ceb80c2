"""What means what in every dashboard: colours, thresholds and names of states, each written once.

Colours are Grafana's names, which follow its light and dark theme, or hexadecimal.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dlmon.analysis.room import NEARLY
from dlmon.observe.snapshot import WorkerState
from dlmon.segment.layout import Phase

Json = dict[str, Any]

GOOD, NOTICE, BAD, WORST = "green", "yellow", "red", "dark-red"
WAIT, STEP, GPU, FETCH = "orange", "green", "purple", "blue"
QUIET, FAINT = "#808080", "#5c6068"

PHASES: Mapping[Phase, str] = {
    Phase.IDLE: FAINT,
    Phase.STARTUP: "blue",
    Phase.WAIT: WAIT,
    Phase.STEP: STEP,
    Phase.PAUSE: QUIET,
    Phase.TEARDOWN: "dark-blue",
}

WORKER_STATES: Mapping[WorkerState, str] = {
    WorkerState.IDLE: FAINT,
    WorkerState.FETCHING: FETCH,
    WorkerState.HANDING_OVER: GPU,
    WorkerState.STOPPED: NOTICE,
    WorkerState.HUNG: BAD,
    WorkerState.DEAD: WORST,
    WorkerState.ZOMBIE: "#7a0019",
}

SEVERITIES: Mapping[str, str] = {"critical": BAD, "warning": NOTICE, "info": "blue"}

PHASE_COLOURS = {phase.name.lower(): colour for phase, colour in PHASES.items()}

WAIT_RATIO = ((None, GOOD), (0.1, NOTICE), (0.25, WAIT), (0.5, BAD))
"""A wait ratio: a tenth is worth a look, half of the time is bad."""

FULLNESS = ((None, GOOD), (NEARLY - 0.1, NOTICE), (NEARLY, BAD))
"""The used part of something limited, memory, /dev/shm or file descriptors, as findings see it."""

QUEUE_FILL = ((None, BAD), (0.1, WAIT), (0.25, NOTICE), (0.5, GOOD))
"""The ready part of the prefetch queue; empty is bad."""

BUSY = ((None, BAD), (0.3, NOTICE), (0.7, GOOD))
"""A GPU's utilisation."""

ANY_IS_BAD = ((None, GOOD), (1, BAD))
ANY_IS_NOTABLE = ((None, GOOD), (1, NOTICE))
TO_MEDIAN = ((None, GOOD), (1.5, NOTICE), (2, BAD))
"""Wait against the median of the run's ranks."""

PLAIN = ((None, "text"),)
"""No judgement: the theme's own colour for text."""

Steps = tuple[tuple[float | None, str], ...]


def thresholds(steps: Steps) -> list[Json]:
    """Return threshold steps as Grafana stores them; the first one's value is null."""
    return [{"color": colour, "value": value} for value, colour in steps]


def named(colours: Mapping[Any, str]) -> list[Json]:
    """Return the value mappings of an enumeration: its numbers shown as words, in their colours."""
    return mapping(
        {
            str(member.value): (member.name.lower().replace("_", " "), colour)
            for member, colour in colours.items()
        }
    )


def mapping(options: Mapping[str, tuple[str, str]]) -> list[Json]:
    """Return value mappings of texts and colours by value."""
    return [
        {
            "type": "value",
            "options": {
                value: {"text": text, "color": colour, "index": index}
                for index, (value, (text, colour)) in enumerate(options.items())
            },
        }
    ]


UP_OR_DEAD = mapping({"1": ("up", GOOD), "0": ("dead", WORST)})
SEVERITY_NAMES = mapping({name: (name, colour) for name, colour in SEVERITIES.items()})
