"""What the page says of memory and GPUs, and of jobs that are not observed."""

from __future__ import annotations

import dataclasses

import pytest

from dlmon.observe.snapshot import CgroupMemory
from tests.agent.paging import Page
from tests.agent.samples import (
    NOW,
    make_cgroup,
    make_gpu,
    make_loader,
    make_rank,
    make_snapshot,
    make_unobserved,
    make_worker,
)


def headings(page: Page, table: str) -> list[str]:
    """The column headings that a reader sees."""
    visible = "[...document.querySelectorAll(%r)].filter(cell => cell.checkVisibility())"
    found = page.browser.evaluate(visible % f"{table} thead th" + ".map(cell => cell.textContent)")
    assert isinstance(found, list)
    return found


def test_what_workers_have_in_memory_is_told_three_ways(page: Page) -> None:
    copying = make_worker(0, copied_bytes=12_000_000)
    loader = make_loader(workers=(copying, make_worker(1)))
    text = page.show(make_snapshot(make_rank(loaders=(loader,))))
    assert headings(page, ".loader") == [
        "worker", "batches/s", "CPU", "RSS", "PSS", "USS", "copied", "progress",
    ]  # fmt: skip
    assert "412 MB\t180 MB\t90.0 MB\t12.0 MB\t0.3 s ago" in text
    assert "412 MB\t180 MB\t90.0 MB\t0 B\t0.3 s ago" in text


def test_memory_that_no_worker_was_scanned_for_has_no_column(page: Page) -> None:
    unscanned = make_worker(proportional_bytes=None, unique_bytes=None, copied_bytes=None)
    before = make_snapshot(make_rank(loaders=(make_loader(workers=(unscanned,)),)), time=NOW - 1)
    page.show(before)
    assert headings(page, ".loader") == ["worker", "batches/s", "CPU", "RSS", "progress"]
    page.publish(make_snapshot(make_rank(loaders=(make_loader(workers=(make_worker(),)),))))
    assert headings(page, ".loader")[3:] == ["RSS", "PSS", "USS", "progress"]
    page.publish(dataclasses.replace(before, time=NOW + 1))
    assert headings(page, ".loader") == ["worker", "batches/s", "CPU", "RSS", "progress"]


def memory_bar(page: Page) -> str:
    found = page.browser.evaluate(
        "(() => { const row = document.querySelector('.rank > .row');"
        " return row.checkVisibility() ? row.innerText.replace(/\\s+/g, ' ') + ' '"
        " + row.querySelector('.used').className + ' '"
        " + row.querySelector('.used').style.width : '' })()"
    )
    return str(found)


@pytest.mark.parametrize(
    ("room", "shown"),
    [
        (8_000_000_000, "memory 8.0 GB of 16.0 GB used 50%"),
        (2_000_000_000, "memory 14.0 GB of 16.0 GB used warn 87.5%"),
        (0, "memory 16.0 GB of 16.0 GB used bad 100%"),
    ],
)
def test_the_memory_of_a_ranks_cgroup_is_shown_against_its_limit(
    page: Page, room: int, shown: str
) -> None:
    page.show(make_snapshot(cgroups={"/user.slice": make_cgroup(room_bytes=room)}))
    assert memory_bar(page) == shown


@pytest.mark.parametrize(
    "cgroups",
    [
        {"/user.slice": make_cgroup(room_bytes=None, binding_limit_bytes=None)},
        {"/other": make_cgroup()},
        {},
    ],
)
def test_without_a_limit_there_is_no_bar(page: Page, cgroups: dict[str, CgroupMemory]) -> None:
    page.show(make_snapshot(cgroups=cgroups))
    assert memory_bar(page) == ""


def gpu_texts(page: Page) -> list[list[str]]:
    found = page.browser.evaluate(
        "[...document.querySelectorAll('.gpu')].map(gpu => "
        "gpu.innerText.split('\\n').filter(line => line))"
    )
    assert isinstance(found, list)
    return found


def test_gpus_say_how_busy_and_full_they_are_and_whose(page: Page) -> None:
    gpus = (
        make_gpu(),
        make_gpu(index="1", uuid="GPU-1", utilization=0.0, pids=()),
        make_gpu(index="2:0", uuid="MIG-2", utilization=None, pids=(99, 98)),
        make_gpu(index="3", uuid="GPU-3", memory_used_bytes=None, pids=None),
    )
    text = page.show(make_snapshot(gpus=gpus))
    memory = ["memory", "11.0 GB of 150 GB"]
    assert gpu_texts(page) == [
        ["GPU 0", "NVIDIA H200", "busy", "37 %", *memory, "rank 0 of job-17"],
        ["GPU 1", "NVIDIA H200", "busy", "0 %", *memory, "not in use"],
        ["GPU 2:0", "NVIDIA H200", *memory, "2 processes that are no rank of these runs"],
        ["GPU 3", "NVIDIA H200", "busy", "37 %", "who computes on it is not known here"],
    ]
    assert "RSS 2.1 GB · /dev/shm 12 % of 8.2 GB · GPU 0 37 % · 61 files open" in text
    page.publish(make_snapshot(make_rank(gpus=()), gpus=(), time=NOW + 1))
    assert page.browser.evaluate("document.getElementById('gpus').hidden")
    assert "GPU" not in page.browser.text()


def test_workers_of_jobs_that_are_not_observed_are_listed_by_script(page: Page) -> None:
    group = make_unobserved()
    scanned = tuple(
        dataclasses.replace(worker, proportional_bytes=75_000_000, unique_bytes=50_000_000)
        for worker in group.workers
    )
    many = make_unobserved(
        user="", script="", workers=tuple(dataclasses.replace(scanned[0], pid=n) for n in range(70))
    )
    text = page.show(make_snapshot(unobserved=(dataclasses.replace(group, workers=scanned), many)))
    assert "72 workers not observed" in text
    assert "finetune.py\nby bob · 2 workers · 1 orphan · PSS 150 MB in all" in text
    assert "a script not known\n70 workers" in text
    assert headings(page, "#unobserved .workers[open]") == [
        "pid", "CPU time", "RSS", "PSS", "USS", "read", "age",
    ]  # fmt: skip
    usage = "21 s\t300 MB\t75.0 MB\t50.0 MB\t1.0 MB\t50 s"
    assert f"7001 sleeping\t{usage}" in text
    assert f"7002 stopped, orphan\t{usage}" in text
    page.browser.evaluate("document.querySelectorAll('#unobserved details')[1].open = true")
    assert "and 6 more" in page.browser.text()


def test_what_is_not_known_of_an_unobserved_worker_is_no_number(page: Page) -> None:
    text = page.show(make_snapshot(unobserved=(make_unobserved(),)))
    assert headings(page, "#unobserved") == ["pid", "CPU time", "RSS", "read", "age"]
    assert "in all" not in text


def test_without_unobserved_workers_nothing_is_said_of_them(page: Page) -> None:
    assert "not observed" not in page.show(make_snapshot(unobserved=())).lower()
