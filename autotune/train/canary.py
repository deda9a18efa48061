"""The first jobs of a migration go ahead and are watched; then all go on, or the migration is rolled back."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autotune.errors import AutotuneError
from autotune.executors.listening import Listening
from autotune.machine import DeviceInfo
from autotune.manifest import Manifest
from autotune.records import TrainResult
from autotune.runs import Run
from autotune.train.migrate import accept_canary, rollback
from autotune.train.migration import Canary, MigratedJob, Migration, load_migration
from autotune.train.status import JobSnapshot, Snapshot
from autotune.train.supervise import supervise
from autotune.units import counted, format_count, format_duration, typed
from autotune.worker.checkpoint import load_training, newest_checkpoint

GAMES_MIN = 10
_START_S = 300.0
_PATIENCE = 3.0
"""A canary that has not trained its time within so many times as long, and the time to start, is stuck."""


class CanaryError(AutotuneError):
    """The first jobs of a migration did not do well; it was rolled back."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What watching the canary showed.

    Attributes:
        faults: reasons to go back; empty when there are none.
        notes: what was measured, and what could not be judged.
    """

    faults: tuple[str, ...]
    notes: tuple[str, ...]


def train_run(
    manifest: Manifest,
    run: Run,
    *,
    device: DeviceInfo,
    on_event: Callable[[Snapshot], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> TrainResult:
    """`supervise`, after the canary of a migration that has one.

    Args:
        manifest: what to train.
        run: where; the caller holds it.
        device: what to train on.
        on_event: takes a snapshot about twice a second.
        warn: takes sentences for the user.
        should_stop: asked a few times a second; then workers save and end, and the same call goes on.
        options: further ones of `supervise`.

    Raises:
        CanaryError: the canary failed, and the migration was rolled back; the message says why.
        UsageError: see `supervise`.
        FileError: likewise.
    """
    migration = load_migration(run)
    if migration and migration.canary and not migration.canary.passed:
        watch = _Watch(migration, migration.canary, on_event, should_stop)
        only = frozenset(migration.canary.jobs)
        options_now = {"on_event": watch.update, "warn": warn, "should_stop": watch.over, **options}
        result = supervise(manifest, run, device=device, only=only, **options_now)
        if not watch.decided:
            if not should_stop():  # somebody stopped its workers
                short_of = format_duration(migration.canary.watch_s)
                warn(f"canary: stopped before {short_of} of training, so it is not judged; the same command goes on")
            return result
        _decide(judge(migration, migration.canary, manifest, run, result, stuck=watch.stuck), run, migration, warn)
    return supervise(manifest, run, device=device, on_event=on_event, warn=warn, should_stop=should_stop, **options)


def _decide(verdict: Verdict, run: Run, migration: Migration, warn: Callable[[str], None]) -> None:
    for note in verdict.notes:
        warn(f"canary: {note}")
    if not verdict.faults:
        warn("canary: passed, all jobs go on")
        accept_canary(run, migration)
        return
    source = rollback(run, warn=warn)
    raise CanaryError(
        f"the canary failed: {'; '.join(verdict.faults)}. The migration was rolled back: run {source.path} is as it "
        f"was before (`autotune train {typed(source.manifest_file)}` goes on), and what the canary did lies in "
        f"{run.path / 'rolled-back'}"
    )


class _Watch:
    """Says when the canary has been watched for long enough, or has failed.

    Attributes:
        decided: whether it is over for a reason of its own, not because the user stops.
        stuck: whether time passed and training did not.
    """

    def __init__(
        self,
        migration: Migration,
        canary: Canary,
        on_event: Callable[[Snapshot], None],
        should_stop: Callable[[], bool],
    ) -> None:
        self._before_s = {job.id: job.seconds for job in migration.jobs}
        self._canary, self._on_event, self._should_stop = canary, on_event, should_stop
        self._listening = Listening()
        self._left_s = _START_S + _PATIENCE * canary.watch_s
        self.decided = self.stuck = False

    def update(self, snapshot: Snapshot) -> None:
        """Take a snapshot."""
        self._on_event(snapshot)
        self._left_s -= self._listening.look()
        jobs = [job for job in snapshot.jobs if job.id in self._canary.jobs]
        failed = any(job.status == "crashed" for job in jobs)
        if self.decided or failed or all(map(self._watched, jobs)):
            self.decided = True
        elif self._left_s < 0:
            self.decided = self.stuck = True

    def over(self) -> bool:
        """Whether the canary's workers shall save and end."""
        return self.decided or self._should_stop()

    def _watched(self, job: JobSnapshot) -> bool:
        return job.status == "done" or job.seconds - self._before_s[job.id] >= self._canary.watch_s


