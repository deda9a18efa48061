"""A running search: what to probe next, probing it durably, and what came out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from autotune.errors import InfeasibleError, UsageError
from autotune.executors.protocol import Executor
from autotune.probe.run import build_request, run_probe
from autotune.records import Point, ProbeResult, Recipe
from autotune.runs import Run
from autotune.search import confirm, plan, samplers, trials
from autotune.search.memory import memory_limits, safe_points
from autotune.search.plan import Step
from autotune.search.propose import Problem
from autotune.search.result import StudyResult
from autotune.search.sampler import IGNORED, FixedSampler, HistorySampler, history_of
from autotune.search.space import space_of
from autotune.units import format_duration

_REFUSALS_MAX = 30
_COST_SHARE_MAX = 0.15
_LONG_TIMEOUT = 3.0
_CEILINGS_SHARE_MAX = 0.2
_CEILINGS_FROM_S = 120.0
"""Budgets below this have no seconds to spare for ceilings."""


@dataclass(frozen=True, kw_only=True)
class SearchEvent:
    """Something for a live view.

    Attributes:
        kind: a probe starts or ended.
        stage: of the plan.
        point: being measured.
        result: what came out, None at the start.
        best: the fastest stable result so far.
        left_s: seconds of budget left.
        predicted_s: seconds that the probe is expected to take.
        trials_done: finished probes.
    """

    kind: Literal["start", "end"]
    stage: str
    point: Point
    result: ProbeResult | None
    best: ProbeResult | None
    left_s: float
    predicted_s: float
    trials_done: int


def ignore(_event: SearchEvent) -> None:
    """Nobody watches."""


@dataclass
class Search:
    """The state of a running search; everything it knows is in the study."""

    recipe: Recipe
    executor: Executor
    run: Run
    budget_s: float
    sampler: str
    seed: int
    tries: Sequence[Point]
    study: Any = None
    price: float = 1.0
    on_event: Callable[[SearchEvent], None] = ignore
    history: list[ProbeResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.space = space_of(self.recipe)
        device, quick = self.executor.device, self.recipe.quick
        cost_max_s = max(_COST_SHARE_MAX * self.budget_s, 2 * (quick.discard_s + quick.window_s))
        limits = memory_limits(self.recipe.limits, device)
        slice_s = quick.long_iteration_s / 4
        self.problem = Problem(space=self.space, limits=limits, cost_max_s=cost_max_s, slice_s=slice_s)
        self.opening = plan.opening(self.recipe, self.space, device, self.tries)
        self._refuse_short_budget()
        self.optuna_sampler: BaseSampler = samplers.make(self.sampler, self.problem, self.seed)
        self.study: optuna.Study = self.study or trials.open_study(self.run)
        spent_s = float(self.run.state().get("spent_s", 0.0))
        spent_s += trials.close_lost(self.study, device.host.boot_id, self.executor.clock_s())
        self.deadline_s = self.executor.clock_s() + self.budget_s - spent_s
        self._read()

    def left_s(self) -> float:
        """Seconds of budget left."""
        return self.deadline_s - self.executor.clock_s()

    def _read(self) -> None:
        self.history = history_of(self.study.get_trials(deepcopy=False))

    def _refuse_short_budget(self) -> None:
        needed_s = 2 * self._predict_s(self.recipe.baseline)
        if self.budget_s < needed_s:
            raise UsageError(
                f"--budget {format_duration(self.budget_s)} is too short: two probes of recipe {self.recipe.name!r} "
                f"take about {format_duration(needed_s)}; give at least that, better {format_duration(10 * needed_s)}"
            )

    def go(self, should_stop: Callable[[], bool]) -> bool:
        """Probe until the plan ends; True when it was stopped before."""
        try:
            self._measure_ceilings()
        except KeyboardInterrupt:
            return True
        while not (stopped := should_stop()):
            step = self._next()
            if step is None:
                break
            try:
                self._probe(step)
            except KeyboardInterrupt:
                stopped = True
                break
        self.run.update(spent_s=self.budget_s - self.left_s())
        return stopped

    def _measure_ceilings(self) -> None:
        """What the workload's parts can do alone at the rule of thumb, once a run, where the budget has room."""
        if self.executor.simulated or self.budget_s < _CEILINGS_FROM_S or "ceilings" in self.run.state():
            return
        point = plan.thumb_point(self.recipe, self.space, self.executor.device)
        rates = self.executor.ceilings(self.recipe, point, timeout_s=_CEILINGS_SHARE_MAX * self.budget_s)
        found = {"point": point.knobs(), "sps": rates}
        self.run.update(ceilings=found, spent_s=self.budget_s - self.left_s())

    def _next(self) -> Step | None:
        """The next probe that fits into what is left; None ends the search."""
        left_s, finalist = self.left_s(), confirm.next_finalist(self.space, self.history)
        final_s = plan.final_cost_s(self.recipe, self.history, self._predict_final_s(), finalist)
        searching_s = left_s - plan.final_reserve_s(self.budget_s, final_s)
        step = self._opening_step(left_s) or self._search_step(searching_s)
        return step or self._final_step(left_s)

    def _opening_step(self, left_s: float) -> Step | None:
        seen = {result.requested for result in self.history}
        for step in self.opening:
            assert step.point is not None
            predicted_s = self._predict_s(step.point)
            if step.point not in seen and predicted_s <= left_s and self._is_safe(step.point):
                return replace(step, predicted_s=predicted_s)
        return None

    def _search_step(self, left_s: float) -> Step | None:
        """What the sampler proposes, None when nothing is worth measuring or it does not fit."""
        if not isinstance(self.optuna_sampler, HistorySampler):
            predicted_s = self._predict_s(self.recipe.baseline)
            return Step(stage="model", point=None, predicted_s=predicted_s) if predicted_s <= left_s else None
        self.optuna_sampler.limit_cost(min(self.problem.cost_max_s, left_s))
        proposal = self.optuna_sampler.upcoming(self.study)
        if proposal is None:
            return None
        predicted_s = proposal.predicted_s or self._predict_s(proposal.point)
        if predicted_s > left_s:
            return None
        return Step(stage=proposal.stage, point=proposal.point, predicted_s=predicted_s)

    def _final_step(self, left_s: float) -> Step | None:
        point = confirm.next_finalist(self.space, self.history)
        if point is None:
            return None
        predicted_s = plan.final_cost_s(self.recipe, self.history, self._predict_final_s(), point)
        if predicted_s > left_s:
            return None
        return Step(stage="final", point=point, grade="final", predicted_s=predicted_s)

    def _is_safe(self, point: Point) -> bool:
        return bool(safe_points([point], self.history, self.problem.limits, self.space.rollout)[0])

    def _predict_s(self, point: Point) -> float:
        """Seconds of a quick probe: the mean so far, else what the executor says, else the plan's."""
        costs = [result.cost_s for result in self.history if result.ok and result.grade == "quick"]
        if costs:
            return sum(costs) / len(costs)
        request = build_request(self.recipe, point, grade="quick", run=self.run, label="predict")
        return self.executor.predict_cost_s(request) or request.plan.discard_s + request.plan.window_s

    def _predict_final_s(self) -> float:
        request = build_request(self.recipe, self.recipe.baseline, grade="final", run=self.run, label="predict")
        return self.executor.predict_cost_s(request) or request.plan.discard_s + request.plan.window_s

    def _ask(self, step: Step) -> tuple[Trial, Point] | None:
        """A trial for this step; None when the sampler proposes nothing that may be run."""
        wide = self.space.distributions(also=[s.point for s in self.opening if s.point])
        if step.point is not None:
            self.study.sampler = FixedSampler(step.point)
            return self.study.ask(wide), step.point
        self.study.sampler = self.optuna_sampler
        for _ in range(_REFUSALS_MAX):
            trial = self.study.ask(wide)
            point = self.space.nearest(trial.params)
            if self._is_safe(point):
                return trial, point
            self._refuse(trial, point)
        return None

    def _refuse(self, trial: Trial, point: Point) -> None:
        trials.start(trial, "refused", point, self.executor.device.host.boot_id, self.executor.clock_s(), 0.0)
        detail = "not run: the memory rule predicts a failure"
        result = ProbeResult(requested=point, status="oom", grade="quick", detail=detail, flags=(IGNORED,))
        trials.finish(self.study, trial, result, trials.worst_value(self.study))

    def _probe(self, step: Step) -> None:
        asked = self._ask(step)
        if asked is None:
            self.deadline_s = min(self.deadline_s, self.executor.clock_s())
            return
        trial, point = asked
        left_s = self.left_s()
        trials.start(
            trial, step.stage, point, self.executor.device.host.boot_id, self.executor.clock_s(), step.predicted_s
        )
        self.run.update(spent_s=self.budget_s - left_s)
        self._tell_viewer("start", step, point, None)
        recipe = _patient(self.recipe, _LONG_TIMEOUT * step.predicted_s)
        label = f"{trial.number:04d}"
        try:
            result = run_probe(
                recipe,
                point,
                self.executor,
                grade=step.grade,
                run=self.run,
                label=label,
                timeout_s=max(1.0, left_s),
                device=self.executor.device,
            )
        except KeyboardInterrupt:
            self.study.tell(trial, state=TrialState.FAIL)
            raise
        if result.status == "timeout" and left_s < recipe.quick.timeout_s:
            result = replace(result, flags=(*result.flags, IGNORED), detail=f"cut by the budget: {result.detail}")
        worst = trials.worst_value(self.study)
        value = 3600 * result.sps / self.price if result.ok and result.sps else worst
        trials.finish(self.study, trial, result, value)
        self.run.update(spent_s=self.budget_s - self.left_s())
        self._read()
        self._tell_viewer("end", step, point, result)

    def _tell_viewer(self, kind: Literal["start", "end"], step: Step, point: Point, result: ProbeResult | None) -> None:
        leader = confirm.pool(self.history)
        self.on_event(
            SearchEvent(
                kind=kind,
                stage=step.stage,
                point=point,
                result=result,
                best=confirm.published(self.history, leader[0].point) if leader else None,
                left_s=self.left_s(),
                predicted_s=step.predicted_s,
                trials_done=len(self.history),
            )
        )

    def result(self, *, price: float | None, interrupted: bool) -> StudyResult:
        """What came out.

        Raises:
            InfeasibleError: nothing was stable.
        """
        records = trials.records_of(self.study)
        counted: Mapping[str, int] = {
            status: sum(r.counts and r.result.status == status for r in records)
            for status in ("oom", "crashed", "host_lost", "timeout", "unstable")
        }
        found = confirm.winner(self.space, self.history)
        if found is None:
            raise InfeasibleError(_nothing(self.recipe, self.history))
        best, tied = found
        thumb = plan.thumb_point(self.recipe, self.space, self.executor.device)
        return StudyResult(
            point=best.point,
            result=confirm.published(self.history, best.point),
            baseline=_stated(self.history, self.recipe.baseline),
            rule_of_thumb=_stated(self.history, thumb),
            tied=tuple(entry.point for entry in tied),
            ladder=confirm.lighter(self.history, best.point),
            counts=counted,
            trials=records,
            points_measured=len(confirm.pool(self.history)),
            spent_s=self.budget_s - self.left_s(),
            budget_s=self.budget_s,
            interrupted=interrupted,
            price_usd_per_hour=price,
        )


def _patient(recipe: Recipe, timeout_s: float) -> Recipe:
    """The recipe with timeouts long enough for long iterations."""
    return replace(
        recipe,
        quick=replace(recipe.quick, timeout_s=max(recipe.quick.timeout_s, timeout_s)),
        final=replace(recipe.final, timeout_s=max(recipe.final.timeout_s, timeout_s)),
    )


def _stated(history: Sequence[ProbeResult], point: Point) -> ProbeResult | None:
    """The published result of a point, or its failure; None when it was not measured."""
    own = [result for result in history if result.requested == point]
    if any(result.ok for result in own):
        return confirm.published(history, point)
    return own[-1] if own else None


def _nothing(recipe: Recipe, history: Sequence[ProbeResult]) -> str:
    if not history:
        return f"no point of recipe {recipe.name!r} was measured before the search was stopped; run it again to go on"
    last = history[-1]
    return (
        f"no point of recipe {recipe.name!r} ran stably: {len(history)} probes failed, the last one "
        f"({last.requested.label()}) with {last.status}: {last.detail or 'no detail'}. "
        "Look at the logs in the run's folder, and allow lighter points in the recipe."
    )
