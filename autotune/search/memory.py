"""The memory rule: which points are known to fit, before they are run (METHOD.md 2.2).

One process holds ``c0 + c1 * num_envs + c2 * batch_size`` bytes with coefficients that are not
negative. The bound used for a point is the largest value that any such law can take there while it
agrees with every observation to within a tolerance. Along an axis that was never varied this is
scaling in proportion; between observations it is close to the fit.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autotune.records import DeviceInfo, Limits, Point, ProbeResult
from autotune.search.least_squares import fit_relative
from autotune.search.space import Array, Space, counts

_TOLERANCE = 0.02
_CONSTRAINING = 12
"""Observations that constrain the bound; leaving some out can only loosen it."""


@dataclass(frozen=True, kw_only=True)
class MemoryLimits:
    """Bytes that all processes of a point may hold together; None is unknown (not limited)."""

    vram_bytes: float | None = None
    ram_bytes: float | None = None


def memory_limits(limits: Limits, device: DeviceInfo | None) -> MemoryLimits:
    """What a recipe's limits leave on this machine, after what others hold already."""
    if device is None:
        return MemoryLimits()
    host, gpu = device.host, device.gpu
    vram = None
    if gpu is not None and gpu.vram_total_bytes:
        vram = limits.vram_fraction * gpu.vram_total_bytes - (gpu.vram_used_bytes or 0)
    held = max(0, host.ram_limit_bytes - host.ram_available_bytes)
    return MemoryLimits(vram_bytes=vram, ram_bytes=limits.ram_fraction * host.ram_limit_bytes - held)


def safe(space: Space, history: Sequence[ProbeResult], limits: MemoryLimits) -> Array:
    """(n,) whether each point of the space may be run."""
    return safe_points(space.points, history, limits, space.rollout)


def safe_points(
    points: Sequence[Point], history: Sequence[ProbeResult], limits: MemoryLimits, rollout: int | None
) -> Array:
    """(n,) whether each point dominates no failed one and is predicted to fit.

    While nothing has been measured every point passes the prediction; the plan begins with the baseline.
    """
    asked = counts(points, rollout)
    allowed = ~dominating(asked, counts([r.requested for r in history if not r.ok], rollout))
    for kind, limit in (("vram", limits.vram_bytes), ("ram", limits.ram_bytes)):
        seen = observed(history, kind)
        if limit is not None and seen:
            where, each_bytes = counts([point for point, _ in seen], rollout), np.array([each for _, each in seen])
            allowed &= asked[:, 2] * upper_bound(asked, where, each_bytes) <= limit
    return allowed


def dominating(asked: Array, failed: Array) -> Array:
    """(n,) whether each asked row is at least as large in every column as any of the failed rows (m, 3)."""
    if not len(failed):
        return np.zeros(len(asked), dtype=bool)
    result: Array = np.any(np.all(asked[:, None, :] >= failed[None, :, :], axis=2), axis=1)
    return result


def observed(history: Sequence[ProbeResult], kind: str) -> list[tuple[Point, float]]:
    """Measured points with the peak bytes of one process (``kind`` is ``vram`` or ``ram``).

    A failed point's peak is where it stopped, not what it needs, so it is left out.
    """
    peaks = [(result.requested, getattr(result, f"{kind}_peak_bytes")) for result in history if result.ok]
    return [(point, float(peak) / point.concurrency) for point, peak in peaks if peak]


def features(rows: Array) -> Array:
    """(n, 3) terms of the law: one, num_envs, batch_size."""
    return np.column_stack([np.ones(len(rows)), rows[:, 0], rows[:, 1]])


def fit(rows: Array, each_bytes: Array) -> Array:
    """(3,) non-negative coefficients with the least squared relative error."""
    return fit_relative(features(rows), each_bytes)


def upper_bound(asked: Array, rows: Array, each_bytes: Array) -> Array:
    """(n,) the most bytes per process that an additive law which agrees with the observations allows.

    A linear programme in three coefficients: maximise ``features(asked) @ c`` over ``c >= 0`` and
    ``|features(rows) @ c / each_bytes - 1| <= tolerance``. Its optimum lies on a vertex, and the
    vertices are enumerated once for all points. The tolerance is 2 % beyond the fit's worst error.
    """
    error = np.abs(features(rows) @ fit(rows, each_bytes) / each_bytes - 1)
    tolerance = _TOLERANCE + float(error.max())
    kept = _spread_out(rows, _CONSTRAINING)
    terms = features(rows[kept]) / each_bytes[kept, None]
    scale = terms.max(axis=0)
    terms = terms / scale
    # planes @ c <= offsets, for c scaled so that all terms are of one order
    planes = np.vstack([terms, -terms, -np.eye(3)])
    offsets = np.concatenate([np.full(len(terms), 1 + tolerance), np.full(len(terms), tolerance - 1), np.zeros(3)])
    corners = _vertices(planes, offsets)
    bound: Array = (features(asked) / scale @ corners.T).max(axis=1)
    return bound


def _vertices(planes: Array, offsets: Array) -> Array:
    """(v, 3) corner points of ``planes @ c <= offsets``."""
    triples = np.array(list(itertools.combinations(range(len(planes)), 3)))
    systems = planes[triples]
    regular = np.abs(np.linalg.det(systems)) > 1e-9
    corners = np.linalg.solve(systems[regular], offsets[triples[regular]][..., None])[..., 0]
    inside = (corners @ planes.T <= offsets + 1e-7).all(axis=1)
    result: Array = corners[inside]
    return result


def _spread_out(rows: Array, count: int) -> list[int]:
    """Indices of up to `count` rows far apart in num_envs and batch_size, the largest first."""
    where = np.log2(rows[:, :2])
    chosen = [int(np.argmax(where.sum(axis=1)))]
    distance = ((where - where[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < min(count, len(rows)) and distance.max() > 0:
        chosen.append(int(np.argmax(distance)))
        distance = np.minimum(distance, ((where - where[chosen[-1]]) ** 2).sum(axis=1))
    return chosen
