"""The command line's options: how texts become values, and the options that commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from autotune.errors import UsageError
from autotune.records import COUNT_MAX, KnobValue
from autotune.units import parse_duration, parse_price

OWN_STEPS = 10_000_000
"""Steps of each training of the user's own command, where none are given."""

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


class Count(click.IntRange):
    """A whole number within a range; click says of others that they are "not a valid integer range"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        return _within(self, "a whole number", super().convert, value, param, ctx)


class Range(click.FloatRange):
    """A number within a range; NaN, which passes click's comparisons, is in none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        return _within(self, "a number", super().convert, value, param, ctx)


def _within(
    kind: click.IntRange | click.FloatRange,
    expected: str,
    convert: Callable[..., Any],
    value: Any,
    param: click.Parameter | None,
    ctx: click.Context | None,
) -> Any:
    """A number by click's own conversion; what it refuses is refused with what was expected."""
    try:
        found = convert(value, param, ctx)
    except click.BadParameter:
        found = math.nan
    if found != found:  # NaN; a whole number may be too large for `math.isnan`
        kind.fail(f"{value!r} must be {expected} in the range {kind._describe_range()}", param, ctx)
    return found


def needs(main: str, what: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Callback of an option that says nothing without the eager option `main`: alone on the command line it is refused.

    In the environment, where a person keeps what suits him, it waits for the other.
    """

    def check(ctx: click.Context, option: click.Parameter, value: Any) -> Any:
        given = ctx.get_parameter_source(option.name or "") is click.core.ParameterSource.COMMANDLINE
        if given and not ctx.params.get(main):
            raise click.UsageError(f"{option.opts[0]} needs --{main}: it is {what}")
        return value

    return check


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
        raise UsageError(
            f"{shown!r} must be whole numbers of at least 1 and at most {COUNT_MAX:,}, separated by commas, "
            "such as 8,32,128"
        )
    return counts


def parse_settings(text: str) -> dict[str, KnobValue]:
    """``num_envs=8,batch_size=256`` -> the knobs in it.

    Raises:
        UsageError: not ``name=value`` pairs, or a name twice.
    """
    pairs = [part.partition("=") for part in text.replace(" ", ",").split(",") if part]
    if not pairs or any(not name or not equals or not value for name, equals, value in pairs):
        raise UsageError(f"{text!r} must be name=value pairs, such as num_envs=8,batch_size=256,concurrency=1")
    names = [name for name, _, _ in pairs]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UsageError(f"{text!r} names {twice[0]} twice: give it one value")
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


JSON = click.option("--json", is_flag=True, help="One JSON object on stdout, nothing else there.")
EXPORT = click.option(
    "--export",
    type=EXPORT_FILE,
    multiple=True,
    help="Also write the rows: .csv, .jsonl, or .json for pytest-benchmark; may be given again.",
)
RUN = click.argument("run_word", metavar="[RUN]", required=False)
RUNS = click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), help="Folder that holds the runs.")
DEVICE = click.option("--device", default="auto", metavar="auto|cpu|cuda[:N]|mps", help="Device to use.")
NAMING = options(
    click.option("--name", help="Name of the run; default RECIPE-n."),
    click.option("--new", is_flag=True, help="Start a new run, whatever can be resumed."),
)
MIGRATION = options(
    click.option("--resume-from", metavar="RUN", help="Go on with this run's training, at the manifest's point."),
    click.option("--canary", type=Count(1), metavar="N", is_eager=True, help="With --resume-from: N jobs go first."),
    click.option(
        "--canary-time",
        type=DURATION,
        default="10m",
        callback=needs("canary", "how long the first jobs train before the verdict"),
        help="Training of each of them before the verdict.",
    ),
    click.option(
        "--canary-sps",
        type=Range(0, 10),
        default=0.95,
        callback=needs("canary", "what the first jobs must reach"),
        help="Of the old run's SPS, what they must reach.",
    ),
)
WORK = options(
    click.argument("recipe", required=False),
    click.option("--games", metavar="A,B", help="Only these games (environments) as jobs."),
    click.option("--seeds", type=Count(1), metavar="N", help="Train every game N times, with seeds 1 to N."),
    click.option(
        "--counter", metavar="REGEX", help="Own script: group 1 is its running total of steps, (?P<worker>...) whose."
    ),
    click.option("--rate", metavar="REGEX", help="Own script: group 1 is its steps per second since the line before."),
    click.option("--progress", metavar="cleanrl|sb3", help="Own script: a preset for --counter or --rate."),
    click.option("--jobs", type=Count(1), metavar="N", help="Own script: trainings, {seed} 1, 2, ...; default 1."),
    click.option(
        "--steps",
        type=Count(1, 10**15),
        metavar="N",
        help=f"Steps of each training; default: the recipe's budgets, of an own script {OWN_STEPS:,}.",
    ),
    click.option(
        "--baseline",
        type=SETTINGS,
        help="What you run today, such as num_envs=1,batch_size=32; default: the recipe's [baseline], of an own script "
        "the values nearest to num_envs=8,batch_size=256,concurrency=1.",
    ),
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
    click.option("--knob", multiple=True, metavar="NAME=V,V", help="Values of any hyperparameter."),
    click.option("--final", is_flag=True, help="Long windows, for figures that are published."),
)

GUARD = options(
    click.option(
        "--guard",
        is_flag=True,
        is_eager=True,
        help="Then train pilots of the tuned point and the baseline, and compare.",
    ),
    click.option(
        "--guard-steps",
        type=Count(1, 10**12),
        metavar="N",
        callback=needs("guard", "the length of the pilots that --guard trains"),
        help="Env steps of a pilot; default: what suits.",
    ),
    click.option(
        "--guard-seeds",
        type=Count(2, 100),
        default=3,
        callback=needs("guard", "the number of pilots that --guard trains of each point"),
        help="Pilots of each point, set once.",
    ),
    click.option(
        "--guard-margin",
        type=Range(0, 1, min_open=True),
        default=0.1,
        callback=needs("guard", "what a point that --guard compares may learn less"),
        help="What may be lost, of what the baseline learns.",
    ),
)
