"""Live views of work in progress: a bar on a terminal, lines elsewhere; all on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from autotune.train.status import Snapshot
from autotune.units import format_duration
from autotune.views import describe, job_note

if TYPE_CHECKING:
    from autotune.probe.grid import GridEvent
    from autotune.search.running import SearchEvent


_BAR_MAX = 40
"""Characters of a bar, less on a terminal that is not four times as wide."""


class _Shrinking(ProgressColumn):
    """A text that is cut, as plain text, where the terminal is too narrow for all columns."""

    def __init__(self, text: Callable[[Task], str]) -> None:
        super().__init__()
        self._text = text

    def render(self, task: Task) -> Text:
        """One line, whatever its width."""
        return Text(self._text(task), no_wrap=True, overflow="ellipsis")


class _Live:
    """A progress bar on a terminal, one line an event elsewhere; all on stderr.

    The bar guesses the time that remains (`ESTIMATED`) only where the notes do not say it.
    """

    ESTIMATED = False

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.terminal = self.console.is_terminal
        self.progress = Progress(
            _Shrinking(lambda task: task.description),
            BarColumn(min(_BAR_MAX, self.console.width // 4)),
            _Shrinking(lambda task: str(task.fields["note"])),
            TimeElapsedColumn(),
            *([TimeRemainingColumn()] if self.ESTIMATED else []),
            console=self.console,
            disable=not self.terminal,
        )

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.progress.stop()

    def line(self, text: str) -> None:
        """A lasting line above the bar."""
        self.progress.console.print(text, highlight=False, markup=False, soft_wrap=True)


class ProbeView(_Live):
    """Progress of a grid of probes."""

    ESTIMATED = True

    def __init__(self, total: int) -> None:
        super().__init__()
        self.task = self.progress.add_task("probing", total=total, note="")

    def update(self, event: GridEvent) -> None:
        """A probe began or ended."""
        if event.result is None:
            self.progress.update(self.task, note=event.point.label())
            return
        self.progress.advance(self.task)
        self.line(f"[{event.number}] {describe(event.result)}  ({event.number + 1} of {event.total})")


class SearchView(_Live):
    """Live view of a search: best so far, current point, time left."""

    def __init__(self, budget_s: float) -> None:
        super().__init__()
        self._budget_s = budget_s
        self.task = self.progress.add_task("searching", total=budget_s, note="")

    def update(self, event: SearchEvent) -> None:
        """A probe began or ended."""
        best = "no stable point yet" if event.best is None else f"best {describe(event.best)}"
        left = f"{format_duration(max(0.0, event.left_s))} left"
        note = f"{left} | {event.stage}: {event.point.label()} | {best}"
        self.progress.update(self.task, completed=self._budget_s - event.left_s, note=note)
        if event.result is not None:
            self.line(f"[{event.number}] {event.stage}: {describe(event.result)}  ({left})")


class TrainView(_Live):
    """Live view of a training: one line a job on a terminal, one line a while elsewhere."""

    LINE_EVERY_S = 30.0

    def __init__(self) -> None:
        super().__init__()
        self._tasks: dict[str, Any] = {}
        self._last_line_s = 0.0

    def update(self, snapshot: Snapshot) -> None:
        """Show a new snapshot."""
        for job in snapshot.jobs:
            if job.id not in self._tasks:
                self._tasks[job.id] = self.progress.add_task(job.id, total=1.0, note="")
            self.progress.update(self._tasks[job.id], completed=job.fraction, note=job_note(job))
        now_s = time.monotonic()
        if not self.terminal and now_s - self._last_line_s >= self.LINE_EVERY_S:
            self._last_line_s = now_s
            for job in snapshot.jobs:
                if job.status == "running":
                    self.line(f"{job.id}: {job_note(job)}")
