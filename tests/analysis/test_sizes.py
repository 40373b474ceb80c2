"""How people write what was measured."""

from __future__ import annotations

import pytest

from dlmon.analysis.sizes import batch


@pytest.mark.parametrize(
    ("index", "samples", "words"),
    [
        (640, 32, "a batch that begins with sample 640 (32 a batch)"),
        (640, 4096, "a batch that begins with sample 640 (4,096 a batch)"),
        (640, 1, "a batch that begins with sample 640"),
        (640, 0, "a batch that begins with sample 640"),
        (None, 32, "a batch"),
    ],
)
def test_of_a_batch_only_its_first_sample_is_said(
    index: int | None, samples: int, words: str
) -> None:
    assert batch(index, samples) == words
