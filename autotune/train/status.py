"""What a training is doing, as others may read it: `train/status.json`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from autotune.codec import to_json
from autotune.device.host import process_identity, still_runs
from autotune.errors import FileError, UsageError
from autotune.runs import Run
from autotune.store import canonical_json, read_json, write_json
from autotune.units import typed

State = Literal["running", "done", "stopped", "crashed", "killed"]


@dataclass(frozen=True, kw_only=True)
class JobSnapshot:
    """One job at one moment.

    Attributes:
        status: ``waiting``, ``running``, ``done``, ``stopped`` or ``crashed``.
        seconds: of training, over all restarts.
        fraction: of the budget that is done, 0 to 1.
        sps: env steps per second over the last half minute, None when it does not run.
        mean_return: over the last 100 games.
        vram_bytes: device memory of its processes.
        ram_bytes: memory of its processes (proportional set size).
        eta_s: seconds to the end of its budget at the present rate.
    """

    id: str
    env: str
    status: str
    env_steps: int
    episodes: int
    seconds: float
    fraction: float
    sps: float | None
    mean_return: float | None
    best_return: float | None
    vram_bytes: int | None
    ram_bytes: int | None
    eta_s: float | None
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A training at one moment.

    Attributes:
        run: name of the run.
        state: ``running``; how it ended; or ``killed`` when its supervisor is gone without a word.
        jobs: in the manifest's order.
        point: the knobs that run, as ``num_envs=8 batch_size=256 concurrency=1``.
        sps: sum over the running jobs, over the last half minute.
        measured_sps: aggregate while all processes run warm, this session; None before.
        predicted_sps: what the manifest promises at this point, None when it does not.
        elapsed_s: of this session.
        updated: when, ISO 8601, UTC.
        writer: boot id, pid and start ticks of the supervisor.
    """

    run: str
    state: State
    jobs: tuple[JobSnapshot, ...]
    point: str
    sps: float | None
    measured_sps: float | None
    predicted_sps: float | None
    elapsed_s: float
    updated: str
    writer: tuple[Any, ...] = ()


def status_file(run: Run) -> Path:
    """Where the supervisor writes its snapshots."""
    return run.train_folder / "status.json"


def stamp() -> dict[str, Any]:
    """`updated` and `writer` of a snapshot taken here and now."""
    return {
        "updated": datetime.now(UTC).isoformat(timespec="seconds"),
        "writer": tuple(process_identity(os.getpid()) or ()),
    }


def write_snapshot(run: Run, snapshot: Snapshot) -> None:
    """Replace the run's snapshot, atomically.

    Raises:
        FileError: the folder is read-only or full.
    """
    write_json(status_file(run), to_json(snapshot))


class StatusFile:
    """The run's snapshot, as its supervisor writes it: that it cannot is said once, and ends no training."""

    def __init__(self, run: Run, warn: Callable[[str], None]) -> None:
        self._run, self._warn, self._told = run, warn, False

    def write(self, snapshot: Snapshot) -> None:
        """Replace the run's snapshot if possible."""
        try:
            write_snapshot(self._run, snapshot)
            self._told = False
        except FileError as error:
            if not self._told:
                self._warn(f"training goes on, but `autotune status` does not see it: {error}")
            self._told = True


def read_snapshot(run: Run) -> Snapshot:
    """The newest snapshot of a run, running or not.

    A snapshot that says ``running`` while its writer no longer runs (identity: boot, pid and start
    time, since pids are used again) is returned as ``killed``, its running jobs as ``stopped``.

    Raises:
        UsageError: the run never trained.
        FileError: the snapshot is damaged.
    """
    path = status_file(run)
    if not path.exists():
        raise UsageError(
            f"run {run.path} has not trained yet: start it with `autotune train {typed(run.manifest_file)}`"
        )
    try:
        snapshot = TypeAdapter(Snapshot).validate_python(read_json(path))
        canonical_json(to_json(snapshot))  # has no NaN
    except ValueError as error:
        raise FileError(
            f"{path} is damaged, it is no whole snapshot: the next `autotune train` writes it anew"
        ) from error
    if snapshot.state != "running" or still_runs(snapshot.writer):
        return snapshot
    return replace(snapshot, state="killed", sps=None, jobs=tuple(_orphaned(job) for job in snapshot.jobs))


def _orphaned(job: JobSnapshot) -> JobSnapshot:
    if job.status != "running":
        return job
    detail = "its supervisor was killed; the same command resumes"
    return replace(job, status="stopped", sps=None, eta_s=None, detail=detail)
