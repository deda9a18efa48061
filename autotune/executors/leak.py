"""Memory that grows without an end in sight, told from memory that settles. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

HORIZON_S = 24 * 3600.0
GROWTH_MIN_BYTES = 16 * 2**20
"""Over a window: an allocator's own coming and going."""
_SETTLING = 0.75
"""Growth of the second half over that of the first, below which memory is taken to settle."""
_PIECES_MAX = 7
_ITERATIONS_EACH = 1.5
_THROUGHOUT = 0.15
"""Every piece of a window adds at least this much of its share: a heap grows by a few steps, then rests."""
_READINGS_MIN = 20
_SPAN_MIN_S = 25.0
_READINGS_MAX = 240
_CONFIDENCE = 0.95


def hours_to(limit_bytes: float, readings: Sequence[tuple[float, float]], *, iteration_s: float = 0.0) -> float | None:
    """Hours until growing memory reaches a limit, None when it does not grow or not within 24 hours.

    It grows when the lower 95 % bound of the slope (Theil 1950; Sen 1968, which a minority of outliers
    does not move) leads to the limit, when both halves grow at such a pace and the second not clearly more
    slowly than the first (an exponential approach is no leak), by 16 MiB at least in all and throughout the
    window (a heap that grows by steps until it has what it needs is no leak).

    Args:
        limit_bytes: what must not be reached.
        readings: (seconds, bytes) of one window of 25 s or more, in order of time.
        iteration_s: how long an iteration takes; what leaks may come all at once in each.
    """
    thinned = readings[:: max(1, len(readings) // _READINGS_MAX)]
    if len(thinned) < _READINGS_MIN:
        return None
    times_s, sizes = np.asarray(thinned, dtype=np.float64).T
    span_s = times_s[-1] - times_s[0]
    if span_s < _SPAN_MIN_S or sizes[-1] - sizes[0] < GROWTH_MIN_BYTES / 2:
        return None
    slope, low = _slope(times_s, sizes)
    needed = max(0.0, limit_bytes - float(np.median(sizes[-5:]))) / HORIZON_S
    if low <= needed or slope * span_s < GROWTH_MIN_BYTES or not _throughout(sizes, span_s, iteration_s):
        return None
    half = len(times_s) // 2
    (early, early_low), (late, late_low) = (_slope(times_s[p], sizes[p]) for p in (slice(half), slice(half, None)))
    if min(early_low, late_low) <= 0 or late <= needed or late < _SETTLING * early:
        return None
    return needed * HORIZON_S / slope / 3600


def _slope(times_s: NDArray[np.float64], sizes: NDArray[np.float64]) -> tuple[float, float]:
    """(median of the slopes of all pairs, its lower confidence bound), bytes per second."""
    from scipy.stats import theilslopes

    fit = theilslopes(sizes, times_s, alpha=_CONFIDENCE)
    return float(fit.slope), float(fit.low_slope)


def _throughout(sizes: NDArray[np.float64], span_s: float, iteration_s: float) -> bool:
    """Whether every piece of the window, longer than an iteration, took part in the growth."""
    pieces = int(span_s / (_ITERATIONS_EACH * iteration_s)) if iteration_s > 0 else _PIECES_MAX
    parts = np.array_split(sizes, max(2, min(_PIECES_MAX, pieces)))
    levels = np.array([np.median(part) for part in parts])
    return float(np.diff(levels).min()) >= _THROUGHOUT * float(levels[-1] - levels[0]) / (len(levels) - 1)
