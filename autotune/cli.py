"""The command line: parse, call one function per step, print. Data to stdout, progress to stderr."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autotune import __version__
from autotune.codec import to_json
from autotune.errors import EXIT_ERROR, EXIT_OK, EXIT_UNFIT, EXIT_USAGE, AutotuneError, FileError, remedy_for
from autotune.options import (
    DEVICE,
    DURATION,
    EXPORT,
    GRID,
    GUARD,
    JSON,
    MIGRATION,
    NAMING,
    OUTPUT_FILE,
    PRICE,
    RUN,
    RUNS,
    SETTINGS,
    WORK,
    Count,
    options,
)
from autotune.streams import lose_what_cannot_be_shown

if TYPE_CHECKING:
    from autotune.runs import Run

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110, "show_default": True}


def say(text: str) -> None:
    """Progress and warnings, to stderr."""
    click.echo(text, err=True)


def show_json(data: Any) -> None:
    """One JSON object, to stdout."""
    from autotune.store import canonical_json

    click.echo(canonical_json(data))


@click.group(context_settings=HELP)
@click.version_option(__version__)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Find the training settings that make the most of this machine, train with them, know the cost beforehand.

    Tune your own script: autotune search --budget 30m -- python train.py --num-envs {num_envs}
    """
    ctx.ensure_object(dict)["debug"] = debug
    try:
        Path.cwd()
    except FileNotFoundError:
        raise FileError("the current folder was removed: go to one that exists (cd), or to the new one there") from None


def chosen_run(runs: Path, word: str | None) -> Run:
    """The run that a command is given, the one used last by default; every command says which it uses."""
    from autotune.runs import find_run

    run = find_run(runs, word)
    say(f"run {run.path}")
    return run


@cli.command()
@options(DEVICE, JSON)
def doctor(device: str, json: bool) -> int:
    """Check device, driver, frameworks, CPU quota, memory and disk; measure a little; say what to fix."""
    from autotune.device.doctor import diagnose, render_diagnosis
    from autotune.device.inspect import inspect_device
    from autotune.executors.checks import run_checks

    info = inspect_device(device)
    say("measuring matmul, autograd and EnvPool for some seconds")
    diagnosis = diagnose(info, *run_checks(info))
    if json:
        show_json(to_json(diagnosis))
    else:
        click.echo(render_diagnosis(diagnosis))
    return EXIT_OK if diagnosis.fit else EXIT_UNFIT


@cli.command()
@options(WORK, GRID, EXPORT)
@click.pass_context
def probe(ctx: click.Context, /, **options: Any) -> int:
    """Measure throughput, VRAM, RAM and power over a grid of knobs.

    RECIPE: atari, cartpole, cartpole-jax, busywork, a TOML file, or your own command after ``--``.
    """
    from autotune.measuring import measure_grid

    measured = measure_grid("probe", ctx.obj["command"], options, say)
    from autotune import views
    from autotune.export.rows import probe_rows

    if options["json"]:
        show_json({"rows": probe_rows(measured.rows, price=None)})
    else:
        click.echo(views.probe_text(measured.rows, measured.recipe.jobs))
    write_exports(options["export"], measured.run, price=None)
    return measured.exit_code


@cli.command()
@options(
    WORK,
    GRID,
    click.option("--out", type=OUTPUT_FILE, required=True, help="The surface file to write."),
    click.option("--price", type=PRICE, help="US dollars per hour of this machine, kept in the file."),
)
@click.pass_context
def record(ctx: click.Context, /, **options: Any) -> int:
    """Record a surface: every point of the grid, as a CSV file that `search --executor replay:FILE` searches.

    Knobs without an option take every value of the recipe. The same command goes on where it was stopped.
    """
    from autotune.measuring import measure_grid

    measured = measure_grid("record", ctx.obj["command"], options, say)
    from autotune.executors.surface import surface_text
    from autotune.export.rows import probe_rows
    from autotune.store import durable_write
    from autotune.units import counted

    durable_write(options["out"], surface_text(measured.rows, measured.recipe, measured.device, options["price"]))
    say(f"wrote {options['out']}: {counted(len(measured.rows), 'point')}")
    if options["json"]:
        show_json({"rows": probe_rows(measured.rows, price=options["price"])})
    return measured.exit_code


