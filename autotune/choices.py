"""What the command line's options choose: recipes, points, executors and runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autotune.codec import to_json
from autotune.errors import UsageError
from autotune.options import OWN_STEPS, parse_knob_value
from autotune.records import KNOBS, KnobValue, Point, Recipe

if TYPE_CHECKING:
    from autotune.executors.surface import Surface
    from autotune.machine import DeviceInfo
    from autotune.runs import Run


def grid_values(options: dict[str, Any]) -> dict[str, tuple[KnobValue, ...]]:
    """The knob values that the grid's options name.

    Raises:
        UsageError: a --knob is no ``NAME=V,V``, or its values are given elsewhere, too.
    """
    wanted = {name: options[name] for name in KNOBS if options[name]}
    for text in options["knob"]:
        name, _, values = text.partition("=")
        if not name or not all(values.split(",")):
            raise UsageError(f"--knob {text!r} must be a name and its values, such as --knob num_envs=8,32")
        if name in wanted:
            raise UsageError(f"--knob {text!r} names {name} a second time: give all its values at once, as 8,32")
        wanted[name] = tuple(parse_knob_value(value) for value in values.split(","))
    return wanted


def choose_recipe(argv: list[str], options: dict[str, Any]) -> Recipe:
    """The recipe that the command line means: the user's own command `argv`, or a file or name.

    Raises:
        UsageError: both are given, or one that cannot be used.
    """
    from autotune.probe import recipe as recipes

    if argv:
        if options["recipe"]:
            raise UsageError(f"give a recipe ({options['recipe']!r}) or a command after --, not both")
        chosen = recipes.command_recipe(
            argv,
            counter=options["counter"],
            rate=options["rate"],
            progress=options["progress"],
            jobs=max(options["jobs"] or 1, *(options.get("concurrency") or (1,))),
            steps=options["steps"] or OWN_STEPS,
        )
        if options["seeds"] is not None:
            raise UsageError(f"--seeds {options['seeds']} is for recipes: your own command takes --jobs N and {{seed}}")
        if options["games"] is not None and not any("{env}" in argument for argument in argv):
            raise UsageError("--games needs {env} in the command: it is where the name of the game goes")
    else:
        for name in ("counter", "rate", "progress", "jobs"):
            if options[name] is not None:
                instead = "; --seeds N trains every game of a recipe N times" if name == "jobs" else ""
                raise UsageError(
                    f"--{name} is for your own command: write it after --, such as -- python train.py{instead}"
                )
        chosen = recipes.load_recipe(options["recipe"], seeds=options["seeds"])
    if options["games"] is not None:
        games = [name.strip() for name in options["games"].split(",")]
        chosen = recipes.restrict_games(chosen, games, options["seeds"])
    if options["steps"] is not None:
        chosen = recipes.with_steps(chosen, options["steps"])
    if options["baseline"]:
        chosen = replace(chosen, baseline=point_of(chosen, options["baseline"]))
    return chosen


def begin_where_trained(recipe: Recipe, options: dict[str, Any], say: Callable[[str], None]) -> Recipe:
    """The recipe, its probes beginning with what the run of `--from-checkpoint` has trained, if one is given.

    Raises:
        UsageError: the run has trained nothing of it.
        FileError: its checkpoints are damaged or gone.
    """
    from autotune.runs import find_run
    from autotune.train.trained import begin_trained

    word = options["from_checkpoint"]
    return recipe if word is None else begin_trained(recipe, find_run(options["runs"], word), say)


def point_of(recipe: Recipe, settings: dict[str, KnobValue]) -> Point:
    """The recipe's baseline with some knobs changed.

    Raises:
        UsageError: an unknown knob or an impossible value.
    """
    from autotune.probe.recipe import check_point
    from autotune.registry import unknown_name

    for name, value in settings.items():
        if name in KNOBS and (isinstance(value, bool) or not isinstance(value, int)):
            raise UsageError(f"{name}={value} must be a whole number of at least 1")
        if name not in recipe.knobs and name not in recipe.baseline.knobs():
            raise UsageError(f"{unknown_name('knob', name, list(recipe.knobs))} Others go into a recipe's [knobs].")
    point = Point.from_knobs(recipe.baseline.knobs() | settings)
    check_point(recipe, point)
    return point


def choose_executor(
    argv: list[str], options: dict[str, Any], should_stop: Callable[[], bool], say: Callable[[str], None]
) -> tuple[Any, Recipe]:
    """The executor that the command line means, and the recipe: the surface's own where one is replayed."""
    from autotune import registry

    name, colon, file = options["executor"].partition(":")
    if name == "replay":
        from autotune.executors.replay import ReplayExecutor
        from autotune.executors.surface import recipe_of

        given = {"a recipe": options["recipe"], "a command": argv}
        for option in ("games", "seeds", "jobs", "steps", "from_checkpoint"):
            given[f"--{option.replace('_', '-')}"] = options[option] is not None
        if unfit := [name for name, there in given.items() if there]:
            raise UsageError(
                f"{' and '.join(unfit)} cannot go with --executor replay: a surface is its own recipe; leave it out"
            )
        executor = ReplayExecutor(existing_file(file), options["seed"])
        recipe = recipe_of(executor.surface)
        if options["baseline"]:
            baseline = _recorded("--baseline", point_of(recipe, options["baseline"]), recipe, say)
            recipe = replace(recipe, baseline=baseline)
        elif stated := executor.surface.header.baseline:
            _say_nearest("the surface's baseline", stated, recipe.baseline, say)
        return executor, recipe
    from autotune.device.inspect import usable_device

    if colon:
        raise UsageError(f"--executor {options['executor']!r}: nothing goes after a name but the file of replay:FILE")
    made = registry.make("executor", name, usable_device(options["device"]), should_stop)
    if name not in registry.BUNDLED["executor"]:
        from autotune.executors.answers import ANSWERS

        made = registry.Watched("executor", name, made, ANSWERS)
    return made, choose_recipe(argv, options)


