"""What a training left behind: ``train/events.jsonl`` and every job's ``metrics.csv``."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from autotune.errors import FileError, UsageError
from autotune.records import Job
from autotune.runs import Run
from autotune.search.episodes import GameLength
from autotune.train.events import Event, read_events
from autotune.train.sessions import Session, sessions_of
from autotune.train.status import JobSnapshot, read_snapshot
from autotune.worker.metrics import UNTIMED, cell_number, read_metrics, untimed_steps
from autotune.worker.totals import MEAN_RETURN

_FACTS = {
    "env_steps": "total_env_steps",
    "episodes": "total_episodes",
    "seconds": "total_seconds",
    MEAN_RETURN: "mean_return",
    "best_return": "best_return",
    UNTIMED: UNTIMED,
}
"""By column of `metrics.csv`, the same in an event."""


@dataclass(frozen=True, kw_only=True)
class TrainedJob:
    """How far one job came, restarts included; None is unknown.

    Attributes:
        id: the job's.
        env_steps: agent decisions.
        episodes: games that ended.
        seconds: of training, saving included.
        mean_return: of the last `RETURNS_KEPT` games.
        best_return: of a single game.
        crashes: of its process.
        untimed_steps: of `env_steps`, what a program did before it was started.
    """

    id: str
    env_steps: float | None
    episodes: float | None
    seconds: float | None
    mean_return: float | None
    best_return: float | None
    crashes: int = 0
    untimed_steps: int = 0

    @property
    def sps(self) -> float | None:
        """Env steps per second over the whole training."""
        return (self.env_steps - self.untimed_steps) / self.seconds if self.env_steps and self.seconds else None


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training's trace.

    Attributes:
        jobs: by id.
        curves: by job, the columns `env_steps` and `mean_return`.
        events: as written.
        unfinished: jobs that are not done, as its supervisor saw them last.
    """

    jobs: tuple[TrainedJob, ...]
    curves: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    unfinished: tuple[JobSnapshot, ...] = ()

    @property
    def job_seconds(self) -> float:
        """Seconds of training, summed over the jobs."""
        return sum(job.seconds or 0.0 for job in self.jobs)

    @property
    def machine_s(self) -> float:
        """Seconds in which it had the machine: of every supervisor from its start to its last event.

        One that came to its end tells them itself, whatever the clock on the wall did meanwhile.
        """
        return sum(session.seconds for session in self.sessions)

    @property
    def hosts_lost(self) -> int:
        """Times that the machine went down while it trained."""
        return sum(session.host_lost for session in self.sessions)

    @property
    def down_s(self) -> float:
        """Seconds from the machine's going down to the next start, of every time."""
        return sum(session.down_s for session in self.sessions)

    @property
    def steps_down(self) -> tuple[str, ...]:
        """Why it stepped down the ladder, each time."""
        return tuple(str(event.get("detail", "")) for event in self.events if event["kind"] == "stepped")

    @functools.cached_property
    def sessions(self) -> list[Session]:
        """What each of its supervisors did."""
        return sessions_of(self.events)

    @property
    def crashes(self) -> int:
        """Crashes of all jobs."""
        return sum(job.crashes for job in self.jobs)

    def game_lengths(self, jobs: Sequence[Job]) -> dict[str, GameLength]:
        """Mean length of a game by environment, for the environments of these jobs that finished any."""
        env_of = {job.id: job.env for job in jobs}
        steps: dict[str, float] = {}
        games: dict[str, float] = {}
        for job in self.jobs:
            if job.id in env_of and job.env_steps and job.episodes:
                env = env_of[job.id]
                steps[env] = steps.get(env, 0.0) + job.env_steps
                games[env] = games.get(env, 0.0) + job.episodes
        return {env: GameLength.of(steps[env] / games[env], int(games[env])) for env in games}


def load_training(run: Run) -> Training | None:
    """The run's training, None when nothing was trained in it.

    Raises:
        FileError: a file is damaged or cannot be read.
    """
    events = tuple(read_events(run))
    rows = {file.parent.name: read_metrics(file) for file in sorted(run.train_folder.glob("jobs/*/metrics.csv"))}
    if not rows and not events:
        return None
    crashes = [event.get("job") for event in events if event.get("kind") == "crashed"]
    last = _told(events) | {job: own[-1] for job, own in rows.items() if own}
    jobs = tuple(_trained(job, last.get(job, {}), crashes.count(job)) for job in sorted({*rows, *last}))
    curves = {job: curve for job, own in rows.items() if len(curve := _curve(own))}
    return Training(jobs=jobs, curves=curves, events=events, unfinished=_unfinished(run))


def _unfinished(run: Run) -> tuple[JobSnapshot, ...]:
    with contextlib.suppress(FileError, UsageError):  # damaged, or never written: the disk was full
        return tuple(job for job in read_snapshot(run).jobs if job.status != "done")
    return ()


def _told(events: Sequence[Event]) -> dict[str, Mapping[str, str]]:
    """By job, what its last event with totals tells of it, by the columns of `metrics.csv`.

    A job that crashed before its first row has none of these, and one whose folder was removed no more.
    """
    told: dict[str, Mapping[str, str]] = {}
    for event in events:
        if (job := event["job"]) is not None:
            totals = {column: str(event[fact]) for column, fact in _FACTS.items() if event.get(fact) is not None}
            told[job] = totals or told.get(job, {})
    return told


def _trained(job: str, row: Mapping[str, str], crashes: int) -> TrainedJob:
    return TrainedJob(
        id=job,
        env_steps=cell_number(row.get("env_steps")),
        episodes=cell_number(row.get("episodes")),
        seconds=cell_number(row.get("seconds")),
        mean_return=cell_number(row.get(MEAN_RETURN)),
        best_return=cell_number(row.get("best_return")),
        crashes=crashes,
        untimed_steps=untimed_steps(row),
    )


def _curve(rows: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    pairs = [(cell_number(row.get("env_steps")), cell_number(row.get(MEAN_RETURN))) for row in rows]
    return pd.DataFrame([pair for pair in pairs if None not in pair], columns=["env_steps", "mean_return"])
