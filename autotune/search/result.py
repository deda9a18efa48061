"""What a search found, and the sentence that says it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autotune.executors.stability import SHARED_CPU
from autotune.records import ENDED_EARLY, STATUSES, Point, ProbeResult
from autotune.search.knobs import KnobDecision
from autotune.search.plan import Ending
from autotune.search.precision import interval_of
from autotune.search.sharing import SharingGain
from autotune.search.trials import TrialRecord
from autotune.stats import LAUNCH_FRACTION, failure_rate_bound_per_hour, log_ratio
from autotune.units import counted, format_count, format_duration, format_usd, how_often
from autotune.workloads.learning import LearningChange

SLOWED = "slowed down within the window in two launches or more"
"""What points that ran did, and are not stable for it."""
FORBIDS = "a failed point forbids heavier ones until one of them has run"
"""Why a search that found nothing is to begin with a point that runs."""


def failures(trials: Sequence[TrialRecord]) -> dict[str, int]:
    """Failed probes by status, of the trials that say something about their point."""
    kept = [trial.result.status for trial in trials if trial.counts]
    return {status: kept.count(status) for status in STATUSES if status != "ok"}


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What a search found.

    Attributes:
        point: the recommended one.
        result: its published measurement: final where there is one, else quick and flagged so.
        baseline: the same of the user's settings; a failure when they failed, None when not measured.
        rule_of_thumb: the same of what an expert sets without measuring.
        tied: points whose ratio to the recommended one has an interval that includes 1.
        ladder: lighter stable points, each lighter than the one before.
        trials: everything that was run, in order.
        points_measured: different points that were stable each time they were measured, further knobs included.
        spent_s: over all resumptions.
        budget_s: what was allowed.
        price_usd_per_hour: of the machine, None when unknown.
        ended: why it ended.
        skipped: points that were left out because their probe would take over 15 % of the budget, and its
            predicted seconds.
        observed_s: seconds for which the recommended point's processes ran.
        training_s: seconds of the planned training there, None where the jobs' length is not known.
        baseline_training_s: at the baseline, if the jobs left at its end share its whole speed.
        rule_of_thumb_training_s: at the rule of thumb, likewise.
        sooner: a measured point that ends the planned training before the recommended one does, and its seconds.
        launch_fraction: launch-to-launch deviation over the repeats, 1.5 % until known.
        knobs: what was found of every other value of the recipe's further knobs.
        sharing: several processes against one, None unless both were measured as stable.
        learning: what the point feeds the learner beside the baseline, None where the recipe does not say.
    """

    point: Point
    result: ProbeResult
    baseline: ProbeResult | None
    rule_of_thumb: ProbeResult | None
    tied: tuple[Point, ...]
    ladder: tuple[ProbeResult, ...]
    trials: tuple[TrialRecord, ...]
    points_measured: int
    spent_s: float
    budget_s: float
    price_usd_per_hour: float | None
    ended: Ending = "budget"
    skipped: tuple[tuple[Point, float], ...] = ()
    observed_s: float = 0.0
    training_s: float | None = None
    baseline_training_s: float | None = None
    rule_of_thumb_training_s: float | None = None
    sooner: tuple[Point, float] | None = None
    launch_fraction: float = LAUNCH_FRACTION
    knobs: tuple[KnobDecision, ...] = ()
    sharing: SharingGain | None = None
    learning: LearningChange | None = None

    @property
    def counts(self) -> Mapping[str, int]:
        """Failed probes by status."""
        return failures(self.trials)

    @property
    def interrupted(self) -> bool:
        """Whether it was stopped before the plan ended."""
        return self.ended == "stopped"

    @property
    def epochs(self) -> int:
        """How often the machine changed while it was searched, plus one."""
        return 1 + max((trial.epoch for trial in self.trials), default=0)


def ratio(tuned: ProbeResult, other: ProbeResult) -> tuple[float, float, float] | None:
    """The tuned throughput over another's with its 95 % interval (`stats.log_ratio`); None when either is unknown."""
    if not tuned.sps or not other.sps:
        return None
    value, low, high = log_ratio(interval_of(tuned), interval_of(other))
    return value, low or 0.0, high or math.inf


def sentence(found: StudyResult) -> str:
    """One sentence: what was found, against the baseline and the rule of thumb, with intervals."""
    best = found.result
    launches = next((flag for flag in best.flags if "launch" in flag), "one launch")
    count = found.points_measured
    which = "the only point" if count == 1 else f"best of the {counted(count, 'point')}"
    parts = [
        f"{found.point.label()} makes {format_count(best.sps)} steps/s"
        f"{_interval(best)} ({launches}), {which} measured"
        f" in {format_duration(found.spent_s)}"
    ]
    if (goodput := best.goodput_per_usd(found.price_usd_per_hour)) is not None:
        parts.append(f"{format_count(goodput)} steps per {format_usd(1)}")
    parts.append(_against("the baseline", found, found.baseline))
    parts.append(_against("the rule of thumb", found, found.rule_of_thumb))
    if found.tied:
        parts.append(f"tied with {counted(len(found.tied), 'other point')}")
    return "; ".join(parts) + "."


