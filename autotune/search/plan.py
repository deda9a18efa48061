"""The order of a search: opening, search, finals (METHOD.md section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autotune.probe.recipe import rule_of_thumb
from autotune.records import DeviceInfo, Grade, Point, ProbeResult, Recipe
from autotune.search.space import Space

FINAL_SHARE = 0.2
FINAL_SHARE_MAX = 0.4
"""A single final window may take this share of a short budget; beyond it there is none."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One probe of the plan.

    Attributes:
        stage: of `TrialRecord`.
        point: None where the sampler chooses.
        grade: quick or final.
        predicted_s: seconds it is expected to take.
    """

    stage: str
    point: Point | None
    grade: Grade = "quick"
    predicted_s: float = 0.0


def opening(recipe: Recipe, space: Space, device: DeviceInfo | None, tries: Sequence[Point]) -> tuple[Step, ...]:
    """The baseline, the rule of thumb and the user's own points, each once."""
    steps = {recipe.baseline: "baseline"}
    if device is not None:
        steps.setdefault(thumb_point(recipe, space, device), "rule of thumb")
    for point in tries:
        steps.setdefault(point, "try")
    return tuple(Step(stage=stage, point=point) for point, stage in steps.items())


def thumb_point(recipe: Recipe, space: Space, device: DeviceInfo) -> Point:
    """The rule of thumb as a point of the space."""
    point = rule_of_thumb(recipe, device.host)
    return point if point in space.index or not recipe.points else space.nearest(point.knobs())


def final_reserve_s(budget_s: float, final_cost_s: float) -> float:
    """Seconds kept for final windows: a fifth of the budget, at least one window, none where that takes too much."""
    reserve_s = max(FINAL_SHARE * budget_s, final_cost_s)
    return reserve_s if reserve_s <= FINAL_SHARE_MAX * budget_s else 0.0


def final_cost_s(
    recipe: Recipe, history: Sequence[ProbeResult], fallback_s: float, point: Point | None = None
) -> float:
    """Seconds of a final probe: what a quick one of this point (else the slowest) took, and the longer plan."""
    longer_s = recipe.final.discard_s + recipe.final.window_s - recipe.quick.discard_s - recipe.quick.window_s
    stable = [result for result in history if result.ok and result.cost_s > 0]
    finals = [result.cost_s for result in stable if result.grade == "final" and result.requested == point]
    if finals:
        return max(finals)
    own = [result.cost_s for result in stable if result.grade == "quick" and result.requested == point]
    quick = own or [result.cost_s for result in stable if result.grade == "quick"]
    return max(quick) + longer_s if quick else fallback_s
