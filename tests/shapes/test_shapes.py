"""Whatever a job does with its DataLoaders, it sees the same with dlmon as without.

The cases are in `tests/shapes/cases`; `tests/shapes/table.py` says how to add one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.jobs import JobStarter
from tests.shapes.driver import Outcome, Way, differences
from tests.shapes.table import Case, table

# A way that hangs is noticed by the case's own deadline; of each there are three, perhaps twice.
pytestmark = pytest.mark.timeout(900)

MOST_OWN_FRAMES = 3
"""Of dlmon in a traceback: for `__next__` one, for `fetch` one, for the first `fetch` another."""


class Ways:
    """The ways in which every case is run, side by side."""

    def __init__(self, starter: JobStarter) -> None:
        self.bare = Way("bare", starter, None)
        self.strict = Way("strict", starter, "1")
        self.lenient = Way("lenient", starter, "0")
        self.all = (self.bare, self.strict, self.lenient)
        self._done: dict[str, dict[str, Outcome]] = {}

    def outcomes(self, case: Case) -> Mapping[str, Outcome]:
        """Run a case every way, unless that was done, and return what came of it.

        A worker that is forked while another thread holds a lock, of C's or of the interpreter's,
        waits for it for ever. That is torch alone: if the job without dlmon hangs, and only then,
        nothing can be compared, and all of them try once more.
        """
        if case.id not in self._done:
            outcomes = self._run(case)
            if outcomes["bare"].hangs:
                for way in self.all:
                    assert_ends_well(way)
                    way.close()
                outcomes = self._run(case)
            self._done[case.id] = outcomes
        return self._done[case.id]

    def _run(self, case: Case) -> dict[str, Outcome]:
        for way in self.all:
            way.begin(case)
        return {way.name: way.finish(case) for way in self.all}


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ways]:
    """Jobs that live as long as this module's tests: starting them takes seconds."""
    folder = tmp_path_factory.mktemp("shapes")
    starter = JobStarter(folder, folder)
    running = Ways(starter)
    yield running
    for way in running.all:
        way.close()


def assert_ends_well(way: Way) -> None:
    """End a job, if there is one: no error was swallowed in any process, no segment is left."""
    rank = way.rank()
    assert rank is None or rank.shim_errors == 0
    assert way.end() == []


def listed(**wanted: bool) -> list[Any]:
    """Return the cases as pytest takes them, of those with the attributes `wanted`."""
    if os.environ.get("CI"):
        wanted["seldom"] = False
    return [
        pytest.param(case, id=case.id, marks=[pytest.mark.slow] * case.slow)
        for case in table().values()
        if all(getattr(case, name) is value for name, value in wanted.items())
    ]


@pytest.mark.parametrize("case", listed())
def test_a_job_sees_the_same_with_dlmon_as_without(case: Case, ways: Ways) -> None:
    outcomes = ways.outcomes(case)
    bare = outcomes["bare"].same
    assert isinstance(bare, dict), bare  # else it hangs, or ends its process, without dlmon too
    for name in ("strict", "lenient"):
        found = differences(bare, outcomes[name].same, name)
        assert not found, "\n".join(found)
        assert outcomes[name].swallowed == 0, name
        assert outcomes[name].own_frames <= MOST_OWN_FRAMES, name


@pytest.mark.parametrize("case", listed(counted=True))
def test_dlmon_counts_what_the_loop_counts(case: Case, ways: Ways) -> None:
    outcomes = ways.outcomes(case)
    bare = outcomes["bare"].same
    assert isinstance(bare, dict), bare
    assert bare["expected"], "the case does not say what to count"
    wrong = [line for outcome in outcomes.values() for line in outcome.wrong]
    assert not wrong, "\n".join(wrong)


def test_no_error_was_swallowed_in_any_process_and_no_segment_is_left(ways: Ways) -> None:
    for way in ways.all:
        assert_ends_well(way)
