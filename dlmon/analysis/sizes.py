"""Bytes and seconds as people write them."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB", "TB")


def size(number: float) -> str:
    """Return bytes in two or three digits, as in `1.2 GB` or `310 MB`."""
    for unit in _UNITS[:-1]:
        if abs(number) < 999.5:
            return _short(number, unit)
        number /= 1000
    return _short(number, _UNITS[-1])


def duration(seconds: float) -> str:
    """Return seconds in the largest unit that fits, as in `40 s`, `12 min` or `2.5 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.3g} h" if seconds < 99.5 * 3600 else f"{seconds / 86400:.0f} days"


def _short(number: float, unit: str) -> str:
    digits = 1 if abs(number) < 9.95 and unit not in ("B", "kB") else 0
    return f"{number:.{digits}f} {unit}"
