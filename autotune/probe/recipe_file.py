"""The file format of a recipe: TOML in, TOML out."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from autotune.device.mps import check_sharing
from autotune.errors import ManifestError, UsageError
from autotune.probe import schema
from autotune.records import (
    COUNT_MAX,
    FINAL_PLAN,
    JOBS_MAX,
    KNOBS,
    SHARING,
    Job,
    KnobValue,
    Limits,
    MeasurePlan,
    Point,
    Recipe,
)
from autotune.units import counted
from autotune.workloads.learning import Rollout, rollout_of

COMMAND_LINE = "command line"
"""Source of a recipe that no file holds: of the user's own command after ``--``."""


def parse_recipe(text: str, *, source: str, name: str, seeds: int | None = None) -> Recipe:
    """A recipe from TOML text.

    Args:
        text: the file's contents.
        source: named in messages.
        name: of the recipe when the text gives none.
        seeds: play every environment so often, see `seeded`; None for the jobs that the text names.

    Raises:
        ManifestError: every fault as file, key, value and expectation.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"recipe {source} is not valid TOML: {error}") from error
    except RecursionError:
        raise ManifestError(f"recipe {source} is nested too deeply: a recipe has tables with lists of values") from None
    file = schema.parse(data, source)
    try:
        recipe = _build(file, source, name, seeds)
        check_point(recipe, recipe.baseline)
    except (ValueError, UsageError) as error:
        raise ManifestError(f"recipe {source}: {error}") from error
    return recipe


def seeded(jobs: Sequence[Job], seeds: int | None) -> tuple[Job, ...]:
    """Every environment with the seeds 1 to `seeds`, each with the budget of its first job; without, the jobs given.

    Raises:
        UsageError: more jobs than a manifest holds.
    """
    if seeds is None:
        return tuple(jobs)
    first = dict[str, Job]()
    for job in jobs:
        first.setdefault(job.env, job)
    check_job_count(len(first) * seeds)
    return tuple(
        replace(job, id=f"{job.id}-{seed}", seed=seed) for job in first.values() for seed in range(1, seeds + 1)
    )


def check_job_count(jobs: int) -> None:
    """Refuse none, and more jobs than a manifest holds.

    Raises:
        UsageError: it is that.
    """
    if jobs < 1:
        raise UsageError(f"jobs {jobs} must be at least 1")
    if jobs > JOBS_MAX:
        raise UsageError(f"{jobs:,} jobs are more than a manifest holds: at most {JOBS_MAX:,}")


def more_jobs(recipe: Recipe) -> str:
    """How a recipe is given more jobs, as the beginning of a list of remedies; nothing for a recorded surface."""
    if recipe.workload == "replay":
        return ""
    return f"give {'--jobs' if recipe.source == COMMAND_LINE else '--seeds'} N or "


def _build(file: schema.RecipeFile, source: str, name: str, seeds: int | None) -> Recipe:
    jobs = tuple(part.job() for part in file.jobs)
    ids = [job.id for job in jobs]
    if repeated := sorted({job_id for job_id in ids if ids.count(job_id) > 1}):
        raise ValueError(f"jobs.id = {repeated[0]!r} is given twice; every job needs its own")
    jobs = seeded(jobs, seeds)
    limits = Limits(**file.limits.model_dump(exclude_none=True))
    most = min(len(jobs), limits.concurrency_max or len(jobs))
    knobs = {knob: schema.ascending(knob, values) for knob, values in file.knobs.items()}
    for knob in KNOBS:
        if knob not in knobs:
            if knob != "concurrency":
                raise ValueError(f"knobs.{knob} is missing: give a list of values or {{min = .., max = ..}}")
            knobs[knob] = (1,)
    knobs = _ordered(knobs) | {"concurrency": clipped(knobs["concurrency"], most)}
    grid = {knob: schema.ascending(knob, values) for knob, values in file.grid.items()}
    for knob in [*grid, *file.baseline]:
        if knob not in knobs:
            raise ValueError(f"{knob!r} in [grid] or [baseline] is not a knob; knobs are {', '.join(knobs)}")
    same = {n: v for n, v in file.hyperparameters.items() if n not in KNOBS and v in knobs.get(n, ())}
    stated = same | file.baseline  # a further knob starts from the hyperparameter of its name
    check_sharing(stated.get(SHARING))
    rollout = stated.get("rollout", knobs.get("rollout", (file.hyperparameters.get("rollout"),))[0])
    if rollout is None and file.hyperparameters.get("samples_per_update") is not None:
        raise ValueError("hyperparameters.samples_per_update needs hyperparameters.rollout: what it adapts")
    rule = rollout_of({**file.hyperparameters, "rollout": rollout})
    baseline = default_baseline(stated, knobs, most, rule)
    return Recipe(
        name=file.name or name,
        workload=file.workload,
        hyperparameters=file.hyperparameters,
        jobs=jobs,
        knobs=knobs,
        grid=default_grid(grid, knobs, baseline, most),
        baseline=baseline,
        quick=replace(MeasurePlan(), **file.quick.model_dump(exclude_none=True)),
        final=replace(FINAL_PLAN, **file.final.model_dump(exclude_none=True)),
        limits=limits,
        source=source,
        points=tuple(_listed_point(point, knobs) for point in file.points),
    )


def _listed_point(given: Mapping[str, KnobValue], knobs: Mapping[str, object]) -> Point:
    if set(given) != set(knobs):
        raise ValueError(f"points: {dict(given)} must have a value for each of {', '.join(knobs)}, and no other")
    for name in KNOBS:
        schema.check_count(f"points.{name}", given[name])
    return Point.from_knobs(given)


def _ordered(knobs: Mapping[str, tuple[KnobValue, ...]]) -> dict[str, tuple[KnobValue, ...]]:
    return {name: knobs[name] for name in [*KNOBS, *(n for n in knobs if n not in KNOBS)]}


def clipped(levels: Sequence[KnobValue], most: int) -> tuple[KnobValue, ...]:
    """Concurrency levels up to the number of jobs; that number itself when it is below them all."""
    return tuple(level for level in levels if int(level) <= most) or (most,)


def default_baseline(
    given: Mapping[str, KnobValue],
    knobs: Mapping[str, tuple[KnobValue, ...]],
    most: int,
    rollout: Rollout | None = None,
) -> Point:
    """The stated baseline; what it leaves out is near num_envs 8, batch_size 256, the first value of other knobs.

    Raises:
        ValueError: a count that is none.
        UsageError: environments that cannot stay within the recipe's samples per update.
    """
    chosen = {name: given.get(name, values[0]) for name, values in knobs.items()}
    possible = [n for n in knobs["num_envs"] if rollout is None or rollout.allows(int(n))]
    chosen["num_envs"] = given.get("num_envs", nearest(possible or knobs["num_envs"], 8))
    most_samples = _samples(rollout, schema.check_count("baseline.num_envs", chosen["num_envs"]))
    fitting = [b for b in knobs["batch_size"] if int(b) <= most_samples]
    chosen["batch_size"] = given.get("batch_size", nearest(fitting or knobs["batch_size"], 256))
    for name in ("batch_size", "concurrency"):
        schema.check_count(f"baseline.{name}", chosen[name])
    chosen["concurrency"] = min(int(chosen["concurrency"]), most)
    return Point.from_knobs(chosen)


def default_grid(
    given: Mapping[str, tuple[KnobValue, ...]],
    knobs: Mapping[str, tuple[KnobValue, ...]],
    baseline: Point,
    most: int,
) -> dict[str, tuple[KnobValue, ...]]:
    """The grid of `autotune probe`; by default the ends and the middle of num_envs, the baseline's value elsewhere."""
    envs = knobs["num_envs"]
    grid: dict[str, tuple[KnobValue, ...]] = {name: (value,) for name, value in baseline.knobs().items()}
    grid["num_envs"] = tuple(dict.fromkeys([envs[0], envs[len(envs) // 2], envs[-1]]))
    grid |= given
    return grid | {"concurrency": clipped(grid["concurrency"], most)}


def nearest(values: Sequence[KnobValue], wanted: float) -> KnobValue:
    """The allowed number nearest to a wanted one by ratio; the first value where they are no numbers."""
    numbers = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if not numbers:
        return values[0]
    return min(numbers, key=lambda value: abs(math.log(max(value, 1e-9) / max(wanted, 1e-9))))


def rollout_rule(recipe: Recipe, extra: Sequence[tuple[str, KnobValue]] | None = None) -> Rollout | None:
    """Vector steps of one iteration at any num_envs: of the knob ``rollout``, else of the hyperparameter.

    None where there is neither.

    Args:
        recipe: what is measured.
        extra: a point's further knobs, the baseline's when None.
    """
    return rollout_of({**recipe.hyperparameters, **dict(recipe.baseline.extra if extra is None else extra)})


def batch_size_max(recipe: Recipe, num_envs: int, extra: Sequence[tuple[str, KnobValue]] | None = None) -> float:
    """Samples of one rollout, the largest useful minibatch; infinite where the recipe has no ``rollout``.

    0 for environments that cannot stay within the recipe's samples per update: they have no rollout.

    Args:
        recipe: what is measured.
        num_envs: of the point.
        extra: its further knobs, the baseline's when None.
    """
    rule = rollout_rule(recipe, extra)
    return 0 if rule is not None and not rule.allows(num_envs) else _samples(rule, num_envs)


def _samples(rollout: Rollout | None, num_envs: int) -> float:
    return math.inf if rollout is None else rollout.samples(num_envs)


def knob_points(recipe: Recipe) -> list[Point]:
    """The baseline with each other value of each further knob: what the workload must know, too."""
    knobs = recipe.baseline.knobs()
    further = {name: values for name, values in recipe.knobs.items() if name not in KNOBS}
    changed = [knobs | {name: value} for name, values in further.items() for value in values if value != knobs[name]]
    points = [Point.from_knobs(given) for given in changed]
    return [point for point in points if point.batch_size <= batch_size_max(recipe, point.num_envs, point.extra)]


def check_point(recipe: Recipe, point: Point) -> None:
    """Refuse a point that the recipe cannot run (values off its list are allowed: a user may ask for them).

    Raises:
        UsageError: a value below 1, more processes than jobs, an unknown way of sharing, environments that cannot
            stay within the recipe's samples per update, or a minibatch larger than the rollout.
    """
    for name in KNOBS:
        if not 1 <= getattr(point, name) <= COUNT_MAX:
            raise UsageError(f"{name}={getattr(point, name)} must be at least 1, and at most {COUNT_MAX:,}")
    if point.concurrency > len(recipe.jobs):
        raise UsageError(
            f"concurrency={point.concurrency} is more than the {counted(len(recipe.jobs), 'job')} of recipe "
            f"{recipe.name!r}: process i runs job i; {more_jobs(recipe)}lower concurrency"
        )
    check_sharing(dict(point.extra).get(SHARING))
    rule = rollout_rule(recipe, point.extra)
    if rule is not None and point.batch_size > rule.samples(point.num_envs):
        remedy = "raise samples_per_update" if rule.samples_per_update else "raise num_envs"
        raise UsageError(
            f"batch_size={point.batch_size} is larger than the rollout of {rule.samples(point.num_envs)} samples "
            f"(num_envs {point.num_envs} x rollout {rule.at(point.num_envs)}): lower it or {remedy}"
        )


def dump_recipe(recipe: Recipe) -> str:
    """The recipe as TOML text that `parse_recipe` reads back to the same recipe."""
    lines = [f"name = {_toml(recipe.name)}", f"workload = {_toml(recipe.workload)}"]
    if recipe.points:
        lines += ["points = [", *(f"  {_toml(point.knobs())}," for point in recipe.points), "]"]
    tables: dict[str, Mapping[str, Any]] = {
        "hyperparameters": recipe.hyperparameters,
        "knobs": recipe.knobs,
        "grid": recipe.grid,
        "baseline": recipe.baseline.knobs(),
        "quick": vars(recipe.quick),
        "final": vars(recipe.final),
        "limits": vars(recipe.limits),
    }
    for title, table in tables.items():
        lines += ["", f"[{title}]"]
        lines += [f"{_key(name)} = {_toml(value)}" for name, value in table.items() if value is not None]
    for job in recipe.jobs:
        lines += ["", "[[jobs]]", f"id = {_toml(job.id)}", f"env = {_toml(job.env)}", f"seed = {job.seed}"]
        lines += [f"{job.budget.unit} = {_toml(job.budget.amount)}"]
    return "\n".join(lines) + "\n"


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)


def _toml(value: Any) -> str:
    """One TOML value on one line. A JSON string is a TOML basic string but for DEL."""
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(name)} = {_toml(item)}" for name, item in value.items() if item is not None)
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value) if isinstance(value, float) else json.dumps(value)
