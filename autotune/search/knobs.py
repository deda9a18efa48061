"""A recipe's further knobs (precision, compile, rollout ...), tuned by paired comparison at the incumbent.

The search over num_envs, batch_size and concurrency leaves them at the baseline's values. Afterwards each is
compared, one knob after the other, with its other values: the same point in fresh processes, the order turned
round every time so that a drift of the machine falls on both sides alike. Everything here is a function of
the results so far, so that a resumed search goes on where it was.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

from autotune.errors import UsageError
from autotune.probe.recipe import check_point
from autotune.records import KNOBS, SHARING, Job, KnobValue, Point, ProbeResult, Recipe
from autotune.search import confirm
from autotune.search.paired import ROUNDS_MAX, Comparison, compare
from autotune.search.space import Space
from autotune.units import brief, format_duration, shortened
from autotune.workloads.learning import rollout_of

STAGE = "knobs"
"""Of the trials that compare further knobs; the search's model never sees them."""
HOPED_GAIN = 0.2
"""Of the throughput: a launch that would not pay for itself even by this is not made."""
RESERVE_SHARE = 0.25
"""Of the budget, at most, kept for these comparisons."""

_FAILURE_MAX = 200
"""Characters of why a value was not measured."""
_SAID_S = 1.0
"""Compile seconds below this are not worth a word."""
NEUTRAL = ("compile", "env_threads", "lanes", SHARING)
"""Knobs that leave what is learnt from each step as it was."""


@dataclass(frozen=True, kw_only=True)
class KnobDecision:
    """What was found of one value of one further knob.

    Attributes:
        name: of the knob.
        before: the value in effect until then.
        tried: the other value.
        chosen: the value in effect from then on (a third one where several were tried).
        ratio: throughput at `tried` over that at `before`, None where it was not measured.
        low: lower end of its interval (95 % over all looks at the data).
        high: upper end.
        pairs: launches of each.
        compile_s: seconds that `tried` adds to the first iteration of every launch.
        sentence: says it.
    """

    name: str
    before: KnobValue
    tried: KnobValue
    chosen: KnobValue
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    pairs: int = 0
    compile_s: float = 0.0
    sentence: str = ""


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """How far the comparisons are.

    Attributes:
        incumbent: the best point of the search.
        point: the same with the values chosen so far.
        decisions: about every value that is settled.
        upcoming: what to measure next, None at the end.
    """

    incumbent: Point
    point: Point
    decisions: tuple[KnobDecision, ...] = ()
    upcoming: Point | None = None

    @property
    def moved(self) -> bool:
        """Whether a further knob has left its value."""
        return self.point != self.incumbent


def further_knobs(recipe: Recipe) -> dict[str, tuple[KnobValue, ...]]:
    """The knobs beyond the standard three that may take a value other than the baseline's."""
    now = dict(recipe.baseline.extra)
    return {
        name: values
        for name, values in recipe.knobs.items()
        if name not in KNOBS and any(value != now.get(name) for value in values)
    }


def reserve_s(recipe: Recipe, budget_s: float, probe_s: float) -> float:
    """Seconds kept for comparing further knobs: what all pairs would take, a quarter of the budget at most."""
    launches = ROUNDS_MAX * sum(
        len({*values, dict(recipe.baseline.extra).get(name)}) for name, values in further_knobs(recipe).items()
    )
    return min(RESERVE_SHARE * budget_s, launches * probe_s)


def tune(recipe: Recipe, incumbent: Point, results: Sequence[ProbeResult], crowd: Point | None = None) -> Tuning:
    """Where the comparisons stand after some results.

    Args:
        recipe: says which knobs there are, which values they may take, and what is planned.
        incumbent: the best point of the search, further knobs at the baseline's values.
        results: of this stage, in order; those that were not asked for are passed over.
        crowd: the fastest point of the search with several processes; where the incumbent has one process,
            ways of sharing the device are tried there.
    """
    state = _State(point=incumbent)
    plan = _plan(recipe, state, crowd)
    try:
        upcoming = next(plan)
        for result in results:
            if result.requested == upcoming:
                upcoming = plan.send(result)
    except StopIteration:
        return Tuning(incumbent=incumbent, point=state.point, decisions=tuple(state.decisions))
    return Tuning(incumbent=incumbent, point=state.point, decisions=tuple(state.decisions), upcoming=upcoming)


