"""What is generated is committed, complete and says nothing twice."""

from __future__ import annotations

import dataclasses
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import dlmon
from dlmon.agent.config import SETTINGS, Config, load
from dlmon.catalog import METRICS
from dlmon.commands.gen import documents
from dlmon.errors import UsageError
from dlmon.gen import configuration, metrics, segment
from dlmon.gen.files import differing, source_root, write
from dlmon.gen.markdown import table
from dlmon.segment import layout
from dlmon.segment.layout import FIELDS, Scope

ROOT = Path(dlmon.__file__).resolve().parent.parent


def rows(text: str) -> list[list[str]]:
    """The cells of every row of every table."""
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in text.splitlines()
        if line.startswith("| ") and "---" not in line
    ]


def gen(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dlmon", "gen", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_what_is_committed_is_what_would_be_generated() -> None:
    assert differing(ROOT, documents()) == []


def test_documents_say_that_they_are_generated_and_from_what() -> None:
    for text in documents().values():
        source = re.match(r"(?:<!--|#) Made by `dlmon gen` from (\S+)\. ", text)
        assert source
        assert (ROOT / source[1]).is_file()
        assert text.endswith("\n")
        assert not text.endswith("\n\n")


# --- metrics.md ---


def test_every_metric_has_one_row_with_its_help() -> None:
    text = metrics.render()
    documented = {row[0]: row for row in rows(text) if row[0].startswith("`dlmon_")}
    assert set(documented) == {f"`{metric.name}`" for metric in METRICS}
    for metric in METRICS:
        row = documented[f"`{metric.name}`"]
        assert metric.kind.value in row[1] or row[1] == "gauge, always 1"
        assert row[4] == metric.help
        for value in metric.values:
            assert value in row[3]


# --- configuration.md ---


def test_every_setting_has_one_row_with_default_range_flag_and_description() -> None:
    documented = {row[0]: row for row in rows(configuration.render(SETTINGS))}
    for setting in SETTINGS:
        row = documented.pop(f"`{setting.key}`")
        assert row[2] == setting.allowed
        assert row[3].strip("`") == setting.flag
        assert row[4].replace("&lt;", "<") == setting.description
    assert set(documented) == {"key"}


def test_the_example_is_the_default_configuration(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(.*?)```", configuration.render(SETTINGS), re.DOTALL)
    assert example
    path = tmp_path / "agent.yml"
    path.write_text(example[1])
    assert load(str(path), {}, {}) == Config()
    assert len(yaml.safe_load(example[1])) == len(dataclasses.fields(Config))


# --- segment.md ---


def test_the_header_is_documented_byte_by_byte() -> None:
    documented = [row for row in rows(segment.render()) if len(row) == 4 and row[0].isdecimal()]
    end = 0
    for offset, size, _, _ in documented:
        assert int(offset) == end
        end += int(size)
    assert end == layout.HEADER.size <= layout.HEADER_SIZE
    names = [row[3] for row in documented]
    assert names[0] == "magic"
    assert len(set(names)) == len(names)
    (ready,) = [row for row in documented if row[3] == "ready"]
    assert int(ready[0]) == layout.READY_OFFSET
    assert int(ready[1]) == struct.calcsize("<q")


def test_every_field_is_documented_where_it_is() -> None:
    text = segment.render()
    for scope in Scope:
        for field in FIELDS[scope].values():
            wanted = [str(field.offset), str(field.count), field.unit, f"`{field.name}`"]
            assert wanted in [row[:4] for row in rows(text)]
    for names in (layout.ERRORS, layout.EXIT_REASONS, layout.HOOKS):
        assert ", ".join(names) in text
    for phase in layout.Phase:
        assert f"{phase.value} {phase.name}" in text
    assert f"Version {layout.MAJOR}.{layout.MINOR}." in text


# --- markdown ---


def test_a_cell_cannot_leave_its_cell() -> None:
    (_, _, row, _) = table(("a", "b"), [("x | y", "line\nbreak <tag> `<code>`")])
    assert row == r"| x \| y | line break &lt;tag> `<code>` |"


# --- the command ---


def copy_of_the_source(folder: Path) -> Path:
    """A source checkout of its own, to write into."""
    shutil.copytree(ROOT / "dlmon", folder / "dlmon", ignore=shutil.ignore_patterns("__pycache__"))
    for made in ("docs", "deploy"):
        shutil.copytree(ROOT / made, folder / made)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_check_lists_what_differs_and_writes_nothing(tmp_path: Path) -> None:
    root = copy_of_the_source(tmp_path)
    assert gen(root, "--check").returncode == 0
    changed = root / "docs" / "metrics.md"
    changed.write_text("stale")
    (root / "docs" / "segment.md").unlink()
    checked = gen(root, "--check")
    assert checked.returncode == 1
    assert checked.stdout.splitlines() == [
        "docs/metrics.md is out of date; run `dlmon gen`",
        "docs/segment.md is out of date; run `dlmon gen`",
    ]
    assert changed.read_text() == "stale"
    assert not (root / "docs" / "segment.md").exists()


def test_gen_writes_what_differs_and_says_so(tmp_path: Path) -> None:
    root = copy_of_the_source(tmp_path)
    (root / "docs" / "configuration.md").unlink()
    done = gen(root)
    assert (done.returncode, done.stdout) == (0, "wrote docs/configuration.md\n")
    assert differing(root, documents()) == []
    again = gen(root)
    assert (again.returncode, again.stdout) == (0, "")


def test_elsewhere_than_in_a_checkout_it_says_what_to_do(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "dlmon", tmp_path / "dlmon")
    refused = gen(tmp_path, "--check")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"dlmon gen: {tmp_path} is no source checkout of dlmon")
    assert "clone the repository" in line


def test_the_root_is_found_from_any_module() -> None:
    assert source_root(ROOT / "dlmon" / "commands") == ROOT
    with pytest.raises(UsageError):
        source_root(Path("/usr/lib/x.py"))


def test_writing_makes_the_folders_it_needs(tmp_path: Path) -> None:
    assert write(tmp_path, {"a/b.md": "text"}) == ["a/b.md"]
    assert (tmp_path / "a" / "b.md").read_text() == "text"
