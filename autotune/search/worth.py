"""What measuring is worth: the planned training's length at a speed, and when another probe no longer pays."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from autotune.records import Budget, Job, ProbeResult

HOUR_S = 3600.0
SOAK_SHARE = 0.02
"""Share of the planned training for which the winner may be observed beyond what the search needed."""
_TOGETHER = 1e-9
"""Jobs whose ends differ by less than this fraction end together."""


def job_steps(budget: Budget, steps_per_episode: float | None) -> float | None:
    """Agent steps in a budget; episodes by the measured steps per episode, None for hours or unknown."""
    if budget.unit == "steps":
        return budget.amount
    if budget.unit == "episodes" and steps_per_episode:
        return budget.amount * steps_per_episode
    return None


def job_speeds(sps: Mapping[int, float], *, shared: bool = False) -> list[float]:
    """Steps per second of each job while 1, 2, ... of them run.

    Args:
        sps: of all jobs together, by how many run: the most that may, and those fewer that were measured.
        shared: what jobs do while so few are left that it was not measured: share the whole speed of the next larger
            number, about the most that they can gain; else each keeps the speed that it had, which is the least.
    """
    speeds = []
    for running in range(1, max(sps) + 1):
        near = min(count for count in sps if count >= running)
        speeds.append(sps[near] / (running if shared else near))
    return speeds


def spans(
    lengths: Sequence[float], speeds: Sequence[float], timed: Sequence[bool] | None = None
) -> list[tuple[float, float]]:
    """When each job starts and ends if each starts, in order, as soon as one of the places is free.

    List scheduling (Graham 1969, "Bounds on Multiprocessing Timing Anomalies").

    Args:
        lengths: of each job, in what `speeds` are per unit of time; of a timed one its time.
        speeds: of each job while 1, 2, ... run; as many may run at once.
        timed: whether a job takes its time at any speed.
    """
    now, begun, ended = 0.0, [0.0] * len(lengths), [0.0] * len(lengths)
    waiting, left = deque(enumerate(lengths)), dict[int, float]()
    while waiting or left:
        while waiting and len(left) < len(speeds):
            job, length = waiting.popleft()
            left[job], begun[job] = length, now
        speed = speeds[len(left) - 1]
        needs = {job: length / (1.0 if timed and timed[job] else speed) for job, length in left.items()}
        passed = min(needs.values())
        now += passed
        for job, need in needs.items():
            left[job] *= max(0.0, 1 - passed / need) if need else 0.0
            if need <= passed * (1 + _TOGETHER):
                ended[job] = now
                del left[job]
    return list(zip(begun, ended, strict=True))


def training_s(
    jobs: Sequence[Job],
    result: ProbeResult | None,
    steps_per_episode: Mapping[str, float] | float | None,
    fewer: Sequence[ProbeResult] = (),
    *,
    shared: bool = False,
) -> float | None:
    """Wall seconds that all jobs take at a measured point, None where a job's length or the speed is not known.

    Jobs with a budget in hours take those, however fast they run.

    Args:
        jobs: in the order in which they start.
        result: of the point.
        steps_per_episode: measured, by environment or one for all.
        fewer: of the same settings at fewer processes.
        shared: see `job_speeds`.
    """
    if result is None or not result.sps or not jobs:
        return None
    lengths = [_length(job.budget, episode_steps(job, steps_per_episode)) for job in jobs]
    known = [length for length in lengths if length is not None]
    if len(known) < len(lengths):
        return None
    speeds = job_speeds({each.requested.concurrency: each.sps for each in (*fewer, result) if each.sps}, shared=shared)
    return max(end for _, end in spans(known, speeds, [job.budget.unit == "hours" for job in jobs]))


def episode_steps(job: Job, steps_per_episode: Mapping[str, float] | float | None) -> float | None:
    """Env steps of a game of a job, from those by environment or one for all."""
    return steps_per_episode.get(job.env) if isinstance(steps_per_episode, Mapping) else steps_per_episode


def _length(budget: Budget, steps_per_episode: float | None) -> float | None:
    return budget.amount * HOUR_S if budget.unit == "hours" else job_steps(budget, steps_per_episode)


def pays(gain_fraction: float, cost_s: float, planned_s: float | None) -> bool:
    """Whether a probe's expected gain over the planned training is worth the machine time that it costs.

    The price of the machine is the same on both sides. Always, where the training's length is not known.
    """
    return planned_s is None or gain_fraction * planned_s >= cost_s