@cli.command()
@options(
    WORK,
    click.option("--budget", type=DURATION, default="30m", help="Wall time for the whole search."),
    click.option("--price", type=PRICE, help="US dollars per hour of this machine."),
    click.option("--try", type=SETTINGS, multiple=True, help="Measure this point too, first."),
    click.option("--sampler", default="autotune", help="autotune, tpe, gp, random, grid or hillclimb."),
    click.option("--executor", default="isolated", help="isolated, or replay:FILE for a recorded surface."),
    click.option("--seed", type=Count(0, 2**32 - 1), default=0, help="Seed of the search."),
    click.option("--no-early-stop", is_flag=True, help="Go on when a probe costs more than it can save the training."),
    GUARD,
    EXPORT,
)
@click.pass_context
def search(ctx: click.Context, /, **options: Any) -> int:
    """Find the best stable goodput per dollar within a time budget, and emit the manifest.

    The same command resumes an interrupted search; Ctrl-C keeps everything and emits the best so far. --guard
    checks afterwards, outside the budget, that the tuned point learns as well per env step as the baseline.
    """
    from autotune.measuring import FoundNothing, run_search

    ended = run_search(ctx.obj["command"], options, say)
    from autotune import views

    if isinstance(ended, FoundNothing):
        if options["json"]:
            show_json(views.nothing_json(ended.run, ended.price, str(ended.error)))
        write_exports(options["export"], ended.run, price=ended.price)
        raise ended.error
    if options["json"]:
        show_json(views.search_json(ended.found, ended.run, ended.learning))
    else:
        click.echo(views.search_text(ended.found, ended.run, ended.learning))
    write_exports(options["export"], ended.run, price=ended.found.price_usd_per_hour)
    return ended.exit_code


def write_exports(files: Sequence[Path], run: Run, price: float | None) -> None:
    """Write a run's rows to files, and say so."""
    from autotune.export.files import export_run

    for line in export_run(files, run, price):
        say(line)


@cli.command()
@options(
    RUN,
    click.option("--price", type=PRICE, help="US dollars per hour of this machine."),
    EXPORT,
    RUNS,
    JSON,
)
def report(run_word: str | None, price: float | None, export: tuple[Path, ...], runs: Path, json: bool) -> int:
    """Write the time and cost report of a run (the one used last, unless named)."""
    from autotune.report.figures import report_json
    from autotune.report.render import render_report
    from autotune.units import counted

    run = chosen_run(runs, run_word)
    files = render_report(run, price=price)
    if json:
        show_json(report_json(files.facts))
    else:
        click.echo(files.markdown.read_text(encoding="utf-8"))
    trained = files.facts.training
    if files.facts.price is None and (files.facts.tuned or (trained and trained.machine_s)):
        say("no price is known for this device: give one, such as --price 2.0, to see dollars")
    say(f"wrote {files.markdown}, {files.html} and {counted(len(files.plots), 'picture')}")
    write_exports(export, run, price=files.facts.price.usd_per_hour if files.facts.price else None)
    return EXIT_OK


@cli.command()
@options(
    click.argument("manifest"),
    DEVICE,
    RUNS,
    NAMING,
    MIGRATION,
    JSON,
)
def train(**options: Any) -> int:
    """Execute a manifest (a file, or mini, pilot, full); the same command resumes.

    --resume-from goes on with another run's training at this manifest's point; `rollback` returns.
    """
    from autotune import views
    from autotune.training import run_training

    ended = run_training(options, say)
    if options["json"]:
        show_json(to_json(ended.result))
    else:
        click.echo(views.train_text(ended.result, ended.run))
    return ended.exit_code


