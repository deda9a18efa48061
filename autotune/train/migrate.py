"""Takes a training over into another run, at another point, and gives it back.

The old run is never changed but for one fact in its ``run.json``. The new run's ``train/`` is built beside
its place (backup of the old run, its checkpoints and curves, ``migration.json``), flushed to the disk, and
published by one rename; a rollback takes it away by another. Killed at any moment, either the old state
holds or the new one, and the same command goes on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from autotune.errors import FileError, UsageError
from autotune.machine import DeviceInfo
from autotune.manifest import Manifest
from autotune.runs import Run
from autotune.store import append_line, copy_file, sync_file, sync_folder
from autotune.train.backup import ASIDE, back_up, restore
from autotune.train.events import Event, last_worker, make_event, read_events
from autotune.train.launch import check_jobs
from autotune.train.migration import (
    BACKUP,
    MARK,
    STAGING,
    Migration,
    load_migration,
    read_migration,
    refuse_migrated,
    refuse_other_source,
    source_of,
    successor,
    write_migration,
)
from autotune.train.migration_plan import plan_migration
from autotune.worker.checkpoint import load_training
from autotune.worker.lock import lock_job

_ROLLED_BACK = "rolled-back"


def migrate(
    manifest: Manifest,
    source: Run,
    run: Run,
    *,
    device: DeviceInfo,
    canary: tuple[int, float, float] | None = None,
    warn: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Migration:
    """Take every job of a run over into another one, whose manifest may have any point.

    Args:
        manifest: of the new run.
        source: the old run; nobody may be training in it.
        run: the new one, held by the caller; it must not have trained.
        device: to check on that the jobs can run.
        canary: how many jobs go first, the seconds they are watched, and the fraction of the old rate that
            they must reach.
        warn: takes sentences for the user.
        should_stop: asked a few times a second while it is checked whether the jobs can run.

    Raises:
        KeyboardInterrupt: `should_stop` turned true; nothing was changed.
        BusyError: somebody trains in the old run.
        FileError: a job's checkpoints are all damaged or gone; nothing was changed.
        UsageError: the runs do not fit each other; names the difference, nothing was changed.
    """
    refuse_migrated(source)
    if not source.train_folder.is_dir():
        raise UsageError(f"run {source.path} has not trained: there is nothing to resume, leave --resume-from out")
    if run.train_folder.is_symlink():
        raise UsageError(
            f"{run.train_folder} is a link to {run.train_folder.readlink()}, and a migration puts a folder there: "
            f"remove the link, and for another disk make {run.path} itself one; nothing was changed"
        )
    if any(run.train_folder.glob("*")):
        raise UsageError(f"run {run.path} has trained already: choose a new one with --new, or leave --resume-from out")
    with source.hold(in_use=False), _without_orphans(source):
        migration = plan_migration(manifest, source, canary=canary, warn=warn)
        states = {
            job.id: load_training(source.jobs_folder / job.id / "checkpoints" / job.checkpoint).meta["session"]
            for job in migration.jobs
        }
        check_jobs(manifest, device, manifest.job_records(), states, should_stop)
        return take_over(migration, source, run)


def take_over(migration: Migration, source: Run, run: Run) -> Migration:
    """Carry out what was planned: back the old run up, build the new training, publish it by one rename."""
    migration = replace(migration, source=os.path.relpath(source.path.resolve(), run.path.resolve()))
    staging = run.path / STAGING
    if staging.exists():  # of a migration that was killed
        shutil.rmtree(staging)
    staging.mkdir()
    back_up(source, staging / BACKUP)
    for job in migration.jobs:
        _seed(staging / BACKUP / source.train_folder.name / "jobs" / job.id, staging / "jobs" / job.id)
    for job in migration.jobs:
        counts = {"total_env_steps": job.env_steps, "total_episodes": job.episodes, "total_seconds": job.seconds}
        mean = sum(job.returns) / len(job.returns) if job.returns else None
        facts = {**counts, "mean_return": mean, "best_return": job.best_return, "path": job.checkpoint}
        append_line(staging / "events.jsonl", make_event("migrated", job=job.id, source=source.name, **facts))
    if migration.jobs:
        sync_file(staging / "events.jsonl")
        sync_folder(staging / "jobs")
    write_migration(staging, migration)
    # The mark means nothing until the rename.
    source.update(**{MARK: os.path.relpath(run.path.resolve(), source.path.resolve())})
    staging.rename(run.train_folder)
    sync_folder(run.path)
    return migration


def _seed(backup: Path, folder: Path) -> None:
    """Give a job its checkpoints and its curve."""
    (folder / "checkpoints").mkdir(parents=True)
    for file in sorted((backup / "checkpoints").iterdir()):
        if file.suffix in (".safetensors", ".json") and file.is_file():
            copy_file(file, folder / "checkpoints" / file.name, link=file.suffix == ".safetensors")
    if (backup / "metrics.csv").is_file():
        copy_file(backup / "metrics.csv", folder / "metrics.csv")
    sync_folder(folder / "checkpoints")
    sync_folder(folder)


def accept_canary(run: Run, migration: Migration) -> None:
    """Record that the canary passed: all jobs go on."""
    if migration.canary is None:
        return
    write_migration(run.train_folder, replace(migration, canary=replace(migration.canary, passed=True)))


def rollback(run: Run, *, warn: Callable[[str], None] = lambda _: None) -> Run:
    """Undo a migration: the old run is as it was before, the new run's training is set aside, whole.

    What was trained since the migration lies in ``rolled-back/<n>/`` of the new run. The same call again
    changes nothing more. The caller holds the new run.

    Args:
        run: the new run.
        warn: takes sentences for the user.

    Returns:
        The old run.

    Raises:
        BusyError: somebody trains in the old run.
        UsageError: the run was never migrated, another one goes on with it, or where the old run was lies another
            one or one that has trained since; nothing was changed.
    """
    refuse_migrated(run)
    done = sorted(int(folder.name) for folder in (run.path / _ROLLED_BACK).glob("*") if folder.name.isdecimal())
    migration = load_migration(run)
    if migration is None:
        last = read_migration(run.path / _ROLLED_BACK / str(done[-1])) if done else None
        if last is None:
            raise UsageError(f"run {run.path} was not migrated from another run: there is nothing to roll back")
        if run.jobs_folder.exists():
            raise UsageError(
                f"run {run.path} was rolled back already, and what it trains now began after that: there is nothing "
                "more to roll back"
            )
        source = source_of(run, last)
        refuse_other_source(run, source, run.path / _ROLLED_BACK / str(done[-1]) / BACKUP)
        return _give_back(run, source)
    source, backup = source_of(run, migration), run.train_folder / BACKUP
    refuse_other_source(run, source, backup)  # before anything is written there
    source.path.mkdir(parents=True, exist_ok=True)
    with source.hold(), _without_orphans(run):
        refuse_other_source(run, source, backup)
        _restore(source, backup, warn)
        (run.path / _ROLLED_BACK).mkdir(exist_ok=True)
        run.train_folder.rename(run.path / _ROLLED_BACK / str(max(done, default=0) + 1))
        sync_folder(run.path / _ROLLED_BACK)
        sync_folder(run.path)
    return _give_back(run, source)


def _restore(source: Run, backup: Path, warn: Callable[[str], None]) -> None:
    gone = not source.state_file.is_file()
    changed = restore(source, backup)
    if gone:
        warn(f"there was no run {source.path} any more: it was made again from the backup")
    elif changed:
        warn(
            f"{len(set(changed))} files of run {source.path} were not as before the migration: they are again, and "
            f"what was there is kept beside each as *{ASIDE}, the first of them {changed[0]}"
        )


def _give_back(run: Run, source: Run) -> Run:
    if source.state_file.is_file() and successor(source) is None:
        source.update(**{MARK: None})
    unfinished = {"finished": False} if run.state().get("command") == "train" else {}  # a search stays finished
    run.update(training="rolled back", **unfinished)
    return source


@contextlib.contextmanager
def _without_orphans(run: Run) -> Iterator[None]:
    """Wait for workers that outlived their supervisor, end those that cannot end by themselves, and let none start."""
    with contextlib.ExitStack() as locks:
        events = list[Event]()
        with contextlib.suppress(FileError):  # damaged: then nobody is killed
            events = read_events(run)
        for folder in sorted(run.jobs_folder.glob("*")):
            if folder.is_dir():
                locks.enter_context(lock_job(folder, last_worker(events, folder.name)))
        yield
