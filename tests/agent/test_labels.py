"""Label values are fit for a scrape whatever a job calls itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlmon.agent.labels import MAX_BYTES, clean


@given(st.text(st.characters(), max_size=300))  # surrogates included
def test_any_text_becomes_at_most_128_bytes_of_utf8_without_controls(text: str) -> None:
    fit = clean(text)
    assert len(fit.encode()) <= MAX_BYTES
    assert not any(ord(character) < 0x20 or character == "\x7f" for character in fit)
    assert len(fit.splitlines()) <= 1
    assert clean(fit) == fit


@pytest.mark.parametrize("text", ["", "train", "Ünïcode ☃ 训练", "emoji 👩‍🔬", 'a"b\\c', "x" * 128])
def test_what_is_fit_stays_as_it_is(text: str) -> None:
    assert clean(text) == text


def test_a_control_character_is_replaced_not_dropped() -> None:
    assert clean("a\nb\x00c\ud800d\u2028e") == "a�b�c�d�e"


def test_a_character_is_never_split() -> None:
    assert clean("x" * 127 + "é") == "x" * 127
    assert clean("é" * 100) == "é" * 64
