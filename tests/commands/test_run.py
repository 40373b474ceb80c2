from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from dlmon.commands.run import BOOTSTRAP
from tests.commands.launching import FREE, LOADER, STATE, dlmon, ending_agents, launch, seen
from tests.jobs import JobStarter
from tests.observing import loader, observe, only_rank

ARGUMENTS = ["--help", "--r", "1", "--run", "theirs", "-m", "--", "-x", "--dir=", "", "a b"]

BASE_PYTHON = str(getattr(sys, "_base_executable", sys.executable))
"""Not of a virtual environment, which has no packages of a user's own."""

FALLBACK = os.path.join(BOOTSTRAP, "fallback")


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A folder with a script that prints what it sees, and an empty `torch`."""
    (tmp_path / "job.py").write_text(STATE)
    (tmp_path / "torch.py").write_text("")  # its import is all that is waited for
    return tmp_path


# ── The job is what it would have been ───────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given", "as_without"),
    [
        (["job.py"], [sys.executable, "job.py"]),
        (["--", "job.py"], [sys.executable, "job.py"]),
        (["-m", "job"], [sys.executable, "-m", "job"]),
        (["--", "-m", "job"], [sys.executable, "-m", "job"]),
        ([sys.executable, "job.py"], [sys.executable, "job.py"]),
        (["--", sys.executable, "-m", "job"], [sys.executable, "-m", "job"]),
    ],
    ids=" ".join,
)
def test_a_job_sees_what_it_would_have_seen_without(
    given: list[str], as_without: list[str], job: Path
) -> None:
    expected = seen([*as_without, *ARGUMENTS], job)
    found = seen([sys.executable, "-m", "dlmon", "run", *given, *ARGUMENTS], job)
    path, finders = found.pop("path"), found.pop("finders")
    assert path == [*expected.pop("path"), FALLBACK]  # type: ignore[misc]  # JSON
    assert finders == expected.pop("finders") + 1  # type: ignore[operator]  # the one that waits
    own = expected.pop("sitecustomize")  # most environments have none
    assert found.pop("sitecustomize") == (own or os.path.join(BOOTSTRAP, "sitecustomize.py"))
    assert found == expected
    assert found["argv"][1:] == ARGUMENTS  # type: ignore[index]
    assert found["modules"] == []


def test_no_signal_is_ignored_in_a_command_that_was_not_before(tmp_path: Path) -> None:
    words = ["grep", "SigIgn", "/proc/self/status"]
    without = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    assert dlmon("run", *words, cwd=tmp_path).stdout == without.stdout


def test_options_reach_the_job_by_its_environment(job: Path) -> None:
    directory = "/dev/shm/dlmon-test-run"
    words = ["--run", "r", "--rank", "03", "--dir", "../" * 9 + directory[1:], "job.py"]
    try:
        state = seen([sys.executable, "-m", "dlmon", "run", *words], job)
    finally:
        os.rmdir(directory)  # made because it was asked for
    environ = state["environ"]
    assert isinstance(environ, dict)
    assert {k: v for k, v in environ.items() if k.startswith("DLMON_") and "STRICT" not in k} == {
        "DLMON_RUN": "r",
        "DLMON_RANK": "3",
        "DLMON_DIR": directory,
    }


def test_pythonpath_keeps_what_it_had_and_names_the_directory_once(tmp_path: Path) -> None:
    words = ["sh", "-c", "echo $PYTHONPATH"]
    again = [sys.executable, "-m", "dlmon", "run", *words]
    env = {"PYTHONPATH": "/one::/two"}
    assert dlmon("run", *again, cwd=tmp_path, env=env).stdout == f"{BOOTSTRAP}:/one::/two\n"
    env = {"PYTHONPATH": ""}
    assert dlmon("run", *again, cwd=tmp_path, env=env).stdout == f"{BOOTSTRAP}\n"


def test_standard_input_is_the_jobs(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("print(input()[::-1])")
    assert dlmon("run", "job.py", cwd=tmp_path, stdin="tupni\n").stdout == "input\n"


@pytest.mark.parametrize(
    ("source", "status"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("raise ValueError", 1),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
    ],
)
def test_the_exit_status_is_the_jobs(source: str, status: int, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(source)
    dlmon("run", "job.py", cwd=tmp_path, status=status)


def test_closed_standard_streams_stay_closed(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import os, sys\n"
        "streams = [sys.stdin, sys.stdout, sys.stderr]\n"
        "open('found', 'w').write(f'{streams} {os.listdir(\"/proc/self/fd\")}')\n"
    )
    run = [f"{sys.executable} {words} <&- >&- 2>&-" for words in ("job.py", "-m dlmon run job.py")]
    found = []
    for command in run:
        subprocess.run(["sh", "-c", command], cwd=tmp_path, timeout=60, check=True)
        found.append((tmp_path / "found").read_text())
    assert found[0].startswith("[None, None, None]")
    assert found[1] == found[0]


@pytest.mark.parametrize("options", [[], [FREE]], ids=["alone", "with an agent"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_job(
    number: int, options: list[str], run_job: JobStarter, tmp_path: Path, segment_dir: Path
) -> None:
    (tmp_path / "victim.py").write_text(
        "import os, signal, sys\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(7))\n"
        "print('PID', os.getpid(), flush=True)\n"
        "input()\n"
    )
    with ending_agents(segment_dir):
        victim = launch(run_job, *options, "victim.py")
        victim.wait_for_output(f"PID {victim.pid}\n")
        victim.kill(number)
        victim.finish(status=7)


# ── Wrong use ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to run; give a script, -m MODULE or a command"),
        (["--"], "nothing to run; give a script, -m MODULE or a command"),
        (["--run", "r"], "nothing to run; give a script, -m MODULE or a command"),
        (["-m"], "-m without a module; give a script, -m MODULE or a command"),
        (["train.py"], "train.py: no such file in {cwd}; give a script, -m MODULE or a command"),
        (["no-such"], "no-such: no such command; give a script, -m MODULE or a command"),
        (["./job"], "./job: Permission denied; give a script, -m MODULE or a command"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(words: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "job").write_text("")
    result = dlmon("run", *words, cwd=tmp_path, status=2)
    assert result.stderr == f"dlmon run: {said.format(cwd=tmp_path)}\n"
    assert result.stdout == ""


def test_a_rank_is_a_number(tmp_path: Path) -> None:
    said = dlmon("run", "--rank", "one", "job.py", cwd=tmp_path, status=2).stderr
    assert said.endswith("'one' is not a rank; give a whole number, 0 or more\n")


def test_a_directory_that_cannot_be_used_is_said_before_the_job_starts(job: Path) -> None:
    said = dlmon("run", "--dir", str(job), "job.py", cwd=job, status=2)
    assert str(job) in said.stderr
    assert said.stdout == ""


# ── Every Python process of the job ──────────────────────────────────────────────────────────────


def test_the_users_own_sitecustomize_runs_once_and_keeps_its_name(job: Path) -> None:
    own = job / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text(
        "import sys\nsys.setrecursionlimit(sys.getrecursionlimit() + 1)\n"
    )
    (job / "job.py").write_text(STATE + "print(sys.getrecursionlimit())")
    lines = [
        dlmon("run", "env", f"PYTHONPATH={path}", sys.executable, "job.py", cwd=job).stdout
        for path in (own, f"{BOOTSTRAP}:{own}")
    ]
    state, limit = lines[0].splitlines()
    found, limit_found = lines[1].splitlines()
    assert limit_found == limit
    assert json.loads(found)["sitecustomize"] == str(own / "sitecustomize.py")
    assert json.loads(found)["path"] == [*json.loads(state)["path"], FALLBACK]


@pytest.mark.parametrize("source", ["raise ValueError('theirs')", "import no_such_module", "("])
def test_an_error_in_the_users_sitecustomize_is_reported_as_ever(source: str, job: Path) -> None:
    own = job / "own"
    own.mkdir()
    (own / "sitecustomize.py").write_text(source)
    (job / "job.py").write_text("import torch, sys; print('dlmon' in sys.modules)")
    results = [
        # Not in the environment of the command itself, which has the error too.
        dlmon("run", "env", f"PYTHONPATH={path}", sys.executable, "job.py", cwd=job)
        for path in (own, f"{BOOTSTRAP}:{own}")
    ]
    plain, found = results
    assert found.stderr == plain.stderr
    assert "sitecustomize" in plain.stderr
    assert (plain.stdout, found.stdout) == ("False\n", "True\n")


def test_the_users_own_usercustomize_runs_once(job: Path) -> None:
    folder = subprocess.run(
        [BASE_PYTHON, "-c", "import site; print(site.getusersitepackages())"],
        env={**os.environ, "PYTHONUSERBASE": str(job / "user")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout.strip()
    Path(folder).mkdir(parents=True)
    (Path(folder) / "usercustomize.py").write_text("print('theirs')")
    (job / "job.py").write_text("import torch, sys; print('dlmon' in sys.modules)")
    words = ["env", f"PYTHONUSERBASE={job / 'user'}", BASE_PYTHON, "job.py"]
    assert dlmon("run", *words, cwd=job).stdout == "theirs\nTrue\n"


@pytest.mark.parametrize(
    ("options", "observed"),
    [(["-E"], False), (["-I"], False), (["-S"], False), (["-s"], True), (["-O"], True)],
    ids=str,
)
def test_a_python_that_ignores_the_path_runs_unobserved_and_unharmed(
    options: list[str], observed: bool, job: Path
) -> None:
    (job / "job.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(job)!r})\n"
        "import torch\n"
        "print('dlmon' in sys.modules, len(sys.meta_path))\n"
    )
    words = [sys.executable, *options, "job.py"]
    plain = subprocess.run(
        words, cwd=job, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    found = dlmon("run", *words, cwd=job)
    assert plain.startswith("False ")
    if observed:
        assert found.stdout.startswith("True ")
    else:
        assert found.stdout == plain
    assert found.stderr == ""


def test_the_children_of_a_job_see_the_path_that_it_sees(job: Path) -> None:
    (job / "child.py").write_text("import os, sys; print(os.environ['PYTHONPATH'], sys.path[1:])")
    (job / "job.py").write_text(
        "import os, subprocess, sys\n"
        "exec(open('child.py').read())\n"
        "sys.stdout.flush()\n"
        "subprocess.run([sys.executable, 'child.py'], check=True)\n"
    )
    lines = dlmon("run", "job.py", cwd=job, env={"PYTHONPATH": "/theirs"}).stdout.splitlines()
    assert lines[0] == lines[1]
    assert lines[0].startswith(f"{BOOTSTRAP}:/theirs ['/theirs', ")


def test_uninstrument_before_torch_also_ends_the_wait_for_it(job: Path) -> None:
    (job / "job.py").write_text(
        "import sys\n"
        "before = list(sys.meta_path)\n"
        "import dlmon\n"
        "dlmon.uninstrument()\n"
        "dlmon.uninstrument()\n"
        "print(len(before) - len(sys.meta_path))\n"
        "import torch\n"
        "print([f for f in sys.meta_path if 'dlmon' in type(f).__module__])\n"
        "dlmon.instrument()\n"
        "print(len([f for f in sys.meta_path if 'dlmon' in type(f).__module__]))\n"
    )
    lines = dlmon("run", "job.py", cwd=job).stdout.splitlines()
    assert lines == ["1", "[]", "1"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
        ("(", "SyntaxError: '(' was never closed (__init__.py, line 1)"),
        ("", "AttributeError: module 'dlmon' has no attribute 'instrument'"),
        ("def instrument(): 1/0", "ZeroDivisionError: division by zero"),
    ],
)
def test_a_broken_dlmon_costs_the_job_one_line(source: str, said: str, job: Path) -> None:
    (job / "own" / "dlmon").mkdir(parents=True)
    (job / "own" / "dlmon" / "__init__.py").write_text(source)
    (job / "job.py").write_text("import torch; print(torch.__file__)")
    broken = ["env", f"PYTHONPATH={BOOTSTRAP}:{job}/own", sys.executable, "job.py"]
    result = dlmon("run", *broken, cwd=job)
    assert result.stdout == f"{job / 'torch.py'}\n"
    assert result.stderr == f"dlmon: DataLoaders are not observed: {said}\n"


def test_a_closed_standard_error_is_no_error(job: Path) -> None:
    (job / "job.py").write_text("import torch; print('fine')")
    words = ["sh", "-c", f"PYTHONPATH={BOOTSTRAP}:own {sys.executable} job.py 2>&-"]
    (job / "own" / "dlmon").mkdir(parents=True)
    (job / "own" / "dlmon" / "__init__.py").write_text("1/0")
    assert dlmon("run", *words, cwd=job).stdout == "fine\n"


def test_disabled_a_job_has_nothing_of_dlmon_in_it(job: Path) -> None:
    env = {"DLMON_DISABLE": "1"}
    (job / "job.py").write_text("import torch\n" + STATE)
    expected = seen([sys.executable, "job.py"], job, env)
    found = seen([sys.executable, "-m", "dlmon", "run", "job.py"], job, env)
    assert found["modules"] == ["torch"]
    assert found["finders"] == expected["finders"]


def test_looking_for_a_torch_that_is_not_there_finds_none(tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text(
        "import importlib.util, sys\n"
        "sys.path = [p for p in sys.path if 'site-packages' not in p]\n"
        "print(importlib.util.find_spec('torch'))\n"
        "try:\n    import torch\nexcept ImportError as error:\n    print(error)\n"
    )
    result = dlmon("run", "job.py", cwd=tmp_path)
    assert result.stdout == "None\nNo module named 'torch'\n"
    assert result.stderr == ""


@pytest.fixture
def bare_python(tmp_path: Path) -> str:
    """The Python of an environment that has no packages at all."""
    folder = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], timeout=60, check=True)
    return str(folder / "bin" / "python")


def test_a_python_without_dlmon_gets_dlmon_and_nothing_else(bare_python: str, job: Path) -> None:
    (job / "job.py").write_text(
        "import importlib.util, json\n"
        "import dlmon, dlmon.segment.files, torch\n"
        "print(json.dumps([dlmon.__file__, dlmon.__spec__.name, dlmon.__version__,\n"
        "    [importlib.util.find_spec(name) for name in ('psutil', 'yaml', 'pytest')]]))\n"
    )
    import dlmon as installed

    result = dlmon("run", bare_python, "job.py", cwd=job, env={"PYTHONPATH": ""})
    file, name, version, others = json.loads(result.stdout)
    assert os.path.samefile(file, installed.__file__)
    assert (name, version, others) == ("dlmon", installed.__version__, [None] * 3)
    assert result.stderr == ""


@pytest.mark.parametrize("script", sorted(Path(BOOTSTRAP).rglob("*.py")), ids=lambda p: p.name)
def test_what_any_python_of_a_job_runs_parses_on_an_old_one(script: Path) -> None:
    ast.parse(script.read_text(), feature_version=(3, 6))


# ── Observed ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "words",
    [["train.py"], ["-m", "train"], ["sh", "-c", "$PYTHON train.py"]],
    ids=["script", "module", "a shell's child"],
)
def test_the_loaders_are_observed(
    words: list[str], run_job: JobStarter, tmp_path: Path, segment_dir: Path
) -> None:
    (tmp_path / "train.py").write_text(LOADER)
    options = ["--run", "launch", "--rank", "5", "--dir", str(segment_dir)]
    job = launch(run_job, *options, *words, env={"DLMON_DIR": None, "PYTHON": sys.executable})
    job.wait_for_output("READY")
    rank = only_rank(observe(segment_dir))
    assert (rank.run, rank.rank, rank.up) == ("launch", "5", True)
    assert {one.name: one.batches for one in rank.loaders} == {"train": 3, "val": 2}
    assert all(rank.hooks.values())
    job.tell()
    assert "END" in job.finish()
    assert observe(segment_dir).ranks == ()


def test_spawned_workers_are_observed_where_dlmon_is_not_installed(
    bare_python: str, run_job: JobStarter, tmp_path: Path, segment_dir: Path
) -> None:
    (tmp_path / "train.py").write_text(LOADER)
    # Of a directory on PYTHONPATH no .pth file counts: torch is there, an editable dlmon is not.
    env = {"PYTHONPATH": sysconfig.get_path("purelib")}
    job = launch(run_job, bare_python, "train.py", "spawn", env=env)
    job.wait_for_output("READY")
    train = loader(observe(segment_dir), "train")
    assert [worker.up for worker in train.workers] == [True, True]
    assert min(worker.batches for worker in train.workers) > 0
    job.tell()
    job.finish()
