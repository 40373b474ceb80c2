"""What is wrong with a command line is said in one line; what is said of a fault is true."""

from __future__ import annotations

import argparse
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from dlmon import catalog
from dlmon.cli import main
from dlmon.commands import demo
from dlmon.demo.faults import FAULTS
from dlmon.demo.trouble import TROUBLES
from tests.demo.running import ROOT


def _arguments(*given: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    demo.configure(parser)
    return parser.parse_args(given)


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--num-workers", "-1"), "--num-workers -1: expected 0 or more"),
        (("--epochs", "0"), "--epochs 0: expected 1 or more"),
        (("--images", "3"), "--images 3: expected 4 or more"),
        (("--fault", "hang", "--num-workers", "0"), "fault hang needs 1 or more"),
        (("--fault", "slow-worker", "--num-workers", "1"), "fault slow-worker needs 2 or more"),
        (("--fault", "kill", "--epochs", "1"), "a fault begins in epoch 2"),
        (("--web.listen-address", "nonsense"), "'nonsense': expected host:port"),
        (("--port", "70000"), "'127.0.0.1:70000': expected host:port"),
        (("--dir", "/nowhere"), "/nowhere/dlmon-demo-"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(
    given: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", *given]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("dlmon demo: ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("module", "install"),
    [("torch", "torch"), ("skimage", "'dlmon[demo]'"), ("PIL", "'dlmon[demo]'")],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    module: str,
    install: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as Python has what cannot be imported
    assert main(["demo"]) == 2
    error = capsys.readouterr().err
    assert error.endswith(f"install: {sys.executable} -m pip install {install}\n")
    assert error.count("\n") == 1


def test_the_usual_port_in_use_makes_it_choose_a_free_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with closing(socket.socket()) as server:
        with suppress(OSError):  # an agent may run on this machine: all the better
            server.bind((demo.HOST, demo.PORT))
            server.listen()
        host, port = demo._free_address(_arguments())
    assert host == demo.HOST
    assert port not in (0, demo.PORT)
    assert f"port {demo.PORT} is in use, by an agent perhaps: taking {port}" in (
        capsys.readouterr().out
    )


def test_an_address_asked_for_that_is_in_use_is_refused(
    taken: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--port", str(taken)]) == 2
    assert f"127.0.0.1:{taken} is in use" in capsys.readouterr().err


def test_port_0_is_any_free_port() -> None:
    host, port = demo._free_address(_arguments("--web.listen-address", "127.0.0.1:0"))
    assert host == "127.0.0.1"
    assert port > 0


def test_every_fault_that_is_offered_can_happen() -> None:
    assert FAULTS.keys() == TROUBLES.keys()


def test_the_readme_names_every_fault() -> None:
    table = (ROOT / "README.md").read_text().partition("| what happens | `--fault` |")[2]
    rows = table.partition("\n\n")[0].splitlines()[2:]
    assert sorted(re.findall("`(.*?)`", " ".join(row.split("|")[2] for row in rows))) == sorted(
        FAULTS
    )


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_what_is_said_of_a_fault_names_real_metrics(name: str) -> None:
    known = {metric.name for metric in catalog.METRICS}
    named = [re.search(r"dlmon_\w+", line) for line in FAULTS[name].metrics]
    assert named
    assert {found[0] if found else None for found in named} <= known
