"""Trains a manifest: one supervisor after another, each at the rung where the training stands."""

from __future__ import annotations

from collections.abc import Callable

from autotune.device.mps import shared_if_possible
from autotune.machine import DeviceInfo
from autotune.manifest import Manifest, check_manifest
from autotune.records import MeasurePlan, TrainResult
from autotune.runs import Run
from autotune.train.ladder import next_step
from autotune.train.migration import part_from_lost, refuse_migrated, say_emptied
from autotune.train.silence import Patience
from autotune.train.status import Snapshot
from autotune.train.supervisor import STOP_GRACE_S, Supervisor


def supervise(
    manifest: Manifest,
    run: Run,
    *,
    device: DeviceInfo,
    on_event: Callable[[Snapshot], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    plan: MeasurePlan | None = None,
    stop_grace_s: float = STOP_GRACE_S,
    only: frozenset[str] | None = None,
    patience: Patience | None = None,
    retried: bool = True,
) -> TrainResult:
    """Train every unfinished job of a manifest at its point, or at a lighter rung of its ladder once that is unstable.

    The same call resumes; it tries jobs again that crashed where it steps down, unless `only` some may run.

    Args:
        manifest: what to train.
        run: where events, checkpoints, metrics and logs go; the caller holds it.
        device: what to train on.
        on_event: takes a snapshot about twice a second.
        warn: takes sentences for the user.
        should_stop: asked a few times a second; then workers save and end.
        plan: what the measured rate leaves out as warm-up.
        stop_grace_s: seconds that workers get to save before they are killed, beside those of their iteration.
        only: ids of the jobs that may run, None for all.
        patience: with workers that say nothing.
        retried: whether the same call goes on with jobs that crashed, so that they say from where.

    Raises:
        UsageError: the workload refuses the point, a hyperparameter or a job, or another run goes on with this one.
        DeviceError: the GPU admits fewer processes than the point has.
        FileError: the run's folder is read-only or full.
    """
    refuse_migrated(run)
    check_manifest(manifest)
    part_from_lost(run, warn)
    say_emptied(run, warn)
    plan = plan or MeasurePlan()
    step = next_step(manifest, run, device)
    while True:
        with shared_if_possible(device, step.rung.point, warn) as shared:
            supervisor = Supervisor(
                manifest, run, device, warn, plan, stop_grace_s, step=step, shared=shared, only=only, patience=patience,
                retried=retried,
            )  # fmt: skip
            try:
                result = supervisor.run(on_event, should_stop)
            finally:
                supervisor.close()
        crashed = any(job.status == "crashed" for job in result.jobs)
        if only is not None or not crashed or should_stop():
            return result
        step = next_step(manifest, run, device)
        if not step.stepped:
            return result
