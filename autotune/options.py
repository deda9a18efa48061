"""The command line's options: how texts become values, and the options that commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from autotune.errors import UsageError
from autotune.records import KnobValue
from autotune.units import parse_duration, parse_price

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
    if any(count < 1 for count in counts):
        raise UsageError(f"{text!r} must be whole numbers of at least 1, separated by commas, such as 8,32,128")
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


DURATION, PRICE = Parsed("duration", parse_duration), Parsed("usd/h", parse_price)
COUNTS, SETTINGS = Parsed("n,n,...", parse_counts), Parsed("knob=value,...", parse_settings)


def options(*decorators: Option) -> Option:
    """Several options as one decorator, in the order given."""

    def apply(function: Callable[..., Any]) -> Callable[..., Any]:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else there.")
RUNS = click.option("--runs", type=click.Path(path_type=Path), default=Path("runs"), help="Folder that holds the runs.")
DEVICE = click.option("--device", default="auto", metavar="auto|cpu|cuda[:N]|mps", help="Device to use.")
NAMING = options(
    click.option("--name", help="Name of the run; default RECIPE-n."),
    click.option("--new", is_flag=True, help="Start a new run, whatever can be resumed."),
)
WORK = options(
    click.argument("recipe", required=False),
    click.option("--games", metavar="A,B", help="Only these games (environments) as jobs."),
    click.option("--counter", metavar="REGEX", help="Own script: group 1 is its running total of steps."),
    click.option("--rate", metavar="REGEX", help="Own script: group 1 is its steps per second."),
    click.option("--progress", metavar="cleanrl|sb3", help="Own script: a preset for --counter or --rate."),
    click.option("--jobs", type=click.IntRange(1), default=1, help="Own script: trainings to do, {seed} 1, 2, ..."),
    click.option("--steps", type=click.IntRange(1), default=10_000_000, help="Own script: steps of each training."),
    click.option("--baseline", type=SETTINGS, help="What you run today, such as num_envs=1,batch_size=32."),
    DEVICE,
    RUNS,
    NAMING,
    JSON,
)
