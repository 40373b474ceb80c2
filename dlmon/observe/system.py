"""What the operating system and the GPU driver say: the parts of a Snapshot that need no shim.

Times are Unix times in seconds, sizes bytes; `None` means "not known here", never zero.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Process:
    """What the operating system says of a rank's process.

    Attributes:
        cpu_seconds: User and system time.
        resident_bytes: RSS.
        open_fds, max_fds: Descriptors in use and the soft limit.
        cpus: CPUs granted, by affinity and cgroup quota; a fraction is possible.
        cpu_throttled_seconds: Time its cgroup was throttled.
        cgroup: Path of its cgroup.
        shm_size_bytes, shm_used_bytes: The /dev/shm that it sees.
        state: R, S, D, T, t or Z as in /proc/<pid>/stat.
        shm_bytes: Of its resident memory what is in /dev/shm or other shared memory.
        frozen: Whether its cgroup is frozen: then it does not run, whatever `state` is.
    """

    cpu_seconds: float | None = None
    resident_bytes: int | None = None
    open_fds: int | None = None
    max_fds: int | None = None
    cpus: float | None = None
    cpu_throttled_seconds: float | None = None
    cgroup: str | None = None
    shm_size_bytes: int | None = None
    shm_used_bytes: int | None = None
    state: str | None = None
    shm_bytes: int | None = None
    frozen: bool | None = None


@dataclass(frozen=True, slots=True)
class CgroupMemory:
    """The memory of a cgroup, that of the cgroups below it included.

    Attributes:
        limit_bytes: The smallest limit of it and of all above it; None without one.
        working_set_bytes: Used, less the file pages that can be dropped at once.
        anon_bytes: Anonymous and shared memory; no page cache, which fills any limit.
        oom_kills: Processes that the kernel killed in it for want of memory.
        room_bytes: By how much `anon_bytes` can grow before the first limit is reached, its own or
            one above it, where others use memory too; 0 or more.
        binding_limit_bytes: That limit.
    """

    limit_bytes: int | None = None
    working_set_bytes: int | None = None
    anon_bytes: int | None = None
    oom_kills: int | None = None
    room_bytes: int | None = None
    binding_limit_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG instance of a GPU: a GPU that is divided is not listed itself.

    Attributes:
        index: NVML's, as "0"; of a MIG instance "0:1", the GPU's and its own.
        uuid: "GPU-..." or "MIG-...".
        name: The product's.
        utilization: Share of the last sample period (1/6 s to 1 s) in which a kernel ran, 0 to 1;
            None for MIG instances, for which NVML has none.
        memory_used_bytes, memory_total_bytes: Of its own memory; what the driver keeps for itself
            is not counted as used where the driver tells.
        pids: Processes that compute or draw on it, in the observer's pid namespace; None where NVML
            does not tell.
    """

    index: str
    uuid: str
    name: str
    utilization: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    pids: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class UnobservedWorker:
    """A DataLoader worker whose job has no shim, or none that this observer may read.

    Attributes:
        pid: In the observer's pid namespace.
        parent: pid of the training process; None for an orphan, and where it is not visible.
        process_state: R, S, D, T, t or Z as in /proc/<pid>/stat.
        started: Unix time.
        cpu_seconds: User and system time.
        resident_bytes: RSS.
        read_bytes: Read from storage; None where that may not be known.
        orphan: Its training process is gone.
        proportional_bytes, unique_bytes: PSS and USS at the last scan, which was at `scanned`; None
            before the first.
    """

    pid: int
    parent: int | None
    process_state: str
    started: float
    cpu_seconds: float
    resident_bytes: int | None
    read_bytes: int | None
    orphan: bool
    proportional_bytes: int | None = None
    unique_bytes: int | None = None
    scanned: float | None = None


@dataclass(frozen=True, slots=True)
class Unobserved:
    """The workers of all jobs of one user and script that are not observed.

    Attributes:
        user: A name, or the uid where it has none.
        script: File name of what the training process runs, "-m" and a module, or what it calls
            itself; "" if not known. Never any argument.
        workers: At the last look, the oldest first.
        cpu_seconds, read_bytes: Of all workers seen so far, those that have ended included;
            `read_bytes` is None before one could be read.
    """

    user: str
    script: str
    workers: tuple[UnobservedWorker, ...]
    cpu_seconds: float
    read_bytes: int | None
