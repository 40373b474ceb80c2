"""What the tests of the shim share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import dlmon
from dlmon.shim import _guard
from tests.shim import patching


@pytest.fixture
def torch_own(segment_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[patching.State]:
    """What is in torch's modules; the test must leave just that, and no error of ours."""
    monkeypatch.setenv("DLMON_DIR", str(segment_dir))
    dlmon.uninstrument()
    assert not patching.ours()
    before, errors = patching.state(), _guard.errors
    yield before
    dlmon.uninstrument()
    left = patching.changes(before)
    patching.restore(before)  # one failure is enough
    assert not left
    assert _guard.errors == errors
