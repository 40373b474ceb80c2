"""Last words: what an operator reads of a death."""

from __future__ import annotations

from typing import Any

import pytest

from dlmon.analysis import deaths
from dlmon.analysis.robust import slope
from dlmon.observe.snapshot import Ended, WorkerState
from dlmon.segment.layout import EXIT_REASONS, Phase
from tests.agent.samples import NOW, make_loader, make_rank, make_worker


def ended(**changes: Any) -> Ended:
    values = {
        "key": "1-a.seg/3/1",
        "rank_key": "k",
        "run": "r",
        "rank": "0",
        "loader": "train",
        "worker": 3,
        "pid": 5003,
        "reason": "oom_kill",
        "exitcode": -9,
        "died": NOW,
        "fetching_since": NOW - 4.2,
        "fetch_index": 18112,
        "fetch_samples": 32,
    }
    return Ended(**{**values, **changes})


def growing(rate: float, to: float, seconds: int = 60) -> deaths.Memory:
    times = [NOW - seconds + i for i in range(seconds + 1)]
    sizes = [to - rate * (seconds - i) for i in range(seconds + 1)]
    return {"time": times, "resident_bytes": sizes, "proportional_bytes": sizes}


def test_the_sentence_that_a_user_should_get() -> None:
    last = make_worker(3, proportional_bytes=11_200_000_000)
    memory = growing(40e6, 11.2e9)
    death = deaths.of_worker(ended(), make_rank(), make_loader(), last, memory)
    assert death.sentence == (
        "worker 3 of train was OOM-killed while fetching a batch that begins with sample 18112 "
        "(32 a batch), for 4.2 s; PSS 11.2 GB and growing 40 MB/s"
    )
    assert death.doing == "fetching"
    assert death.doing_seconds == pytest.approx(4.2)
    assert death.growth_bytes_per_second == pytest.approx(40e6)
    assert [other["worker"] for other in death.others] == ["", "0", "1", "2"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fetch_index": None}, "while fetching a batch, for 4.2 s"),
        ({"fetch_samples": 1}, "fetching a batch that begins with sample 18112, for 4.2 s"),
        ({"fetch_samples": 0}, "begins with sample 18112 (64 a batch), for 4.2 s"),
        ({"died": None}, "fetching a batch that begins with sample 18112 (32 a batch)"),
        ({"reason": "error", "exitcode": 3}, "worker 3 of train exited with status 3 while"),
        ({"reason": "error", "exitcode": None}, "worker 3 of train exited with an error while"),
        ({"reason": "other_signal", "exitcode": -1}, "was ended by SIGHUP while"),
        ({"reason": "other_signal", "exitcode": -50}, "was ended by signal 50 while"),
        ({"reason": "lost", "exitcode": None}, "worker 3 of train died of an unknown cause while"),
        ({"worker": None, "fetching_since": None}, "a worker of train was OOM-killed"),
    ],
)
def test_what_is_not_known_is_not_said(changes: dict[str, Any], words: str) -> None:
    death = deaths.of_worker(ended(**changes), make_rank(), make_loader(), None, {})
    assert words in death.sentence
    assert not death.sentence.endswith((",", ";", " "))


def test_of_who_was_replaced_within_a_second_it_is_said_what_was_seen() -> None:
    last = make_worker(3, fetching_since=NOW - 1.2, fetch_index=640, fetch_samples=64)
    gone = ended(replaced=True, fetching_since=None, fetch_index=None, fetch_samples=0)
    death = deaths.of_worker(gone, None, None, last, {})
    assert death.sentence == (
        "worker 3 of train was OOM-killed, last seen fetching a batch that begins with sample 640 "
        "(64 a batch); PSS 180 MB"
    )
    assert (death.fetch_index, death.doing_seconds) == (640, None)


def test_of_very_many_workers_those_that_fetched_the_longest_are_kept() -> None:
    workers = tuple(make_worker(i, fetching_since=NOW - i) for i in range(200))
    death = deaths.of_worker(ended(), None, make_loader(workers=workers), None, {})
    kept = [int(str(other["worker"])) for other in death.others[1:]]
    assert kept == list(range(200 - deaths.MOST_OTHERS, 200))


@pytest.mark.parametrize("reason", EXIT_REASONS)
def test_every_reason_has_its_words(reason: str) -> None:
    assert deaths.ended_how(reason, None) != "died"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (WorkerState.IDLE, " was OOM-killed while idle; PSS 180 MB"),
        (WorkerState.HANDING_OVER, " was OOM-killed while handing over a batch; PSS 180 MB"),
        (WorkerState.STOPPED, " was OOM-killed while stopped; PSS 180 MB"),
        (WorkerState.FETCHING, " was OOM-killed; PSS 180 MB"),
    ],
)
def test_without_an_open_fetch_the_state_seen_last_is_said(state: WorkerState, words: str) -> None:
    last = make_worker(3, state=state)
    death = deaths.of_worker(ended(fetching_since=None), None, None, last, {})
    assert death.sentence.endswith(words)


@pytest.mark.parametrize(
    ("rate", "seconds", "said"),
    [(40e6, 60, True), (40e6, 5, False), (50e3, 60, False), (-40e6, 60, False), (1e6, 60, False)],
)
def test_growth_is_said_where_it_matters_and_was_seen_for_long_enough(
    rate: float, seconds: int, said: bool
) -> None:
    last = make_worker(3, resident_bytes=2_000_000_000, proportional_bytes=None)
    memory = growing(rate, 2e9, seconds)
    death = deaths.of_worker(ended(), None, None, last, memory)
    assert (" and growing " in death.sentence) is said


def test_pss_that_is_scanned_seldom_is_no_step_function() -> None:
    memory = dict(growing(0, 1e9, 200))
    scans = [1e9 + 60e6 * (i // 60) for i in range(201)]  # 1 MB/s, once a minute
    memory["proportional_bytes"] = scans
    death = deaths.of_worker(ended(), None, None, make_worker(3), memory)
    assert death.growth_bytes_per_second == pytest.approx(1e6)


def test_a_ranks_last_words_have_its_phase_its_workers_and_its_orphans() -> None:
    living = make_rank(key="k")
    loader = make_loader(phase=Phase.STEP, phase_since=NOW - 12, batches=1204)
    dead = make_rank(
        key="k", up=False, died=NOW, died_of="oom_kill", orphan_workers=2, loaders=(loader,)
    )
    death = deaths.of_rank(dead, living, {})
    assert death.sentence == (
        "rank 0 of run job-17 was OOM-killed in step of train for 12 s, after 1,204 batches; "
        "RSS 2.1 GB; 2 of its workers live on"
    )
    assert (death.kind, death.key, death.doing) == ("rank", "k", "step")
    assert [other["worker"] for other in death.others] == ["", "0", "1", "2", "3"]


def test_the_slope_is_not_moved_by_a_quarter_of_outliers() -> None:
    points = [(float(x), 2.0 * x + (1e6 if x % 4 == 0 else 0)) for x in range(400)]
    assert slope(points) == pytest.approx(2.0)


def test_the_slope_of_too_little_is_not_known() -> None:
    assert slope([]) is None
    assert slope([(1.0, 1.0)]) is None
    assert slope([(1.0, 1.0), (1.0, 2.0)]) is None
