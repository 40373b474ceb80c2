"""The page in a real browser: what it says of each state, and what cannot break it."""

from __future__ import annotations

import dataclasses

import pytest

from dlmon.observe.snapshot import Loader, Process, Snapshot, WorkerState
from dlmon.segment.layout import Phase
from tests.agent.paging import Page
from tests.agent.samples import (
    NOW,
    make_cgroup,
    make_finding,
    make_gpu,
    make_hang,
    make_loader,
    make_rank,
    make_snapshot,
    make_unobserved,
    make_worker,
)

SECONDS = 10.0
"""Between the two snapshots that rates are made of."""


def two(before: Loader, after: Loader) -> tuple[Snapshot, Snapshot]:
    """Two snapshots of a loader, `SECONDS` apart."""
    return (
        make_snapshot(make_rank(loaders=(before,)), time=NOW - SECONDS),
        make_snapshot(make_rank(loaders=(after,)), time=NOW),
    )


def grown(loader: Loader, wait: float, step: float, busy: float) -> Loader:
    """The loader `SECONDS` later, having spent its time so, its workers so busy."""
    spent = dict(loader.phase_seconds)
    spent[Phase.WAIT] += wait
    spent[Phase.STEP] += step
    workers = tuple(
        dataclasses.replace(worker, fetch_seconds=worker.fetch_seconds + busy * SECONDS)
        for worker in loader.workers
    )
    return dataclasses.replace(
        loader,
        phase_seconds=spent,
        batches=loader.batches + 85,
        samples=loader.samples + 5440,
        workers=workers,
    )


WAITING = make_loader()
FULL = make_loader(ready=8, outstanding=8, phase=Phase.STEP)
ALONE = make_loader(workers=(), capacity=0, ready=0, outstanding=0)
STUCK = make_loader(
    last_delivery=NOW - 71,
    workers=(
        make_worker(0, state=WorkerState.HUNG),
        make_worker(1, state=WorkerState.STOPPED),
        make_worker(2, state=WorkerState.DEAD, up=False),
        make_worker(3, state=WorkerState.IDLE),
    ),
)


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (
            WAITING,
            grown(WAITING, 7.3, 2.7, 0.95),
            "waiting for data 73 % of the time; workers are busy",
        ),
        (
            WAITING,
            grown(WAITING, 4.0, 6.0, 0.3),
            "waiting for data 40 % of the time; workers are busy only 30 % of it",
        ),
        (FULL, grown(FULL, 0.2, 9.8, 0.2), "the loop is the bottleneck; the queue is full"),
        (WAITING, grown(WAITING, 0.2, 9.8, 0.2), "the loop is the bottleneck; data keeps up"),
        (
            ALONE,
            grown(ALONE, 5.0, 5.0, 0),
            "waiting for data 50 % of the time; the loop loads its own data (num_workers is 0)",
        ),
        (STUCK, STUCK, "blocked: no batch for 71 s; of 4 workers 1 dead, 1 hung, 1 stopped"),
        (
            make_loader(phase=Phase.IDLE, last_delivery=NOW - 180),
            make_loader(phase=Phase.IDLE, last_delivery=NOW - 180),
            "not iterating; last batch 3 min ago",
        ),
        (
            make_loader(phase=Phase.IDLE, last_delivery=None),
            make_loader(phase=Phase.IDLE, last_delivery=None),
            "not iterating yet",
        ),
        (WAITING, dataclasses.replace(WAITING, phase=Phase.PAUSE), "paused: the loop does"),
        (WAITING, dataclasses.replace(WAITING, phase=Phase.STARTUP), "starting: the first batch"),
        (WAITING, dataclasses.replace(WAITING, phase=Phase.TEARDOWN), "ending its iteration"),
    ],
)
def test_a_loader_is_summed_up_in_a_sentence(
    page: Page, before: Loader, after: Loader, sentence: str
) -> None:
    assert sentence in page.show(*two(before, after))


def test_rates_bars_and_workers_are_shown(page: Page) -> None:
    text = page.show(*two(WAITING, grown(WAITING, 7.3, 2.7, 0.95)))
    for part in (
        "job-17",
        "train.py · by alice",
        "rank 0",
        "pid 4242",
        "7.5 CPUs granted",
        "73 % wait",
        "1 / 8 ready",
        "8.5",  # batches/s
        "544",  # samples/s
        "PhotoDataset · 4 workers · prefetch 2 · batch size 64 · fork · pinned · persistent",
        "412 MB",
        "0.3 s ago",
    ):
        assert part in text, part
    labels = page.browser.evaluate(
        "[...document.querySelectorAll('.loader [role=img]')].map(bar => bar.ariaLabel)"
    )
    assert labels == [
        "last seconds: 73 % waiting, 27 % in the step, 0 % starting, pausing or ending",
        "1 ready, 6 in work, room for 8",
    ]
    cells = page.browser.evaluate(
        "[...document.querySelectorAll('.queue span')].map(c => c.className)"
    )
    assert cells == ["ready"] + ["work"] * 6 + ["free"]
    rows = page.browser.evaluate("document.querySelectorAll('.loader tbody tr').length")
    assert rows == 4


