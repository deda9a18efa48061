"""What a migration would take over, and whether the two runs fit each other; changes nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autotune.errors import FileError, UsageError
from autotune.manifest import Manifest, load_manifest
from autotune.manifest_schema import JobSection
from autotune.runs import Run
from autotune.train.events import Event, last_event, read_events
from autotune.train.migration import Canary, MigratedJob, Migration
from autotune.train.status import read_snapshot, status_file
from autotune.worker.checkpoint import load_training, lost_checkpoints, newest_checkpoint
from autotune.worker.metrics import cell_number, read_metrics
from autotune.worker.resume import refuse_other_job
from autotune.worker.totals import MEAN_RETURN


def plan_migration(
    manifest: Manifest,
    source: Run,
    *,
    canary: tuple[int, float, float] | None = None,
    warn: Callable[[str], None] = lambda _: None,
) -> Migration:
    """What a migration would take over; changes nothing. See `migrate`."""
    old, events = manifest_of(source), read_events(source)
    _refuse_other_work(manifest, old, source)
    # What the old run trained before its manifest dropped it, too.
    newest = [(job, newest_saved(source, job.id, events, warn)) for job in manifest.jobs]
    jobs = tuple(_migrated_job(source, job, path, warn) for job, path in newest if path)
    return Migration(
        source="",
        jobs=jobs,
        fresh=tuple(job.id for job, path in newest if path is None),
        sps_before=_sps_before(source, jobs, _processes(events, old)),
        canary=_canary(manifest, jobs, *canary) if canary else None,
    )


def _refuse_other_work(manifest: Manifest, old: Manifest, source: Run) -> None:
    """Refuse manifests whose jobs are not those of the old run."""
    refuse_other_workload(source, old, manifest.workload.name, "the manifest")
    if manifest.workload.name == "command":
        raise UsageError(
            f"run {source.path} trains a program of your own (workload 'command'), which keeps its own checkpoints: "
            "autotune cannot migrate them. Give the program its own option to resume, in the command"
        )
    jobs = {job.id: job for job in manifest.jobs}
    missing = [job.id for job in old.jobs if job.id not in jobs]
    if missing:
        raise UsageError(
            f"run {source.path} has the jobs {', '.join(missing)}, which the manifest lacks: add them (a job that has "
            "met its budget costs nothing more), so that every job is migrated; nothing was changed"
        )
    for before in old.jobs:
        refuse_other_game(source, before.id, before.env, jobs[before.id].env, "the manifest")


def manifest_of(source: Run) -> Manifest:
    """The manifest that a run trained.

    Raises:
        UsageError: the run has none.
        ManifestError: it is damaged.
    """
    if not source.manifest_file.is_file():
        raise UsageError(
            f"run {source.path} is incomplete, since it has no {source.manifest_file.name}: put the manifest that it "
            "trained there, or name another run"
        )
    return load_manifest(source.manifest_file)


def refuse_other_workload(source: Run, old: Manifest, workload: str, whose: str) -> None:
    """Refuse a run whose checkpoints are of another workload than `whose`.

    Raises:
        UsageError: they are.
    """
    if old.workload.name != workload:
        raise UsageError(
            f"run {source.path} trains workload {old.workload.name!r}, {whose} {workload!r}: "
            "checkpoints of one mean nothing to the other"
        )


def refuse_other_game(source: Run, job: str, before: str, now: str, where: str) -> None:
    """Refuse a job that plays another game than in the run that trained it.

    Raises:
        UsageError: it does.
    """
    if before != now:
        raise UsageError(
            f"job {job} plays {before} in run {source.path} and {now} in {where}: give another game another id"
        )


def newest_saved(source: Run, job: str, events: list[Event], warn: Callable[[str], None]) -> Path | None:
    """The checkpoint that a job goes on from, None for one that never saved; nothing is changed.

    Raises:
        FileError: it has saved, and every checkpoint is damaged or gone.
    """
    folder = source.jobs_folder / job / "checkpoints"
    path = newest_checkpoint(folder, lambda text: warn(f"{job}: {text}"), set_aside=False)
    if path is None and (saved := last_event(events, {"saved", "migrated"}, job)):
        raise lost_checkpoints(folder, job, saved["total_env_steps"])
    return path


def meta_of(source: Run, path: Path, job: str, env: str, where: str) -> Mapping[str, Any]:
    """What a checkpoint of a run says of itself, for the job that goes on from it.

    Raises:
        UsageError: it is of another job or game.
    """
    meta = load_training(path).meta
    refuse_other_job(meta, job, path)
    refuse_other_game(source, job, meta.get("env", env), env, where)
    return meta


def _migrated_job(source: Run, job: JobSection, path: Path, warn: Callable[[str], None]) -> MigratedJob:
    meta = meta_of(source, path, job.id, job.env, "the manifest")
    progress: Mapping[str, Any] = meta["progress"]
    first = _first_return(source.jobs_folder / job.id / "metrics.csv", warn)
    counts = {name: progress[name] for name in ("env_steps", "episodes", "seconds", "best_return")}
    returns = tuple(progress["returns"])
    return MigratedJob(id=job.id, checkpoint=path.name, returns=returns, first_return=first, **counts)


def _first_return(curve: Path, warn: Callable[[str], None]) -> float | None:
    """Mean return at the start of a curve, None where it tells none; cells that are no number are passed over."""
    cells = [row[MEAN_RETURN] for row in read_metrics(curve) if row.get(MEAN_RETURN)]
    values = [cell_number(cell) for cell in cells]
    if None in values:
        bad = cells[values.index(None)]
        warn(f"{curve}: {bad!r} in column {MEAN_RETURN} is no number, and such rows are passed over; mend it by hand")
    return next((value for value in values if value is not None), None)


def _processes(events: list[Event], old: Manifest) -> int:
    """How many jobs ran at once at last; what the manifest says where the events do not tell."""
    point = (last_event(events, {"opened"}) or {}).get("point")
    count = point.get("concurrency") if isinstance(point, dict) else None
    return count if isinstance(count, int) else old.point.concurrency


def _sps_before(source: Run, jobs: tuple[MigratedJob, ...], processes: int) -> float | None:
    """The old run's rate while all its processes ran warm, else that of its jobs over all their training."""
    with contextlib.suppress(FileError):
        if status_file(source).is_file() and (measured := read_snapshot(source).measured_sps):
            return measured
    seconds = sum(job.seconds for job in jobs)
    return processes * sum(job.env_steps for job in jobs) / seconds if seconds else None


def _canary(
    manifest: Manifest, jobs: tuple[MigratedJob, ...], count: int, watch_s: float, sps_fraction: float
) -> Canary:
    """The first unfinished jobs.

    Raises:
        UsageError: not so many run at once, or are left.
    """
    at_once = manifest.point.concurrency
    if not 1 <= count <= at_once:
        raise UsageError(f"--canary {count} must lie between 1 and the {at_once} jobs that the manifest runs at once")
    done = {job.id: {"steps": job.env_steps, "episodes": job.episodes, "hours": job.seconds / 3600} for job in jobs}
    left = [job.id for job in manifest.jobs if job.id in done and done[job.id][job.budget.unit] < job.budget.amount]
    if count > len(left):
        raise UsageError(f"--canary {count}, but {len(left)} migrated jobs have work left: use that many at most")
    return Canary(jobs=tuple(left[:count]), watch_s=watch_s, sps_fraction=sps_fraction)
