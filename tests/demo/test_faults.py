"""What the demo's agent says of the demo's training under each fault: the finding that is promised.

All trainings of a group run at once beside one agent: most of the time they start, or hang.
"""

from __future__ import annotations

import inspect
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from dlmon.analysis.findings import FINDINGS
from dlmon.demo.faults import FAULTS
from dlmon.demo.session import AGENT_CONFIG
from dlmon.demo.trouble import TROUBLES
from tests.agents import Agent, running
from tests.jobs import JobStarter, wait_for

pytestmark = pytest.mark.timeout(300)

GROUP_SECONDS = 200.0
"""Half a dozen processes import torch at once."""

STUCK = ("deadlock", "gil", "hang", "stop")
"""Those whose line can be seen."""

HANGS = (*STUCK, "unpicklable")
ENDS = {
    "exception": "OSError",
    "exit": "RuntimeError",
    "kill": "RuntimeError",
    "segfault": "RuntimeError",
}
"""What ends the loop's epoch, and with what."""

EPOCHS_AFTER = "4"
"""Enough to see that training goes on after an epoch that an exception ended."""


def promised(fault: str) -> str | None:
    """The finding that the demo says to look at, None if there is none."""
    found = re.search(r'dlmon_finding\{finding="(\w+)"\}', " ".join(FAULTS[fault].metrics))
    return found[1] if found else None


class Shown:
    """What is found about trainings that run at once, and the agent that says so.

    Attributes:
        found: The names of all that was found, by fault.
    """

    def __init__(self, agent: Agent, jobs: JobStarter, data: Path) -> None:
        self.agent = agent
        self.found: dict[str, set[str]] = {}
        self._jobs = jobs
        self._data = data
        self.outputs: dict[str, str] = {}

    def show(self, faults: Sequence[str], *arguments: str) -> None:
        """Have trainings suffer until all that is promised is found, and those that end have."""
        started = {}
        for fault in faults:
            argv = ["--data", str(self._data), "--fault", fault, *arguments]
            started[fault] = self._jobs(
                f"import sys\nfrom dlmon.demo import train\nsys.exit(train.main({argv!r}))\n",
                env={"DLMON_RUN": fault},
                name=f"{fault}.py",
            )
            self.found[fault] = set()

        def all_seen() -> bool:
            for one in self.read("/api/v1/findings")["findings"]:
                self.found.setdefault(one["run"], set()).add(one["name"])
            ended = [job.ended() for job in started.values()] if arguments else []
            return all(ended) and all(promised(one) in {*self.found[one], None} for one in faults)

        with suppress(pytest.fail.Exception):  # each fault's test says what is missing of it
            wait_for(all_seen, f"findings of {faults}", deadline=GROUP_SECONDS)
        self.outputs.update({fault: job.output() for fault, job in started.items()})

    def read(self, path: str) -> Any:
        return json.loads(self.agent.get(path)[1])

    def lines(self, fault: str) -> list[tuple[str, int]]:
        """Files and numbers of the lines that the agent has seen the hung worker in."""
        return [
            (frame["file"], frame["line"])
            for hang in self.read("/api/v1/hangs")["hangs"]
            if (hang["finding"]["run"], hang["finding"]["name"]) == (fault, promised(fault))
            for seen in hang["processes"]
            if seen["role"] == "worker 0"
            for stack in seen["stacks"]
            for thread in stack["threads"]
            for frame in thread["frames"]
        ]


@contextmanager
def agent_of_the_demo(folder: Path, photographs: Path) -> Iterator[Shown]:
    """Run the agent as the demo configures it."""
    config = folder / "agent.yml"
    config.write_text(f"{AGENT_CONFIG}web: {{listen_address: '127.0.0.1:0'}}\n")
    data = folder / "photographs"
    shutil.copytree(photographs, data)  # a fault may put files there
    segments = Path(tempfile.mkdtemp(prefix="dlt-", dir="/dev/shm"))
    jobs = JobStarter(folder, segments)
    with running("--config", str(config), "--dir", str(segments)) as agent:
        try:
            wait_for(agent.ready, "ready")
            yield Shown(agent, jobs, data)
        finally:
            jobs.close()
            shutil.rmtree(segments, ignore_errors=True)


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Iterator[Shown]:
    with agent_of_the_demo(tmp_path_factory.mktemp("lasting"), photographs) as shown:
        shown.show([*HANGS, "erode"])
        yield shown


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> Iterator[Shown]:
    with agent_of_the_demo(tmp_path_factory.mktemp("ended"), photographs) as shown:
        shown.show([*ENDS], "--epochs", EPOCHS_AFTER)
        yield shown


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_promised_is_a_finding(fault: str) -> None:
    assert promised(fault) in {*FINDINGS, None}


@pytest.mark.slow
@pytest.mark.parametrize("fault", HANGS)
def test_a_hang_is_found(lasting: Shown, fault: str) -> None:
    assert promised(fault) in lasting.found[fault], lasting.outputs[fault]


@pytest.mark.slow
@pytest.mark.parametrize("fault", STUCK)
def test_a_hang_is_seen_in_the_lines_of_its_fault(lasting: Shown, fault: str) -> None:
    lines, first = inspect.getsourcelines(TROUBLES[fault])
    file = inspect.getfile(TROUBLES[fault])
    mine = {(file, first + number) for number in range(len(lines))}
    wait_for(lambda: mine & {*lasting.lines(fault)}, f"a line of {fault}")


@pytest.mark.slow
def test_erosion_is_found_and_no_leak(lasting: Shown) -> None:
    assert lasting.found["erode"] >= {promised("erode")}, lasting.outputs["erode"]
    assert promised("leak") not in lasting.found["erode"]


@pytest.mark.slow
def test_an_unpicklable_batch_has_its_error_on_the_screen(lasting: Shown) -> None:
    assert re.search("Error: Can't pickle .*Unpicklable", lasting.outputs["unpicklable"])


@pytest.mark.slow
@pytest.mark.parametrize("fault", ENDS)
def test_training_goes_on_after_what_ended_an_epoch(ended: Shown, fault: str) -> None:
    output = ended.outputs[fault]
    assert f"epoch   2   {ENDS[fault]}: " in output
    assert f"epoch   {EPOCHS_AFTER}   loss" in output


@pytest.mark.slow
@pytest.mark.parametrize("fault", [fault for fault in ENDS if promised(fault)])
def test_a_death_is_found(ended: Shown, fault: str) -> None:
    assert ended.found[fault] >= {promised(fault)}, ended.outputs[fault]
    (death,) = (one for one in ended.read("/api/v1/deaths")["deaths"] if one["run"] == fault)
    assert f'reason="{death["reason"]}"' in " ".join(FAULTS[fault].metrics)


@pytest.mark.slow
def test_an_exception_of_the_dataset_is_no_death(ended: Shown) -> None:
    assert not ended.found["exception"] & {"worker_died", "rank_died", "orphan_workers"}