def standing(
    recipe: Recipe, space: Space, history: Sequence[ProbeResult], compared: Sequence[ProbeResult]
) -> Tuning | None:
    """Where the comparisons of a search stand; None without further knobs, or before anything was stable.

    The incumbent is what the quick windows of the search say: finals, which come later, do not move it.

    Args:
        recipe: what is searched.
        space: its points.
        history: what the search measured, these comparisons left out.
        compared: what the comparisons measured, in order.
    """
    quick = [result for result in history if result.grade == "quick"]
    found = confirm.winner(space, quick) if further_knobs(recipe) else None
    if found is None:
        return None
    crowd = next((entry.point for entry in confirm.pool(quick) if entry.point.concurrency > 1), None)
    return tune(recipe, found[0].point, compared, crowd)


def narrowed(
    space: Space, history: Sequence[ProbeResult], compared: Sequence[ProbeResult], tuning: Tuning | None
) -> tuple[Space, Sequence[ProbeResult]]:
    """The points and results among which finals choose: the tuned point alone once a further knob has moved."""
    if tuning is None or not tuning.moved:
        return space, history
    own = [result for result in (*compared, *history) if result.requested == tuning.point]
    return (Space(points=(tuning.point,), rollout=space.rollout), own) if confirm.pool(own) else (space, history)


def concluded(recipe: Recipe, tuning: Tuning) -> tuple[KnobDecision, ...]:
    """Every decision, with one for each value that the budget left no time for."""
    known = {(decision.name, repr(decision.tried)) for decision in tuning.decisions}
    now, before = dict(tuning.point.extra), dict(tuning.incumbent.extra)
    left = [
        (name, value)
        for name, values in further_knobs(recipe).items()
        for value in values
        if value != before[name] and (name, repr(value)) not in known
    ]
    why = "was not compared to the end: the budget had no room, or the planned training is too short to repay it"
    return tuning.decisions + tuple(
        KnobDecision(
            name=name,
            before=now[name],
            tried=value,
            chosen=now[name],
            sentence=f"{name}={value} {why}; {name}={now[name]} is kept",
        )
        for name, value in left
    )


@dataclass
class _State:
    point: Point
    decisions: list[KnobDecision] = field(default_factory=list)


_Plan = Generator[Point, ProbeResult, None]


def _plan(recipe: Recipe, state: _State, crowd: Point | None) -> _Plan:
    """Yields the next point to measure, takes its result, and writes decisions into `state`."""
    for name, values in further_knobs(recipe).items():
        before = dict(state.point.extra)[name]
        arms, refused = _arms(recipe, state.point, name, [value for value in values if value != before], crowd)
        found = {value: Comparison(failure=why) for value, why in refused.items()}
        found |= yield from _compare(recipe.jobs, state.point, arms)
        faster = [value for value, comparison in found.items() if comparison.faster]
        chosen = max(faster, key=lambda value: found[value].net or 0.0) if faster else before
        for value, comparison in found.items():
            state.decisions.append(_decide(recipe, state.point, name, before, value, chosen, comparison))
        state.point = arms.get(chosen, state.point)


