"""Random interleavings of all that jobs, and libraries beside us, do with DataLoaders.

To be run in a process of its own, which forks, and which has no thread but its own: `explore`.
"""

from __future__ import annotations

import copy
import dataclasses
import faulthandler
import functools
import gc
import json
import os
import pickle
import resource
import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy.random  # noqa: F401  # by torch, in each worker, unless it is there
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

import dlmon
from dlmon.segment import writer
from dlmon.shim import _guard, _session
from tests.observing import FACTS
from tests.shim import patching, tallying
from tests.shim.modelled import Counts, Iteration, Loader, Samples, Spec
from tests.shim.patching import PLACES, Patch, Place
from tests.shim.processes import children, in_child
from tests.shim.threads import at_once

MOST_LOADERS = 3
MOST_ITERATORS = 4
MOST_PATCHES = 4

SPECS = st.builds(
    Spec,
    iterable=st.booleans(),
    length=st.integers(0, 7),
    batch_size=st.sampled_from((1, 2, 3, None)),
    drop_last=st.booleans(),
    fails_at=st.sampled_from((None, None, 0, 1, 2, 4)),
    collate_fails=st.booleans(),
    nested=st.sampled_from((False, False, True)),
    getitems=st.booleans(),
    toggles_at=st.sampled_from((None, None, 1, 2)),
    workers=st.integers(0, 2),
    persistent=st.booleans(),
)
NAMES = st.sampled_from(("", "a", "b", "\n \0a"))
COPIES: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda loader: pickle.loads(pickle.dumps(loader)),
}
ACTIONS = ("instrument", "uninstrument", "step", "finish", "epoch", "fork")
PROGRAM = st.lists(st.sampled_from(ACTIONS), min_size=1, max_size=4)
WHICH = st.integers(0, 5)
SELDOM = st.sampled_from((False, False, False, False, False, True))

TORCH = patching.state()
done: Counter[str] = Counter()
"""What was done, over all interleavings."""

Step = TypeVar("Step", bound=Callable[..., None])


def counted(step: Step) -> Step:
    """Count how often a rule is followed, and remember if that went wrong."""

    @functools.wraps(step)
    def following(machine: Interleaving, **drawn: Any) -> None:
        done[step.__name__] += 1
        machine.failed = True
        step(machine, **drawn)
        machine.failed = False

    return following  # type: ignore[return-value]


