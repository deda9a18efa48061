"""What a migration is: a training that was taken over from another run, as `train/migration.json` tells it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autotune.codec import from_json, to_json
from autotune.errors import FileError, UsageError
from autotune.runs import Run
from autotune.store import read_json, write_json
from autotune.units import typed

MARK = "migrated_to"
"""Fact of an old run: the new one's folder, relative to it. It means nothing until that has a migration."""

MIGRATION_FILE = "migration.json"
BACKUP = "backup"
STAGING = ".migrating"
"""Folder of a new run in which its ``train/`` is built; one that is left is of a migration that was killed."""


@dataclass(frozen=True, kw_only=True)
class MigratedJob:
    """A job as it was taken over.

    Attributes:
        id: in both manifests.
        checkpoint: file name of the generation that it goes on from.
        env_steps: done by then, as are `episodes` and `seconds` (of training).
        returns: of the last 100 games by then.
        best_return: of a single game.
        first_return: mean return at the start of its curve.
    """

    id: str
    checkpoint: str
    env_steps: int
    episodes: int
    seconds: float
    returns: tuple[float, ...]
    best_return: float | None
    first_return: float | None


@dataclass(frozen=True, kw_only=True)
class Canary:
    """Jobs that go first, see `autotune.train.canary`.

    Attributes:
        jobs: their ids.
        watch_s: seconds of training of each before the verdict.
        sps_fraction: of the old rate that the new point must reach.
        passed: whether the verdict was good.
    """

    jobs: tuple[str, ...]
    watch_s: float
    sps_fraction: float
    passed: bool = False


@dataclass(frozen=True, kw_only=True)
class Migration:
    """What ``train/migration.json`` says.

    Attributes:
        source: the old run's folder, relative to the new one's.
        jobs: that were taken over.
        fresh: ids of jobs that start from the beginning: those of which the old run never saved anything.
        sps_before: env steps per second of all its processes together, None when it never measured any.
        canary: jobs that go first, None for all at once.
    """

    source: str
    jobs: tuple[MigratedJob, ...]
    fresh: tuple[str, ...]
    sps_before: float | None
    canary: Canary | None = None


def load_migration(run: Run) -> Migration | None:
    """How a run's training was taken over, None when it was not (or was rolled back).

    Raises:
        FileError: the file is damaged.
    """
    return read_migration(run.train_folder)


def source_of(run: Run, migration: Migration) -> Run:
    """The run that a migration came from."""
    return Run((run.path.resolve() / migration.source).resolve())


def successor(run: Run) -> Run | None:
    """The run that this one's training was migrated to, None when it was not, or was rolled back."""
    new = _marked(run)
    migration = load_migration(new) if new else None
    return new if new and migration and source_of(new, migration).path == run.path.resolve() else None


def _marked(run: Run) -> Run | None:
    mark = run.state().get(MARK) if run.state_file.is_file() else None
    return Run((run.path.resolve() / str(mark)).resolve()) if mark else None


def part_from_lost(run: Run, warn: Callable[[str], None]) -> None:
    """Tell, once, that the run which goes on with this one is not where it was, and that both now go their own way."""
    if (new := _marked(run)) and not new.path.exists():
        warn(
            f"run {run.path} was migrated to {new.path}, which is not there any more: training goes on from before the "
            f"migration, without what was trained there. If {new.name} was moved or renamed, stop this one, and go on "
            "there instead"
        )
        run.update(**{MARK: None})


def say_emptied(run: Run, warn: Callable[[str], None]) -> None:
    """Tell that a run which has trained holds nothing of it any more, so that every job begins again at 0."""
    trained = run.state_file.is_file() and run.state().get("training") in ("running", "stopped", "crashed", "done")
    if trained and not (run.train_folder / "events.jsonl").exists() and not run.jobs_folder.exists():
        warn(
            f"run {run.path} has trained before, and nothing of that is left in {run.train_folder}: every job begins "
            "again at 0. To go on instead, stop this, put the folder back, and repeat the command"
        )


def refuse_other_source(run: Run, source: Run, backup: Path) -> None:
    """Refuse to return to a run that is not the one in the backup, goes on elsewhere, or has trained since.

    Raises:
        UsageError: names both runs, and what to do; nothing was changed.
    """
    before = Run(backup)
    if source.state_file.is_file() and before.state_file.is_file():
        old, now = before.state(), source.state()
        if old.get("created") != now.get("created"):
            raise UsageError(
                f"run {run.path} goes on with run {old.get('name')}, created {old.get('created')}, and {source.path} "
                f"was created {now.get('created')}: it is another run, and nothing was changed. Put the right one "
                f"there, or move this one away: then the rollback makes the right one again from {backup}"
            )
    if (new := successor(source)) and new.path != run.path.resolve():
        raise UsageError(
            f"run {source.path} was migrated to {new.path}, so {run.path} is a copy or an earlier migration of it: "
            f"nothing was changed. To return, `autotune rollback {typed(new.path)}`"
        )
    if _count_events(source) > _count_events(before):
        raise UsageError(
            f"run {source.path} has trained since run {run.path} took it over, and a rollback would set that aside: "
            f"nothing was changed. Go on with either, after moving {run.path} elsewhere if the other is refused; "
            f"{backup} is the run as it was taken over, copy it into a run of its own to have that again"
        )


def _count_events(run: Run) -> int:
    """Whole lines, damaged ones included; training adds some, and nothing takes any away."""
    file = run.train_folder / "events.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def refuse_migrated(run: Run) -> None:
    """Refuse to train a run that another one goes on with, or whose own migration was interrupted.

    Raises:
        UsageError: names the other run, and the way back.
    """
    if (run.path / STAGING).exists() and load_migration(run) is None:
        raise UsageError(
            f"a migration into run {run.path} was interrupted: repeat its command, with --resume-from; to train from "
            f"the beginning instead, remove {run.path / STAGING}"
        )
    if new := successor(run):
        raise UsageError(
            f"run {run.path} was migrated to {new.path}: go on there with "
            f"`autotune train {typed(new.manifest_file)}`, or return with `autotune rollback {typed(new.path)}`"
        )


def read_migration(folder: Path) -> Migration | None:
    """The migration in a ``train/`` folder, None when there is none.

    Raises:
        FileError: the file is damaged.
    """
    file = folder / MIGRATION_FILE
    if not file.is_file():
        return None
    try:
        migration: Migration = from_json(Migration, read_json(file))
    except (TypeError, AttributeError, KeyError) as error:
        raise FileError(f"{file} is damaged ({error}): the backup of the old run lies in {folder / BACKUP}") from error
    return migration


def write_migration(folder: Path, migration: Migration) -> None:
    """Write a migration into a ``train/`` folder, durably.

    Raises:
        FileError: the folder is read-only or full.
    """
    write_json(folder / MIGRATION_FILE, to_json(migration))
