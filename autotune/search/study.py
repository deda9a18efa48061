"""One search: Optuna by ask and tell on a durable study, within a budget, stoppable and resumable."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import optuna

from autotune.executors.protocol import Executor
from autotune.probe.recipe import check_point
from autotune.records import Point, Recipe
from autotune.runs import Run
from autotune.search import trials
from autotune.search.result import StudyResult
from autotune.search.running import Search, SearchEvent


def run_study(
    recipe: Recipe,
    executor: Executor,
    run: Run,
    *,
    budget_s: float,
    sampler: str = "autotune",
    seed: int = 0,
    price: float | None = None,
    tries: Sequence[Point] = (),
    on_event: Callable[[SearchEvent], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    early_stop: bool = True,
    study: optuna.Study | None = None,
) -> StudyResult:
    """Find the best stable point of a recipe within a budget; goes on where an earlier call on this run ended.

    The caller has checked the recipe (`Executor.check`) and holds the run (`Run.hold`).

    Args:
        recipe: what is searched.
        executor: measures points, and owns the clock and the device.
        run: receives the study, the spent seconds, logs and samples.
        budget_s: seconds for the whole search, over all resumptions.
        sampler: name in the registry.
        seed: of every random choice.
        price: US dollars per hour of the machine; None counts as 1.
        tries: points that the user wants measured.
        on_event: called before and after every probe.
        should_stop: asked between probes; the search then ends with the best so far.
        early_stop: end when the next probe cannot pay for itself over the planned training (never in a replay).
        study: instead of the run's own, such as one in memory.

    Raises:
        UsageError: an impossible point, or a budget too short for two probes.
        InfeasibleError: nothing could be measured as stable.
        FileError: the run folder cannot be written.
    """
    for point in (recipe.baseline, *tries):
        check_point(recipe, point)
    with trials.storage_errors(run):
        search = Search(
            recipe=recipe,
            executor=executor,
            run=run,
            budget_s=budget_s,
            sampler=sampler,
            seed=seed,
            tries=tries,
            price=price,
            early_stop=early_stop,
            on_event=on_event,
            study=study,
        )
        trials.describe_study(
            search.study,
            "env steps per dollar" if price else "env steps per hour",
            recipe=recipe.name,
            device=executor.device.fingerprint,
            baseline=recipe.baseline.label(),
        )
        found = search.result(search.go(should_stop))
        search.study.set_user_attr("recommended", found.point.label())  # the highest single value is a lucky one
        return found
