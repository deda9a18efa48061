"""The memory rule: which points are known to fit, before they are run.

Of each resource (device memory, host memory, ``/dev/shm``, threads) one process takes
``c0 + c1 * num_envs + c2 * batch_size + c3 * sqrt(batch_size) + shared / concurrency`` with coefficients that
are not negative: workspaces grow more slowly than the minibatch, and what processes share (libraries, a server)
they take once. Where the rollout adapts to num_envs, samples per update are a further term of both memories.
The bound used for a point is the largest value that any such law can take there while it agrees with every
observation to within a tolerance, and no more than proportional scaling from any one of them. Along an axis that was
never varied the two are the same; between observations the first is close to the fit, and where programs follow
another law (of num_envs times batch_size, say) the second is the nearer one.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import linprog  # type: ignore[attr-defined]
from scipy.spatial import HalfspaceIntersection, QhullError

from autotune.machine import RAM_UNSTATED_BYTES, DeviceInfo, HostInfo
from autotune.records import REFUSED, Limits, Point, ProbeResult, Status
from autotune.search.least_squares import fit_relative
from autotune.search.model import measured
from autotune.search.space import Array, Space, counts, samples
from autotune.workloads.learning import Rollout

Resource = Literal["vram", "ram", "shm", "threads"]
PEAKS: dict[Resource, str] = {
    "vram": "vram_peak_bytes",
    "ram": "ram_peak_bytes",
    "shm": "shm_peak_bytes",
    "threads": "threads_peak",
}
"""Where a result says what all its processes took."""

ODD: tuple[Status, ...] = ("crashed", "timeout")
"""Failures that may have another cause than a point's weight."""
UNTOLD = "untold"
"""Flag of a crash that may be an OOM: a user's own study does not tell them apart."""
_SAMPLED: tuple[Resource, ...] = ("vram", "ram")
"""What a rollout is held in."""
_WANTED: dict[Resource, Status] = {"vram": "oom", "ram": "host_lost"}
"""What happens to a point for want of a resource whose limit nobody stated."""
_TOLERANCE = 0.03
"""Launches of the same settings differ by this much in the memory that readings see."""
_UNSEEN_ERROR = 0.05
"""Error assumed of a law while there are no more observations than coefficients: it passes through them all."""
_SETTLED_SPARE = 4
_SETTLED_TOLERANCE = 0.01
"""With so many more observations than coefficients the fit's own errors say how much launches differ, at least this."""


@dataclass(frozen=True, kw_only=True)
class MemoryLimits:
    """What all processes of a point may take together; None is unknown (not limited).

    Attributes:
        vram_bytes: of the device.
        ram_bytes: of the host.
        shm_bytes: of ``/dev/shm``.
        threads: processes and their threads, as the kernel counts them against a limit of pids.
    """

    vram_bytes: float | None = None
    ram_bytes: float | None = None
    shm_bytes: float | None = None
    threads: float | None = None

    def of(self, resource: Resource) -> float | None:
        """The limit of one resource."""
        known = {"vram": self.vram_bytes, "ram": self.ram_bytes, "shm": self.shm_bytes, "threads": self.threads}
        return known[resource]


def memory_limits(limits: Limits, device: DeviceInfo) -> MemoryLimits:
    """What a recipe's limits leave on this machine, after what others hold already."""
    host, gpu = device.host, device.gpu
    vram = shm = None
    if gpu is not None and gpu.vram_total_bytes:
        vram = limits.vram_fraction * gpu.vram_total_bytes - (gpu.vram_used_bytes or 0)
    if host.shm_total_bytes and host.shm_free_bytes is not None:
        shm = limits.ram_fraction * host.shm_total_bytes - (host.shm_total_bytes - host.shm_free_bytes)
    held = max(0, host.ram_limit_bytes - host.ram_available_bytes)
    stated = host.ram_limit_bytes < RAM_UNSTATED_BYTES
    ram = limits.ram_fraction * host.ram_limit_bytes - held if stated else None
    return MemoryLimits(vram_bytes=vram, ram_bytes=ram, shm_bytes=shm, threads=_threads_limit(limits, host))


def _threads_limit(limits: Limits, host: HostInfo) -> float | None:
    if host.pids_limit is None:
        return None
    return limits.ram_fraction * host.pids_limit - (host.pids_used or 0)


def safe(space: Space, history: Sequence[ProbeResult], limits: MemoryLimits) -> Array:
    """(n,) whether each point of the space may be run."""
    return safe_points(space.points, history, limits, space.rollout)


