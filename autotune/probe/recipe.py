"""Recipes: what is measured and which knobs may move.

A recipe is data. Every function here takes one and returns another, or text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from autotune import resources
from autotune.errors import UsageError
from autotune.machine import HostInfo
from autotune.probe import schema
from autotune.probe.recipe_file import (
    COMMAND_LINE,
    batch_size_max,
    check_job_count,
    check_point,
    clipped,
    default_baseline,
    default_grid,
    dump_recipe,
    nearest,
    parse_recipe,
    seeded,
)
from autotune.records import Budget, Job, KnobValue, Point, Recipe

__all__ = [
    "check_point",
    "command_recipe",
    "dump_recipe",
    "load_recipe",
    "parse_recipe",
    "recipe_path",
    "restrict_games",
    "rule_of_thumb",
    "with_jobs",
    "with_steps",
]

DEFAULT_FILE = "autotune.toml"
DEFAULT_NAME = "atari"
_GAME = re.compile(r"[A-Za-z][A-Za-z0-9_./-]{0,99}")


def recipe_path(word: str | None) -> Path:
    """The file that the user means; None is ``autotune.toml`` here if there is one, else the bundled ``atari``.

    Raises:
        UsageError: there is no such file.
    """
    if word is None:
        own = Path(DEFAULT_FILE)
        there = own.exists() or own.is_symlink()  # one that is no file is an error, not a wish for the bundled one
        word = DEFAULT_FILE if there else DEFAULT_NAME
    return resources.find("probes", word)


def load_recipe(word: str | None = None, *, seeds: int | None = None) -> Recipe:
    """Read a recipe by bundled name or path.

    A program of the user's own runs in the recipe's folder, whatever the caller's is; a relative `cwd` begins there.

    Args:
        word: a bare bundled name, a path, or None for the default (`recipe_path`).
        seeds: trainings of each environment, None for the jobs that the recipe names.

    Raises:
        UsageError: no such recipe.
        ManifestError: the file says something that a recipe cannot say.
    """
    path = recipe_path(word)
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors put a byte order mark first
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"recipe {path} cannot be read: {error}") from error
    recipe = parse_recipe(text, source=str(path), name=_safe_name(path.stem), seeds=seeds)
    cwd = recipe.hyperparameters.get("cwd", "")
    if recipe.workload != "command" or not isinstance(cwd, str):
        return recipe
    settled = {"cwd": str((path.parent / cwd).resolve())}
    return replace(recipe, hyperparameters={**recipe.hyperparameters, **settled})


def _safe_name(stem: str) -> str:
    """A file's name as the name of a recipe, and so of run folders."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("._-")[:80] or "recipe"


def restrict_games(recipe: Recipe, games: Sequence[str], seeds: int | None = None) -> Recipe:
    """Keep the jobs of these games; a game without a job becomes one with the first job's budget.

    Args:
        recipe: where from.
        games: ``Breakout``, ``Breakout-v5`` or ``ALE/Breakout-v5``, in any case.
        seeds: with which the recipe was loaded; a game without a job gets as many.

    Raises:
        UsageError: not a possible name of a game. (Whether it exists is checked in a child process.)
    """
    jobs: list[Job] = []
    for game in games:
        if not _GAME.fullmatch(game):
            raise UsageError(f"game {game!r} is not a name such as Breakout or Breakout-v5")
        known = [job for job in recipe.jobs if _plain(game) in (_plain(job.env), _plain(_bare(job.env)))]
        new = _new_job(recipe.jobs[0], game, [*recipe.jobs, *jobs])
        known += [job for job in jobs if _plain(job.env) == _plain(new.env)]
        jobs += known or seeded([new], seeds)
    return with_jobs(recipe, list(dict.fromkeys(jobs)))


def _bare(env: str) -> str:
    return re.sub(r"-v\d+$", "", env)


def _plain(env: str) -> str:
    """What two spellings of a game share."""
    return env.lower().removeprefix("ale/")


def _new_job(like: Job, game: str, others: Sequence[Job]) -> Job:
    version = re.search(r"-v\d+$", like.env)
    env = game if re.search(r"-v\d+$", game) or version is None else game + version[0]
    short = _id(_bare(game))
    taken = {job.id for job in others} | {_id(_bare(job.env)) for job in others}
    return replace(like, id=_id(env) if short in taken else short, env=env)  # two versions of a game: ids name folders


def _id(name: str) -> str:
    return name.lower().replace("/", "-")


