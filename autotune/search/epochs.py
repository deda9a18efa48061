"""Whether the machine still is what it was: the baseline as sentinel, epochs, and comparison across them.

The sentinel is measured again every few launches. When its throughput has shifted, by more than
noise explains, a new epoch begins; what was measured in an earlier one is multiplied by the ratio of the
sentinel's throughputs, with that ratio's error. What was measured between the last sentinel of one epoch and
the first of the next may belong to either: it is put half way, with half the shift as a further error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from autotune.records import Point, ProbeResult
from autotune.search.precision import EPOCH_FLAG, relative_error, stated_error
from autotune.stats import NORMAL_95

EVERY = 6
"""Launches after which the sentinel is due."""
SHIFT = 0.03
"""Relative change of the sentinel that may open an epoch."""
_SURE = 2.58
"""Standard errors that it must exceed as well: 99 %, for a long search looks about five times."""


def due(history: Sequence[ProbeResult], sentinel: Point) -> bool:
    """Whether the sentinel was stable and `EVERY` or more launches followed its last measurement."""
    own = [number for number, result in enumerate(history) if result.requested == sentinel]
    return bool(own) and history[own[-1]].ok and len(history) - own[-1] > EVERY


def epochs_of(history: Sequence[ProbeResult], sentinel: Point) -> tuple[int, ...]:
    """(n,) epoch of every result, in the order in which they were measured, from 0.

    A measurement of the sentinel opens an epoch when it differs from those of the current one, pooled, by more
    than `SHIFT` and by more than the 99 % interval of their difference.
    """
    epochs, current, seen = [], 0, list[ProbeResult]()
    for result in history:
        if result.requested == sentinel and result.measured:
            if seen and _shifted(seen, result):
                current, seen = current + 1, []
            seen.append(result)
        epochs.append(current)
    return tuple(epochs)


def _shifted(seen: Sequence[ProbeResult], result: ProbeResult) -> bool:
    log_before, variance = _pooled(seen)
    shift = abs(float(np.log(result.sps or 1.0)) - log_before)
    return bool(shift > max(np.log1p(SHIFT), _SURE * np.sqrt(variance + relative_error(result) ** 2)))


def _pooled(results: Sequence[ProbeResult]) -> tuple[float, float]:
    """Mean log rate weighted by precision, and its variance."""
    weights = np.array([relative_error(result) ** -2 for result in results])
    logs = np.log([result.sps or 1.0 for result in results])
    return float((weights * logs).sum() / weights.sum()), float(1 / weights.sum())


def comparable(history: Sequence[ProbeResult], epochs: Sequence[int]) -> list[ProbeResult]:
    """The results as the last epoch's machine would have given them.

    Those of earlier epochs are multiplied by the sentinel's ratio, their intervals widened by its error, and
    flagged ``epoch N``. The sentinel is the point whose measurement opened the last epoch.
    """
    last = max(epochs, default=0)
    if last == 0:
        return list(history)
    sentinel = history[list(epochs).index(last)].requested
    own = [number for number, result in enumerate(history) if result.requested == sentinel and result.measured]
    levels = {epoch: _pooled([history[n] for n in own if epochs[n] == epoch]) for epoch in set(epochs)}
    changes = {epoch: max(n for n in own if epochs[n] == epoch) for epoch in levels}
    now, now_variance = levels[last]
    seen = []
    for number, (result, epoch) in enumerate(zip(history, epochs, strict=True)):
        then, variance = levels[epoch]
        if epoch < last and number > changes[epoch]:
            half_shift = (levels[epoch + 1][0] - then) / 2
            then, variance = then + half_shift, variance + half_shift**2
        factor = float(np.exp(now - then))
        seen.append(result if epoch == last else _rescaled(result, epoch, factor, variance + now_variance))
    return seen


def _rescaled(result: ProbeResult, epoch: int, factor: float, variance: float) -> ProbeResult:
    flagged = replace(result, flags=(*result.flags, f"{EPOCH_FLAG}{epoch}"))
    if result.sps is None:
        return flagged
    sps = result.sps * factor
    half = NORMAL_95 * sps * (stated_error(result) ** 2 + variance) ** 0.5
    return replace(
        flagged,
        sps=sps,
        sps_low=max(0.0, sps - half),
        sps_high=sps + half,
        job_sps=tuple(each * factor for each in result.job_sps),
    )
