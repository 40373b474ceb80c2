"""Label values that no scrape can break on."""

from __future__ import annotations

import unicodedata

MAX_BYTES = 128
"""Longest label value, in bytes of UTF-8."""

_UNFIT = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Controls, surrogates (no UTF-8 for them) and line breaks: one of them can cost a whole scrape."""


def clean(value: str) -> str:
    """Return `value` fit for a label: each unfit character replaced by U+FFFD, at most MAX_BYTES.

    A character is never split: what does not fit whole is left out.
    """
    if value.isascii() and value.isprintable() and len(value) <= MAX_BYTES:
        return value
    # A character has at least one byte: what lies past MAX_BYTES characters cannot fit.
    fit = "".join(
        "\ufffd" if unicodedata.category(character) in _UNFIT else character
        for character in value[:MAX_BYTES]
    )
    return fit.encode()[:MAX_BYTES].decode(errors="ignore")