def test_states_of_workers_have_a_letter_besides_their_colour(page: Page) -> None:
    workers = tuple(make_worker(place, state=state) for place, state in enumerate(WorkerState))
    page.show(make_snapshot(make_rank(loaders=(make_loader(workers=workers),))))
    badges = page.browser.evaluate(
        "[...document.querySelectorAll('.loader tbody .badge')].map(badge => badge.textContent)"
    )
    assert badges == ["I", "F", "H", "S", "!", "D", "Z"]


def test_a_dead_rank_is_said_plainly(page: Page) -> None:
    dead = make_rank(up=False, died=NOW - 12, process=Process(), orphan_workers=2)
    text = page.show(make_snapshot(dead))
    assert "died without goodbye 12 s ago" in text
    assert "2 workers outlived it and hold memory" in text
    assert "1 dead" in text


def test_what_the_shim_cannot_see_is_said(page: Page) -> None:
    rank = make_rank(hooks={"map_fetch": False, "iterator": True}, shim_errors=2)
    text = page.show(make_snapshot(rank))
    assert "not observable in this torch: map_fetch" in text
    assert "errors inside dlmon's shim: 2" in text


def test_without_a_job_it_says_how_to_start_one(page: Page) -> None:
    text = page.show(Snapshot(time=NOW))
    assert "dlmon run train.py" in text
    assert "dlmon.instrument()" in text


def test_a_job_that_comes_and_goes_is_shown_and_forgotten(page: Page) -> None:
    page.show(Snapshot(time=NOW))
    page.publish(make_snapshot(time=NOW + 1))
    assert "job-17" in page.browser.text()
    assert "No training job" not in page.browser.text()
    page.publish(Snapshot(time=NOW + 2))
    assert "job-17" not in page.browser.text()


def test_ranks_and_loaders_keep_their_order_and_place(page: Page) -> None:
    ranks = [make_rank(str(number)) for number in (10, 2, 1)]
    page.show(make_snapshot(*ranks))
    titles = "[...document.querySelectorAll('h3')].map(title => title.textContent)"
    assert page.browser.evaluate(titles) == ["rank 1", "rank 2", "rank 10"]
    page.browser.evaluate("document.querySelector('details.workers').open = false")
    page.publish(make_snapshot(*ranks[:1], make_rank("0"), *ranks[1:], time=NOW + 1))
    assert page.browser.evaluate(titles) == ["rank 0", "rank 1", "rank 2", "rank 10"]
    opened = page.browser.evaluate(
        "[...document.querySelectorAll('.loader details.workers')].map(d => d.open)"
    )
    assert opened == [True, False, True, True]  # what a reader closed stays closed


def test_names_are_text_and_never_markup(page: Page) -> None:
    evil = "<img src=x onerror=alert(1)>\"'&amp;"
    loader = make_loader(evil, config={"dataset": evil, "num_workers": evil})
    rank = make_rank(evil, run=evil, info={"user": evil, "script": evil}, loaders=(loader,))
    unobserved = (make_unobserved(user=evil, script=evil),)
    text = page.show(make_snapshot(rank, gpus=(make_gpu(name=evil),), unobserved=unobserved))
    assert text.count(evil) >= 9
    assert page.browser.evaluate("document.querySelectorAll('body img').length") == 1  # its own


def test_names_that_look_like_keys_of_objects_do_no_harm(page: Page) -> None:
    ranks = [make_rank(name, run=name) for name in ("__proto__", "constructor", "", "\ud800")]
    text = page.show(make_snapshot(*ranks))
    assert "rank __proto__" in text
    assert "4 ranks" in text


def test_a_long_queue_is_one_bar_and_many_workers_are_folded(page: Page) -> None:
    workers = tuple(make_worker(slot) for slot in range(64))
    loader = make_loader(workers=workers, capacity=128, ready=64, outstanding=128)
    text = page.show(make_snapshot(make_rank(loaders=(loader,))))
    assert "64 workers" in text
    assert page.browser.evaluate("document.querySelector('details.workers').open") is False
    widths = page.browser.evaluate(
        "[...document.querySelectorAll('.queue span')].map(c => c.getBoundingClientRect().width)"
    )
    assert widths[0] == pytest.approx(widths[1], rel=0.02)
    assert widths[2] == 0


