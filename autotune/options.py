"""The command line's options: how texts become values, recipes, executors and runs; the options that commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autotune.codec import to_json
from autotune.errors import UsageError
from autotune.records import COUNT_MAX, KNOBS, KnobValue, Point, Recipe
from autotune.units import parse_duration, parse_price

if TYPE_CHECKING:
    from autotune.machine import DeviceInfo
    from autotune.runs import Run

Option = Callable[[Callable[..., Any]], Callable[..., Any]]


class Parsed(click.ParamType):  # type: ignore[type-arg]
    """An option parsed by a function that raises UsageError."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The parsed value."""
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Range(click.FloatRange):
    """A number within a range; NaN, which passes click's comparisons, is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{found} is not in the range {self._describe_range()}.", param, ctx)
        return found


def parse_knob_value(text: str) -> KnobValue:
    """``8`` -> 8, ``0.5`` -> 0.5, ``true`` -> True, else the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def parse_counts(text: str) -> tuple[int, ...]:
    """``8,32,128`` -> (8, 32, 128).

    Raises:
        UsageError: not whole numbers of at least 1.
    """
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = (0,)
    if any(not 1 <= count <= COUNT_MAX for count in counts):
        shown = text if len(text) <= 100 else f"{text[:97]}..."
        raise UsageError(f"{shown!r} must be whole numbers of at least 1, separated by commas, such as 8,32,128")
    return counts


def parse_settings(text: str) -> dict[str, KnobValue]:
    """``num_envs=8,batch_size=256`` -> the knobs in it.

    Raises:
        UsageError: not ``name=value`` pairs.
    """
    pairs = [part.partition("=") for part in text.replace(" ", ",").split(",") if part]
    if not pairs or any(not name or not equals or not value for name, equals, value in pairs):
        raise UsageError(f"{text!r} must be name=value pairs, such as num_envs=8,batch_size=256,concurrency=1")
    return {name: parse_knob_value(value) for name, _, value in pairs}


def _parse_output_file(text: str) -> Path:
    from autotune.export.files import check_writable

    return check_writable(text)


def _parse_export(text: str) -> Path:
    from autotune.export.files import check_export

    return check_export(text)


DURATION, PRICE = Parsed("duration", parse_duration), Parsed("usd/h", parse_price)
OUTPUT_FILE, EXPORT_FILE = Parsed("file", _parse_output_file), Parsed("file", _parse_export)
COUNTS, SETTINGS = Parsed("n,n,...", parse_counts), Parsed("knob=value,...", parse_settings)