def safe_points(
    points: Sequence[Point], history: Sequence[ProbeResult], limits: MemoryLimits, rollout: Rollout | None
) -> Array:
    """(n,) whether each point dominates no failed one and is predicted to fit.

    What asks for no more of any knob than a point that ran cannot run out: it is tried where any law says that it fits.
    While nothing has been measured every point passes the prediction; the plan begins with the baseline. Where a limit
    is not known, what failed for want of the resource says that it is less than that was expected to need.
    """
    asked = counts(points, rollout)
    ran = counts([result.requested for result in measured(history)], rollout)
    lighter = dominating(-loads(asked, rollout), -loads(ran, rollout))
    allowed = ~_forbidden(asked, history, rollout)
    for resource in PEAKS:
        limit, seen = limits.of(resource), observed(history, resource)
        if not seen or (limit is None and resource not in _WANTED):
            continue
        each, held = np.array([taken for _, taken in seen]), rollout if resource in _SAMPLED else None
        there, where = loads(asked, held), loads(counts([point for point, _ in seen], rollout), held)
        if limit is None:
            wanting = [r.requested for r in weighty(history, rollout) if r.status == _WANTED[resource]]
            limit = _least_wanting(loads(counts(wanting, rollout), held), where, each)
        fits = asked[:, 2] * most(resource, there, where, each) <= limit
        allowed &= fits | (lighter & (asked[:, 2] * lower_bound(there, where, each) <= limit))
    return allowed


def _least_wanting(failed: Array, rows: Array, each: Array) -> float:
    """A limit that is not stated: the least that any point which failed for want of a resource is expected to need.

    Args:
        failed: (f, 3) `counts` or (f, 4) `loads` of those points; infinite where there is none. One that is expected to
            need no more than was held elsewhere says that the law is wrong there, and nothing of the limit.
        rows: (m, 3) or (m, 4) of the observed points.
        each: (m,) what one process took there.
    """
    expected = failed[:, 2] * (features(failed) @ fit(rows, each))
    return float(min(expected[expected > (rows[:, 2] * each).max()], default=np.inf))


def most(resource: Resource, asked: Array, rows: Array, each: Array) -> Array:
    """(n,) `upper_bound` of a resource; of threads no less than any process had.

    A process has them by its share of the cores, which ends at one of each kind: they fall no further.
    """
    bound = upper_bound(asked, rows, each)
    return np.maximum(bound, each.min()) if resource == "threads" else bound


def _forbidden(asked: Array, history: Sequence[ProbeResult], rollout: Rollout | None) -> Array:
    """(n,) whether each asked row failed, or dominates one whose failure weighs."""
    failed = counts([result.requested for result in history if not result.ok], rollout)
    heavy = counts([result.requested for result in weighty(history, rollout)], rollout)
    result: Array = dominating(asked, heavy) | (asked[:, None, :] == failed[None]).all(axis=2).any(axis=1)
    return result


def weighty(history: Sequence[ProbeResult], rollout: Rollout | None) -> list[ProbeResult]:
    """The failures that heavier points are taken to share.

    Not settings that a program refused: it may want a minibatch no larger than its rollout. Not a point that
    failed though a heavier one ran, unless the machine was lost; and where that was a crash or a timeout, no
    crash or timeout, as they come from something else. Nor a crash or timeout of what needs no more than others took.
    """
    failures = [result for result in history if not result.ok and REFUSED not in result.flags]
    failed = counts([result.requested for result in failures], rollout)
    ran = counts([result.requested for result in measured(history)], rollout)
    refuted = {
        result.requested
        for result, lighter in zip(failures, dominating(-failed, -ran), strict=True)
        if lighter and result.status != "host_lost"
    }
    odd = any(result.requested in refuted and result.status in ODD for result in failures)
    told = [r.requested for r in failures if r.status in ODD and UNTOLD not in r.flags]
    modest = _modest(told, history, rollout)
    unlike = {r.requested for r in failures if r.status in ODD and (odd or r.requested in modest)}
    return [r for r in failures if r.requested not in refuted | unlike]


def _modest(points: Sequence[Point], history: Sequence[ProbeResult], rollout: Rollout | None) -> set[Point]:
    """Those that need no more memory, by any law, than was held where another one ran.

    Where no memory is known, those with no more environments over all processes, and no more samples in minibatches.
    """
    ran = counts([result.requested for result in measured(history)], rollout)
    if not points or not len(ran):
        return set()
    asked, bounds = counts(points, rollout), []
    for resource in _SAMPLED:
        if seen := observed(history, resource):
            where, each = loads(counts([point for point, _ in seen], rollout), rollout), np.array([e for _, e in seen])
            most_bytes = asked[:, 2] * upper_bound(loads(asked, rollout), where, each)
            bounds.append(most_bytes <= (where[:, 2] * each).max())
    if not bounds:
        bounds = [asked[:, knob] * asked[:, 2] <= (ran[:, knob] * ran[:, 2]).max() for knob in (0, 1)]
    return {point for point, *fits in zip(points, *bounds, strict=True) if all(fits)}


def loads(rows: Array, rollout: Rollout | None) -> Array:
    """(n, 3) `counts` as they are, or (n, 4) with samples per update where num_envs alone does not say them."""
    if rollout is None or rollout.samples_per_update is None:
        return rows
    return np.column_stack([rows, samples(rows[:, 0], rollout)])


