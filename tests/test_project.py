"""That what is written about the project is so: README, Makefile, pyproject, CI."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import dlmon
from dlmon.cli import COMMANDS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
BUILD_SECONDS = 250
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def readme() -> str:
    return (ROOT / "README.md").read_text()


def make(*arguments: str) -> str:
    return subprocess.run(
        ["make", "--no-print-directory", "-C", str(ROOT), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


def goals_with_help() -> list[str]:
    return re.findall(r"^  ([a-z-]+) ", make("help"), flags=re.MULTILINE)


@pytest.mark.parametrize("goal", ["demo", "test"])
def test_the_readme_shows_a_command_that_the_makefile_has(goal: str) -> None:
    assert f"make {goal}" in readme()
    assert goal in goals_with_help()


def test_every_goal_the_documents_name_exists() -> None:
    named = {
        goal
        for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md")
        for goal in re.findall(r"\bmake ([a-z][a-z-]*)", document.read_text())
    }
    assert named - set(goals_with_help()) - {"tools"} == set()


def test_make_without_a_goal_says_what_there_is() -> None:
    assert make() == make("help")


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_documents_every_command(command: str) -> None:
    assert re.search(rf"\bdlmon {command}\b", readme())


def options() -> Iterator[tuple[str, str]]:
    for command in COMMANDS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"dlmon.commands.{command}").configure(parser)
        for action in parser._actions:
            long = [name for name in action.option_strings if name.startswith("--")]
            if action.help != argparse.SUPPRESS and long and long != ["--help"]:
                yield command, long[0]


def test_the_readme_documents_every_option() -> None:
    text = readme()
    missing = [
        f"dlmon {command} {option}"
        for command, option in options()
        if not re.search(rf"{re.escape(option)}(?![\w.-])", text)
    ]
    assert missing == []


def test_every_option_has_help() -> None:
    for command in COMMANDS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"dlmon.commands.{command}").configure(parser)
        assert [action.dest for action in parser._actions if not action.help] == [], command


def test_the_version_is_written_once() -> None:
    assert "version" not in PROJECT
    assert "version" in PROJECT["dynamic"]
    assert importlib.metadata.version("dlmon") == dlmon.__version__
    others = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "dlmon").rglob("*.py")
        if re.search(r"^__version__\s*=", path.read_text(), flags=re.MULTILINE)
    ]
    assert others == ["dlmon/__init__.py"]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower() for requirement in requirements}


def test_torch_is_never_a_dependency() -> None:
    everything = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirements in everything:
        assert not {name for name in names(requirements) if name.startswith(("torch", "nvidia-cu"))}


def test_every_dependency_is_bounded_below_and_has_a_reason() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    for requirement in PROJECT["dependencies"]:
        assert ">=" in requirement
        assert re.search(rf'"{re.escape(requirement)}",\s+# \S', text), requirement


def test_the_typed_marker_and_the_page_are_in_the_package() -> None:
    package = Path(dlmon.__file__).parent
    assert (package / "py.typed").exists()
    assert list((package / "agent" / "web").iterdir())


@pytest.mark.parametrize("script", [".ci/run", "tools/install_tools", "tools/test_image"])
def test_scripts_can_be_run_and_parse(script: str) -> None:
    path = ROOT / script
    assert path.stat().st_mode & 0o111 == 0o111
    subprocess.run(["bash", "-n", str(path)], check=True, timeout=60)


@pytest.mark.slow
@pytest.mark.timeout(2 * BUILD_SECONDS + 100)
def test_the_wheel_holds_what_the_package_needs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(ROOT)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=BUILD_SECONDS)
    except subprocess.SubprocessError:  # it fetches hatchling from the index, which may fail once
        subprocess.run(command, check=True, capture_output=True, timeout=BUILD_SECONDS)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = set(
        subprocess.run(
            [sys.executable, "-m", "zipfile", "--list", str(wheel)],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        ).stdout.split()
    )
    wanted = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "dlmon").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert wanted - shipped == set()
