"""How Prometheus and Alertmanager are started, and when they are ready."""

from __future__ import annotations

import shutil
import urllib.request
from pathlib import Path

from dlmon.errors import UsageError

TOOLS = Path(__file__).resolve().parent.parent.parent / ".tools" / "bin"


def program(name: str) -> str:
    """Return the path of a program, from `make tools` or on PATH.

    Raises:
        UsageError: There is none.
    """
    own = TOOLS / name
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        raise UsageError(
            f"no {name}, neither in {TOOLS} nor on PATH; `make tools` fetches Debian's where there"
            f" is apt-get, else install {name} and put it on PATH"
        )
    return found


def prometheus(config: Path, data: Path, address: str) -> list[str]:
    """Return the command line of a Prometheus.

    Args:
        config: Its configuration file.
        data: A folder of its own, made if it is not there.
        address: `host:port` to listen on.
    """
    return [
        program("prometheus"),
        f"--config.file={config}",
        f"--storage.tsdb.path={data}",
        f"--web.listen-address={address}",
        f"--web.external-url=http://{address}/",
        "--log.level=warn",
    ]


def alertmanager(config: Path, data: Path, address: str) -> list[str]:
    """Return the command line of an Alertmanager, alone; arguments as for `prometheus`."""
    return [
        program("alertmanager"),
        f"--config.file={config}",
        f"--storage.path={data}",
        f"--web.listen-address={address}",
        f"--web.external-url=http://{address}/",
        "--cluster.listen-address=",  # one alone needs no peers, nor a port for them
        "--log.level=warn",
    ]


def is_ready(address: str) -> bool:
    """Tell whether a server at `host:port` says that it is ready."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://{address}/-/ready", timeout=2):
            return True
    except OSError:  # not listening yet, or 503 and not ready yet
        return False
