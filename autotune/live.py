"""Live views of work in progress: a bar on a terminal, lines elsewhere; all on stderr."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from autotune.train.status import Snapshot
from autotune.units import format_duration
from autotune.views import describe, job_note

if TYPE_CHECKING:
    from autotune.probe.grid import GridEvent
    from autotune.search.running import SearchEvent


class _Live:
    """A progress bar on a terminal, one line an event elsewhere; all on stderr."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.terminal = self.console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
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

    def __init__(self, total: int) -> None:
        super().__init__()
        self.task = self.progress.add_task("probing", total=total, note="")

    def update(self, event: GridEvent) -> None:
        """A probe began or ended."""
        if event.result is None:
            self.progress.update(self.task, note=event.point.label())
            return
        self.progress.advance(self.task)
        self.line(f"[{event.number + 1}/{event.total}] {describe(event.result)}")


class SearchView(_Live):
    """Live view of a search: best so far, current point, time left."""

    def __init__(self, budget_s: float) -> None:
        super().__init__()
        self._budget_s = budget_s
        self.task = self.progress.add_task("searching", total=budget_s, note="")

    def update(self, event: SearchEvent) -> None:
        """A probe began or ended."""
        best = "no stable point yet" if event.best is None else f"best {describe(event.best)}"
        note = f"{event.stage}: {event.point.label()} | {best}"
        self.progress.update(self.task, completed=self._budget_s - event.left_s, note=note)
        if event.result is not None:
            left = format_duration(max(0.0, event.left_s))
            self.line(f"[{event.trials_done}] {event.stage}: {describe(event.result)}  ({left} left)")


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
