"""What importing costs and drags in, and that every command is there."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dlmon
from dlmon.cli import COMMANDS

PACKAGE = Path(dlmon.__file__).parent

THIRD_PARTIES = ("numpy", "prometheus_client", "psutil", "pynvml", "torch", "yaml")

JOB_SIDE = sorted(
    path.relative_to(PACKAGE).as_posix()
    for path in (
        PACKAGE / "__init__.py",
        PACKAGE / "errors.py",
        *(PACKAGE / "segment").rglob("*.py"),
        *(PACKAGE / "shim").rglob("*.py"),
    )
)


def python(*arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == status, result.stdout + result.stderr
    return result


def imported_by(statement: str) -> set[str]:
    """The top-level modules that a statement imports into an interpreter without site-packages'
    own start-up files, as `-X importtime` lists them."""
    lines = python("-X", "importtime", "-c", statement).stderr.splitlines()
    return {line.rsplit("|", 1)[1].strip().partition(".")[0] for line in lines if "|" in line}


def test_importing_dlmon_imports_the_standard_library_only() -> None:
    # What an empty program imports is what this environment's site-packages hook in at start.
    added = imported_by("import dlmon") - imported_by("pass") - {"imported package"}
    assert "dlmon" in added
    assert {name for name in added if name not in sys.stdlib_module_names} == {"dlmon"}


def test_importing_dlmon_opens_no_file_starts_no_thread_and_no_process() -> None:
    seen = json.loads(
        python(
            "-c",
            "import json, os, sys, threading\n"
            "def state():\n"
            "    children = open(f'/proc/self/task/{os.getpid()}/children').read()\n"
            "    tasks = sorted(os.listdir('/proc/self/task'))\n"
            "    files = {fd: os.readlink(f'/proc/self/fd/{fd}')\n"
            "             for fd in os.listdir('/proc/self/fd')\n"
            "             if os.path.exists(f'/proc/self/fd/{fd}')}\n"
            "    return files, tasks, threading.active_count(), children\n"
            "before = state()\n"
            "import dlmon\n"
            "after = state()\n"
            "print(json.dumps([before, after]))",
        ).stdout
    )
    assert seen[0] == seen[1]


def test_importing_dlmon_leaves_the_interpreter_as_it_was() -> None:
    changed = python(
        "-c",
        "import os, signal, sys\n"
        "def state():\n"
        "    return [signal.getsignal(s) for s in signal.valid_signals()], sys.excepthook, \\\n"
        "        sys.meta_path[:], sys.path_hooks[:], dict(os.environ), sys.gettrace()\n"
        "before = state()\n"
        "import dlmon\n"
        "print(state() == before)",
    ).stdout
    assert changed == "True\n"


@pytest.mark.parametrize("module", THIRD_PARTIES)
def test_importing_dlmon_does_not_import(module: str) -> None:
    assert python("-c", f"import dlmon, sys; print({module!r} in sys.modules)").stdout == "False\n"


def runtime_imports(tree: ast.AST) -> Iterator[str]:
    """The absolute names imported anywhere in a module, but for those for type checkers."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        else:
            yield from runtime_imports(node)


@pytest.mark.parametrize("path", JOB_SIDE)
def test_what_runs_in_the_job_never_imports_a_third_party(path: str) -> None:
    names = {
        name.partition(".")[0] for name in runtime_imports(ast.parse((PACKAGE / path).read_text()))
    }
    assert names <= sys.stdlib_module_names | {"dlmon"}


def test_the_module_runs_as_the_command() -> None:
    assert "usage: dlmon" in python("-m", "dlmon", "--help").stdout


def test_the_version_is_the_packages() -> None:
    assert python("-m", "dlmon", "--version").stdout == f"dlmon {dlmon.__version__}\n"


def test_help_lists_every_command_with_its_summary() -> None:
    listed = " ".join(python("-m", "dlmon", "--help").stdout.split())
    assert [command for command in COMMANDS if f"{command} {COMMANDS[command]}" not in listed] == []


def test_no_command_is_wrong_use_and_prints_the_help() -> None:
    assert "usage: dlmon" in python("-m", "dlmon", status=2).stdout


def test_an_unknown_command_is_wrong_use_and_names_those_there_are() -> None:
    said = python("-m", "dlmon", "frobnicate", status=2).stderr
    assert "frobnicate" in said
    assert [command for command in COMMANDS if command not in said] == []


def test_every_module_of_a_command_is_listed() -> None:
    modules = {path.stem for path in (PACKAGE / "commands").glob("[!_]*.py")}
    assert modules == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_that_says_what_it_does(command: str) -> None:
    shown = python("-m", "dlmon", command, "--help").stdout
    assert f"usage: dlmon {command}" in shown
    lines = [line for line in shown.splitlines() if line and not line.startswith(("usage", " "))]
    assert lines, "the module's docstring is the description"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "demo"])
def test_no_command_imports_torch(command: str) -> None:
    shown = python(
        "-c",
        "import contextlib, sys\n"
        "from dlmon.cli import main\n"
        "with contextlib.suppress(SystemExit):\n"
        f"    main([{command!r}, '--help'])\n"
        "print('torch' in sys.modules)",
    ).stdout
    assert shown.splitlines()[-1] == "False"
