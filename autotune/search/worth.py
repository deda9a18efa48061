"""What measuring is worth: the planned training's length at a speed, and when another probe no longer pays."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from autotune.errors import UsageError
from autotune.records import Budget, Job, ProbeResult

HOUR_S = 3600.0
SOAK_SHARE = 0.02
"""Share of the planned training for which the winner may be observed beyond what the search needed."""


def job_steps(budget: Budget, steps_per_episode: float | None) -> float | None:
    """Agent steps in a budget; episodes by the measured steps per episode, None for hours or unknown."""
    if budget.unit == "steps":
        return budget.amount
    if budget.unit == "episodes" and steps_per_episode:
        return budget.amount * steps_per_episode
    return None


def makespan(lengths: Sequence[float], slots: int) -> float:
    """When the last job ends if each starts, in order, as soon as one of `slots` is free.

    List scheduling (Graham 1969, "Bounds on Multiprocessing Timing Anomalies"). A job keeps its
    length when fewer than `slots` are left, though it would then run faster: the answer errs
    towards too long.

    Raises:
        UsageError: `slots` below 1.
    """
    if slots < 1:
        raise UsageError(f"jobs at once must be at least 1, not {slots}")
    free_at = [0.0] * min(slots, max(1, len(lengths)))
    for length in lengths:
        heapq.heappush(free_at, heapq.heappop(free_at) + length)
    return max(free_at)


def training_s(jobs: Sequence[Job], result: ProbeResult | None, steps_per_episode: float | None) -> float | None:
    """Wall seconds that all jobs take at a measured point, None where a job's length or the speed is not known.

    Jobs with a budget in hours take those, however fast they run.
    """
    if result is None or not result.sps or not jobs:
        return None
    slots = result.requested.concurrency
    lengths = [_job_s(job.budget, result.sps / slots, steps_per_episode) for job in jobs]
    known = [length for length in lengths if length is not None]
    return makespan(known, slots) if len(known) == len(lengths) else None


def _job_s(budget: Budget, job_sps: float, steps_per_episode: float | None) -> float | None:
    if budget.unit == "hours":
        return budget.amount * HOUR_S
    steps = job_steps(budget, steps_per_episode)
    return None if steps is None else steps / job_sps


def episode_steps(history: Sequence[ProbeResult]) -> float | None:
    """Measured env steps per episode, the last that is known."""
    return next((result.episode_steps for result in reversed(history) if result.episode_steps), None)


def pays(gain_fraction: float, cost_s: float, planned_s: float | None) -> bool:
    """Whether a probe's expected gain over the planned training is worth the machine time that it costs.

    The price of the machine is the same on both sides. Always, where the training's length is not known.
    """
    return planned_s is None or gain_fraction * planned_s >= cost_s