def judge(
    migration: Migration, canary: Canary, manifest: Manifest, run: Run, result: TrainResult, *, stuck: bool = False
) -> Verdict:
    """Whether the canary did well: no crash (a loss that is not finite is one), speed, returns.

    Speed: the aggregate rate of the canary, scaled from its processes to those of the manifest, against
    `sps_fraction` of the old run's aggregate. Fewer processes than the manifest runs have the device to
    themselves, so then this is necessary, not sufficient; the notes say so.

    Returns: see `collapsed`.
    """
    before = {job.id: job for job in migration.jobs}
    ended = [job for job in result.jobs if job.id in canary.jobs]
    faults = [f"{job.id} crashed: {job.detail}" for job in ended if job.status == "crashed"]
    if stuck:
        faults.append(f"{', '.join(canary.jobs)} did not train for {format_duration(canary.watch_s)} in time")
    steps = sum(job.env_steps - before[job.id].env_steps for job in ended)
    seconds = sum(job.seconds - before[job.id].seconds for job in ended)
    rate = result.sps or (len(ended) * steps / seconds if seconds > 0 else 0.0)
    faults_of_speed, notes = _judge_speed(migration, canary, manifest.point.concurrency, rate)
    if not faults:
        faults += faults_of_speed
    games_min = max(GAMES_MIN, 2 * manifest.point.num_envs)
    for job in ended:
        games = _returns_since(run, before[job.id])
        if job.episodes - before[job.id].episodes < games_min:
            notes.append(f"{job.id} finished too few games to judge its returns (fewer than {games_min})")
        elif collapsed(before[job.id], games):
            old, new = statistics.fmean(before[job.id].returns), statistics.fmean(games)
            faults.append(f"{job.id} fell from a mean return of {old:.1f} to {new:.1f}")
    return Verdict(faults=tuple(faults), notes=tuple(notes))


def _judge_speed(migration: Migration, canary: Canary, processes: int, rate: float) -> tuple[list[str], list[str]]:
    count = len(canary.jobs)
    scaled = rate * processes / count
    measured = f"{counted(count, 'job')} at {format_count(rate)} SPS"
    if count < processes:
        measured += f", {format_count(scaled)} SPS if {processes} at once were as fast each"
    if migration.sps_before is None:
        return [], [f"{measured}; the old run's rate is not known, so speed was not judged"]
    note = f"{measured}; the old run had {format_count(migration.sps_before)} SPS"
    if scaled >= canary.sps_fraction * migration.sps_before:
        return [], [note]
    return [f"too slow: {note}, and at least {canary.sps_fraction:.0%} of it is asked for"], []


def _returns_since(run: Run, before: MigratedJob) -> list[float]:
    """Returns of the games that ended since the migration, the last 100 at most; none without a checkpoint."""
    newest = newest_checkpoint(run.jobs_folder / before.id / "checkpoints", set_aside=False)
    if newest is None:
        return []
    progress: Mapping[str, Any] = load_training(newest).meta["progress"]
    new = int(progress["episodes"]) - before.episodes
    return [float(value) for value in progress["returns"][-new:]] if new > 0 else []


def collapsed(before: MigratedJob, after: Sequence[float]) -> bool:
    """Whether a job lost more than half of what it had learnt, beyond three standard errors.

    What it had learnt is the mean of its last games before the migration above the start of its curve. The
    first games to end after a fresh start are short ones, so `after` should hold several per environment.
    """
    if len(before.returns) < GAMES_MIN or len(after) < GAMES_MIN or before.first_return is None:
        return False
    lost = statistics.fmean(before.returns) - statistics.fmean(after)
    error = math.sqrt(sum(statistics.pvariance(games) / len(games) for games in (before.returns, after)))
    return lost > max(0.5 * (statistics.fmean(before.returns) - before.first_return), 3 * error, 0.0)
