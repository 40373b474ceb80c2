"""Snapshots as an observer makes them, for tests of what is made of them."""

from __future__ import annotations

import dataclasses
from typing import Any

from dlmon.agent.hangs import Hang, Sighting
from dlmon.observe.kernel import Doing
from dlmon.observe.snapshot import (
    CgroupMemory,
    Finding,
    Gpu,
    Histogram,
    Loader,
    Process,
    Rank,
    Refused,
    Snapshot,
    Unobserved,
    UnobservedWorker,
    Worker,
    WorkerState,
)
from dlmon.observe.stacks import Frame, Stack, Thread
from dlmon.segment.layout import ERRORS, EXIT_REASONS, HISTOGRAM_BUCKETS, HOOKS, Phase

NOW = 1_750_000_000.0
GPU_UUID = "GPU-8d6a4b0e-0000-4000-8000-000000000001"


def make_histogram(**counts: int) -> Histogram:
    """A histogram from `b25=3`: three durations with a bit length of 25 nanoseconds."""
    cells = [0] * HISTOGRAM_BUCKETS
    for bucket, count in counts.items():
        cells[int(bucket[1:])] = count
    total = sum(count * 1.5 * 2 ** (bucket - 1) for bucket, count in enumerate(cells)) / 1e9
    return Histogram(tuple(cells), total)


def make_worker(slot: int = 0, **changes: Any) -> Worker:
    """A living worker that fetches."""
    worker = Worker(
        slot=slot,
        up=True,
        state=WorkerState.FETCHING,
        pid=5000 + slot,
        last_progress=NOW - 0.3,
        batches=100 + slot,
        samples=6400,
        failed=0,
        fetch_seconds=95.5,
        cpu_seconds=80.25,
        resident_bytes=412_000_000,
        orphan=False,
        proportional_bytes=180_000_000,
        unique_bytes=90_000_000,
        scanned=NOW - 30,
        read_bytes=7_000_000,
        major_faults=12,
        open_fds=40,
        max_fds=1024,
        anonymous_bytes=350_000_000,
        shm_bytes=20_000_000,
        copied_bytes=0,
    )
    return dataclasses.replace(worker, **changes)


def make_loader(name: str = "train", **changes: Any) -> Loader:
    """A loader in the middle of an epoch, with four workers."""
    loader = Loader(
        name=name,
        config={
            "dataset": "PhotoDataset",
            "num_workers": "4",
            "prefetch_factor": "2",
            "batch_size": "64",
            "pin_memory": "True",
            "persistent_workers": "True",
            "start_method": "fork",
            "timeout_seconds": "0",
            "in_order": "True",
        },
        phase=Phase.WAIT,
        phase_seconds={
            Phase.STARTUP: 1.5,
            Phase.WAIT: 73.0,
            Phase.STEP: 27.0,
            Phase.PAUSE: 0.0,
            Phase.TEARDOWN: 0.25,
        },
        epochs=3,
        startups=3,
        batches=400,
        samples=25_920,
        discarded=2,
        ready=1,
        outstanding=7,
        capacity=8,
        reorder=1,
        last_delivery=NOW - 0.2,
        last_epoch=NOW - 60,
        wait=make_histogram(b27=300, b28=99),
        step=make_histogram(b26=398),
        fetch=make_histogram(b29=405),
        timeouts=0,
        errors=dict.fromkeys(ERRORS, 0),
        worker_starts=4,
        worker_exits=dict.fromkeys(EXIT_REASONS, 0),
        last_abnormal_exit=NOW - 500,
        workers=tuple(make_worker(slot) for slot in range(4)),
    )
    return dataclasses.replace(loader, **changes)


def make_rank(rank: str = "0", run: str = "job-17", **changes: Any) -> Rank:
    """A living rank with one loader."""
    made = Rank(
        run=run,
        rank=rank,
        pid=4242,
        up=True,
        died=None,
        started=NOW - 100,
        info={
            "user": "alice",
            "script": "train.py",
            "python": "3.11.2",
            "torch": "2.13.0",
            "dlmon": "0.1.0",
            "local_rank": rank,
            "world_size": "2",
        },
        hooks=dict.fromkeys(HOOKS, True),
        shim_errors=0,
        orphan_workers=0,
        process=Process(
            cpu_seconds=120.5,
            resident_bytes=2_100_000_000,
            open_fds=61,
            max_fds=1024,
            cpus=7.5,
            cpu_throttled_seconds=0.5,
            cgroup="/user.slice",
            shm_size_bytes=8_200_000_000,
            shm_used_bytes=1_000_000_000,
            shm_bytes=30_000_000,
        ),
        loaders=(make_loader(),),
        visible=True,
        gpus=(GPU_UUID,),
    )
    return dataclasses.replace(made, **changes)