class Interleaving(RuleBasedStateMachine):
    """One job. Its rules compare what is delivered with the model; `teardown` looks at the rest.

    Half of the jobs are watched: instrumented from start to end, so that what dlmon has to count is
    known. In the others hooks go in and out, and other libraries patch too.
    """

    most_workers = 0

    def __init__(self) -> None:
        super().__init__()
        self.failed = False
        self.watched = False
        self.forks = False
        self.counts: Counts = Counter()
        self.loaders: list[Loader] = []
        self.iterations: list[Iteration] = []
        self.patches: list[Patch] = []
        self.without_us = patching.WithoutUs()
        self.covered = False
        self.before = tallying.of_this_process()
        Samples.iterated.clear()
        gc.freeze()  # a collection is of what this job leaves, not of all that torch has

    @initialize(watched=st.booleans(), forks=SELDOM, before=SPECS, after=SPECS)
    def start(self, watched: bool, forks: bool, before: Spec, after: Spec) -> None:
        """Begin one job; those that fork and collect garbage take longer, and are fewer."""
        self.watched = watched
        self.forks = forks
        self.loaders.append(self.new(before, "a"))
        dlmon.instrument()
        self.loaders.append(self.new(after, ""))
        self.iterations += [loader.begin(self.counts) for loader in self.loaders]

    # ── hooks ────────────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: not self.watched)
    @rule(times=st.integers(1, 3))
    @counted
    def instrument(self, times: int) -> None:
        for _ in range(times):
            dlmon.instrument()

    @precondition(lambda self: not self.watched)
    @rule(times=st.integers(1, 3))
    @counted
    def uninstrument(self, times: int) -> None:
        for _ in range(times):
            dlmon.uninstrument()

    @precondition(lambda self: not self.watched and len(self.patches) < MOST_PATCHES)
    @rule(place=st.sampled_from(PLACES), wraps=st.booleans())
    @counted
    def patch(self, place: Place, wraps: bool) -> None:
        """Another library patches, above us or below."""
        self.patches.append(Patch(*place, wraps=wraps))
        self.without_us.patched(self.patches[-1])
        self.covered = True

    @precondition(lambda self: self.patches)
    @rule(which=WHICH)
    @counted
    def unpatch(self, which: int) -> None:
        """It puts back what it found, whoever has patched since."""
        self.undo_patch(which % len(self.patches))

    # ── loaders ──────────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: len(self.loaders) < MOST_LOADERS)
    @rule(spec=SPECS, name=NAMES)
    @counted
    def build(self, spec: Spec, name: str) -> None:
        self.loaders.append(self.new(spec, name))

    @precondition(lambda self: 0 < len(self.loaders) < MOST_LOADERS)
    @rule(which=WHICH, how=st.sampled_from(tuple(COPIES)))
    @counted
    def copy(self, which: int, how: str) -> None:
        copied = self.loader(which).copied(COPIES[how])
        if copied is not None:
            self.loaders.append(copied)

    @precondition(lambda self: self.loaders)
    @rule(which=WHICH, name=NAMES)
    @counted
    def name(self, which: int, name: str) -> None:
        loader = self.loader(which)
        if not (self.watched and loader.alive):  # else, whose are its batches?
            loader.call(self.full_name(name, loader.spec))

    @precondition(lambda self: self.loaders)
    @rule(which=WHICH)
    @counted
    def forget_loader(self, which: int) -> None:
        self.loaders.pop(which % len(self.loaders))

    # ── iterators ────────────────────────────────────────────────────────────────────────────────

    @precondition(lambda self: self.loaders and len(self.iterations) < MOST_ITERATORS)
    @rule(which=WHICH)
    @counted
    def iterate(self, which: int) -> None:
        iteration = self.loader(which).begin(self.counts)
        if iteration not in self.iterations:
            self.iterations.append(iteration)

    @precondition(lambda self: self.iterations)
    @rule(which=WHICH, times=st.integers(1, 4))
    @counted
    def step(self, which: int, times: int) -> None:
        for _ in range(times):
            self.iteration(which).step(self.counts)

    @precondition(lambda self: self.iterations)
    @rule(which=WHICH)
    @counted
    def finish(self, which: int) -> None:
        self.iteration(which).finish(self.counts)

    @precondition(lambda self: self.iterations)
    @rule(which=WHICH)
    @counted
    def delete(self, which: int) -> None:
        self.iterations.pop(which % len(self.iterations))

    @precondition(lambda self: self.loaders)
    @rule(which=WHICH, stop=st.integers(0, 4), raises=st.booleans())
    @counted
    def epoch(self, which: int, stop: int, raises: bool) -> None:
        """A `for` loop to the end, or left by `break` or an exception."""
        self.loader(which).epoch(self.counts, stop, raises)

    @precondition(lambda self: self.forks)
    @rule()
    @counted
    def collect(self) -> None:
        gc.collect()

    # ── threads and processes ────────────────────────────────────────────────────────────────────

    @rule(programs=st.lists(PROGRAM, min_size=2, max_size=3), spec=SPECS)
    @counted
    def threads(self, programs: list[list[str]], spec: Spec) -> None:
        """Several threads at once; each has a loader of its own and one of the iterators."""
        theirs = [self.iterations[at : at + 1] for at in range(len(programs))]
        whats = [
            functools.partial(self.perform, [a for a in program if a != "fork"], spec, *iterations)
            for program, iterations in zip(programs, theirs, strict=True)
        ]
        for counts in at_once(whats):
            self.counts.update(counts)

    @precondition(lambda self: self.forks)
    @rule(program=PROGRAM, spec=SPECS)
    @counted
    def fork(self, program: list[str], spec: Spec) -> None:
        """A child goes on with its parent's iterators, makes its own, and ends without goodbye."""
        inherited = [one for one in self.iterations if not one.workers]
        self.counts.update(in_child(functools.partial(self.grow_up, program, spec, *inherited)))

    def grow_up(self, program: list[str], spec: Spec, *inherited: Iteration) -> Counts:
        Samples.iterated.clear()
        for iteration in inherited:
            iteration.name = ""  # of the parent's iterators a child counts nothing
        counts = self.perform(program, spec, *inherited)
        self.count_inner(counts)
        return counts

    def perform(self, program: list[str], spec: Spec, *iterations: Iteration) -> Counts:
        """Do what a thread or child does, and return what is to be counted."""
        counts: Counts = Counter()
        loader = self.new(spec, "a")
        for action in program:
            done[f"- {action}"] += 1
            if action == "instrument":
                dlmon.instrument()
            elif action == "uninstrument" and not self.watched:
                dlmon.uninstrument()
            elif action == "epoch":
                loader.epoch(counts, 0, False)
            elif action == "fork":
                counts.update(in_child(functools.partial(self.grow_up, ["epoch"], spec)))
            for iteration in iterations:
                if action in ("step", "finish"):
                    getattr(iteration, action)(counts)
        return counts

    # ── helpers ──────────────────────────────────────────────────────────────────────────────────

    def new(self, spec: Spec, name: str) -> Loader:
        workers = min(spec.workers, self.most_workers)
        spec = dataclasses.replace(
            spec,
            workers=workers,
            persistent=spec.persistent and workers > 0,
            toggles_at=None if self.watched else spec.toggles_at,
        )
        return Loader(spec, self.full_name(name, spec), self.full_name("inner", spec))

    def full_name(self, name: str, spec: Spec) -> str:
        return f"{tallying.MARK} {spec.workers} {name}" if self.watched else name

    def loader(self, which: int) -> Loader:
        return self.loaders[which % len(self.loaders)]

    def iteration(self, which: int) -> Iteration:
        return self.iterations[which % len(self.iterations)]

    def undo_patch(self, which: int) -> None:
        patch = self.patches.pop(which)
        patch.undo()
        self.without_us.undone(patch)

    def count_inner(self, counts: Counts) -> None:
        for name in Samples.iterated:
            counts[name, "epochs"] += 1
            counts[name, "batches"] += 2
            counts[name, "samples"] += 2

    # ── the end ──────────────────────────────────────────────────────────────────────────────────

    def teardown(self) -> None:
        self.loaders.clear()
        self.iterations.clear()
        while self.patches:
            self.undo_patch(-1)
        if not self.failed:
            self.check()
        patching.restore(TORCH)

    def check(self) -> None:
        self.check_counts()
        dlmon.uninstrument()
        if self.covered:  # what was put back by others is found by the next who looks
            dlmon.instrument()
            dlmon.uninstrument()
        assert not self.without_us.differences(TORCH)
        patching.restore(TORCH)
        assert not patching.changes(TORCH)
        for thread in threading.enumerate()[1:]:  # those that fed the workers' queues
            thread.join(30)
        assert not children()
        assert threading.active_count() == 1
        assert not _guard.errors
        assert not _guard._said
        assert len(os.listdir(directory())) == len(writer._kept)
        done["interleavings"] += 1
        done["watched"] += self.watched
        done["segments"] = len(writer._kept)

    def check_counts(self) -> None:
        self.count_inner(self.counts)
        counted = tallying.of_this_process()
        counted.subtract(self.before)
        counted.update(tallying.of_the_dead(directory()))
        if self.watched:
            for name in {name for name, _ in self.counts}:  # every worker has ended by now
                self.counts[name, "ends"] = self.counts[name, "starts"]
            expected = tallying.known(self.counts)
            found = tallying.known(counted)
            assert found == expected, f"counted {found}, expected {expected}"
            done["batches counted"] += sum(expected[key] for key in expected if "batches" in key)


def directory() -> Path:
    """Return where the segments are."""
    return Path(os.environ["DLMON_DIR"])


class WithWorkers(Interleaving):
    """The same with loaders that have workers."""

    most_workers = 2


def explore(machine: type[Interleaving], *, interleavings: int, steps: int, seconds: int) -> None:
    """Try random interleavings until one goes wrong; its steps are said.

    Args:
        machine: With workers or without.
        interleavings: How many.
        steps: The most there are in each.
        seconds: Whoever takes longer hangs: then all threads say where they are.
    """
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.alarm(seconds)
    _session.LOCK_SECONDS = 30  # no thread that is slow costs another its observation
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most_files, 8192), most_files))
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=interleavings,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=(Phase.generate,),  # a sequence is short, and to make it shorter takes minutes
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(FACTS, json.dumps(done), flush=True)