@cli.command()
@options(
    RUN,
    RUNS,
    JSON,
)
def rollback(run_word: str | None, runs: Path, json: bool) -> int:
    """Undo what made a run with `train --resume-from`: the run before it is as it was, nothing is lost."""
    from autotune.train.migrate import rollback as roll_back
    from autotune.units import typed

    run = chosen_run(runs, run_word)
    with run.hold():
        source = roll_back(run, warn=say)
    if json:
        show_json({"run": str(run.path), "source": str(source.path)})
    else:
        click.echo(
            f"run {source.path} is as it was before the migration; "
            f"go on: autotune train {typed(source.manifest_file)}\n"
            f"what was trained since lies in {run.path / 'rolled-back'}"
        )
    return EXIT_OK


@cli.command()
@options(
    RUN,
    click.option("--watch", is_flag=True, help="Refresh until the run ends."),
    RUNS,
    JSON,
)
def status(run_word: str | None, watch: bool, runs: Path, json: bool) -> int:
    """What a run is doing, or how it ended, and how it compares with the prediction.

    Without RUN: the one that runs (of several the one begun last), else the one used last.
    """
    from autotune import views
    from autotune.runs import is_held, running_runs

    running = running_runs(runs) if run_word is None else []
    run = chosen_run(runs, str(running[-1].path) if running else run_word)
    while watch and is_held(run.path):
        views.show_status(run, stderr=json)
        time.sleep(2.0)
    if json:
        show_json(views.status_json(run))
    else:
        click.echo(views.status_text(run))
    return EXIT_OK


def fail(message: str, code: int) -> int:
    """Print an error and pass its exit code on."""
    say(f"autotune: {message}")
    return code


def _variable_of(error: click.ClickException) -> str:
    """The environment variable that a refused value came from; empty where it was typed."""
    if not isinstance(error, click.BadParameter) or error.param is None or error.ctx is None:
        return ""
    name = error.param.name or ""
    given = error.ctx.get_parameter_source(name) is click.core.ParameterSource.ENVIRONMENT
    return f"{error.ctx.auto_envvar_prefix}_{name.upper()}" if given else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: everything after ``--`` is the user's own command. Returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    cut = given.index("--") if "--" in given else len(given)
    context: dict[str, Any] = {"command": given[cut + 1 :], "debug": False}
    if given[cut:] == ["--"]:
        advice = "write your command after it, such as -- python train.py --seed {seed}"
        return fail(f"nothing follows --: {advice}", EXIT_USAGE)
    try:
        code = cli.main(
            given[:cut], prog_name="autotune", obj=context, standalone_mode=False, auto_envvar_prefix="AUTOTUNE"
        )
        return int(code or 0)
    except click.ClickException as error:
        error.show()
        if variable := _variable_of(error):
            say(f"The value stands in the environment variable {variable}: correct or unset it.")
        if "--" not in given and any(argument.endswith((".py", ".sh")) for argument in given):
            say("Your own command goes after --, as in: autotune search --budget 30m -- python train.py --seed {seed}")
        return error.exit_code
    except AutotuneError as error:
        if context["debug"]:
            say(traceback.format_exc())
        return fail(str(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt) as error:
        signalled = error.__cause__ or error  # click raises Abort from it
        return fail(str(signalled) or "stopped", getattr(signalled, "exit_code", 130))
    except BrokenPipeError:
        return EXIT_ERROR
    except (OSError, ImportError, MemoryError) as error:
        if context["debug"]:
            say(traceback.format_exc())
        return fail(_refused(error), EXIT_ERROR)


def _refused(error: OSError | ImportError | MemoryError) -> str:
    """What to do about what the system refuses: a file, a package's libraries, or memory."""
    if isinstance(error, OSError):
        otherwise = "Check permissions and free space of the folder, or choose another with --runs."
        return f"{error}. {remedy_for(error, otherwise)}"
    more_memory = "raise the limit on this command's memory (ulimit -v, or the container's), or stop other programs"
    if isinstance(error, MemoryError):
        return f"memory ran out: {more_memory}"
    broken = f"a package that autotune needs cannot be loaded: {error}. Install it anew"
    return f"{broken}; where memory ran out, {more_memory}"


def entry() -> None:
    """Console script."""
    for descriptor in range(3):  # closed by some daemons: a pipe to a worker must not become its standard output
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    lose_what_cannot_be_shown()
    sys.exit(main())