def _arms(
    recipe: Recipe, point: Point, name: str, values: Sequence[KnobValue], crowd: Point | None
) -> tuple[dict[KnobValue, Point], dict[KnobValue, str]]:
    """(the point at each value, why a value cannot be tried)."""
    arms: dict[KnobValue, Point] = {}
    refused: dict[KnobValue, str] = {}
    for value in values:
        host = point if name != SHARING or point.concurrency > 1 else crowd
        if host is None:
            refused[value] = "it concerns several processes, and no point with several was stable"
            continue
        there = Point.from_knobs(host.knobs() | dict(point.extra) | {name: value})
        try:
            check_point(recipe, there)
            arms[value] = there
        except UsageError as error:
            refused[value] = str(error)
    return arms, refused


def _compare(
    jobs: Sequence[Job], before: Point, arms: Mapping[KnobValue, Point]
) -> Generator[Point, ProbeResult, dict[KnobValue, Comparison]]:
    """Measure `before` and the arms in turn until each is settled; a failed arm is out."""
    launches: dict[Point, list[ProbeResult]] = {point: [] for point in (before, *arms.values())}
    found: dict[KnobValue, Comparison] = {}
    for number in range(ROUNDS_MAX):
        asked = [value for value in arms if value not in found]
        forth = number % 2 == 0
        for value in [*asked, None] if forth else [None, *reversed(asked)]:
            if all(other in found for other in asked):
                break
            point = before if value is None else arms[value]
            result = yield point
            if result.measured:
                launches[point].append(result)
            elif value is not None:
                said = f"{result.status}: {brief(result.detail)}" if result.detail else result.status
                found[value] = Comparison(failure=shortened(said, _FAILURE_MAX))
            else:
                return found | {v: Comparison(failure="the incumbent itself failed") for v in asked if v not in found}
        for value in asked:
            if value not in found:
                comparison = compare(jobs, launches[before], launches[arms[value]])
                if comparison.settled or number == ROUNDS_MAX - 1:
                    found[value] = comparison
    return {value: found[value] for value in arms}


def _decide(
    recipe: Recipe, point: Point, name: str, before: KnobValue, tried: KnobValue, chosen: KnobValue, found: Comparison
) -> KnobDecision:
    kept = f"{name}={chosen} is {'kept' if chosen == before else 'chosen'}"
    return KnobDecision(
        name=name,
        before=before,
        tried=tried,
        chosen=chosen,
        ratio=found.ratio,
        low=found.low,
        high=found.high,
        pairs=found.pairs,
        compile_s=found.compile_s,
        sentence=f"{name}={tried} {_finding(name, before, found)}; {kept}"
        + (_learning(recipe, point, name, before, tried) if chosen == tried else ""),
    )


def _finding(name: str, before: KnobValue, found: Comparison) -> str:
    if found.ratio is None or found.low is None or found.high is None:
        return f"was not measured ({found.failure})"
    figures = f"{found.ratio:.2f}x [{found.low:.2f}, {found.high:.2f}], {found.pairs} pairs"
    compiling = f", {format_duration(found.compile_s)} of compilation a launch" if found.compile_s >= _SAID_S else ""
    if found.low <= 1 <= found.high:
        return f"makes no measurable difference to {name}={before} ({figures}{compiling})"
    if found.high < 1:
        return f"is slower than {name}={before} ({figures}{compiling})"
    if found.faster:
        return f"is faster than {name}={before} ({figures}{compiling})"
    planned = "" if found.planned_s is None else f" of {format_duration(found.planned_s)}"
    return (
        f"is faster than {name}={before} once compiled ({figures}{compiling}), not over the planned training{planned}"
    )


def _learning(recipe: Recipe, point: Point, name: str, before: KnobValue, tried: KnobValue) -> str:
    """What a choice does to learning, which throughput does not show."""
    old, new = (rollout_of({**recipe.hyperparameters, "rollout": value}) for value in (before, tried))
    if name == "rollout" and old and new:
        samples = f"{new.samples(point.num_envs):,} samples instead of {old.samples(point.num_envs):,}"
        return f" (each update learns from {samples}: whether each step teaches as much was not measured)"
    return "" if name in NEUTRAL else " (whether each step teaches as much was not measured)"
