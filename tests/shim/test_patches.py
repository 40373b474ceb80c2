"""Other libraries patch what we patch, below ours and above, and undo it when they like."""

from __future__ import annotations

import itertools
from typing import Any
from unittest import mock

import pytest
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

import dlmon
from tests.shim import patching
from tests.shim.patching import PLACES, Patch, State, changes
from tests.shim.probing import NUMBERS, Probe, depths, epoch

pytestmark = pytest.mark.usefixtures("torch_own")


def cover(*, wraps: bool = True) -> list[Patch]:
    return [Patch(*place, wraps=wraps) for place in PLACES]


def uncover(patches: list[Patch]) -> None:
    for patch in patches:
        patch.undo()


@pytest.mark.parametrize("wraps", [True, False], ids=["with functools.wraps", "without"])
def test_patches_below_ours_are_called_and_stay(wraps: bool) -> None:
    theirs = cover(wraps=wraps)
    below = patching.state()
    dlmon.instrument()
    assert epoch() + epoch(num_workers=1) == NUMBERS * 2
    assert all(patch.replaced() for patch in theirs)
    dlmon.uninstrument()
    assert not changes(below)
    uncover(theirs)


@pytest.mark.parametrize("wraps", [True, False], ids=["with functools.wraps", "without"])
def test_patches_above_ours_stay_and_when_they_go_nothing_is_left(
    torch_own: State, wraps: bool
) -> None:
    dlmon.instrument()
    theirs = cover(wraps=wraps)
    above = patching.state()
    dlmon.uninstrument()
    assert not changes(above)
    assert epoch() + epoch(num_workers=1) == NUMBERS * 2
    assert all(patch.replaced() for patch in theirs)
    uncover(theirs)  # what they put back is ours, which passes through
    assert epoch() + epoch(num_workers=1) == NUMBERS * 2
    dlmon.instrument()
    dlmon.uninstrument()
    assert not changes(torch_own)


def test_patches_that_come_and_go_while_we_are_in_leave_ours() -> None:
    dlmon.instrument()
    ours, once = patching.state(), depths()
    uncover(cover())
    assert not changes(ours)
    dlmon.instrument()
    assert depths() == once


def test_cycles_under_a_patch_do_not_nest(torch_own: State) -> None:
    dlmon.instrument()
    theirs = cover()
    covered = patching.state()
    dlmon.uninstrument()
    dlmon.instrument()
    once = depths()
    for _ in range(100):
        dlmon.uninstrument()
        dlmon.instrument()
    assert depths() == once
    dlmon.uninstrument()
    assert not changes(covered)
    uncover(theirs)
    dlmon.instrument()
    dlmon.uninstrument()
    assert not changes(torch_own)


def test_cycles_in_which_a_patch_comes_and_goes_do_not_nest() -> None:
    dlmon.instrument()
    once = depths()
    for _ in range(100):
        theirs = cover()
        dlmon.uninstrument()
        uncover(theirs)
        dlmon.instrument()
    assert depths() == once


@pytest.mark.parametrize("place", PLACES, ids=lambda place: ".".join(filter(None, place[1:])))
def test_a_hook_that_another_library_took_out_is_put_back(
    torch_own: State, place: tuple[str, str, str]
) -> None:
    dlmon.instrument()
    once = depths()
    one, name = patching.owner(*place[:2]), place[2]
    setattr(one, name, torch_own[one, name])
    assert epoch() + epoch(num_workers=1) == NUMBERS * 2
    dlmon.instrument()
    assert vars(one)[name] is not torch_own[one, name]
    assert depths() == once


def test_a_patch_below_takes_ours_along_and_the_next_instrument_puts_ours_back(
    torch_own: State,
) -> None:
    theirs = cover()
    dlmon.instrument()
    once = depths()
    uncover(theirs)
    assert not changes(torch_own)
    assert epoch() + epoch(num_workers=1) == NUMBERS * 2
    dlmon.instrument()
    assert depths() == once


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_patches_below_and_above_go_in_any_order(torch_own: State, order: tuple[int, ...]) -> None:
    """Each library puts back what it found. What is left would be left without us as well."""
    below = cover()
    dlmon.instrument()
    above, top = cover(), cover()
    without_us = patching.WithoutUs()
    without_us.patched(*below, *above, *top)
    for number in order:
        if number == 3:
            dlmon.uninstrument()
        else:
            uncover((below, above, top)[number])
            without_us.undone(*(below, above, top)[number])
        assert epoch() == NUMBERS
    assert epoch(num_workers=1) == NUMBERS
    dlmon.instrument()
    dlmon.uninstrument()
    assert not without_us.differences(torch_own)
    patching.restore(torch_own)


def test_a_mock_around_undo(torch_own: State) -> None:
    dlmon.instrument()
    ours: Any = _BaseDataLoaderIter.__next__
    with mock.patch.object(_BaseDataLoaderIter, "__next__", autospec=True) as theirs:
        theirs.side_effect = ours
        assert epoch() == NUMBERS
        dlmon.uninstrument()
        assert epoch() == NUMBERS
        assert theirs.call_count == 2 * (len(NUMBERS) + 1)
    assert epoch() == NUMBERS
    dlmon.instrument()
    dlmon.uninstrument()
    assert not changes(torch_own)


def test_a_mock_around_instrument(torch_own: State) -> None:
    with mock.patch.object(_BaseDataLoaderIter, "__next__", autospec=True) as theirs:
        theirs.side_effect = torch_own[_BaseDataLoaderIter, "__next__"]
        dlmon.instrument()
        assert epoch() == NUMBERS
        assert theirs.call_count == len(NUMBERS) + 1
    assert epoch() == NUMBERS  # the mock put torch's back, and ours is gone
    dlmon.instrument()
    probe: Any = Probe()
    assert max(DataLoader(probe, batch_sampler=probe, collate_fn=max)) > 0