def options(*decorators: Option) -> Option:
    """Several options as one decorator, in the order given."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else there.")
EXPORT = click.option(
    "--export",
    "exports",
    type=EXPORT_FILE,
    multiple=True,
    help="Also write the rows: .csv, .jsonl, or .json for pytest-benchmark; may be given again.",
)
RUNS = click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), help="Folder that holds the runs.")
DEVICE = click.option("--device", default="auto", metavar="auto|cpu|cuda[:N]|mps", help="Device to use.")
NAMING = options(
    click.option("--name", help="Name of the run; default RECIPE-n."),
    click.option("--new", is_flag=True, help="Start a new run, whatever can be resumed."),
)
MIGRATION = options(
    click.option("--resume-from", metavar="RUN", help="Go on with this run's training, at the manifest's point."),
    click.option("--canary", type=click.IntRange(1), metavar="N", help="With --resume-from: N jobs go first."),
    click.option("--canary-time", type=DURATION, default="10m", help="Training of each of them before the verdict."),
    click.option("--canary-sps", type=Range(0, 10), default=0.95, help="Of the old run's SPS, what they must reach."),
)
WORK = options(
    click.argument("recipe", required=False),
    click.option("--games", metavar="A,B", help="Only these games (environments) as jobs."),
    click.option("--seeds", type=click.IntRange(1), metavar="N", help="Train every game N times, with seeds 1 to N."),
    click.option(
        "--counter", metavar="REGEX", help="Own script: group 1 is its running total of steps, (?P<worker>...) whose."
    ),
    click.option("--rate", metavar="REGEX", help="Own script: group 1 is its steps per second since the line before."),
    click.option("--progress", metavar="cleanrl|sb3", help="Own script: a preset for --counter or --rate."),
    click.option("--jobs", type=click.IntRange(1), default=1, help="Own script: trainings to do, {seed} 1, 2, ..."),
    click.option(
        "--steps", type=click.IntRange(1, 10**15), default=10_000_000, help="Own script: steps of each training."
    ),
    click.option("--baseline", type=SETTINGS, help="What you run today, such as num_envs=1,batch_size=32."),
    click.option("--from-checkpoint", metavar="RUN", help="Probes begin with the policies that this run has trained."),
    DEVICE,
    RUNS,
    NAMING,
    JSON,
)
GRID = options(
    click.option("--num-envs", type=COUNTS, help="Values to measure."),
    click.option("--batch-size", type=COUNTS, help="Values to measure."),
    click.option("--concurrency", type=COUNTS, help="Values to measure."),
    click.option("--knob", "knobs", multiple=True, metavar="NAME=V,V", help="Values of any hyperparameter."),
    click.option("--final", is_flag=True, help="Long windows, for figures that are published."),
)

GUARD = options(
    click.option("--guard", is_flag=True, help="Then train pilots of the tuned point and the baseline, and compare."),
    click.option(
        "--guard-steps", type=click.IntRange(1, 10**12), metavar="N", help="Env steps of a pilot; default: what suits."
    ),
    click.option("--guard-seeds", type=click.IntRange(2, 100), default=3, help="Pilots of each point, set once."),
    click.option(
        "--guard-margin",
        type=Range(0, 1, min_open=True),
        default=0.1,
        help="What may be lost, of what the baseline learns.",
    ),
)


def grid_values(options: dict[str, Any]) -> dict[str, tuple[KnobValue, ...]]:
    """The knob values that the grid's options name."""
    wanted = {name: options[name] for name in KNOBS if options[name]}
    for text in options["knobs"]:
        name, _, values = text.partition("=")
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
            jobs=max(options["jobs"], *(options.get("concurrency") or (1,))),
            steps=options["steps"],
        )
        if options["seeds"] is not None:
            raise UsageError(f"--seeds {options['seeds']} is for recipes: your own command takes --jobs N and {{seed}}")
        if options["games"] is not None and not any("{env}" in argument for argument in argv):
            raise UsageError("--games needs {env} in the command: it is where the name of the game goes")
    else:
        for name in ("counter", "rate", "progress"):
            if options[name] is not None:
                raise UsageError(f"--{name} is for your own command: write it after --, such as -- python train.py")
        chosen = recipes.load_recipe(options["recipe"], seeds=options["seeds"])
    if options["games"] is not None:
        games = [name.strip() for name in options["games"].split(",")]
        chosen = recipes.restrict_games(chosen, games, options["seeds"])
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

    name, _, file = options["executor"].partition(":")
    if name == "replay":
        from autotune.executors.replay import ReplayExecutor
        from autotune.executors.surface import recipe_of

        given = {"a recipe": options["recipe"], "a command": argv}
        for option in ("games", "seeds", "from_checkpoint"):
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
    from autotune.device.inspect import inspect_device

    executor = registry.load("executor", name)(inspect_device(options["device"]), should_stop)
    return executor, choose_recipe(argv, options)


def recorded_price(executor: Any) -> float | None:
    """The price that a recorded surface carries, None elsewhere."""
    return executor.surface.price_usd_per_hour if executor.simulated else None


def tried_points(recipe: Recipe, options: dict[str, Any], say: Callable[[str], None]) -> list[Point]:
    """The points that `--try` names; of a surface, which has certain points only, the nearest ones.

    Raises:
        UsageError: an unknown knob or an impossible value.
    """
    return [_recorded("--try", point_of(recipe, settings), recipe, say) for settings in options["tries"]]


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


def open_run(
    command: str, recipe: Recipe, device: DeviceInfo, options: dict[str, Any], lacking: str | None = None, **facts: Any
) -> Run:
    """The run folder of a probe or search: resumed when it is unfinished or lacks a fact, else new."""
    from autotune.probe.recipe import dump_recipe
    from autotune.runs import open_run as open_matching
    from autotune.store import durable_write, write_json

    text = dump_recipe(recipe)
    run = open_matching(
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
