"""A guard: trains the pilots under supervision, resumable, and compares what they returned."""

from __future__ import annotations

from collections.abc import Callable

from autotune.codec import to_json
from autotune.errors import FileError
from autotune.guard.pilots import GuardPlan, Pilots
from autotune.guard.verdict import Comparison, Curve, Interval, Side, compare, curve_of
from autotune.machine import DeviceInfo
from autotune.manifest import Manifest, manifest_text, save_manifest
from autotune.manifest_schema import LearningSection, PilotReturns
from autotune.records import TrainResult
from autotune.runs import Run, create_run
from autotune.store import canonical_json, content_hash
from autotune.train.events import last_event, read_events
from autotune.train.status import Snapshot
from autotune.train.supervise import supervise
from autotune.worker.metrics import read_metrics

_NO_EVIDENCE = ("file", "busy", "misuse")
"""Kinds of a worker's errors that say nothing of the point: of its files, another worker, a foreign checkpoint."""


def run_guard(
    pilots: Pilots,
    plan: GuardPlan,
    begun: LearningSection,
    run: Run,
    *,
    device: DeviceInfo,
    on_event: Callable[[Snapshot], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> LearningSection | None:
    """Train what is left of the pilots and compare them; None when stopped before the end, and the same call goes on.

    A pilot that crashes is a value: it is part of the verdict.

    Args:
        pilots: of both points.
        plan: what was asked for.
        begun: what is known of learning without pilots.
        run: of the search; the pilots train in ``guard/`` below it.
        device: what to train on.
        on_event: takes a snapshot about twice a second.
        warn: takes sentences for the user.
        should_stop: asked a few times a second; then workers save and end.

    Raises:
        FileError: the run's folder cannot be written, or a file in it is damaged, a pilot's among them.
    """
    curves: list[list[Curve]] = []
    for role, manifest in (("tuned", pilots.tuned), ("baseline", pilots.baseline)):
        arm = open_arm(run, role, manifest)
        result = supervise(
            manifest, arm, device=device, on_event=on_event, warn=warn, should_stop=should_stop, retried=False
        )
        if any(job.status in ("stopped", "waiting", "running") for job in result.jobs):
            return None
        _refuse_broken_files(arm, result)
        curves.append([_curve(arm, result, index) for index in range(len(result.jobs))])
    compared = compare(curves[0], curves[1], env_steps=pilots.env_steps, margin_fraction=plan.margin_fraction)
    return evidence(begun, pilots, plan, compared)


def open_arm(run: Run, role: str, manifest: Manifest) -> Run:
    """The folder in which the pilots of one point train: its own for every point, kept when more steps are asked for.

    Raises:
        FileError: it cannot be created.
    """
    facts = [manifest.point.model_dump(), to_json(manifest.workload.model_dump()), manifest.jobs[0].env]
    name = f"{role}-{content_hash(canonical_json(facts))[:8]}"
    folder = run.guard_folder
    there = Run(folder / name)
    arm = there if there.state_file.exists() else create_run(folder, name, command="guard", finished=False)
    if not arm.manifest_file.exists() or arm.manifest_file.read_text(encoding="utf-8") != manifest_text(manifest):
        save_manifest(arm.manifest_file, manifest)
    return arm


def _refuse_broken_files(arm: Run, result: TrainResult) -> None:
    """Refuse to judge a point by its pilots' files: a full disk or a damaged checkpoint says nothing of learning.

    Raises:
        FileError: a pilot ended for such a reason.
    """
    events = read_events(arm)
    for job in result.jobs:
        crash = last_event(events, {"crashed"}, job.id) if job.status == "crashed" else None
        if crash and crash.get("error") in _NO_EVIDENCE:
            raise FileError(
                f"the guard's pilot {job.id} cannot go on: {job.detail.rstrip('.')}. Or remove {arm.path}: its pilots "
                "then begin anew. The same command goes on with the guard"
            )


def _curve(arm: Run, result: TrainResult, index: int) -> Curve:
    job = result.jobs[index]
    failure = "" if job.status == "done" else f"{job.id} crashed at env step {job.env_steps:,}: {_brief(job.detail)}"
    return curve_of(read_metrics(arm.jobs_folder / job.id / "metrics.csv"), failure)


def _brief(detail: str) -> str:
    return (detail.splitlines() or ["no reason known"])[0][:200]


def evidence(begun: LearningSection, pilots: Pilots, plan: GuardPlan, compared: Comparison) -> LearningSection:
    """What the manifest carries of a comparison."""
    difference = compared.difference
    return begun.model_copy(
        update={
            "status": compared.verdict,
            "detail": compared.detail,
            "env": pilots.env,
            "env_steps": pilots.env_steps,
            "seeds": pilots.seeds,
            "margin_fraction": plan.margin_fraction,
            "margin": compared.margin,
            "difference": difference.mean if difference else None,
            "difference_low": difference.low if difference else None,
            "difference_high": difference.high if difference else None,
            "tuned_returns": _returns(compared.tuned),
            "baseline_returns": _returns(compared.baseline),
        }
    )


def _returns(side: Side) -> PilotReturns:
    return PilotReturns(
        **_ends("final", side.final),
        **_ends("area", side.area),
        by_seed=side.finals,
    )


def _ends(name: str, interval: Interval | None) -> dict[str, float | None]:
    return {
        name: interval.mean if interval else None,
        f"{name}_low": interval.low if interval else None,
        f"{name}_high": interval.high if interval else None,
    }
