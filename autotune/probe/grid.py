"""`autotune probe`: every combination of the named knob values, one after another."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

from autotune.device.mps import check_sharing
from autotune.errors import UsageError
from autotune.executors.protocol import Executor
from autotune.probe.recipe_file import batch_size_max, more_jobs
from autotune.probe.run import run_probe
from autotune.records import KNOBS, RESTARTED, SHARING, Grade, KnobValue, Point, ProbeResult, Recipe
from autotune.runs import Run
from autotune.workloads.command_argv import placeholders

_RUNNING = "probing"
"""Fact of a run: the point that is being measured, and the boot."""


@dataclass(frozen=True, kw_only=True)
class GridEvent:
    """Progress of a grid: a point begins (`result` None) or has ended."""

    number: int
    total: int
    point: Point
    result: ProbeResult | None = None


def check_knob(recipe: Recipe, name: str, values: Sequence[KnobValue]) -> None:
    """Refuse values beyond a knob's range; of a knob that the recipe does not list the workload says what it takes.

    Raises:
        UsageError: names the value and what is allowed.
    """
    for value in values if name == SHARING else ():
        check_sharing(value)
    if name not in recipe.knobs:
        return
    numbers = [float(v) for v in recipe.knobs[name] if isinstance(v, (int, float)) and not isinstance(v, bool)]
    shown = f"{min(numbers):g} to {max(numbers):g}" if numbers else ", ".join(map(str, recipe.knobs[name]))
    for value in values:
        if numbers:
            fits = isinstance(value, (int, float)) and min(numbers) <= value <= max(numbers)
        else:
            fits = value in recipe.knobs[name]
        if not fits:
            _refuse_unreached(recipe, name, value)
            one_each = name == "concurrency"
            jobs = f"; at most one process for each job, here {len(recipe.jobs)}" if one_each else ""
            more = more_jobs(recipe) if one_each else ""
            raise UsageError(
                f"{name}={value} is outside what recipe {recipe.name!r} allows ({shown}{jobs}): "
                f"{more}choose another value, or widen [knobs] in a recipe of your own"
            )


def refuse_unreached(recipe: Recipe, values: Mapping[str, Sequence[KnobValue]]) -> None:
    """Refuse several values of a knob that has no place in the user's own command: all would measure the same.

    Args:
        recipe: of any workload.
        values: what is to be measured, by knob.

    Raises:
        UsageError: names the knob and the remedy.
    """
    for name in KNOBS:
        if len(values[name]) > 1:
            _refuse_unreached(recipe, name, " or ".join(map(str, values[name])))


def _refuse_unreached(recipe: Recipe, name: str, value: KnobValue) -> None:
    """Refuse a value of a knob that has no place in the user's own command."""
    if recipe.workload != "command" or name not in ("num_envs", "batch_size"):
        return
    used = placeholders(recipe.hyperparameters["argv"])
    if name not in used:
        has = ", ".join(f"{{{each}}}" for each in sorted(used)) or "none"
        raise UsageError(
            f"{name}={value} has no effect: the command has no {{{name}}}; write it where the value belongs "
            f"(placeholders that it has: {has})"
        )


def grid_points(recipe: Recipe, wanted: Mapping[str, Sequence[KnobValue]]) -> list[Point]:
    """The combinations of the values named on the command line, the rest from the recipe's grid.

    A minibatch larger than num_envs x rollout is left out when the recipe's own grid brought it in.

    Raises:
        UsageError: a value out of range, or no combination is left.
    """
    for name, values in wanted.items():
        check_knob(recipe, name, values)
    axes = {
        name: wanted.get(name) or recipe.grid.get(name, (value,)) for name, value in recipe.baseline.knobs().items()
    }
    axes |= {name: values for name, values in wanted.items() if name not in axes}
    points = [Point.from_knobs(dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())]
    if "batch_size" not in wanted:
        points = [p for p in points if p.batch_size <= batch_size_max(recipe, p.num_envs, p.extra)]
    if not points:
        raise UsageError("no point of the grid has batch_size within num_envs x rollout: name --batch-size")
    return points


def run_grid(
    recipe: Recipe,
    points: Sequence[Point],
    executor: Executor,
    run: Run,
    *,
    grade: Grade,
    record: Callable[[ProbeResult], None],
    done: Mapping[Point, ProbeResult] = MappingProxyType({}),
    on_event: Callable[[GridEvent], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[ProbeResult]:
    """Measure every point that is not `done`; rows are recorded as they are measured. Returns all there are.

    The point at which the machine went down has its row, and what dominates it is left out (`left_out`).
    """
    boot_id = executor.device.host.boot_id
    if (lost := _lost(run, boot_id, grade)) is not None and lost.requested not in done:
        record(lost)
        done = {**done, lost.requested: lost}
    rows: list[ProbeResult] = []
    for number, point in enumerate(points):
        if should_stop():
            break
        if point in done:
            rows.append(done[point])
            continue
        if _brings_down(point, done.values()):
            continue
        on_event(GridEvent(number=number, total=len(points), point=point))
        label, optional = f"{number:04d}", bool(point.extra) and recipe.workload != "command"  # whose progress counts
        try:
            with _noted(run, point, boot_id):
                result = run_probe(
                    recipe,
                    point,
                    executor,
                    grade=grade,
                    run=run,
                    label=label,
                    optional=optional,
                    earlier=[*done.values(), *rows],
                )
                record(result)
        except KeyboardInterrupt:
            break
        rows.append(result)
        on_event(GridEvent(number=number, total=len(points), point=point, result=result))
    run.update(finished=len(rows) + len(left_out(points, rows)) == len(points))
    return rows


def left_out(points: Iterable[Point], rows: Sequence[ProbeResult]) -> list[Point]:
    """Points that are not measured since the machine went down at one of these rows, which they dominate."""
    measured = {row.requested for row in rows}
    return [point for point in points if point not in measured and _brings_down(point, rows)]


def _brings_down(point: Point, rows: Iterable[ProbeResult]) -> bool:
    return any(row.status == "host_lost" and point.dominates(row.requested) for row in rows)


@contextmanager
def _noted(run: Run, point: Point, boot_id: str) -> Iterator[None]:
    """Keep it on the disk that a point is being measured; a machine that goes down leaves it there, as does a kill."""
    run.update(**{_RUNNING: {"point": point.knobs(), "boot_id": boot_id}})
    try:
        yield
    finally:
        run.update(**{_RUNNING: None})


def _lost(run: Run, boot_id: str, grade: Grade) -> ProbeResult | None:
    """The probe during which the machine went down, if it did; after a killed command the point is measured anew."""
    noted = run.state().get(_RUNNING)
    if not isinstance(noted, dict) or noted["boot_id"] == boot_id:
        return None
    point = Point.from_knobs(noted["point"])
    return ProbeResult(requested=point, status="host_lost", grade=grade, detail=RESTARTED)
