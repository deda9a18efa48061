"""The beginning and the end of a training's workers: whether jobs can run, what a worker is told, how it ended."""

from __future__ import annotations

from collections.abc import Sequence

from autotune.executors.isolated import IsolatedExecutor, threads_each
from autotune.executors.process import WorkerProcess
from autotune.machine import DeviceInfo
from autotune.manifest import Manifest
from autotune.train.job import JobRun
from autotune.worker.protocol import TrainPlan, WorkerTask
from autotune.workloads.command_child import describe_exit

_LOG_LINES = 5


def tuned_elsewhere(manifest: Manifest, device: DeviceInfo) -> str:
    """What to say of a manifest that was tuned on another device; empty for one that was not."""
    if manifest.device is None or manifest.device.fingerprint == device.fingerprint:
        return ""
    return (
        f"the manifest was tuned on {manifest.device.fingerprint}, this is {device.fingerprint}: "
        "it runs, but another point may be faster here (`autotune search`)"
    )


def check_jobs(manifest: Manifest, device: DeviceInfo, runs: Sequence[JobRun], *, with_states: bool) -> None:
    """Ask a worker whether jobs can run here, and with `with_states` whether their checkpoints fit them.

    Raises:
        UsageError: the workload refuses a value, a job or a checkpoint.
    """
    workload, jobs = manifest.workload, tuple(run.job for run in runs)
    states = {run.job.id: meta for run in runs if with_states and (meta := run.saved_meta()) is not None}
    point = manifest.point.record()
    IsolatedExecutor(device).ask("check", workload.name, workload.hyperparameters, jobs, point, states=states)


def training_task(manifest: Manifest, device: DeviceInfo, job: JobRun) -> WorkerTask:
    """The task of a worker that trains a job of a manifest, with its share of the machine."""
    point = manifest.point.record()
    return WorkerTask(
        mode="train",
        workload=manifest.workload.name,
        hyperparameters=manifest.workload.hyperparameters,
        point=point,
        jobs=(job.job,),
        device=device.kind,
        threads=threads_each(device, point.concurrency),
        memory_fraction=manifest.stability.vram_fraction / point.concurrency if device.kind == "cuda" else None,
        ram_bytes=int(manifest.stability.ram_fraction * device.host.ram_limit_bytes / point.concurrency),
        train=TrainPlan(
            folder=str(job.folder),
            checkpoint_interval_s=manifest.stability.checkpoint_interval_s,
            keep=manifest.stability.keep,
            saved_env_steps=job.recalled_steps,
            predecessor=job.predecessor,
        ),
    )


def describe_end(worker: WorkerProcess) -> str:
    """How a process ended that gave no reason, with the last lines of its log."""
    ending, tail = describe_exit(worker.returncode or 0), worker.log_tail(_LOG_LINES)
    return f"its process ended with {ending}" + (f":\n{tail}" if tail else "")
