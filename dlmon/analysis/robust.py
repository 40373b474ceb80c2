"""Fits that outliers do not move. Pure functions."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

MOST_POINTS = 60
"""Of more points so many are used, evenly taken: their pairs grow with the square."""


def slope(points: Sequence[tuple[float, float]]) -> float | None:
    """Return the Theil-Sen slope: the median of the slopes between any two points.

    Up to 29 % of the points may be anything. Source: Sen, "Estimates of the Regression Coefficient
    Based on Kendall's Tau", 1968.

    Args:
        points: (x, y) in any order.

    Returns:
        In units of y per unit of x; None if no two points differ in x.
    """
    step = max(1, -(-len(points) // MOST_POINTS))
    pairs = itertools.combinations(points[::step], 2)
    slopes = [(y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in pairs if x1 != x0]
    return statistics.median(slopes) if slopes else None