def dominating(asked: Array, failed: Array) -> Array:
    """(n,) whether each asked row is at least as large in every column as any of the failed rows (m, 3)."""
    if not len(failed):
        return np.zeros(len(asked), dtype=bool)
    result: Array = np.any(np.all(asked[:, None, :] >= failed[None, :, :], axis=2), axis=1)
    return result


def observed(history: Sequence[ProbeResult], resource: Resource) -> list[tuple[Point, float]]:
    """Measured points with what one process took of a resource at its peak, in bytes (or threads).

    A failed point's peak is where it stopped, not what it needs, so it is left out.
    """
    peaks = [(result.requested, getattr(result, PEAKS[resource])) for result in history if result.ok]
    return [(point, float(peak) / point.concurrency) for point, peak in peaks if peak]


def features(rows: Array) -> Array:
    """(n, t) terms of the law: one, num_envs, batch_size, its root, 1 / concurrency, and further columns of `loads`."""
    terms = [np.ones(len(rows)), rows[:, 0], rows[:, 1], np.sqrt(rows[:, 1]), 1 / rows[:, 2]]
    return np.column_stack([*terms, rows[:, 3:]])


def fit(rows: Array, each: Array) -> Array:
    """(t,) non-negative coefficients with the least squared relative error of what one process takes."""
    return fit_relative(features(rows), each)


def upper_bound(asked: Array, rows: Array, each: Array) -> Array:
    """(n,) the most per process: of a law that agrees with the observations, or of any of them scaled in proportion.

    For the law a linear programme in the coefficients: maximise ``features(asked) @ c`` over ``c >= 0`` and
    ``|features(rows) @ c / each - 1| <= tolerance``. Its optimum lies on a vertex, and the vertices are
    enumerated once for all points.

    Args:
        asked: (n, 3) `counts` of the points in question, or (n, 4) `loads`.
        rows: (m, 3) those of the observed ones, or (m, 4) likewise.
        each: (m,) what one process took there.
    """
    corners = _corners(rows.tobytes(), each.tobytes())
    larger = np.maximum(np.delete(asked[:, None, :] / rows[None], 2, axis=2), 1.0).prod(axis=2)
    fewer = np.maximum(rows[None, :, 2] / asked[:, None, 2], 1.0)
    scaled = (1 + _TOLERANCE + _UNSEEN_ERROR) * (each * larger * fewer).min(axis=1)
    bound: Array = np.minimum((features(asked) @ corners.T).max(axis=1), scaled)
    return bound


def lower_bound(asked: Array, rows: Array, each: Array) -> Array:
    """(n,) the least per process of any law that agrees with the observations; arguments as of `upper_bound`."""
    least: Array = (features(asked) @ _corners(rows.tobytes(), each.tobytes()).T).min(axis=1)
    return least


@functools.lru_cache(maxsize=16)
def _corners(rows_bytes: bytes, each_bytes: bytes) -> Array:
    """(v, t) the extreme laws that agree with the observations, to within a tolerance.

    That is 3 % beyond the fit's worst error, or three times that error where many observations say that it is less.

    By Quickhull, from the centre of the largest ball within (Barber, Dobkin and Huhdanpaa 1996, "The Quickhull
    algorithm for convex hulls").
    """
    each = np.frombuffer(each_bytes)
    rows = np.frombuffer(rows_bytes).reshape(len(each), -1)
    error = np.abs(features(rows) @ fit(rows, each) / each - 1)
    terms = features(rows) / each[:, None]
    spare, worst = len(terms) - terms.shape[1], float(error.max())
    tolerance = _TOLERANCE + max(_UNSEEN_ERROR if spare <= 0 else 0.0, worst)
    if spare >= _SETTLED_SPARE:
        tolerance = min(tolerance, max(_SETTLED_TOLERANCE, 3 * worst))
    scale = terms.max(axis=0)
    terms, free = terms / scale, terms.shape[1]  # scaled so that all terms are of one order
    planes = np.vstack([terms, -terms, -np.eye(free)])
    offsets = np.concatenate([np.full(len(terms), 1 + tolerance), np.full(len(terms), tolerance - 1), np.zeros(free)])
    widths = np.linalg.norm(planes, axis=1)[:, None]
    ball = linprog(np.append(np.zeros(free), -1), A_ub=np.hstack([planes, widths]), b_ub=offsets)  # type: ignore[no-untyped-call]
    corners = None if ball.x is None else _vertices(np.column_stack([planes, -offsets]), ball.x[:free])
    if corners is None:  # each term as if it were alone: more than any law allows
        corners = ((1 + tolerance) / np.maximum(terms, np.finfo(float).tiny)).min(axis=0, keepdims=True)
    result: Array = corners / scale
    return result


def _vertices(halfspaces: Array, inside: Array) -> Array | None:
    """(v, t) vertices; planes that nearly coincide, which Quickhull may refuse, are joggled apart. None if it fails."""
    for options in ("Qx", "QJ"):
        with contextlib.suppress(QhullError):
            found: Array = HalfspaceIntersection(halfspaces, inside, qhull_options=options).intersections
            return found
    return None
