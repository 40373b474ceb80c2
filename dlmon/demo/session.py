"""One demo from its first line on the screen to its end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass

from dlmon.demo import photos
from dlmon.demo.children import Children
from dlmon.demo.faults import FAULTS
from dlmon.demo.interruptions import Interruptions
from dlmon.errors import UsageError

READY_SECONDS = 60.0
POLL_SECONDS = 0.1
LOG_LINES = 15

AGENT_CONFIG = """\
# A demonstration is short: trouble is told after seconds, not after a minute as by default.
hangs: {floor_seconds: 5, ceiling_seconds: 10}
memory: {pss_interval_seconds: 5}
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to show.

    Attributes:
        listen: Where the agent is to listen, `host:port`.
        url: Address of the page for a browser on this machine, with a final slash.
        num_workers: Of the loader for training.
        epochs: How many, or None for no end.
        per_photograph: Files to cut out of each photograph.
        fault: A key of `FAULTS`, or None.
    """

    listen: str
    url: str
    num_workers: int
    epochs: int | None
    per_photograph: int
    fault: str | None


class Session:
    """Starts the agent and the training, says what to look at and watches over both.

    Args:
        plan: What to show.
        children: Starts the processes, and ends them when it is closed.
        interruptions: Tells when to end.
    """

    def __init__(self, plan: Plan, children: Children, interruptions: Interruptions) -> None:
        self._plan = plan
        self._children = children
        self._interruptions = interruptions
        self._data = children.folder / "photographs"
        self._log = children.folder / "agent.log"

    def run(self) -> int:
        """Show it all.

        Returns:
            0 after the last epoch, the status of a training that failed before it, 1 if the agent
            ended by itself or did not become ready.

        Raises:
            InterruptionError: A signal says that it is enough.
            UsageError: The photographs are not there or cannot be written.
        """
        agent = self._start_agent()
        self._cut_photographs()
        if not self._wait_until_ready(agent):
            return 1
        self._announce()
        return self._watch(agent, self._start_training())

    def _start_agent(self) -> subprocess.Popen[bytes]:
        config = self._children.folder / "agent.yml"
        config.write_text(AGENT_CONFIG)
        arguments = ["agent", "--config", str(config), "--web.listen-address", self._plan.listen]
        arguments += ["--dir", str(self._children.segments)]
        return self._children.start("dlmon", *arguments, log=self._log)

    def _start_training(self) -> subprocess.Popen[bytes]:
        arguments = ["--data", str(self._data), "--num-workers", str(self._plan.num_workers)]
        if self._plan.epochs is not None:
            arguments += ["--epochs", str(self._plan.epochs)]
        if self._plan.fault is not None:
            arguments += ["--fault", self._plan.fault]
        return self._children.start("dlmon.demo.train", *arguments)

    def _cut_photographs(self) -> None:
        what = f"cutting JPEG files out of {len(photos.PHOTOGRAPHS)} photographs"
        live = sys.stdout.isatty()
        total = 0
        try:
            self._data.mkdir()
            for written, total in photos.write(self._data, self._plan.per_photograph):
                self._interruptions.check()
                if live:
                    print(f"\r{what}: {written} of {total}", end="", flush=True)
        except OSError as error:
            raise UsageError(
                f"cannot write photographs to {self._data}: {error.strerror}; "
                "set TMPDIR to a directory with 50 MB of room"
            ) from None
        print() if live else print(f"{what}: {total}")

    def _wait_until_ready(self, agent: subprocess.Popen[bytes]) -> bool:
        """Wait for the agent to answer; say why if it does not."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if agent.poll() is not None:
                self._report_agent(agent)
                return False
            try:
                with opener.open(f"{self._plan.url}-/ready", timeout=1):
                    return True
            except OSError:  # not listening yet, or 503 and not ready yet
                self._interruptions.wait(POLL_SECONDS)
        _complain(f"the agent was not ready within {READY_SECONDS:.0f} s; {self._log_tail()}")
        return False

    def _announce(self) -> None:
        url = self._plan.url
        print(
            f"\n  {url:<34} the page: open it in a browser"
            f"\n  {url + 'metrics':<34} what Prometheus reads"
            f"\n  DLMON_DIR={self._children.segments} dlmon ps    the same in another terminal\n"
        )
        if self._plan.fault is not None:
            fault = FAULTS[self._plan.fault]
            print(f"{fault.happens} What you will see:")
            print("\n".join(f"  {line}" for line in fault.signs))
            print("\n".join(f"  metrics: {line}" for line in fault.metrics), end="\n\n")
        until = "" if self._plan.epochs is None else " earlier"
        print(f"Ctrl-C ends everything{until} and removes all files\n", flush=True)

    def _watch(self, agent: subprocess.Popen[bytes], training: subprocess.Popen[bytes]) -> int:
        reported = False
        while True:
            if agent.poll() is not None:
                self._report_agent(agent)
                return 1
            status = training.poll()
            if status is not None and self._plan.epochs is not None:
                if status != 0:
                    _complain(f"the training failed: {_ending(status)}")
                return status if status >= 0 else 128 - status
            if status is not None and not reported:
                _complain(
                    f"the training ended by itself: {_ending(status)}; "
                    "the page stays up to look at, until Ctrl-C"
                )
                reported = True
            self._interruptions.wait(1.0)

    def _report_agent(self, agent: subprocess.Popen[bytes]) -> None:
        _complain(f"the agent ended by itself: {_ending(agent.returncode)}; {self._log_tail()}")

    def _log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        return "\n".join(["the end of what it printed:", *lines]) if lines else "it printed nothing"


def _complain(message: str) -> None:
    print(f"dlmon demo: {message}", file=sys.stderr, flush=True)


def _ending(status: int) -> str:
    """Say how a process ended, from its status as `subprocess` has it."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"