def with_jobs(recipe: Recipe, jobs: Sequence[Job]) -> Recipe:
    """The recipe with other jobs; knobs, grid and baseline are clipped to their number.

    Raises:
        UsageError: no job is left.
    """
    if not jobs:
        raise UsageError(f"recipe {recipe.name!r} needs at least one job")
    most = min(len(jobs), recipe.limits.concurrency_max or len(jobs))
    return replace(
        recipe,
        jobs=tuple(jobs),
        knobs={**recipe.knobs, "concurrency": clipped(recipe.knobs["concurrency"], most)},
        grid={**recipe.grid, "concurrency": clipped(recipe.grid["concurrency"], most)},
        baseline=replace(recipe.baseline, concurrency=min(recipe.baseline.concurrency, most)),
        points=tuple(point for point in recipe.points if point.concurrency <= most),
    )


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with a budget of so many steps for every job, whatever its own is."""
    budget = Budget(unit="steps", amount=float(steps))
    return replace(recipe, jobs=tuple(replace(job, budget=budget) for job in recipe.jobs))


def rule_of_thumb(recipe: Recipe, host: HostInfo) -> Point:
    """What an expert sets without measuring: 8 environments per core, one process, a minibatch near 256.

    ``num_envs`` is the allowed value nearest to 8 x allowed cores, ``env_threads`` (where it is a knob)
    nearest to the allowed cores; other knobs keep the baseline's value.
    """
    cores = max(1, int(host.cpu_cores_allowed))
    possible = [n for n in recipe.knobs["num_envs"] if batch_size_max(recipe, int(n)) >= 1]
    num_envs = int(nearest(possible or recipe.knobs["num_envs"], 8 * cores))
    fitting = [b for b in recipe.knobs["batch_size"] if int(b) <= batch_size_max(recipe, num_envs)]
    extra = dict(recipe.baseline.extra)
    if "env_threads" in recipe.knobs:
        extra["env_threads"] = nearest(recipe.knobs["env_threads"], cores)
    return Point(
        num_envs=num_envs,
        batch_size=int(nearest(fitting or recipe.knobs["batch_size"][:1], 256)),
        concurrency=int(recipe.knobs["concurrency"][0]),
        extra=tuple(sorted(extra.items())),
    )


def missing_placeholders(recipe: Recipe) -> Iterator[str]:
    """What a user's own command leaves out, in sentences: its progress, knobs that never reach it, jobs all alike."""
    if recipe.workload != "command":
        return
    from autotune.workloads.command_argv import placeholders

    if not {"counter", "rate", "progress"} & recipe.hyperparameters.keys():
        yield "progress: autotune.tick(steps) in the program is listened for (or give --counter, --rate or --progress)"
    used = placeholders(recipe.hyperparameters["argv"])
    if not used - {"seed", "env", "job"}:
        tuned = "only concurrency is tuned" if len(recipe.knobs["concurrency"]) > 1 else "there is nothing to tune"
        yield f"warning: the command has neither {{num_envs}} nor {{batch_size}}: {tuned}"
    if len(recipe.jobs) > 1 and not used & {"seed", "env", "job"}:
        yield f"warning: all {len(recipe.jobs)} jobs are the same command: write {{seed}} or {{job}} where they differ"


def command_recipe(
    argv: Sequence[str],
    *,
    counter: str | None = None,
    rate: str | None = None,
    progress: str | None = None,
    jobs: int = 1,
    steps: float = 10_000_000,
) -> Recipe:
    """A recipe for the user's own script: placeholders such as ``{num_envs}`` are the knobs, the rest is fixed.

    Args:
        argv: the command as an argument list.
        counter: regular expression whose first group is the steps done so far.
        rate: regular expression whose first group is the steps per second.
        progress: a preset for both (``cleanrl``, ``sb3``).
        jobs: copies with different seeds that a training runs.
        steps: budget of each.

    Raises:
        UsageError: an impossible command, pattern or placeholder, or no job.
    """
    from autotune.workloads.command import CommandWorkload

    check_job_count(jobs)
    given = {"counter": counter, "rate": rate, "progress": progress}
    told = {name: value for name, value in given.items() if value is not None}
    hyperparameters = {"argv": list(argv), "cwd": str(Path.cwd()), **told}
    used = CommandWorkload(hyperparameters).placeholders
    knobs: dict[str, tuple[KnobValue, ...]] = {
        "num_envs": schema.Range(min=1, max=1024).values("num_envs") if "num_envs" in used else (1,),
        "batch_size": schema.Range(min=32, max=8192).values("batch_size") if "batch_size" in used else (1,),
        "concurrency": clipped(schema.CONCURRENCY_LEVELS, jobs),
    }
    budget = Budget(unit="steps", amount=float(steps))
    baseline = default_baseline({}, knobs, jobs)
    return Recipe(
        name="command",
        workload="command",
        hyperparameters=hyperparameters,
        jobs=tuple(Job(id=f"run-{n + 1}", env="command", seed=n + 1, budget=budget) for n in range(jobs)),
        knobs=knobs,
        grid=default_grid({}, knobs, baseline, jobs),
        baseline=baseline,
        source=COMMAND_LINE,
    )
