"""The beginning and the end of a training's workers: whether jobs can run, what a worker is told, how it ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autotune.executors.isolated import IsolatedExecutor, share_of
from autotune.executors.process import WorkerProcess
from autotune.machine import DeviceInfo
from autotune.manifest import Manifest
from autotune.records import Job
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


def describe_end(worker: WorkerProcess) -> str:
    """How a process ended that gave no reason, with the last lines of its log."""
    ending, tail = f"ended with {describe_exit(worker.returncode or 0)}", worker.log_tail(_LOG_LINES)
    if worker.starved:
        ending = "was killed by the kernel, which had no memory left: train at a lighter point, such as the ladder's"
    return f"its process {ending}" + (f":\n{tail}" if tail else "")
