"""Exits that two count are counted once, and no count goes down."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dlmon.observe.exitcounts import ABNORMAL, ExitCounts


def shown(counts: ExitCounts, shim: dict[str, int]) -> dict[str, int]:
    total = Counter(shim)
    total.update(counts.corrections)
    return {reason: count for reason, count in total.items() if count}


def test_a_kill_seen_first_and_counted_by_the_shim_later_is_one() -> None:
    counts = ExitCounts()
    counts.take({"sigkill": 0}, recent=False)
    counts.add("sigkill", "oom_kill", coming=True)
    assert shown(counts, {"sigkill": 0}) == {"oom_kill": 1}
    counts.take({"sigkill": 1}, recent=False)
    assert shown(counts, {"sigkill": 1}) == {"oom_kill": 1}
    assert counts.claim() is None
    counts.take({"sigkill": 2}, recent=False)
    assert shown(counts, {"sigkill": 2}) == {"oom_kill": 1, "sigkill": 1}
    assert counts.claim() == "sigkill"


def test_what_the_shim_has_counted_already_is_only_renamed() -> None:
    counts = ExitCounts()
    counts.take({}, recent=False)
    counts.take({"sigkill": 1}, recent=False)
    counts.add("sigkill", "oom_kill", coming=True)
    assert shown(counts, {"sigkill": 1}) == {"oom_kill": 1}


def test_at_the_first_look_only_what_is_plain_is_claimed() -> None:
    for shim, recent, claimed in (
        ({"sigkill": 2, "normal": 5}, True, "sigkill"),
        ({"sigkill": 2, "sigsegv": 1}, True, None),
        ({"sigkill": 2}, False, None),
    ):
        counts = ExitCounts()
        counts.take(shim, recent=recent)
        assert counts.claim() == claimed


@given(
    st.lists(
        st.tuples(
            st.sampled_from(("seen", "counted", "both")),
            st.sampled_from(ABNORMAL),
            st.booleans(),
        )
    )
)
def test_nothing_is_counted_twice_and_nothing_goes_down(
    steps: list[tuple[str, str, bool]],
) -> None:
    counts, shim, before = ExitCounts(), Counter[str](), Counter[str]()
    counts.take({}, recent=False)
    ahead: Counter[str] = Counter()  # deaths that the shim has not counted yet
    deaths = 0
    for who, reason, oom in steps:
        name = "oom_kill" if oom and reason == "sigkill" else reason
        if who == "counted" and ahead[reason]:
            ahead[reason] -= 1
            shim[reason] += 1
            counts.take(shim, recent=False)
        elif who == "both":
            deaths += 1
            shim[reason] += 1
            counts.take(shim, recent=False)
            counts.add(reason, name, coming=True)  # whose it is cannot be told: the sum is right
        elif who == "seen":
            deaths += 1
            ahead[reason] += 1
            counts.take(shim, recent=False)
            counts.add(reason, name, coming=True)
        now = Counter(shown(counts, shim))
        assert all(now[key] >= before[key] for key in before)
        assert now.total() == deaths
        before = now
