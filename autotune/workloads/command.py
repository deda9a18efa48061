"""`command`: the user's own training script, started as an argument list, heard through what it prints.

Knobs reach it through placeholders: ``python train.py --num-envs {num_envs} --seed {seed}``. Literal
braces are written ``{{`` and ``}}``. No shell is involved.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from autotune.errors import UsageError, WorkerError
from autotune.records import Job, Point, Work
from autotune.units import counted, format_duration, shortened
from autotune.workloads.command_argv import fill, how_to_start, placeholders, values_at
from autotune.workloads.command_child import Child, describe_exit, describe_start_error
from autotune.workloads.command_progress import ProgressRule, make_rule, preset_of
from autotune.workloads.memory_words import asked_for_input, said_exception, said_why, tells_out_of_memory
from autotune.workloads.protocol import (
    LAST_LINES,
    SEVERAL_TOTALS,
    THREAD_VARIABLES,
    Finished,
    NoProgressError,
    RefusedError,
    SessionState,
)
from autotune.workloads.settings import Settings, check_counts, parse_settings, workload_knobs

_EXHAUSTED = re.compile(r"can't start new thread|Resource temporarily unavailable|Too many open files|No space left")
_OVERSHOOT = 0.02
"""A program that goes beyond its budget by this share is not about to end."""
_SILENCE_MIN_S, _SILENCE_GAPS = 120.0, 10
"""A probe waits for a sign of progress so many times as long as for any before, at least this: the first update may
compile."""
_TOLD_S = 2.0
"""Before a probe is cut, a program that told no progress so far is told of."""
_BY_SIGNAL = 128
"""Exit codes from here on are a shell's: of a signal, or of a program that it cannot run."""
_ASKED = "it asked a question, and its standard input is empty here: let an option or a variable of it answer"
_SAID_MAX = 200
"""Characters of a line that says why a program failed."""
_MIN_STEP_S = 0.02  # a program may tell its progress at every step: more would only make work for the parent


class OutOfMemoryError(WorkerError):
    """The program ended for want of memory."""


class CommandSettings(Settings):
    """Hyperparameters of `command`.

    Attributes:
        argv: the program and its arguments, with placeholders.
        counter: expression whose group 1 is the running total of steps in a line of output.
        rate: expression whose group 1 is steps per second since the line before.
        mark: expression of the line that ends an iteration; totals count from there. Every line
            when left out.
        progress: a preset in place of these, see `command_progress.PROGRESS`. With none of them
            the script calls `autotune.tick`.
        cwd: where it runs; a recipe's folder, elsewhere the worker's, when left out.
        environment: further environment variables.
        progress_timeout_s: without a first sign of progress for so long, nothing is being counted.
        hang_timeout_s: without progress for so long after the first, it counts as hung.
        grace_s: between SIGTERM and SIGKILL in a probe, whose end takes 10 s at most.
        save_grace_s: likewise in training, where it may save.
    """

    argv: Sequence[str] = Field(min_length=1)
    counter: str | None = None
    rate: str | None = None
    mark: str | None = None
    progress: str | None = None
    cwd: str | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    progress_timeout_s: float = Field(default=120.0, gt=0)
    hang_timeout_s: float = Field(default=1800.0, gt=0)
    grace_s: float = Field(default=5.0, ge=0)
    save_grace_s: float = Field(default=60.0, ge=0)


