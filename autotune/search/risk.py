"""How likely a point is to run, from the points that ran and those that failed for a reason no law foretold."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from autotune.records import ProbeResult
from autotune.search.space import Array, Space, counts

_WEIGHTS = (0.0, 0.5, 1.0)
_THRESHOLDS = 48
_BEYOND = 0.25
"""Thresholds reach this share of the range beyond the heaviest point: nothing fails."""
_EXCEPTION = 0.05
"""Likelihood of an outcome that contradicts a hypothesis."""


def chance_stable(
    space: Space, ok: Sequence[ProbeResult], failed: Sequence[ProbeResult], *, signed: bool = False
) -> Array:
    """(n,) probability that each point of a space runs; 1 while nothing has failed.

    A small Bayesian model: points fail whose load, a sum of the knobs' octaves with weights 0, 1/2 or 1, exceeds
    a threshold. All weights and thresholds are equally likely beforehand, and each outcome that contradicts
    one makes it twenty times less likely. With `signed` weights are negative, too: what fails may be too light, or a
    minibatch too large for its environments.
    """
    if not failed:
        return np.ones(len(space))
    weights = (*(-w for w in _WEIGHTS if w), *_WEIGHTS) if signed else _WEIGHTS
    directions = np.array(list(itertools.product(weights, repeat=3)))
    directions = directions[np.abs(directions).max(axis=1) == 1.0]
    loads = space.octaves @ directions.T
    low, span = loads.min(axis=0), np.maximum(np.ptp(loads, axis=0), 1.0)
    limits = low + np.linspace(0.0, 1.0 + _BEYOND, _THRESHOLDS)[:, None] * span
    contradicted = np.zeros_like(limits)
    for results, fails in ((ok, False), (failed, True)):
        seen = np.log2(counts([result.requested for result in results], space.rollout)) @ directions.T
        contradicted += ((seen[None] > limits[:, None]) != fails).sum(axis=1)
    likely = _EXCEPTION ** (contradicted - contradicted.min())
    held = loads[:, None] <= limits[None]
    result: Array = (held * likely).sum(axis=(1, 2)) / likely.sum()
    return result
