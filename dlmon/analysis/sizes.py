"""Bytes, seconds and batches as people write them."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB", "TB")


def size(number: float) -> str:
    """Return bytes in the unit that suits them: 913 kB, 1.5 MB, 412 MB, 11.2 GB."""
    for unit in _UNITS[:-1]:
        if abs(number) < 999.5:
            return _short(number, unit)
        number /= 1000
    return _short(number, _UNITS[-1])


def duration(seconds: float) -> str:
    """Return a time in the unit that suits it: 19 ms, 4.2 s, 42 s, 12 min, 2.5 h, 12 days."""
    if 0 < seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms"
    if 0 < seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.3g} h" if seconds < 99.5 * 3600 else f"{seconds / 86400:.0f} days"


def batch(index: int | None, samples: int) -> str:
    """Return which batch it is, as far as is known: of what comes shuffled only its first sample.

    Args:
        index: Of its first sample, None if it has no integer one.
        samples: As many as are usual, 0 if not known.
    """
    if index is None:
        return "a batch"
    many = f" ({samples:,} a batch)" if samples > 1 else ""
    return f"a batch that begins with sample {index}{many}"


def _short(number: float, unit: str) -> str:
    most = {"MB": 9.95, "GB": 99.95, "TB": 99.95}.get(unit, 0.0)
    text = f"{number:.1f}" if abs(number) < most else f"{number:.0f}"
    return f"{text.removesuffix('.0')} {unit}"
