"""What loaders are called when their user does not say: after where they go, the same every run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import dlmon
from dlmon.shim import _names
from tests.conftest import ROOT
from tests.jobs import JobStarter
from tests.observing import facts, loader, observe

JOB = """
    import os

    import dlmon

    from torch.utils.data import DataLoader


    def load(n=2):
        return DataLoader(list(range(n)))


    class Mine(DataLoader):
        def __init__(self, n):
            super().__init__(list(range(n)))


    class Trainer:
        def __init__(self):
            self.val_loader = load()


    def pair():
        return DataLoader([1]), DataLoader([2, 3])


    def one_function():
        loader = DataLoader([1])
        list(loader)


    def another():
        loader = DataLoader([1])
        list(loader)


    def same(loader):
        return loader


    for form, source in enumerate({forms!r}):
        child = os.fork()
        if child == 0:
            dlmon.instrument(run=str(form))
            names = dict(globals(), loaders={{}}, used=[])
            exec(compile(source, "form.py", "exec"), names)
            for each in names["used"]:
                list(each)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, form
    print("FACTS {{}}", flush=True)
    input()
"""

FORMS = {
    "x = load(); used = [x]": {"x"},
    "a, b = load(1), load(2); used = [b, a]": {"a", "b"},
    "a, b, c, d = load(), load(), load(), load(); used = [a, b, c, d]": {"a", "b", "c", "d"},
    "trainer = Trainer(); used = [trainer.val_loader]": {"val_loader"},
    "mine = Mine(3); used = [mine]": {"mine"},
    "train, val = pair(); used = [val, train]": {"train", "val"},
    "both = pair(); used = both": {"both[0]", "both[1]"},
    "many = [load(1), load(2)]; used = many": {"many[0]", "many[1]"},
    "by = {'x': load(1), 'y': load(2)}; used = by.values()": {"x", "y"},
    "by = dict(x=load(1), y=load(2)); used = by.values()": {"x", "y"},
    "loaders['test'] = load(); used = loaders.values()": {"test"},
    "used = [same(loader=load())]": {"loader"},
    "train = load(1) if used else load(2); used = [train]": {"train"},
    "first = second = load(); used = [second]": {"first"},
    "print(w := load()); used = [w]": {"w"},
    "train: DataLoader = load(); used = [train]": {"train"},
    # several of one place: numbered as they were built, whichever is iterated first
    "m = {k: load() for k in 'ab'}; used = [m['b'], m['a']]": {"m", "m#2"},
    "for k in 'ab': loaders[k] = load()\nused = loaders.values()": {"loaders", "loaders#2"},
    # one after the other: the name is free again
    "for _ in range(3):\n    t = load()\n    list(t)": {"t"},
    "kept = []\nfor _ in range(3):\n    t = load()\n    kept.append(t)\n    list(t)": {"t"},
    # the same variable in two functions: two loaders
    "for _ in range(2):\n    one_function()\n    another()": {"loader", "another.loader"},
    # no variable: the line, and the column where it has two
    "list(DataLoader([1]))": {"form.py:1"},
    "list(zip(DataLoader([1]), DataLoader([2])))": {"form.py:1", "form.py:1:26"},
    "list(DataLoader([1])); list(DataLoader([2]))": {"form.py:1", "form.py:1:28"},
}


def test_a_loader_is_called_after_what_it_is_assigned_to(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(JOB.format(forms=list(FORMS)))
    facts(job)
    sources = list(FORMS)
    found = {
        sources[int(rank.run)]: {one.name for one in rank.loaders}
        for rank in observe(segment_dir).ranks
    }
    assert found == FORMS
    job.tell()
    job.finish()


OTHER_PYTHONS = """
    import json
    import re
    import sys

    from dlmon.shim import _names

    seen = set()


    class DataLoader:
        def __init__(self, dataset):
            _names.built(self, dataset)
            self.dataset = dataset

        def __iter__(self):
            seen.add(_names.unique(self, ()))
            return iter(self.dataset)
