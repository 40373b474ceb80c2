"""Clean up after `dlmon demo`, however it ends: a small process that outlives it by a moment.

Run as `python -m dlmon.demo.keeper PARENT`. It makes two private directories, prints their names
and waits until its standard input ends, which happens when the demo closes it and also when the
demo is killed. Then it kills what still runs of the demo and removes both directories.

What belongs to the demo is told by its environment: `MARK` names the directory for segments, that
nothing else has ever had. All that is started with it passes it on, DataLoader workers too, and
unlike a process id or a process group it cannot come to mean something else. `DLMON_DIR` would not
do: whoever looks at the demo from another terminal sets that too.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

PREFIX = "dlmon-demo-"
MARK = "DLMON_DEMO"
LONGEST_TMPDIR = 55
"""With more characters, the sockets through which workers hand over batches get names of more than
the 107 that are possible: a DataLoader then waits for ever."""

KILL_SECONDS = 10.0
"""A process that SIGKILL has not ended by then waits for a device and cannot be helped."""

TRACKER = b"multiprocessing.resource_tracker"
TRACKER_SECONDS = 2.0


def main(parent: Path) -> int:
    """Make the directories, wait for the end of standard input, clean up.

    Prints the two directories as a JSON list: for any files, and for segments.

    Args:
        parent: Where the directory for segments is to be, on a tmpfs.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    made: list[Path] = []
    try:
        usual = tempfile.gettempdir()
        place = usual if len(usual) <= LONGEST_TMPDIR else "/tmp"
        made.append(Path(tempfile.mkdtemp(prefix=PREFIX, dir=place)))
        made.append(Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent.absolute())))
        print(json.dumps([str(path) for path in made]), flush=True)
        sys.stdin.read()
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    finally:
        clean(made)
    return 0


def clean(directories: Sequence[Path]) -> None:
    """Kill all processes of a demo and remove its directories."""
    for directory in reversed(directories):
        kill_all(directory)
        shutil.rmtree(directory, ignore_errors=True)


def processes(segments: Path) -> dict[int, bytes]:
    """Return the pids of the user's processes started with this directory for segments.

    With each comes its command line, arguments ended by zero bytes.
    """
    mark = f"{MARK}={segments}".encode()
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            process = Path(entry.path)
            with suppress(OSError):  # ended meanwhile, or somebody else's
                if mark in (process / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (process / "cmdline").read_bytes()
    return found


def kill_all(segments: Path) -> None:
    """Kill all processes of a demo and wait until they are gone, at most KILL_SECONDS.

    Python's resource tracker is given TRACKER_SECONDS to remove the semaphores of the dead and end
    by itself. What torch can leave in /dev/shm when it is killed, a batch in the making, is removed
    here.
    """
    begun = time.monotonic()
    killed: set[int] = set()
    while (found := processes(segments)) and (spent := time.monotonic() - begun) < KILL_SECONDS:
        for pid, command in found.items():
            if TRACKER not in command or spent > TRACKER_SECONDS:
                killed.add(pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    for pid in killed:
        for path in Path("/dev/shm").glob(f"torch_{pid}_*"):
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
