"""What `probe`, `record` and `search` do between their options and their output.

That a run is in use is said before the slow imports (optuna, scipy): those stand in the functions that need them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from autotune.choices import (
    begin_where_trained,
    choose_executor,
    choose_recipe,
    grid_values,
    open_measuring_run,
    surface_of,
    tried_points,
)
from autotune.device.inspect import usable_device
from autotune.errors import EXIT_INFEASIBLE, EXIT_OK, EXIT_UNFINISHED, InfeasibleError, UsageError
from autotune.locks import hold_device
from autotune.machine import DeviceInfo
from autotune.probe.grid import grid_points, left_out, refuse_unreached, run_grid
from autotune.probe.recipe import missing_placeholders
from autotune.probe.recipe_file import knob_points
from autotune.records import KNOBS, Point, ProbeResult, Recipe
from autotune.runs import Run, check_name, discarded_when_refused, refuse_held
from autotune.signals import StopSignals
from autotune.units import counted

if TYPE_CHECKING:
    from autotune.guard.pilots import GuardPlan
    from autotune.manifest_schema import LearningSection
    from autotune.search.result import StudyResult

Say = Callable[[str], None]
_GUARDED = "guarded"
"""Fact of a search's run: whether a guard came to its end, or has nothing to check."""


@dataclass(frozen=True, kw_only=True)
class MeasuredGrid:
    """A grid that `probe` or `record` measured."""

    recipe: Recipe
    device: DeviceInfo
    run: Run
    rows: list[ProbeResult]
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class FinishedSearch:
    """A search that found something, finished or stopped, and what is known of learning at its point."""

    run: Run
    found: StudyResult
    learning: LearningSection
    exit_code: int


@dataclass(frozen=True, kw_only=True)
class FoundNothing:
    """A search without a stable point, finished or stopped; its run keeps what was measured.

    Attributes:
        error: says why, and carries the exit code.
    """

    run: Run
    price: float | None
    error: InfeasibleError


def say_recipe(say: Say, recipe: Recipe, named: bool) -> None:
    """Which recipe is used, and how to tune one's own where none was named."""
    hint = "" if named else " (yours: autotune search -- python train.py --num-envs {num_envs})"
    say(f"recipe {recipe.name}, from {recipe.source}{hint}")
    for sentence in missing_placeholders(recipe):
        say(sentence)


def _refuse_held_name(options: dict[str, Any]) -> None:
    if options["name"] is not None:
        refuse_held(Run(options["runs"] / check_name(options["name"])))


def _opened(say: Say, command: str, recipe: Recipe, device: DeviceInfo, options: dict[str, Any], **facts: Any) -> Run:
    run = open_measuring_run(command, recipe, device, options, **facts)
    say(f"run {run.path}")
    refuse_held(run)
    return run


def measure_grid(command: str, argv: list[str], options: dict[str, Any], say: Say) -> MeasuredGrid:
    """Measure the grid that the options name; `record` takes every value of a knob without one, and resumes.

    Args:
        command: ``probe`` or ``record``.
        argv: the user's own command, empty for a recipe.
        options: the command line's.
        say: shows progress and warnings.

    Raises:
        UsageError: a value that cannot be used.
        BusyError: another process holds the run or the device.
    """
    _refuse_held_name(options)
    from autotune.executors.isolated import IsolatedExecutor

    recipe = choose_recipe(argv, options)
    say_recipe(say, recipe, bool(options["recipe"] or argv))
    recipe = begin_where_trained(recipe, options, say)
    device = usable_device(options["device"])
    standard = {name: recipe.knobs[name] for name in KNOBS}  # a surface has no further knobs
    every = replace(recipe, grid={**recipe.grid, **standard}) if command == "record" else recipe
    points = grid_points(every, grid_values(options))
    refuse_unreached(recipe, {name: sorted({point.knobs()[name] for point in points}) for name in KNOBS})
    if command == "record" and len({point.extra for point in points}) > 1:
        raise UsageError("a surface has num_envs, batch_size and concurrency only: give each --knob one value")
    stop = StopSignals()
    executor = IsolatedExecutor(device, stop.requested)
    executor.check(recipe, points)
    run = _opened(say, command, recipe, device, options)
    from autotune.live import ProbeView
    from autotune.search.trials import add_probe_trial, load_trials

    with discarded_when_refused(run), run.hold(), hold_device(device), stop, ProbeView(len(points)) as view:
        rows = run_grid(
            recipe,
            points,
            executor,
            run,
            grade="final" if options["final"] else "quick",
            record=lambda result: add_probe_trial(run, "grid", result),
            done={trial.result.requested: trial.result for trial in load_trials(run)},
            on_event=view.update,
            should_stop=stop.requested,
        )
    stopped = stop.exit_code or _lost(executor, say)
    if stopped:
        on = "the same command goes on" if command == "record" else "a probe begins anew (`autotune record` goes on)"
        say(f"stopped after {len(rows)} of {counted(len(points), 'point')}; {on}")
    elif heavier := left_out(points, rows):
        why = "each asks for at least as much of every knob as one at which the machine went down"
        say(f"{counted(len(heavier), 'point')} left out: {why}")
    measured = EXIT_OK if any(row.ok for row in rows) else EXIT_INFEASIBLE
    return MeasuredGrid(recipe=recipe, device=device, run=run, rows=rows, exit_code=stopped or measured)


