"""A running search: what to probe next, probing it durably, and what came out."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState

from autotune import registry
from autotune.errors import UsageError
from autotune.executors.protocol import Executor
from autotune.probe.run import build_request, run_probe
from autotune.records import PAUSED, Grade, Point, ProbeResult, Recipe
from autotune.runs import Run
from autotune.search import confirm, epochs, knobs, plan, samplers, trials
from autotune.search.episodes import game_lengths, steps_of
from autotune.search.outcome import Account, by_stage, conclude, problem_of
from autotune.search.plan import Ending, Situation, Step
from autotune.search.propose import cost_limit_s
from autotune.search.result import StudyResult
from autotune.search.sampler import IGNORED, FixedSampler, HistorySampler
from autotune.search.space import space_of
from autotune.search.worth import pays, training_s
from autotune.units import format_duration

_REFUSALS_MAX = 30
_LONG_TIMEOUT = 3.0
_CUT_S = 1.0
"""A timeout with no more than this left is the budget's."""
_CEILINGS_SHARE_MAX = 0.2
_CEILINGS_FROM_S = 120.0
"""Budgets below this have no seconds to spare for ceilings."""


@dataclass(frozen=True, kw_only=True)
class SearchEvent:
    """A probe begins (`result` None) or has ended, for a live view.

    Attributes:
        stage: of the plan.
        point: being measured.
        result: what came out.
        best: the fastest stable result so far.
        left_s: seconds of budget left.
        number: of the trial, as the report and exports have it.
    """

    stage: str
    point: Point
    result: ProbeResult | None
    best: ProbeResult | None
    left_s: float
    number: int


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
    price: float | None
    early_stop: bool
    on_event: Callable[[SearchEvent], None]
    study: Any
    history: list[ProbeResult] = field(init=False)
    compared: list[ProbeResult] = field(init=False)
    records: list[trials.TrialRecord] = field(init=False)

    def __post_init__(self) -> None:
        self.space = space_of(self.recipe)
        device = self.executor.device
        self.problem = problem_of(self.recipe, device, self.budget_s)
        self.opening = plan.opening(self.recipe, self.space, device, self.tries)
        self._refuse_short_budget()
        self.optuna_sampler: BaseSampler = samplers.make(self.sampler, self.problem, self.seed)
        self._exhausted = False  # the sampler proposes nothing any more that may be run
        spent_s = float(self.run.state().get("spent_s", 0.0))
        if not self.study:
            trials.refuse_lost_study(self.run, spent_s)
        self.study: optuna.Study = self.study or trials.open_study(self.run)
        spent_s += trials.close_lost(self.study, device.host.boot_id, self.executor.clock_s(), self._value)
        told_s = sum(record.result.cost_s for record in self._read())  # the last may not be noted
        self.deadline_s = self.executor.clock_s() + self.budget_s - max(spent_s, told_s)

    def left_s(self) -> float:
        """Seconds of budget left."""
        return self.deadline_s - self.executor.clock_s()

    def _read(self) -> tuple[trials.TrialRecord, ...]:
        """Take what the study holds; returns all of it, what does not count included."""
        told = trials.records_of(self.study)
        self.records = [record for record in told if record.counts]
        self.history, self.compared = by_stage(self.records)
        return told

    def _refuse_short_budget(self) -> None:
        needed_s = 2 * self._first_s(self.recipe.baseline, "quick")
        if self.budget_s < needed_s:
            raise UsageError(
                f"--budget {format_duration(self.budget_s)} is too short: two probes of recipe {self.recipe.name!r} "
                f"take about {format_duration(needed_s)}; give at least that, better {format_duration(10 * needed_s)}"
            )

    def go(self, should_stop: Callable[[], bool]) -> Ending:
        """Probe until the plan ends; says why it did."""
        ended: Ending = "stopped"
        with contextlib.suppress(KeyboardInterrupt):
            self._measure_ceilings()
            while not should_stop():
                now = self._situation()
                step = plan.next_step(now, functools.partial(self._search_step, now))
                if not isinstance(step, Step):
                    ended = step
                    break
                self._probe(step)
        self.run.update(spent_s=self.budget_s - self.left_s(), ended=ended)
        return ended

    def _measure_ceilings(self) -> None:
        """What the workload's parts can do alone at the rule of thumb, once a run, where the budget has room."""
        if self.executor.simulated or self.budget_s < _CEILINGS_FROM_S or "ceilings" in self.run.state():
            return
        point = plan.thumb_point(self.recipe, self.space, self.executor.device)
        rates = self.executor.ceilings(self.recipe, point, timeout_s=_CEILINGS_SHARE_MAX * self.budget_s)
        found = {"point": point.knobs(), "sps": rates}
        self.run.update(ceilings=found, spent_s=self.budget_s - self.left_s())

    def _situation(self) -> Situation:
        return Situation(
            recipe=self.recipe,
            problem=self.problem,
            opening=self.opening,
            history=self.history,
            compared=self.compared,
            budget_s=self.budget_s,
            left_s=self.left_s(),
            first_quick_s=self._first_s(self.recipe.baseline, "quick"),
            first_final_s=self._first_s(self.recipe.baseline, "final"),
            planned_s=self._planned_s(),
            drifts=not self.executor.simulated,
        )

    def _planned_s(self) -> float | None:
        """Seconds of the planned training at the fastest point so far, None where nothing ends early for it."""
        if self.executor.simulated or not self.early_stop:
            return None
        leader = confirm.pool(self.history)
        if not leader:
            return None
        best = confirm.published(self.history, leader[0].point)
        return training_s(self.recipe.jobs, best, steps_of(game_lengths(self.recipe.jobs, self.history)))

    def _search_step(self, now: Situation, left_s: float) -> Step | Ending:
        """What the sampler proposes for these seconds, or why it proposes nothing."""
        predicted_s = now.quick_s()
        if self._exhausted:
            return "known"
        if not isinstance(self.optuna_sampler, HistorySampler):
            return Step(stage="model", point=None, predicted_s=predicted_s) if predicted_s <= left_s else "budget"
        self.optuna_sampler.limit_cost(left_s)
        with registry.blamed("sampler", self.sampler, "propose a point"):
            proposal = self.optuna_sampler.upcoming(self.study)
        if proposal is None:
            return "known" if left_s >= cost_limit_s(self.problem, self.history) else "budget"
        predicted_s = proposal.predicted_s or predicted_s
        if predicted_s > left_s:
            return "budget"
        if proposal.gain_per_s is not None and not pays(proposal.gain_per_s, 1.0, now.planned_s):
            return "worth"
        return Step(stage=proposal.stage, point=proposal.point, predicted_s=predicted_s)

    def _first_s(self, point: Point, grade: Grade) -> float:
        """Seconds of a probe that goes well, before any was measured."""
        request = build_request(self.recipe, point, grade=grade, run=self.run, label="predict")
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
            if plan.is_safe(self.problem, self.history, point):
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
            self._exhausted = True
            return
        trial, point = asked
        left_s = self.left_s()
        trials.start(
            trial, step.stage, point, self.executor.device.host.boot_id, self.executor.clock_s(), step.predicted_s
        )
        self.run.update(spent_s=self.budget_s - left_s)
        self._tell_viewer(step, trial.number, point)
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
                optional=step.stage == knobs.STAGE,
                earlier=[record.result for record in self.records],
            )
        except KeyboardInterrupt:
            self.study.tell(trial, state=TrialState.FAIL)
            raise
        if result.status == "timeout" and self.left_s() < _CUT_S:
            result = replace(result, flags=(*result.flags, IGNORED), detail=f"cut by the budget: {result.detail}")
        elif PAUSED in result.flags and not self._paused_before(point):
            result = replace(result, flags=(*result.flags, IGNORED))
        value = self._value(result) or trials.worst_value(self.study)
        trials.finish(self.study, trial, result, value, self._epoch(result))
        self.run.update(spent_s=self.budget_s - self.left_s())
        self._read()
        self._tell_viewer(step, trial.number, point, result)

    def _paused_before(self, point: Point) -> bool:
        """Whether a probe of this point ran out of time before while the search stood still: it may be why it did."""
        told = (record.result for record in trials.records_of(self.study))
        return any(result.requested == point and PAUSED in result.flags for result in told)

    def _value(self, result: ProbeResult) -> float | None:
        """What the study is to make the most of."""
        return result.goodput_per_usd(self.price or 1.0)

    def _epoch(self, result: ProbeResult) -> int:
        """The machine's epoch with this newest result; a recorded one does not change, however noisy it is."""
        if self.executor.simulated:
            return 0
        measured = [record.result for record in self.records]
        return epochs.epochs_of([*measured, result], self.recipe.baseline)[-1]

    def _tell_viewer(self, step: Step, number: int, point: Point, result: ProbeResult | None = None) -> None:
        leader = confirm.pool(self.history)
        self.on_event(
            SearchEvent(
                stage=step.stage,
                point=point,
                result=result,
                best=confirm.published(self.history, leader[0].point) if leader else None,
                left_s=self.left_s(),
                number=number,
            )
        )

    def result(self, ended: Ending) -> StudyResult:
        """What came out.

        Raises:
            InfeasibleError: nothing was stable.
        """
        account = Account(
            history=self.history,
            compared=self.compared,
            records=trials.records_of(self.study),
            ended=ended,
            spent_s=self.budget_s - self.left_s(),
            budget_s=self.budget_s,
            price=self.price,
        )
        thumb = plan.thumb_point(self.recipe, self.space, self.executor.device)
        return conclude(self.recipe, self.problem, account, thumb=thumb)


def _patient(recipe: Recipe, timeout_s: float) -> Recipe:
    """The recipe with timeouts long enough for long iterations."""
    return replace(
        recipe,
        quick=replace(recipe.quick, timeout_s=max(recipe.quick.timeout_s, timeout_s)),
        final=replace(recipe.final, timeout_s=max(recipe.final.timeout_s, timeout_s)),
    )
