"""Who this process is: the run it belongs to, its rank, and what the info text says of it.

Runs in: rank. On failure: an unknown fact is an empty string.
"""

from __future__ import annotations

import os
import pwd
import sys
from collections.abc import Mapping
from contextlib import suppress

MAX_LENGTH = 256
"""Of each fact, in characters: all of them fit the info text."""

MOST_ANCESTORS = 32
_FIELDS = 20  # of /proc/<pid>/stat that are used, from the third on

_LOCAL_RANK = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
_RANK = ("DLMON_RANK", "RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_WITHOUT_SRUN = tuple(name for name in _RANK[1:] if name != "SLURM_PROCID")
_WORLD_SIZE = ("WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def rank(env: Mapping[str, str], distributed: tuple[int, int] | None = None) -> str:
    """Return the global rank that DLMON_RANK, torch.distributed or the launcher gives, else "0".

    Args:
        env: The environment.
        distributed: Rank and world size of torch.distributed, None while it is not initialised.
    """
    if distributed is not None and not env.get("DLMON_RANK"):
        return str(distributed[0])
    return _first(env, _RANK) or "0"


def local_rank(env: Mapping[str, str]) -> str:
    """Return the rank within its node that the launcher gave, "" without one."""
    return _first(env, _LOCAL_RANK)


def run(env: Mapping[str, str], distributed: tuple[int, int] | None = None) -> str:
    """Return what names this launch: the launcher's own id, else script, pid and start time.

    Two jobs never share it by accident; all ranks that one launcher started on a node do. The
    launcher may be the first rank itself, as in Lightning.
    """
    if env.get("DLMON_RUN"):
        return env["DLMON_RUN"]
    if env.get("SLURM_JOB_ID") and env.get("SLURM_STEP_ID"):
        return f"slurm-{env['SLURM_JOB_ID']}.{env['SLURM_STEP_ID']}"
    elastic = env.get("TORCHELASTIC_RUN_ID", "")
    if elastic not in ("", "none"):  # `none` is torchrun's default, the same for every launch
        return elastic
    ranks = _RANK[1:] if env.get("SLURM_STEP_ID") else _WITHOUT_SRUN
    launched = bool(elastic or _first(env, ranks)) or local_rank(env) not in ("", "0")
    if distributed is not None and is_multiprocessing_child():
        launched = True
    launcher = os.getppid() if launched else os.getpid()
    own = f"{_base(script())}-{launcher}-{start_ticks(launcher)}"
    # A batch script may run several things side by side: without srun they are no step.
    return f"slurm-{env['SLURM_JOB_ID']}/{own}" if env.get("SLURM_JOB_ID") else own


def within(run: str) -> str:
    """Return a name for a job that a rank of `run` has started and that inherited its name."""
    return f"{run}/{_base(script())}-{os.getpid()}-{start_ticks(os.getpid())}"


def is_multiprocessing_child() -> bool:
    """Return whether `multiprocessing` started this process."""
    module = sys.modules.get("multiprocessing.process")
    return module is not None and module.parent_process() is not None


def ancestors() -> list[int]:
    """Return the pids of this process's parent, its parent and so on, as far as they are known."""
    found: list[int] = []
    pid = os.getppid()
    while pid > 1 and len(found) < MOST_ANCESTORS:
        found.append(pid)
        pid = int(_stat(pid)[1])
    return found


def script() -> str:
    """Return the script or module this process runs, as its user would name it."""
    main = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name:
        name: str = spec.name
        return name.removesuffix(".__main__")
    return getattr(main, "__file__", None) or "python"


def start_ticks(pid: int) -> int:
    """Return when a process began, field 22 of /proc/<pid>/stat, in clock ticks; 0 if gone."""
    return int(_stat(pid)[19])


def _stat(pid: int) -> list[bytes]:
    """Return the fields of /proc/<pid>/stat from the third on, zeros if it is gone."""
    with suppress(OSError), open(f"/proc/{pid}/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()
        if len(fields) >= _FIELDS:
            return fields
    return [b"0"] * _FIELDS


def identity(
    env: Mapping[str, str],
    chosen: Mapping[str, str],
    torch_version: str,
    distributed: tuple[int, int] | None = None,
) -> dict[str, str | None]:
    """Return who this process is, for its segments and its workers.

    Args:
        env: The environment.
        chosen: run, rank, dir as the user gave them to `instrument()`; they win.
        torch_version: "" if not known.
        distributed: Rank and world size of torch.distributed, None while it is not initialised.

    Returns:
        run, rank, dir (None for the default), root ("pid-start", which tells apart two processes
        that claim one rank) and the labels of `dlmon_rank_info` that only the process itself knows.
    """
    from dlmon import __version__

    pid = os.getpid()
    user = str(os.getuid())
    with suppress(KeyError):
        user = pwd.getpwuid(os.getuid()).pw_name
    facts = {
        "run": chosen.get("run") or run(env, distributed),
        "rank": chosen.get("rank") or rank(env, distributed),
        "root": f"{pid}-{start_ticks(pid)}",
        "user": user,
        "script": script(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "torch": torch_version,
        "dlmon": __version__,
        "local_rank": local_rank(env),
        "world_size": str(distributed[1]) if distributed else _first(env, _WORLD_SIZE),
    }
    short: dict[str, str | None] = {key: value[:MAX_LENGTH] for key, value in facts.items()}
    return {**short, "dir": chosen.get("dir") or env.get("DLMON_DIR")}


def _first(env: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((env[name] for name in names if env.get(name)), "")


def _base(path: str) -> str:
    return os.path.basename(path).removesuffix(".py") or "python"
