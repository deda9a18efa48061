"""The beginning and the end of a training's workers: whether jobs can run, what a worker is told, how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autotune.errors import UsageError
from autotune.executors.isolated import IsolatedExecutor, share_of
from autotune.executors.process import WorkerProcess
from autotune.machine import DeviceInfo
from autotune.manifest import Manifest
from autotune.records import Job
from autotune.runs import Run
from autotune.train.events import Event, last_event
from autotune.train.job import JobRun, JobStatus
from autotune.worker.protocol import TrainPlan, WorkerTask
from autotune.workloads.command_child import describe_exit

_LOG_LINES = 5
_SIGNALLED = "somebody sent its process a signal to end; the same command goes on"


def tuned_elsewhere(manifest: Manifest, device: DeviceInfo) -> str:
    """What to say of a manifest that was tuned on another device; empty for one that was not."""
    if manifest.device is None or manifest.device.fingerprint == device.fingerprint:
        return ""
    return (
        f"the manifest was tuned on {manifest.device.fingerprint}, this is {device.fingerprint}: "
        "it runs, but another point may be faster here (`autotune search`)"
    )


def refuse_other_workload(manifest: Manifest, run: Run, events: list[Event]) -> None:
    """Refuse a manifest that now names another workload than the one that trained its jobs.

    What they did would count for the other, which has nothing of it: a program of one's own starts at 0.

    Raises:
        UsageError: it does.
    """
    if last_event(events, {"ready"}) is None:  # nothing was trained
        return
    before, now = (last_event(events, {"opened"}) or {}).get("workload"), manifest.workload.name
    if before not in (None, now):
        raise UsageError(
            f"run {run.path} was trained with workload {before!r}, and its manifest names {now!r} now: what one has "
            f"trained means nothing to the other. Name {before!r} again, or copy the manifest to another folder and "
            "train it there, in a run of its own; nothing was changed"
        )


def check_jobs(
    manifest: Manifest,
    device: DeviceInfo,
    jobs: Sequence[Job],
    states: Mapping[str, Mapping[str, Any]],
    should_stop: Callable[[], bool],
) -> None:
    """Ask a worker whether jobs can run here, and whether those checkpoints fit them whose `states` (by job) are given.

    Raises:
        UsageError: the workload refuses a value, a job or a checkpoint.
        KeyboardInterrupt: `should_stop` turned true before it answered.
    """
    workload, point = manifest.workload, manifest.point.record()
    executor = IsolatedExecutor(device, should_stop)
    executor.ask("check", workload.name, workload.hyperparameters, tuple(jobs), point, states=states)


def training_task(manifest: Manifest, device: DeviceInfo, job: JobRun, *, retried: bool = True) -> WorkerTask:
    """The task of a worker that trains a job of a manifest, with its share of the machine; `retried` as in its plan."""
    point, stability = manifest.point.record(), manifest.stability
    share = share_of(
        device, point.concurrency, vram_fraction=stability.vram_fraction, ram_fraction=stability.ram_fraction
    )
    return WorkerTask(
        mode="train",
        workload=manifest.workload.name,
        hyperparameters=manifest.workload.hyperparameters,
        point=point,
        jobs=(job.job,),
        train=TrainPlan(
            folder=str(job.folder),
            checkpoint_interval_s=stability.checkpoint_interval_s,
            keep=stability.keep,
            saved_env_steps=job.recalled_steps,
            predecessor=job.predecessor,
            retried=retried,
        ),
        **share,
    )


@dataclass(frozen=True, kw_only=True)
class End:
    """How a job's worker ended.

    Attributes:
        status: the job's from now on.
        detail: why; empty where there is nothing to say.
        facts: of the event that tells of it, beside the detail and the job's totals.
        told: what is said of a job that was stopped; empty for nothing.
        log: of a crashed worker; None where it has none.
    """

    status: JobStatus
    detail: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    told: str = ""
    log: Path | None = None

    @classmethod
    def crashed(cls, detail: str, *, error: str, worker: WorkerProcess | None = None) -> End:
        """By a fault of its own, of the kind `error`."""
        facts = {"error": error, "exit_code": (worker and worker.returncode) or 0}
        return cls(status="crashed", detail=detail, facts=facts, log=worker.log if worker else None)


def how_ended(job: JobRun, worker: WorkerProcess, *, late: bool, hang: str, stopping: bool) -> End:
    """How the worker of a job ended.

    Args:
        job: with what its worker said last.
        worker: that has gone, or was killed.
        late: whether it was killed since it did not save in time.
        hang: why it was killed before, if it was.
        stopping: whether it was told to end.
    """
    final = job.final or {}
    reason = final.get("reason")  # of a worker that ended well
    if reason in ("budget", "finished"):
        return End(status="done", facts={"reason": reason})
    if reason == "stopped" and stopping:
        return End(status="stopped")
    if reason == "stopped":
        return End(status="stopped", detail=_SIGNALLED, told=f"stopped: {_SIGNALLED}")
    if late and not final:
        return End(status="stopped", detail=(detail := job.late_detail()), told=f"was {detail}")
    kind = final.get("kind") or reason or ("hang" if hang else "oom" if worker.starved else "crashed")
    return End.crashed(final.get("detail") or hang or describe_end(worker), error=kind, worker=worker)


def describe_end(worker: WorkerProcess) -> str:
    """How a process ended that gave no reason, with the last lines of its log."""
    ending, tail = f"ended with {describe_exit(worker.returncode or 0)}", worker.log_tail(_LOG_LINES)
    if worker.starved:
        ending = "was killed by the kernel, which had no memory left: train at a lighter point, such as the ladder's"
    return f"its process {ending}" + (f":\n{tail}" if tail else "")