class CommandWorkload:
    """The user's own program at any point; see the module."""

    def __init__(self, hyperparameters: Mapping[str, Any]) -> None:
        settings = parse_settings(CommandSettings, "command", hyperparameters)
        self.settings = settings
        self.rule = make_rule(
            counter=settings.counter, rate=settings.rate, mark=settings.mark, preset=settings.progress
        )
        self.placeholders = placeholders(settings.argv)
        if any("\0" in argument for argument in settings.argv) or not settings.argv[0]:
            raise UsageError(f"the command {list(settings.argv)} has an empty program or a NUL character")
        for name, value in settings.environment.items():
            if not name or "=" in name or "\0" in name + value:
                raise UsageError(f"environment variable {name!r} = {value!r} has an impossible name or a NUL character")
            if any(f"{{{knob}}}" in value for knob in ("num_envs", "batch_size")):
                raise UsageError(
                    f"environment variable {name} = {value!r} is passed on as it is, placeholders belong into argv: "
                    f'let it begin with "env", "{name}={value}"'
                )

    def check(self, point: Point, jobs: Sequence[Job]) -> None:
        """Refuse unknown placeholders, knobs without one, budgets in episodes, a missing folder or program.

        Raises:
            UsageError: names the value, the expectation and the remedy.
        """
        check_counts(point)
        for name in workload_knobs(point):
            if name not in self.placeholders:
                raise UsageError(f"knob {name!r} does not reach the command: write {{{name}}} where its value belongs")
        folder = self.settings.cwd
        if folder is not None and not Path(folder).is_dir():
            raise UsageError(f"the command's folder {folder!r} does not exist: correct cwd")
        for job in jobs:
            if job.budget.unit == "episodes":
                raise UsageError(
                    f"job {job.id!r} has a budget of {counted(int(job.budget.amount), 'episode')}, "
                    "and a program of your own counts none: give it steps or hours"
                )
            program = fill(self.settings.argv, values_at(point, job))[0]
            self._check_program(program)

    def _check_program(self, program: str) -> None:
        path = self.settings.environment.get("PATH", os.environ.get("PATH"))
        local = str(Path(self.settings.cwd or ".") / program)  # a path is relative to the command's folder
        if shutil.which(local if "/" in program else program, path=path) is None:
            raise UsageError(
                f"the program {program!r} cannot be found or executed: {how_to_start(program, local)}"
                "check its spelling, its permissions, and that its environment is active"
            )

    def check_installed(self, point: Point, jobs: Sequence[Job], device: str) -> None:
        """Nothing is known about what the program can run."""

    def open(self, point: Point, job: Job, device: str) -> CommandSession:
        """Start the program; the executor has set which device it sees (CUDA_VISIBLE_DEVICES).

        Raises:
            UsageError: it can never run.
        """
        self.check(point, [job])
        return CommandSession(self.settings, self.rule, point, job, device)


def child_environment(settings: CommandSettings) -> dict[str, str]:
    """The program's environment: unbuffered output, its share of threads, and what the user set."""
    environment = dict(os.environ, PYTHONUNBUFFERED="1")
    if threads := os.environ.get("AUTOTUNE_THREADS"):
        environment.update(dict.fromkeys(THREAD_VARIABLES, threads))
    return environment | settings.environment


