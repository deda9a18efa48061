"""What a training worker goes on from: never silently from less than was saved, nor from another job's state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autotune.errors import UsageError
from autotune.records import Job
from autotune.worker.checkpoint import lost_checkpoints, newest_checkpoint
from autotune.worker.metrics import keep_later_rows
from autotune.worker.protocol import TrainPlan


def find_checkpoint(job: Job, plan: TrainPlan, warn: Callable[[str], None]) -> Path | None:
    """The checkpoint that a job goes on from, None for one that never saved.

    Raises:
        FileError: it has saved, and its checkpoints are all damaged or gone.
    """
    folder = Path(plan.folder) / "checkpoints"
    path = newest_checkpoint(folder, warn)
    if path is None and plan.saved_env_steps is not None:
        raise lost_checkpoints(folder, job.id, plan.saved_env_steps)
    return path


def check_origin(meta: Mapping[str, Any], job: Job, path: Path, warn: Callable[[str], None]) -> None:
    """Refuse a checkpoint that says it is of another job, and tell of another seed.

    Raises:
        UsageError: it is of another job.
    """
    refuse_other_job(meta, job.id, path)
    if meta.get("seed", job.seed) != job.seed:
        warn(f"goes on from a checkpoint that was trained with seed {meta['seed']}, now with seed {job.seed}: {path}")


def refuse_other_job(meta: Mapping[str, Any], job: str, path: Path) -> None:
    """Refuse a checkpoint that says it is of another job.

    Raises:
        UsageError: it is.
    """
    if meta.get("job", job) != job:
        raise UsageError(
            f"{path} is a checkpoint of job {meta['job']}, and this is job {job}: move it away, or give the job that "
            "id in the manifest and the folder that name"
        )


def announce_fallback(plan: TrainPlan, env_steps: int, warn: Callable[[str], None]) -> None:
    """Tell that training goes back behind what was saved, and keep the curve as it was.

    Raises:
        FileError: the curve cannot be kept.
    """
    if plan.saved_env_steps is None or env_steps >= plan.saved_env_steps:
        return
    kept = keep_later_rows(Path(plan.folder) / "metrics.csv", env_steps)
    warn(
        f"goes back to env step {env_steps:,}: the checkpoint that was saved at {plan.saved_env_steps:,} is gone or "
        f"damaged, and what came after is trained again{f'; the curve as it was is {kept}' if kept else ''}"
    )