def surface_of(executor: Any) -> Surface | None:
    """The recorded surface that an executor replays; None elsewhere, of an installed one that simulates as well."""
    return getattr(executor, "surface", None)


def tried_points(recipe: Recipe, options: dict[str, Any], say: Callable[[str], None]) -> list[Point]:
    """The points that `--try` names; of a surface, which has certain points only, the nearest ones.

    Raises:
        UsageError: an unknown knob or an impossible value.
    """
    return [_recorded("--try", point_of(recipe, settings), recipe, say) for settings in options["try"]]


def _recorded(what: str, asked: Point, recipe: Recipe, say: Callable[[str], None]) -> Point:
    from autotune.search.space import possible, space_of

    near = possible(recipe, space_of(recipe), asked)
    _say_nearest(what, asked, near, say)
    return near


def _say_nearest(what: str, asked: Point, near: Point, say: Callable[[str], None]) -> None:
    if asked != near:
        say(f"{what} {asked.label()} was not recorded; the nearest point is {near.label()}")


def existing_file(text: str) -> Path:
    """A file that is there.

    Raises:
        UsageError: it is not.
    """
    path = Path(text)
    if not path.is_file():
        what = f"{text!r} is no file" if path.exists() else f"there is no file {text!r}"
        raise UsageError(f"{what}: name a surface, such as --executor replay:surface.csv")
    return path


def open_measuring_run(
    command: str, recipe: Recipe, device: DeviceInfo, options: dict[str, Any], lacking: str | None = None, **facts: Any
) -> Run:
    """The run folder of a probe or search: resumed when it is unfinished or lacks a fact, else new."""
    from autotune.probe.recipe import dump_recipe
    from autotune.runs import open_run
    from autotune.store import durable_write, write_json

    text = dump_recipe(recipe)
    run = open_run(
        options["runs"],
        command=command,
        stem=recipe.name if command == "search" else f"{recipe.name}-{command}",
        recipe=text,
        device=device.fingerprint,
        name=options["name"],
        new=options["new"] or command == "probe",
        lacking=lacking,
        checkpoints=dict(recipe.checkpoints) or None,
        **facts,
    )
    durable_write(run.recipe_file, text)
    write_json(run.device_file, to_json(device))
    return run
