"""Who was left behind: one finding a rank, whoever is that rank by now."""

from __future__ import annotations

from typing import Any

import pytest

from dlmon.analysis import orphans
from dlmon.observe.snapshot import Rank, Snapshot
from tests.agent.samples import NOW, make_loader, make_rank, make_snapshot, make_worker

LATER = NOW + orphans.AFTER_SECONDS


def dead(*slots: int, first_pid: int = 5000, **changes: Any) -> Rank:
    """A dead rank, some of whose workers live."""
    workers = tuple(
        make_worker(slot, pid=first_pid + slot, orphan=True, process_state="S") for slot in slots
    )
    loaders = (make_loader(workers=workers),)
    values = {"up": False, "died": NOW, "orphan_workers": len(slots), "loaders": loaders}
    return make_rank(**{**values, **changes})


def seen(*ranks: Rank, superseded: tuple[Rank, ...] = (), time: float = LATER) -> Snapshot:
    return make_snapshot(*ranks, superseded=superseded, time=time)


def test_they_are_told_when_they_had_time_to_end() -> None:
    assert not list(orphans.findings(seen(dead(2), time=LATER - 1)))
    (finding,) = orphans.findings(seen(dead(2)))
    assert (finding.name, finding.run, finding.rank) == ("orphan_workers", "job-17", "0")
    assert finding.since == NOW
    assert finding.sentence == (
        "1 worker of rank 0 of run job-17, which is dead, lives on and holds 412 MB"
    )
    assert finding.evidence == {"worker 2 of train": "pid 5002, state S, RSS 412 MB"}


def test_those_of_a_process_that_was_replaced_are_told_too() -> None:
    (finding,) = orphans.findings(seen(make_rank(), superseded=(dead(0, 1, 2),)))
    assert finding.sentence == (
        "3 workers of an earlier process of rank 0 of run job-17 live on and hold 1.2 GB"
    )
    assert len(finding.evidence) == 3


@pytest.mark.parametrize("replaced", [True, False])
def test_those_of_several_processes_of_a_rank_are_told_together(replaced: bool) -> None:
    one, other = dead(0, died=NOW - 5), dead(0, 1, first_pid=6000)
    if replaced:
        snapshot = seen(make_rank(), superseded=(one, other))
    else:
        snapshot = seen(other, superseded=(one,))
    (finding,) = orphans.findings(snapshot)
    assert finding.sentence.startswith("3 workers of ")
    assert finding.since == NOW - 5
    assert {name: text.partition(",")[0] for name, text in finding.evidence.items()} in (
        {"worker 0 of train": "pid 5000", "worker 0 of train (2)": "pid 6000"}
        | {"worker 1 of train": "pid 6001"},
        {"worker 0 of train": "pid 6000", "worker 0 of train (2)": "pid 5000"}
        | {"worker 1 of train": "pid 6001"},
    )


def test_ranks_without_any_are_not_told() -> None:
    assert not list(orphans.findings(seen(make_rank(), superseded=(make_rank(), dead()))))
