"""How likely a point is to run, from the points that ran and those that failed for a reason no law foretold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from autotune.records import ProbeResult
from autotune.search.space import Array, Space, counts

_WEIGHTS = (0.0, 0.5, 1.0)
_THRESHOLDS = 48
_BEYOND = 0.25
"""Thresholds reach this share of the range beyond the heaviest point: nothing fails."""
_EXCEPTION = 0.05
"""Likelihood of an outcome that contradicts a hypothesis."""
_LEVELS = 0.3
"""How likely it is beforehand, where weights may be negative, that one level of a knob fails rather than a load."""


def chance_stable(
    space: Space, ok: Sequence[ProbeResult], failed: Sequence[ProbeResult], *, signed: bool = False
) -> Array:
    """(n,) probability that each point of a space runs; 1 while nothing has failed.

    A small Bayesian model: points fail whose load, a sum of the knobs' octaves with weights 0, 1/2 or 1, exceeds
    a threshold. All weights and thresholds are equally likely beforehand, and each outcome that contradicts
    one makes it twenty times less likely. With `signed` weights are negative, too: what fails may be too light, or a
    minibatch too large for its environments; or it is one level of one knob, whatever the others are.
    """
    if not failed:
        return np.ones(len(space))
    rows, outcomes = space.counts, (_rows(space, ok), _rows(space, failed))
    kinds = [(1 - _LEVELS if signed else 1.0, _loads(rows, outcomes, signed=signed))]
    kinds += [(_LEVELS, _levels(rows, outcomes))] if signed else []
    fewest = min(int(contradicted.min()) for _, (_, contradicted) in kinds)
    runs, total = np.zeros(len(space)), 0.0
    for share, (runs_with, contradicted) in kinds:
        likely = _EXCEPTION ** (contradicted - fewest)
        runs += share * runs_with(likely) / len(likely)
        total += share * likely.sum() / len(likely)
    return runs / total


def _rows(space: Space, results: Sequence[ProbeResult]) -> Array:
    return counts([result.requested for result in results], space.rollout)


def _loads(rows: Array, outcomes: tuple[Array, Array], *, signed: bool) -> tuple[Callable[[Array], Array], Array]:
    """Thresholds of loads: from how likely each hypothesis is to how likely each row is to run, not normalised.

    And (h,) how many outcomes contradict each hypothesis.
    """
    weights = (*(-w for w in _WEIGHTS if w), *_WEIGHTS) if signed else _WEIGHTS
    directions = np.array(list(itertools.product(weights, repeat=3)))
    directions = directions[np.abs(directions).max(axis=1) == 1.0]
    loads = np.log2(rows) @ directions.T
    low, span = loads.min(axis=0), np.maximum(np.ptp(loads, axis=0), 1.0)
    limits = low + np.linspace(0.0, 1.0 + _BEYOND, _THRESHOLDS)[:, None] * span
    ran, failed = ((np.log2(seen) @ directions.T)[:, None] <= limits for seen in outcomes)
    contradicted = (~ran).sum(axis=0) + failed.sum(axis=0)

    def runs_with(likely: Array) -> Array:
        """Sums over the thresholds that a load does not exceed: from the first of them on."""
        sums = likely.reshape(limits.shape)[::-1].cumsum(axis=0)[::-1]
        sums = np.vstack([sums, np.zeros(sums.shape[1])])
        first = [np.searchsorted(limit, load) for limit, load in zip(limits.T, loads.T, strict=True)]
        result: Array = sum(each[place] for each, place in zip(sums.T, first, strict=True))
        return result

    return runs_with, contradicted.ravel()


def _levels(rows: Array, outcomes: tuple[Array, Array]) -> tuple[Callable[[Array], Array], Array]:
    """Levels of knobs, as `_loads` has its thresholds."""
    levels = [(knob, level) for knob in range(3) for level in np.unique(rows[:, knob])]
    at, values = [knob for knob, _ in levels], np.array([level for _, level in levels])
    held, ran, failed = (seen[:, at] != values for seen in (rows, *outcomes))
    return lambda likely: held @ likely, (~ran).sum(axis=0) + failed.sum(axis=0)
