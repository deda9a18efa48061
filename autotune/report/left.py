"""What a training still has to do: budgets that are left, at the speeds that its jobs showed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from autotune.errors import FileError, UsageError
from autotune.manifest import manifest_hash
from autotune.manifest_schema import Knobs, Manifest
from autotune.records import Budget, Job, Point
from autotune.report.projection import HOUR_S, Projection, Quantity, project_each
from autotune.report.training import Training
from autotune.runs import Run
from autotune.train.events import Event
from autotune.train.job import JobRun
from autotune.train.sessions import span_s
from autotune.train.status import JobSnapshot, Snapshot, read_snapshot
from autotune.worker.metrics import UNTIMED

SEEN_S = 60.0
"""Seconds of training until its speed stands in place of the one measured before: its first ones warm up."""
_KEPT = ("saved", "resumed", "migrated", "finished")
"""Kinds of the events that tell what a job goes on from."""

Source = Literal["own", "others", "before"]


@dataclass(frozen=True, kw_only=True)
class JobLeft:
    """How far one job is.

    Attributes:
        job: as in the manifest.
        done: nothing is left of it.
        begun: it has trained, or trains now.
        left: of its budget, in the budget's unit.
        seen_steps: env steps that it made in training, at the point at which it goes on.
        seen_s: the seconds of training that these took.
    """

    job: Job
    done: bool
    begun: bool
    left: float
    seen_steps: float
    seen_s: float

    @property
    def fraction(self) -> float:
        """Of the budget that is done, 0 to 1."""
        return 1.0 if self.done else 1 - self.left / self.job.budget.amount


@dataclass(frozen=True, kw_only=True)
class Left:
    """A training that has begun.

    Attributes:
        point: at which it goes on.
        jobs: in the manifest's order.
        runs: whether it trains now.
        unwritten_s: seconds of a training that runs, since its last event.
        own_checkpoints: whether the program keeps its own, so that nobody knows from where it goes on.
    """

    point: Point
    jobs: tuple[JobLeft, ...]
    runs: bool
    unwritten_s: float
    own_checkpoints: bool

    @property
    def unfinished(self) -> tuple[JobLeft, ...]:
        """The jobs that are not done."""
        return tuple(each for each in self.jobs if not each.done)

    def speed(self, job: JobLeft, before: Quantity | None) -> tuple[Quantity, Source] | None:
        """Env steps per second of a job while all places are taken, and of what; None when nothing is known of it.

        Its own in training, else that of the others in its environment, else that of all.

        Args:
            job: one of `jobs`.
            before: measured before the training, taken where less than `SEEN_S` of that were seen.
        """
        same = tuple(each for each in self.jobs if each.job.env == job.job.env)
        groups: tuple[tuple[Source, tuple[JobLeft, ...]], ...]
        groups = (("own", (job,)), ("others", same), ("others", self.jobs))
        for least_s in (SEEN_S, 0.0):
            for source, group in groups:
                steps, seconds = sum(each.seen_steps for each in group), sum(each.seen_s for each in group)
                if steps > 0 and seconds > 0 and seconds >= least_s:
                    return Quantity(value=steps / seconds), source
            if before:
                return before, "before"
        return None

    def plan(
        self,
        before: Quantity | None,
        *,
        steps_per_episode: Mapping[str, Quantity],
        fewer: Mapping[int, Quantity],
        price_usd_per_hour: float | None,
    ) -> Projection | None:
        """Hours and cost of what is left; None when nothing is.

        Args:
            before: env steps per second of one job, measured before the training.
            steps_per_episode: by environment.
            fewer: env steps per second of the same settings at fewer processes.
            price_usd_per_hour: of the machine.
        """
        left = [each for each in self.unfinished if each.left > 0]
        if not left:
            return None
        places = self.point.concurrency
        together = before.scaled(places) if before else Quantity(value=1.0, low=1.0, high=1.0)
        return project_each(
            [replace(each.job, budget=replace(each.job.budget, amount=each.left)) for each in left],
            {each.job.id: found[0] for each in left if (found := self.speed(each, before))},
            {**(fewer if before else {}), places: together},
            price_usd_per_hour=price_usd_per_hour,
            steps_per_episode=steps_per_episode,
        )


@dataclass(frozen=True, kw_only=True)
class _Totals:
    env_steps: float
    untimed_steps: float
    episodes: float
    seconds: float

    @classmethod
    def of(cls, event: Mapping[str, Any]) -> _Totals:
        return cls(
            env_steps=float(event["total_env_steps"]),
            untimed_steps=float(event.get(UNTIMED) or 0),
            episodes=float(event["total_episodes"]),
            seconds=float(event["total_seconds"]),
        )

    def amount(self, budget: Budget) -> float:
        """What is done, in the budget's unit."""
        return {"steps": self.env_steps, "episodes": self.episodes, "hours": self.seconds / HOUR_S}[budget.unit]