def _lost(executor: Any, say: Say) -> int:
    """The exit code of a command whose device fell away, after saying so; 0 where it did not, or is not told of."""
    why = getattr(executor, "lost", "")
    if why:
        say(f"{why}; what was measured is kept")
    return EXIT_UNFINISHED if why else EXIT_OK


def run_search(argv: list[str], options: dict[str, Any], say: Say) -> FinishedSearch | FoundNothing:
    """Search as the options say, and emit the manifest.

    Args:
        argv: the user's own command, empty for a recipe.
        options: the command line's.
        say: shows progress and warnings.

    Raises:
        UsageError: a value that cannot be used.
        BusyError: another process holds the run or the device.
    """
    _refuse_held_name(options)
    stop = StopSignals()
    executor, recipe = choose_executor(argv, options, stop.requested, say)
    say_recipe(say, recipe, bool(options["recipe"] or argv or recipe.workload == "replay"))
    refuse_unreached(recipe, recipe.knobs)
    recipe = begin_where_trained(recipe, options, say)
    plan = _guard_plan(recipe, options, simulated=executor.simulated)
    tries = tried_points(recipe, options, say)
    executor.check(recipe, [recipe.baseline, *tries, *knob_points(recipe)])
    if not executor.simulated:
        from autotune.manifest import build_manifest

        build_manifest(recipe, recipe.baseline)  # what cannot become a manifest is refused before hours are spent
    facts = {name: options[name] for name in ("sampler", "seed", "executor")}
    if surface := surface_of(executor):
        facts["surface_hash"] = surface.content_hash
    run = _opened(say, "search", recipe, executor.device, options, lacking=_GUARDED if plan else None, **facts)
    from autotune.search.emit import emit_manifest
    from autotune.search.learning import unchecked

    if plan:
        say(f"guard: 2 x {plan.seeds} pilots follow the search, outside --budget; it says how long they take first")
    try:
        found = _study(recipe, executor, run, options, stop, tries)
    except InfeasibleError as error:
        stopped = stop.exit_code or _lost(executor, say)
        run.update(finished=not stopped, **{_GUARDED: not stopped})  # the same command then searches anew
        error.exit_code = stopped or error.exit_code
        return FoundNothing(run=run, price=run.state()["price_usd_per_hour"], error=error)
    learning = unchecked(found, recipe, "the search was stopped before its guard" if plan and found.interrupted else "")
    if not executor.simulated:
        emit_manifest(found, recipe, run, executor.device, learning)
    checked = plan is None
    if plan and not found.interrupted:
        learning, checked = _guard(plan, learning, found, recipe, run, executor.device, stop, say)
        emit_manifest(found, recipe, run, executor.device, learning)
        run.update(**{_GUARDED: checked})
    finished = not found.interrupted and checked
    run.update(finished=finished, ended=found.ended)
    ended = _lost(executor, say) or (EXIT_OK if finished else EXIT_UNFINISHED)  # a guard can be cut short, too
    return FinishedSearch(run=run, found=found, learning=learning, exit_code=stop.exit_code or ended)


def _guard_plan(recipe: Recipe, options: dict[str, Any], *, simulated: bool) -> GuardPlan | None:
    """The guard that the options ask for, None where they do not.

    Raises:
        UsageError: it could never compare anything.
    """
    if not options["guard"]:
        return None
    from autotune.guard.pilots import GuardPlan, refuse_guard

    refuse_guard(recipe, simulated=simulated)
    return GuardPlan(
        env_steps=options["guard_steps"], seeds=options["guard_seeds"], margin_fraction=options["guard_margin"]
    )


def _guard(
    plan: GuardPlan,
    learning: LearningSection,
    found: StudyResult,
    recipe: Recipe,
    run: Run,
    device: DeviceInfo,
    stop: StopSignals,
    say: Say,
) -> tuple[LearningSection, bool]:
    """What pilots say of learning, and whether they came to their end."""
    from autotune.guard.pilots import plan_pilots
    from autotune.guard.run import run_guard
    from autotune.live import TrainView
    from autotune.search.learning import learns_alike, unchecked

    if learns_alike(found.point, recipe.baseline):
        say(f"guard: nothing to check, {learning.detail}")
        return learning, True
    pilots = plan_pilots(found, recipe, plan)
    say(pilots.announcement())
    with run.hold(), hold_device(device), stop, TrainView() as view:
        checked = run_guard(
            pilots,
            plan,
            learning,
            run,
            device=device,
            on_event=view.update,
            warn=say,
            should_stop=stop.requested,
        )
    if checked is None:
        return unchecked(found, recipe, "the guard was stopped; the same command goes on with it"), False
    return checked, True


def _study(
    recipe: Recipe, executor: Any, run: Run, options: dict[str, Any], stop: StopSignals, tries: Sequence[Point]
) -> StudyResult:
    from autotune.live import SearchView
    from autotune.search.study import run_study

    device, budget_s, surface = executor.device, options["budget"], surface_of(executor)
    price = options["price"] or (surface.price_usd_per_hour if surface else None)
    with discarded_when_refused(run), run.hold(), hold_device(device), stop, SearchView(budget_s) as view:
        run.update(budget_s=budget_s, price_usd_per_hour=price)
        return run_study(
            recipe,
            executor,
            run,
            budget_s=budget_s,
            sampler=options["sampler"],
            seed=options["seed"],
            price=price,
            tries=tries,
            early_stop=not options["no_early_stop"],
            on_event=view.update,
            should_stop=stop.requested,
        )
