"""How far the pilots of a run's guard are, as others may read it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from autotune.errors import FileError
from autotune.runs import Run, all_runs
from autotune.train.status import JobSnapshot, read_snapshot, status_file


@dataclass(frozen=True, kw_only=True)
class PilotsStatus:
    """The pilots that a guard began last.

    Attributes:
        jobs: those of the tuned point, then those of the baseline once they have begun.
        total: of both points.
        running: whether they train now.
    """

    jobs: tuple[JobSnapshot, ...]
    total: int
    running: bool

    @property
    def done(self) -> int:
        """Pilots that came to their end, a crash included: both are part of the verdict."""
        return sum(job.status in ("done", "crashed") for job in self.jobs)


def pilots_status(run: Run) -> PilotsStatus | None:
    """How far a search's guard is, None where no pilot has begun, or its files are damaged."""
    newest: dict[str, Run] = {}
    for arm in all_runs(run.guard_folder):
        if status_file(arm).exists():
            newest[arm.name.partition("-")[0]] = arm
    snapshots = []
    with contextlib.suppress(FileError):  # damaged: the next `autotune search` writes it anew
        snapshots = [read_snapshot(newest[role]) for role in ("tuned", "baseline") if role in newest]
    if not snapshots:
        return None
    return PilotsStatus(
        jobs=tuple(job for snapshot in snapshots for job in snapshot.jobs),
        total=2 * max(len(snapshot.jobs) for snapshot in snapshots),
        running=any(snapshot.state == "running" for snapshot in snapshots),
    )
