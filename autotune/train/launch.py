"""What a training's supervisor tells the worker of a job."""

from __future__ import annotations

from autotune.executors.isolated import threads_each
from autotune.machine import DeviceInfo
from autotune.manifest import Manifest
from autotune.train.job import JobRun
from autotune.worker.protocol import TrainPlan, WorkerTask


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
        ),
    )
