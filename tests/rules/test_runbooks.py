"""Runbooks: one for each alert, of one form, and nothing in them that does not exist."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from dlmon.analysis.findings import FINDINGS
from dlmon.catalog import LOADER_WORKER_EXITS, METRICS, Kind
from dlmon.cli import COMMANDS
from dlmon.gen.rules.alerts import ALERTS
from dlmon.gen.rules.recording import RECORDINGS
from tests.rules.cases import BY_NAME, ROOT

FOLDER = ROOT / "docs" / "runbooks"
RUNBOOKS = sorted(FOLDER.iterdir())
SERIES = re.compile(r"(?<![\w:/-])((?:[a-z]+:)?dlmon_[a-z0-9_:]+)")


def code_lines(path: Path) -> list[str]:
    """The lines of indented code, comments left out, continued ones joined."""
    lines: list[str] = []
    for line in path.read_text().splitlines():
        text = re.sub(r"\s+# .*", "", line)
        if text.startswith("      ") and lines:
            lines[-1] += " " + text.strip()
        elif text.startswith("    "):
            lines.append(text.strip())
    return lines


def expressions(path: Path) -> list[str]:
    return [line for line in code_lines(path) if SERIES.search(line) or "__name__" in line]


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    assert [path.name for path in RUNBOOKS] == sorted(f"{alert.name}.md" for alert in ALERTS)


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_a_runbook_says_what_it_means_and_harms_how_to_look_and_what_to_do(path: Path) -> None:
    text = path.read_text()
    headings = re.findall(r"^#+ .*", text, flags=re.MULTILINE)
    wanted = ["## Meaning", "## Impact", "## Diagnosis", "## Mitigation"]
    assert headings == [f"# {path.stem}", *wanted]
    for section in re.split(r"^#+ .*", text, flags=re.MULTILINE)[2:]:
        assert len(section.strip()) > 40
    assert code_lines(path)
    for finding in BY_NAME[path.stem].findings:
        assert len(BY_NAME[path.stem].findings) == 1 or f"`{finding}`" in text


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_what_a_runbook_names_exists(path: Path) -> None:
    text = path.read_text()
    suffixes = ("", "_bucket", "_sum", "_count")
    known = {m.name + s for m in METRICS for s in (suffixes if m.kind is Kind.HISTOGRAM else ("",))}
    known |= {rule.name for rule in RECORDINGS}
    assert set(SERIES.findall(text)) <= known
    assert set(re.findall(r'finding="(\w+)"', text)) <= set(FINDINGS)
    assert set(re.findall(r'reason="(\w+)"', text)) <= set(LOADER_WORKER_EXITS.values)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert (path.parent / target).is_file(), target
    settings = (ROOT / "docs" / "configuration.md").read_text()
    for key in re.findall(r"`((?:hangs|keep|limits|metrics|web)\.\w+)", text):
        assert f"`{key}`" in settings


@pytest.mark.parametrize("path", RUNBOOKS, ids=lambda path: path.stem)
def test_dlmons_own_commands_take_what_a_runbook_gives_them(path: Path) -> None:
    for line in code_lines(path):
        program, *arguments = shlex.split(line)
        if program == "dlmon":
            assert arguments[0] in COMMANDS
            parser = argparse.ArgumentParser(exit_on_error=False)
            importlib.import_module(f"dlmon.commands.{arguments[0]}").configure(parser)
            parser.parse_args(arguments[1:])


def test_the_expressions_of_runbooks_parse(promtool: Path, tmp_path: Path) -> None:
    rules = [
        {"record": f"line:{number}", "expr": expression}
        for number, expression in enumerate(line for path in RUNBOOKS for line in expressions(path))
    ]
    assert len(rules) > 2 * len(RUNBOOKS)
    written = tmp_path / "rules.yml"
    written.write_text(yaml.safe_dump({"groups": [{"name": "runbooks", "rules": rules}]}))
    checked = subprocess.run(
        [promtool, "check", "rules", "--lint=none", written],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
