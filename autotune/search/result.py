"""What a search found, and the sentence that says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autotune.records import Point, ProbeResult
from autotune.search.model import NORMAL_95, relative_error
from autotune.search.trials import TrialRecord
from autotune.units import format_count, format_duration, format_usd


@dataclass(frozen=True, kw_only=True)
class StudyResult:
    """What a search found.

    Attributes:
        point: the recommended one.
        result: its published measurement: final where there is one, else quick and flagged so.
        baseline: the same of the user's settings; a failure when they failed, None when not measured.
        rule_of_thumb: the same of what an expert sets without measuring.
        tied: points whose intervals overlap the recommended one's.
        ladder: lighter stable points, each lighter than the one before.
        counts: failed probes by status.
        trials: everything that was run, in order.
        points_measured: distinct stable points.
        spent_s: over all resumptions.
        budget_s: what was allowed.
        interrupted: whether it was stopped before the plan ended.
        price_usd_per_hour: of the machine, None when unknown.
    """

    point: Point
    result: ProbeResult
    baseline: ProbeResult | None
    rule_of_thumb: ProbeResult | None
    tied: tuple[Point, ...]
    ladder: tuple[ProbeResult, ...]
    counts: Mapping[str, int]
    trials: tuple[TrialRecord, ...]
    points_measured: int
    spent_s: float
    budget_s: float
    interrupted: bool
    price_usd_per_hour: float | None

    @property
    def goodput_per_usd(self) -> float | None:
        """Env steps per dollar, None without a price."""
        if self.price_usd_per_hour is None or self.result.sps is None:
            return None
        return 3600 * self.result.sps / self.price_usd_per_hour


def ratio(tuned: ProbeResult, other: ProbeResult) -> tuple[float, float, float] | None:
    """The tuned throughput over another's with its 95 % interval; None when either is unknown.

    The logarithms' errors add in quadrature (independent launches).
    """
    if not tuned.sps or not other.sps:
        return None
    value = tuned.sps / other.sps
    error = NORMAL_95 * (relative_error(tuned) ** 2 + relative_error(other) ** 2) ** 0.5
    return value, value * (1 - error), value * (1 + error)


def sentence(found: StudyResult) -> str:
    """One sentence: what was found, against the baseline and the rule of thumb, with intervals."""
    best = found.result
    launches = next((flag for flag in best.flags if "launch" in flag), "one launch")
    parts = [
        f"{found.point.label()} makes {format_count(best.sps)} steps/s"
        f"{_interval(best)} ({launches}), best of the {found.points_measured} points measured"
        f" in {format_duration(found.spent_s)}"
    ]
    if found.goodput_per_usd is not None:
        parts.append(f"{format_count(found.goodput_per_usd)} steps per {format_usd(1)}")
    parts.append(_against("the baseline", found, found.baseline))
    parts.append(_against("the rule of thumb", found, found.rule_of_thumb))
    if found.tied:
        parts.append(f"tied with {len(found.tied)} other point{'s' if len(found.tied) > 1 else ''}")
    return "; ".join(parts) + "."


def _interval(result: ProbeResult) -> str:
    if result.sps is None or result.sps_low is None or result.sps_high is None:
        return ""
    return f" (95 %: {format_count(result.sps_low)} to {format_count(result.sps_high)})"


def _against(name: str, found: StudyResult, other: ProbeResult | None) -> str:
    if other is None:
        return f"{name} was not measured"
    settings = other.requested.label()
    if not other.ok:
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
