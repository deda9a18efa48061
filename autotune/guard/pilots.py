"""Which pilots a guard trains: both points, equal env steps, equal seeds, one environment; and how long they take."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from autotune.errors import UsageError
from autotune.manifest import Manifest, build_manifest
from autotune.records import Budget, Job, Point, ProbeResult, Recipe
from autotune.search.result import StudyResult
from autotune.search.worth import HOUR_S, job_steps
from autotune.units import format_count, format_duration

STEPS_MIN = 300_000
"""Env steps of a pilot at least, unless the job itself is shorter: Breakout and CartPole show learning by then."""
UPDATES_MIN = 100
"""Policy updates of a pilot at least, at the point that makes fewer of them ..."""
JOB_SHARE = 0.1
"""... but no more than this share of the planned job."""
UPDATES_FEW = 10
"""Policy updates below which little can be learnt at all."""
_START_S = 10.0
_SEEDS = 2**31


@dataclass(frozen=True, kw_only=True)
class GuardPlan:
    """What was asked for.

    Attributes:
        env_steps: of each pilot, None for a number that suits the points.
        seeds: pilots of each point, at least 2.
        margin_fraction: what may be lost of what the baseline learns, above 0 and at most 1.
    """

    env_steps: int | None = None
    seeds: int = 3
    margin_fraction: float = 0.1


@dataclass(frozen=True, kw_only=True)
class Pilots:
    """The trainings of one guard.

    Attributes:
        env: that all of them train on.
        env_steps: of each.
        seeds: of each point's.
        tuned: manifest of the pilots at the tuned point.
        baseline: likewise.
        predicted_s: seconds that all take, None where a speed is not known.
        updates: policy updates of a pilot at the point that makes fewer of them, None where not known.
    """

    env: str
    env_steps: int
    seeds: tuple[int, ...]
    tuned: Manifest
    baseline: Manifest
    predicted_s: float | None
    updates: float | None

    def announcement(self) -> str:
        """What is going to be done, and how long it takes."""
        how_long = "for an unknown time" if self.predicted_s is None else f"about {format_duration(self.predicted_s)}"
        said = (
            f"guard: 2 x {len(self.seeds)} pilots of {self.env_steps:,} env steps on {self.env}, {how_long} "
            "outside --budget"
        )
        if self.updates is not None and self.updates < UPDATES_FEW:
            said += f"; that is {format_count(self.updates)} policy updates, which is few: raise --guard-steps"
        return said


def refuse_guard(recipe: Recipe, *, simulated: bool) -> None:
    """Refuse a guard that can never compare anything, before a search spends its budget.

    Raises:
        UsageError: a replayed surface, which trains nothing, or a program of the user's own, whose returns are
            not known.
    """
    if simulated:
        raise UsageError(
            "--guard trains pilots, and a replayed surface trains nothing: search without --guard, or without replay"
        )
    if recipe.workload == "command":
        raise UsageError(
            "--guard compares returns, and of a program of your own only its steps are known: search without "
            "--guard, then train with the baseline's and the tuned settings for equally many steps and compare"
        )


def plan_pilots(found: StudyResult, recipe: Recipe, plan: GuardPlan) -> Pilots:
    """The pilots of a search's result: at its point and at the recipe's baseline, on the first job's environment.

    Args:
        found: by the search.
        recipe: that was searched.
        plan: what was asked for.
    """
    first = recipe.jobs[0]
    env_steps = plan.env_steps or default_steps(found, first)
    seeds = tuple((first.seed + n) % _SEEDS for n in range(plan.seeds))
    budget = Budget(unit="steps", amount=float(env_steps))
    jobs = [Job(id=f"seed-{seed}", env=first.env, seed=seed, budget=budget) for seed in seeds]
    tuned = _manifest(recipe, "tuned", found.point, jobs)
    baseline_point = recipe.baseline
    if found.baseline is not None and not found.baseline.ok:  # several at once may be what it failed of
        baseline_point = replace(baseline_point, concurrency=1)
    baseline = _manifest(recipe, "baseline", baseline_point, jobs)
    lengths = [_seconds(found.result, tuned), _seconds(found.baseline, baseline)]
    known = [length for length in lengths if length is not None]
    samples = _samples_per_update(found)
    return Pilots(
        env=first.env,
        env_steps=env_steps,
        seeds=seeds,
        tuned=tuned,
        baseline=baseline,
        predicted_s=sum(known) if len(known) == len(lengths) else None,
        updates=env_steps / samples if samples else None,
    )


def default_steps(found: StudyResult, job: Job) -> int:
    """Env steps that suit both points: enough updates for either, a tenth of the job at most, never more than it."""
    planned, each_sps = job_steps(job.budget, found.result.episode_steps), _each_sps(found.result)
    if job.budget.unit == "hours" and each_sps:
        planned = job.budget.amount * HOUR_S * each_sps
    wanted = max(STEPS_MIN, UPDATES_MIN * (_samples_per_update(found) or 0.0))
    if planned is not None:
        wanted = min(wanted, max(STEPS_MIN, JOB_SHARE * planned), planned)
    return max(1, math.ceil(wanted))


def _each_sps(measured: ProbeResult | None) -> float | None:
    """Env steps per second of one process, None where that is not known."""
    return measured.sps / measured.requested.concurrency if measured and measured.sps else None


def _samples_per_update(found: StudyResult) -> float | None:
    change = found.learning
    return max(change.tuned.samples_per_update, change.baseline.samples_per_update) if change else None


def _manifest(recipe: Recipe, role: str, point: Point, jobs: list[Job]) -> Manifest:
    """The pilots of one point, as many at once as it has processes; a newest and a best checkpoint are enough."""
    own = tuple(replace(job, id=f"{role}-{job.id}") for job in jobs)
    narrow = replace(point, concurrency=min(point.concurrency, len(own)))
    manifest = build_manifest(replace(recipe, jobs=own), narrow)
    return manifest.model_copy(update={"stability": manifest.stability.model_copy(update={"keep": 1})})


def _seconds(measured: ProbeResult | None, manifest: Manifest) -> float | None:
    """Seconds of one point's pilots; fewer processes than were measured are faster, so that this errs to too long."""
    if (each_sps := _each_sps(measured)) is None:
        return None
    rounds = math.ceil(len(manifest.jobs) / manifest.point.concurrency)
    return rounds * (_START_S + float(manifest.jobs[0].budget.amount) / each_sps)