def test_what_is_wrong_is_said_at_the_top_with_its_stacks(page: Page) -> None:
    page.hangs.add(make_hang(ended=NOW - 600))  # an earlier one is not shown
    page.hangs.add(make_hang())
    text = page.show(make_snapshot())
    assert text.index("worker_stuck_in_fetch") < text.index("job-17")
    assert "worker 1 of train has been fetching for 90 s" in text
    assert "r1 · rank 0" in text
    assert ", 90 s ago" in text
    assert "data.py" not in text  # folded
    assert page.browser.evaluate("document.title").startswith("⚠")
    page.browser.evaluate("document.querySelector('.stacks').open = true")
    stacks = page.browser.text()
    assert (
        "worker 1 · pid 5001 · state D · in read() · waits in nfs_wait_bit · sample 18112" in stacks
    )
    assert (
        '"MainThread" 5001 holds the GIL\n  at Photos.__getitem__ (/home/alice/data.py:48)'
        in stacks
    )
    assert "rank · pid 4242" in stacks
    assert "not permitted to look into process 4242" in stacks


def test_stacks_stay_open_and_appear_when_they_are_taken(page: Page) -> None:
    number = page.hangs.add(make_hang(processes=()))
    assert "stacks" not in page.show(make_snapshot())
    page.hangs.change(number, processes=make_hang().processes)
    page.publish(make_snapshot(time=NOW + 1))
    page.publish(make_snapshot(time=NOW + 2))
    page.browser.evaluate("document.querySelector('.stacks').open = true")
    page.publish(make_snapshot(time=NOW + 3))
    assert "at Photos.__getitem__" in page.browser.text()


def test_findings_go_when_they_are_over(page: Page) -> None:
    warning = make_finding(name="orphan_workers", sentence="2 workers live on", worker="")
    text = page.show(make_snapshot(findings=(warning,)))
    assert "2 workers live on" in text
    assert not page.browser.evaluate("document.title").startswith("⚠")
    page.publish(make_snapshot(findings=(), time=NOW + 1))
    assert page.browser.evaluate("document.getElementById('findings').hidden")


def test_many_findings_are_cut_and_nothing_in_them_becomes_markup(page: Page) -> None:
    name = "<img src=x onerror=alert(1)>"
    many = tuple(make_finding(worker=str(n), sentence=name * 3, run=name) for n in range(60))
    text = page.show(make_snapshot(findings=many))
    assert name in text
    assert "and 10 more" in text
    assert page.browser.evaluate("document.querySelectorAll('.finding').length") == 50


def test_it_says_when_the_agent_is_gone_and_recovers_by_itself(page: Page) -> None:
    alarm = "document.getElementById('alarm')"
    assert "The agent" not in page.show(make_snapshot())
    page.server.close()
    page.browser.wait_for(f"!{alarm}.hidden")
    assert "The agent does not answer. What you see is from" in page.browser.text()
    assert "job-17" in page.browser.text()  # what was known stays
    page.restart()
    page.browser.wait_for(f"{alarm}.hidden")
    assert "live" in page.browser.text()


@pytest.mark.parametrize("width", [400, 768, 1920])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_any_width_and_follows_the_readers_colours(
    page: Page, width: int, dark: bool
) -> None:
    page.browser.resize(width, 900, dark=dark)
    stuck = make_rank("1", run="a" * 200, loaders=(STUCK, make_loader("val", phase=Phase.IDLE)))
    page.show(make_snapshot(make_rank(), stuck, gpus=(make_gpu(name="b" * 99),)))
    assert page.browser.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.browser.evaluate("getComputedStyle(document.body).backgroundColor")
    lightness = sum(int(part) for part in ground.removeprefix("rgb(").rstrip(")").split(","))
    assert (lightness < 200) == dark


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_from_its_ground(page: Page, dark: bool) -> None:
    page.browser.resize(1280, 900, dark=dark)
    dead = make_rank("2", up=False, died=NOW - 3, shim_errors=1)
    full = {"/user.slice": make_cgroup(room_bytes=0)}
    page.show(make_snapshot(make_rank(), dead, make_rank("3", loaders=(STUCK,)), cgroups=full))
    assert page.browser.evaluate(_FAINT) == []


_FAINT = """
(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b]
    .map((v) => v / 255).map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, place) => sum + v * [0.2126, 0.7152, 0.0722][place], 0);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const faint = new Set();
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    if (!own || !node.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) faint.add(`${node.className || node.tagName} ${contrast.toFixed(2)}`);
  }
  return [...faint];
})()
"""