"""


def pythons() -> list[str]:
    """Find every Python that dlmon is for and that is at hand; this one is."""
    names = (f"python3.{minor}" for minor in range(10, 20))
    found = [sys.executable, *filter(None, map(shutil.which, names))]
    found += map(str, Path("~/.pyenv/versions").expanduser().glob("3.1[0-9].*/bin/python"))
    versions: dict[str, str] = {}
    for python in found:
        told = subprocess.run([python, "-VV"], capture_output=True, text=True, check=False)
        if told.returncode == 0:  # a shim of pyenv need not have one behind it
            versions.setdefault(told.stdout.split()[1], python)
    return list(versions.values())


@pytest.mark.parametrize("python", pythons(), ids=lambda path: path.split("/")[-3])
def test_names_are_the_same_in_every_python(python: str, tmp_path: Path) -> None:
    """Bytecode differs; torch need not be there, for names are found without it."""
    classes = JOB[JOB.index("    def load(") : JOB.index("    for form, source")]
    script = tmp_path / "names.py"
    script.write_text(
        textwrap.dedent(OTHER_PYTHONS)
        + textwrap.dedent(classes)
        + textwrap.dedent("""
            found = {}
            for source in json.loads(sys.stdin.read()):
                for table in ("_given", "_built", "_assigned", "_places", "_collecting"):
                    getattr(_names, table).clear()
                seen.clear()
                names = dict(globals(), loaders={}, used=[])
                exec(compile(source, "form.py", "exec"), names)
                for each in names["used"]:
                    list(each)
                found[source] = sorted(re.sub(r"(form.py:1):.*", r"\\1:column", n) for n in seen)
            print(json.dumps(found))
        """)
    )
    run = subprocess.run(
        [python, str(script)],
        input=json.dumps(list(FORMS)),
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    columns = {
        source: sorted(re.sub(r"(form.py:1):.*", r"\1:column", name) for name in names)
        for source, names in FORMS.items()
    }
    found = json.loads(run.stdout.splitlines()[-1])
    assert found == columns


HOSTILE = """
    import dlmon

    dlmon.instrument()

    from torch.utils.data import DataLoader

    names = {names!r}
    for name in names:
        assert len(list(dlmon.name(DataLoader([1, 2]), name))) == 2
    print("FACTS {{}}", flush=True)
    input()
"""


def test_hostile_names_are_cleaned(run_job: JobStarter, segment_dir: Path) -> None:
    names = ["a\nb", "x" * 500, '"}{\\', "\x1b[31mred", " ", "früh 早", "\ud800"]
    job = run_job(HOSTILE.format(names=names))
    facts(job)
    (rank,) = observe(segment_dir).ranks
    found = {one.name for one in rank.loaders}
    assert found == {"a b", "x" * 100, '"}{\\', "[31mred", "loader", "früh 早"}
    assert all(name.isprintable() for name in found)
    job.tell()
    job.finish()


@pytest.mark.parametrize("name", [None, 7, b"bytes", object()], ids=repr)
def test_any_object_can_be_a_name(name: object) -> None:
    assert _names.clean(name) == str(name)[: _names.MAX_LENGTH]


@pytest.mark.parametrize("loader", [None, 7, "text", object()], ids=repr)
def test_naming_what_is_no_loader_returns_it_and_harms_nobody(
    loader: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dlmon.shim._guard.strict", False)
    assert dlmon.name(loader, "train") is loader


GIVEN = """
    import dlmon

    dlmon.instrument()

    from torch.utils.data import DataLoader

    first, second = DataLoader([1, 2]), DataLoader([1, 2, 3])
    dlmon.name(first, "train")
    dlmon.name(second, "train")
    list(first)
    list(second)
    iterators = iter(first), iter(second)
    print("FACTS {}", flush=True)
    input()
"""


def test_a_given_name_wins_and_is_shared_but_for_loaders_that_iterate_at_once(
    run_job: JobStarter, segment_dir: Path
) -> None:
    job = run_job(GIVEN)
    facts(job)
    snapshot = observe(segment_dir)
    assert loader(snapshot, "train").batches == 5
    assert loader(snapshot, "train#2").epochs == 1
    job.tell()
    job.finish()