_NOTHING = _Totals(env_steps=0.0, untimed_steps=0.0, episodes=0.0, seconds=0.0)


def read_left(run: Run, manifest: Manifest, training: Training) -> Left | None:
    """How far a run's training is, None where its events do not tell.

    What has been trained is what it would go on from: of one that does not run, the last checkpoints.
    """
    opened = [event for event in training.events if event["kind"] == "opened"]
    if not opened:
        return None
    own_checkpoints = manifest.workload.name == "command"
    kept, at_point = _account(training.events, own_checkpoints=own_checkpoints)
    edited = opened[-1].get("manifest") != manifest_hash(manifest)
    point = manifest.point.record() if edited else _point(opened[-1].get("point")) or manifest.point.record()
    running = _running(run)
    now = {job.id: job for job in running.jobs} if running else {}
    started = {event["job"] for event in training.events if event["kind"] in ("started", "migrated")}
    trained = {each.id: each for each in training.jobs}
    jobs = []
    for job in manifest.job_records():
        before, last = at_point.get(job.id, _NOTHING), trained.get(job.id)
        done, there = _stand(run, job, training.events, now.get(job.id), kept.get(job.id, _NOTHING))
        steps, seconds = (last.env_steps or 0, last.seconds or 0) if last else (0, 0)
        seen_steps = steps - (last.untimed_steps if last else 0) - (before.env_steps - before.untimed_steps)
        seen_s = seconds - before.seconds
        seen = seen_steps > 0 and seen_s > 0 and not (edited and point.knobs() != opened[-1].get("point"))
        jobs.append(
            JobLeft(
                job=job,
                done=done,
                begun=job.id in started,
                left=0.0 if done else max(0.0, job.budget.amount - there.amount(job.budget)),
                seen_steps=seen_steps if seen else 0.0,
                seen_s=seen_s if seen else 0.0,
            )
        )
    return Left(
        point=point,
        jobs=tuple(jobs),
        runs=running is not None,
        unwritten_s=span_s([training.events[-1], {"time": running.updated}]) if running else 0.0,
        own_checkpoints=own_checkpoints,
    )


def _stand(run: Run, job: Job, events: Sequence[Event], now: JobSnapshot | None, kept: _Totals) -> tuple[bool, _Totals]:
    """Whether a job is done, and what it has trained, as its supervisor says or would when it goes on."""
    if now is not None:
        totals = _Totals(env_steps=now.env_steps, untimed_steps=0.0, episodes=now.episodes, seconds=now.seconds)
        return now.status == "done", totals
    recalled = JobRun(job, run.jobs_folder / job.id)
    recalled.recall(events)
    return recalled.status == "done", kept


def _running(run: Run) -> Snapshot | None:
    """A training that runs now, as its supervisor saw it last."""
    try:
        snapshot = read_snapshot(run)
    except (FileError, UsageError):  # damaged, or never written: the disk was full
        return None
    return snapshot if snapshot.state == "running" else None


def _account(events: Iterable[Event], *, own_checkpoints: bool) -> tuple[dict[str, _Totals], dict[str, _Totals]]:
    """By job, what it goes on from, and what it had trained when the training came to the point of its last events.

    Args:
        events: oldest first.
        own_checkpoints: the program keeps its own, so that the last that is known of it counts.
    """
    kinds = (*_KEPT, "stopped", "crashed") if own_checkpoints else _KEPT
    kept, at_point = dict[str, _Totals](), dict[str, _Totals]()
    point = None
    for event in events:
        if (knobs := event.get("point")) is not None and knobs != point:
            point, at_point = knobs, dict(kept)
        if event["job"] is not None and event["kind"] in kinds and "total_env_steps" in event:
            kept[event["job"]] = _Totals.of(event)
    return kept, at_point


def _point(knobs: Any) -> Point | None:
    """The point that an event tells; None where it tells none."""
    try:
        return Knobs.model_validate(knobs).record()
    except ValueError:
        return None
