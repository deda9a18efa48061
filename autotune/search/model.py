"""What the search believes about points it has not measured: an analytic prior and a Gaussian process.

The prior is a law for the seconds that one env step costs: one process takes
``t = a + b / num_envs + c / batch_size``, and every further process that shares the device adds its
demand ``d`` of the same form on the bottleneck, so K processes make ``K / (t + (K - 1) d)`` steps a
second. The process models the log residual over the grid.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from autotune.records import Point, ProbeResult
from autotune.search.least_squares import fit_relative
from autotune.search.precision import launch_fraction, relative_error
from autotune.search.space import Array, Space, counts

_LENGTHS_OCTAVES = (2.0, 5.0, 12.0)
_LENGTH_CONCURRENCY_OCTAVES = 2.4
_AMPLITUDES = (0.06, 0.15, 0.35)
_ROUGHNESSES = (0.004, 0.02, 0.06)
_LEVEL_ERROR = 1e-3


@dataclass(frozen=True)
class Belief:
    """Log of the aggregate steps per second at every point of a space.

    Attributes:
        mean: (n,) natural log of steps per second.
        deviation: (n,) its standard deviation.
    """

    mean: Array
    deviation: Array


def measured(history: Sequence[ProbeResult]) -> list[ProbeResult]:
    """The stable results with a throughput."""
    return [result for result in history if result.measured]


def _terms(rows: Array) -> Array:
    """(n, 3) terms of the seconds-per-step law: one, 1 / num_envs, 1 / batch_size."""
    return np.column_stack([np.ones(len(rows)), 1 / rows[:, 0], 1 / rows[:, 1]])


def fit_prior(rows: Array, log_sps: Array) -> tuple[Array, Array]:
    """Coefficients of one process's seconds per step and of a further one's demand, by NNLS on relative error."""
    seconds = rows[:, 2] / np.exp(log_sps)
    terms = _terms(rows)
    coefficients = fit_relative(np.hstack([terms, terms * (rows[:, 2:] - 1)]), seconds)
    return coefficients[:3], coefficients[3:]


def prior_log_sps(rows: Array, alone: Array, shared: Array) -> Array:
    """(n,) the law's log steps per second; the demand on the bottleneck cannot exceed the whole."""
    terms = _terms(rows)
    own_s = terms @ alone
    demand_s = np.minimum(terms @ shared, own_s)
    result: Array = np.log(rows[:, 2]) - np.log(np.maximum(own_s + (rows[:, 2] - 1) * demand_s, 1e-12))
    return result


def _matern52(a: Array, b: Array, lengths: Array) -> Array:
    """(n, m) Matern covariance with nu = 5/2 (Rasmussen and Williams 2006, eq. 4.17)."""
    distance = np.sqrt((((a[:, None] - b[None]) / lengths) ** 2).sum(axis=2)) * np.sqrt(5.0)
    result: Array = (1 + distance + distance**2 / 3) * np.exp(-distance)
    return result


def believe(space: Space, history: Sequence[ProbeResult]) -> Belief:
    """Condition on every stable result; needs at least one. A decision asks several times: the last are kept."""
    results = measured(history)
    spread = launch_fraction(results)
    seen = tuple((r.requested, float(np.log(r.sps or 1.0)), relative_error(r, spread)) for r in results)
    return _belief(space, seen)


@functools.lru_cache(maxsize=4)
def _belief(space: Space, seen: tuple[tuple[Point, float, float], ...]) -> Belief:
    """What points, the logs of their steps per second and their relative errors say."""
    rows = counts([point for point, _, _ in seen], space.rollout)
    log_sps, errors = np.array([[log_sps, error] for _, log_sps, error in seen]).T
    if len(seen) >= 3:
        law = fit_prior(rows, log_sps)
        here, there = prior_log_sps(rows, *law), prior_log_sps(space.counts, *law)
    else:
        here, there = np.full(len(rows), log_sps.mean()), np.full(len(space), log_sps.mean())
    return _condition(*_once(np.log2(rows), log_sps - here, errors**2 + _LEVEL_ERROR**2), space.octaves, there)


def _once(where: Array, residual: Array, variance: Array) -> tuple[Array, Array, Array]:
    """Repeats as one observation each, weighted by precision: the process makes the same of them, in less time."""
    where, group = np.unique(where, axis=0, return_inverse=True)
    precision = np.bincount(group, 1 / variance)
    return where, np.bincount(group, residual / variance) / precision, 1 / precision


def _condition(where: Array, residual: Array, variance: Array, grid: Array, prior: Array) -> Belief:
    """Gaussian-process regression, the hyperparameters of the greatest likelihood out of a small grid.

    The covariance is a smooth part and one of each point's own, the roughness.
    """
    scales = np.array(list(itertools.product(_AMPLITUDES, _ROUGHNESSES)))
    amplitudes, roughnesses = scales[:, 0, None, None], scales[:, 1, None, None]
    best_likelihood, best = -np.inf, None
    for envs, batch in itertools.product(_LENGTHS_OCTAVES, repeat=2):
        lengths = np.array([envs, batch, _LENGTH_CONCURRENCY_OCTAVES])
        smooth = _matern52(where, where, lengths)
        lower = np.linalg.cholesky(amplitudes**2 * smooth + roughnesses**2 * np.eye(len(where)) + np.diag(variance))
        white = np.array([solve_triangular(each, residual, lower=True) for each in lower])
        logs = np.log(np.diagonal(lower, axis1=1, axis2=2)).sum(axis=1)
        likelihood = -0.5 * (white**2).sum(axis=1) - logs
        if likelihood.max() > best_likelihood:
            at = int(np.argmax(likelihood))
            best_likelihood, best = likelihood[at], (lengths, *scales[at], lower[at], white[at])
    assert best is not None
    lengths, amplitude, rough, lower, white = best
    own = rough**2 * (where[:, None] == grid[None]).all(axis=2)
    cross = solve_triangular(lower, amplitude**2 * _matern52(where, grid, lengths) + own, lower=True)
    spread = np.maximum(amplitude**2 + rough**2 - (cross**2).sum(axis=0), 1e-8)
    return Belief(mean=prior + cross.T @ white, deviation=np.sqrt(spread))