def make_gpu(**changes: Any) -> Gpu:
    """The GPU on which the sample rank computes."""
    gpu = Gpu(
        index="0",
        uuid=GPU_UUID,
        name="NVIDIA H200",
        utilization=0.37,
        memory_used_bytes=11_000_000_000,
        memory_total_bytes=150_000_000_000,
        pids=(4242,),
    )
    return dataclasses.replace(gpu, **changes)


def make_unobserved(**changes: Any) -> Unobserved:
    """Two workers of a script without the shim, one of them an orphan."""
    worker = UnobservedWorker(
        pid=7001,
        parent=7000,
        process_state="S",
        started=NOW - 50,
        cpu_seconds=20.5,
        resident_bytes=300_000_000,
        read_bytes=1_000_000,
        orphan=False,
    )
    orphan = dataclasses.replace(worker, pid=7002, parent=None, process_state="T", orphan=True)
    group = Unobserved("bob", "finetune.py", (worker, orphan), cpu_seconds=50.0, read_bytes=3_000)
    return dataclasses.replace(group, **changes)


def make_finding(**changes: Any) -> Finding:
    """A worker of the sample rank that is stuck."""
    finding = Finding(
        name="worker_stuck_in_fetch",
        run="r1",
        rank="0",
        loader="train",
        worker="1",
        since=NOW - 90,
        sentence="worker 1 of train has been fetching for 90 s",
    )
    return dataclasses.replace(finding, **changes)


def make_cgroup(**changes: Any) -> CgroupMemory:
    """The memory of the sample rank's cgroup: half of its limit is anonymous."""
    memory = CgroupMemory(
        limit_bytes=16_000_000_000,
        working_set_bytes=9_000_000_000,
        anon_bytes=8_000_000_000,
        oom_kills=1,
        room_bytes=8_000_000_000,
        binding_limit_bytes=16_000_000_000,
    )
    return dataclasses.replace(memory, **changes)


def make_hang(**changes: Any) -> Hang:
    """What is kept of `make_finding`, whose worker holds the interpreter."""
    frames = (
        Frame("Photos.__getitem__", "/home/alice/data.py", 48),
        Frame("_MapDatasetFetcher.fetch", "/env/torch/utils/data/_utils/fetch.py", 54),
    )
    whole = Stack((Thread("MainThread", 5001, False, True, frames),))
    partial = Stack((Thread("MainThread", 5001, False, False, frames[1:]),))
    denied = Stack(trouble="not permitted to look into process 4242", refused=True)
    hang = Hang(
        make_finding(),
        noticed=NOW - 29,
        fetch_index=18112,
        fetch_samples=64,
        processes=(
            Sighting(
                "worker 1", 5001, Doing("D", "nfs_wait_bit", "read"), (partial, whole, partial)
            ),
            Sighting("rank", 4242, Doing("S", "futex_do_wait", "futex"), (denied,)),
        ),
    )
    return dataclasses.replace(hang, **changes)


def make_snapshot(*ranks: Rank, **changes: Any) -> Snapshot:
    """A snapshot of these ranks, by default one, with every total above zero."""
    snapshot = Snapshot(
        time=NOW,
        duration_seconds=0.004,
        ranks=ranks or (make_rank(),),
        refused=(Refused("/dev/shm/x.seg", "owner", "segment /dev/shm/x.seg: not its owner's"),),
        segments=2,
        refused_total={"owner": 3},
        stale_reads_total=1,
        clamped_total=4,
        dropped_total={"rank": 5, "user": 6},
        findings=(make_finding(),),
        gpus=(make_gpu(),),
        unobserved=(make_unobserved(),),
        cgroups={"/user.slice": make_cgroup()},
    )
    return dataclasses.replace(snapshot, **changes)
