"""docs/compatibility.md says what is tested, in the versions that are installed for it."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path

import pytest

HERE = Path(__file__).parent
DOCUMENT = HERE.parent.parent / "docs" / "compatibility.md"

TABLE = dict(re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", DOCUMENT.read_text(), re.MULTILINE))
"""The version of each framework."""


def test_there_is_a_framework_in_the_document_for_each_module_of_tests() -> None:
    modules = sorted(HERE.glob("test_*.py"))
    text = "\n".join(module.read_text() for module in modules)
    imported = set(re.findall(r'^FRAMEWORK = "(\w+)"', text, re.MULTILINE))
    named = {name.removeprefix("mosaicml-") for name in TABLE}
    assert imported == named


@pytest.mark.parametrize("name", TABLE)
def test_the_version_documented_is_the_one_required_and_installed(name: str) -> None:
    files = HERE.glob("requirements*.txt")
    required = re.findall(rf"^{name}==(.+)$", "".join(f.read_text() for f in files), re.MULTILINE)
    assert required == [TABLE[name]] == [version(name)]