def contention(stated: Mapping[str, ProbeResult | None]) -> str:
    """One sentence on the stated results, by name, that were measured on a busy CPU; empty where none was."""
    busy = {
        name: result.others_cpu_cores
        for name, result in stated.items()
        if result and SHARED_CPU in result.flags and result.others_cpu_cores
    }
    if not busy:
        return ""
    amounts = " and ".join(f"{cores:.1f} CPU cores while {name} was measured" for name, cores in busy.items())
    return f"other programs took {amounts}: the machine alone may be faster, so measure again without them"


def what_slowing_means(setting: str) -> str:
    """The end of a sentence on points that slow down, and what to do; `setting` is how the window's is written."""
    return (
        f"{SLOWED}, so that what was measured promises nothing for a long training. Find what slows it down (heat, "
        f"memory that fills, other programs), or measure longer windows ({setting} in the recipe)."
    )


def outran(found: StudyResult) -> str:
    """One sentence on points at which a program came to its own end before it was measured; empty where none is."""
    measured = {trial.result.requested for trial in found.trials if trial.result.ok}
    ended = [trial.result.requested for trial in found.trials if ENDED_EARLY in trial.result.flags]
    points = [point.label() for point in dict.fromkeys(ended) if point not in measured]
    if not points:
        return ""
    return (
        f"the program ended by itself before {counted(len(points), 'point')} could be measured ({', '.join(points)}), "
        "which may well be faster: let it do more steps (its own total) and search again"
    )


ENDINGS: Mapping[Ending, str] = {
    "budget": "no further probe fitted into the budget",
    "known": "nothing was left worth measuring",
    "worth": "the next probe would have cost more than it was expected to save (--no-early-stop goes on)",
    "stopped": "it was stopped",
}


def economy(found: StudyResult) -> str:
    """What the search cost, what the planned training saves by it, how long the point was seen to run, why it ended."""
    parts = [f"The search took {_amount(found, found.spent_s)}"]
    if found.training_s is not None:
        parts.append(f"the planned training takes {_amount(found, found.training_s)} at this point")
        if found.sooner:
            point, taken_s = found.sooner
            parts.append(
                f"{point.label()} ENDS IT SOONER, in {_amount(found, taken_s)}: see the first lines of the report"
            )
        parts.append(_saved("the baseline", found, found.baseline, found.baseline_training_s))
        parts.append(_saved("the rule of thumb", found, found.rule_of_thumb, found.rule_of_thumb_training_s))
    hours = found.observed_s / 3600
    if hours > 0:
        most = format_count(failure_rate_bound_per_hour(0, hours))
        parts.append(f"no failure in {format_duration(found.observed_s)} there, so at most {most} per hour")
    if found.skipped:
        left_out = counted(len(found.skipped), "point was", "points were")
        parts.append(f"{left_out} left out: each would take over 15 % of the budget to measure")
    if found.epochs > 1:
        parts.append(
            f"the machine's speed changed {how_often(found.epochs - 1)} meanwhile, results are put on its last one"
        )
    parts.append(f"it ended because {ENDINGS[found.ended]}")
    return "; ".join(part for part in parts if part) + "."


def _amount(found: StudyResult, seconds: float) -> str:
    price = found.price_usd_per_hour
    return format_duration(seconds) + ("" if price is None else f" ({format_usd(price * seconds / 3600)})")


def _saved(name: str, found: StudyResult, other: ProbeResult | None, other_s: float | None) -> str:
    """What is saved against a reference, nothing where there is none to compare with."""
    if other is None or other_s is None or found.training_s is None or other.requested == found.point:
        return ""
    compared = ratio(found.result, other)
    saved_s = other_s - found.training_s
    unclear = saved_s < 0 and other.requested.concurrency > 1  # it counts the reference's least
    if unclear or not round(saved_s, 1) or compared is None or compared[1] <= 1 <= compared[2]:
        return f"no saving against {name} is shown"
    verb = "saves" if saved_s >= 0 else "loses"
    return f"that {verb} {_amount(found, abs(saved_s))} against {name}"


def _interval(result: ProbeResult) -> str:
    if result.sps is None or result.sps_low is None or result.sps_high is None:
        return ""
    return f" (95 %: {format_count(result.sps_low)} to {format_count(result.sps_high)})"


def _against(name: str, found: StudyResult, other: ProbeResult | None) -> str:
    if other is None:
        return f"{name} was not measured"
    settings = other.requested.label()
    if not other.ok:
        if ENDED_EARLY in other.flags:
            return f"at {name} ({settings}) the program ended before it was measured"
        return f"{name} ({settings}) failed: {other.status}"
    if other.requested == found.point:
        return f"this is {name}"
    compared = ratio(found.result, other)
    if compared is None:
        return f"{name} ({settings}) has no throughput"
    value, low, high = compared
    if low <= 1 <= high:
        return f"tied with {name} ({settings}): {value:.2f}x ({low:.2f} to {high:.2f})"
    return f"{value:.2f}x {name} ({settings}; {low:.2f} to {high:.2f})"