class CommandSession:
    """One running copy of the program; a step lasts from one sign of progress to the next."""

    def __init__(self, settings: CommandSettings, rule: ProgressRule, point: Point, job: Job, device: str) -> None:
        argv = fill(settings.argv, values_at(point, job))
        passed = placeholders(settings.argv) | {"concurrency"}
        self.effective: Mapping[str, Any] = {
            **{name: value if name in passed else None for name, value in point.knobs().items()},
            "argv": argv,
            "threads": os.environ.get("AUTOTUNE_THREADS"),
            "device": device,
        }
        self._settings, self._rule = settings, rule
        self._steps = 0
        self._longest_s = self._not_before_s = 0.0
        self._hurried, self._end_by_s, self._begun = False, math.inf, False
        environment = child_environment(settings)
        try:
            self._child = Child(argv, cwd=settings.cwd, environment=environment, rule=rule)
        except OSError as error:
            why = describe_start_error(error, Path(settings.cwd or ".") / argv[0])
            raise UsageError(f"the program {argv[0]!r} cannot be started: {why}") from error

    def step(self, parts: int = 1) -> Work:
        """Wait for the next sign of progress; slices are the program's own affair.

        Raises:
            Finished: it ended with exit code 0, all its steps reported.
            OutOfMemoryError: it ended for want of memory.
            RefusedError: it failed before its first step.
            WorkerError: it failed or shows no progress; the message carries the last lines it printed.
            UsageError: it ended well, but never told its progress.
        """
        timeout_s, started_s = self._timeout_s(), time.monotonic()
        steps = self._child.wait_for_progress(self._steps, self._not_before_s, timeout_s)
        self._not_before_s = time.monotonic() + _MIN_STEP_S
        self._longest_s = max(self._longest_s, time.monotonic() - started_s)
        if steps is None:
            raise NoProgressError(self._without_progress(timeout_s))
        if steps == self._steps and self._child.exit_code() is not None:
            raise self._ending()
        told = {SEVERAL_TOTALS: 1.0} if self._hurried and self._child.progress.several_totals else {}
        work = Work(env_steps=steps - self._steps, metrics=told)
        self._steps = steps
        return work

    def _timeout_s(self) -> float:
        if not self._steps:
            left_s = self._end_by_s - time.monotonic()
            return min(self._settings.progress_timeout_s, left_s) if left_s > 0 else math.inf
        if not self._hurried or "hang_timeout_s" in self._settings.model_fields_set:
            return self._settings.hang_timeout_s
        return max(_SILENCE_MIN_S, _SILENCE_GAPS * self._longest_s)

    def hurry(self, end_by_s: float | None = None) -> None:
        """Take silence for a hang soon: this is a probe, and no training that may evaluate for a while.

        Args:
            end_by_s: when it is cut (`time.monotonic`); a program without progress is given up before.
        """
        self._hurried = True
        self._end_by_s = math.inf if end_by_s is None else end_by_s - _TOLD_S

    def resume(self) -> None:
        """Take a good end without a step for that of a training with nothing left to do: it was begun before."""
        self._begun = True

    def interrupt(self) -> None:
        """End the wait of a `step` or `finish` in another thread."""
        self._child.interrupt()

    def finish(self) -> str | None:
        """Let the program, whose budget is met, evaluate, save and end; what to tell if it does not end well."""
        limit_s = self._settings.hang_timeout_s
        in_time = self._child.wait_for_end(limit_s, enough_steps=(1 + _OVERSHOOT) * self._steps)
        code = self._child.exit_code()
        if code == 0:
            return None
        if code:
            return f"the budget is met, but see whether all is saved: {self._ending()}"
        if self._child.interrupted:
            return (
                "stopped at its budget before it ended by itself: what it does at its end, such as saving, is missing"
            )
        what = "goes on" if in_time else f"did not end within {format_duration(limit_s)}"
        return (
            f"the budget is met, and the program {what}: it is ended by SIGTERM. "
            "For it to evaluate and save at its end, let the budget (--steps) be its own total"
        )

    @property
    def stop_s(self) -> float:
        """Seconds that `stop` takes at most."""
        return self._settings.save_grace_s

    def stop(self) -> str | None:
        """Let the program save and end, in training; what to tell if it does not."""
        if self._child.end(self._settings.save_grace_s):
            return None
        killed = self._child.exit_code() == -signal.SIGKILL
        what = "the program did not end" if killed else "the program ended, but what it had started did not"
        return (
            f"{what} within {format_duration(self._settings.save_grace_s)} of SIGTERM and was killed: "
            "see whether all is saved (save_grace_s among the hyperparameters allows more)"
        )

    def synchronize(self) -> None:
        """The program prints when it is done."""

    def peak_memory_bytes(self) -> int | None:
        """None: only meters see the program's memory."""
        return None

    def state(self) -> SessionState:
        """Empty: the program keeps its own checkpoints."""
        return SessionState(arrays={})

    def restore(self, state: SessionState) -> None:
        """Nothing to restore, see `state`."""

    def close(self) -> None:
        """End the program and all its descendants."""
        self._child.end(self._settings.grace_s)

    def _without_progress(self, waited_s: float) -> str:
        waited = format_duration(waited_s)
        progress = self._child.progress
        described = self._rule.describe(progress.unread)
        if progress.several_totals:
            return (
                f"no progress was told within {waited}: the largest total read was {progress.largest:,.0f}, and "
                "later ones are smaller. Let --counter match one total only; "
                f"the last lines were:\n{self._last_lines()}"
            )
        if progress.unmarked:
            return f"its steps stayed at zero for {waited}{self._rule.unmarked()}. {LAST_LINES}{self._last_lines()}"
        if progress.found:
            longer = "hang_timeout_s among the hyperparameters of a recipe allows more"
            matched = f"; {described}" if progress.unread else self._unmatched()
            return (
                f"no progress was told within {waited} ({longer}){matched}; the last lines were:\n{self._last_lines()}"
            )
        cut = waited_s < self._settings.progress_timeout_s
        more = "a larger --budget" if cut else "a progress_timeout_s among the hyperparameters of a recipe"
        longer = f"If it starts or compiles for longer, give it {more}"
        if not self._child.tail() and not self._rule.by_tick and not self._child.ticked_unheard:
            if unended := self._child.unended().strip():
                what = f"end each line, by a newline or carriage return, after {shortened(unended, _SAID_MAX)!r}"
            else:
                what = (
                    "if it buffers its output, flush it; if its progress goes to files, or to a bar that is drawn on a "
                    "terminal only, print it or call autotune.tick(steps)"
                )
            return f"the program printed no whole line within {waited}. {longer}; {what}"
        return f"{described} within {waited}; {self._remedy()}. {longer}. {LAST_LINES}{self._last_lines()}"

    def _unmatched(self) -> str:
        """What to say of lines that tell nothing since the last that did: the pattern may miss what it should read."""
        lines = self._child.progress.unmatched
        if self._rule.by_tick or not lines:
            return ""
        return f"; {self._rule.describe()} since, of {lines:,} that it printed"

    def _remedy(self) -> str:
        if self._child.ticked_unheard:
            return "autotune.tick was called and counts only without --counter, --rate and --progress: leave that out"
        if asked_for_input(self._child.tail().splitlines()):
            return _ASKED
        preset = preset_of(self._child.tail())
        if preset is not None and preset != self._settings.progress:
            return f"its lines match --progress {preset}: give that"
        if self._rule.by_tick:
            return "give or correct --counter, --rate or --progress, or call autotune.tick(steps) in the program"
        return (
            "correct --counter, --rate or --progress (a bar may be drawn on a terminal only), "
            "or call autotune.tick(steps) in the program"
        )

    def _ending(self) -> Exception:
        """What to raise now that the program has ended."""
        code = self._child.exit_code() or 0
        starved = self._child.killed_for_memory() or tells_out_of_memory(self._child.tail())
        if code == 0 and (self._steps or (self._begun and not starved)):
            return Finished(f"the program ended after {self._steps:,} steps")
        if code == 0 and not starved:
            progress = self._child.progress
            found = progress.found and not progress.unread
            stayed = f"its steps stayed at zero{self._rule.unmarked() if progress.unmarked else ''}"
            missing = stayed if found else self._rule.describe(progress.unread)
            return UsageError(
                f"the program ended well, but {missing}; {self._remedy()}. {LAST_LINES}{self._last_lines()}"
            )
        message = (
            f"the program ended with {describe_exit(code)}{self._why(code)}; the last lines were:\n{self._last_lines()}"
        )
        if starved:
            return OutOfMemoryError(message)
        refused = 0 < code < _BY_SIGNAL and not self._steps
        refused = refused and not _EXHAUSTED.search(self._child.tail())
        return RefusedError(message) if refused else WorkerError(message)

    def _why(self, code: int) -> str:
        """Which of its lines since it last told its progress says why it failed, unless that is the very last."""
        lines = self._child.tail().splitlines()[-max(1, self._child.progress.unmatched) :]
        if asked_for_input(lines):
            return f" ({_ASKED})"
        said = said_why(lines) if 0 < code < _BY_SIGNAL else said_exception(lines)
        return f" ({shortened(said, _SAID_MAX)})" if said and said != lines[-1].strip() else ""

    def _last_lines(self) -> str:
        return self._child.tail(20) or "(it printed nothing)"
