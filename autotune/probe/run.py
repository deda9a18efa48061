"""One probe: from a recipe and a point to a measured result."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import replace

from autotune.errors import UsageError
from autotune.executors.protocol import Executor
from autotune.probe.bottleneck import limited_by
from autotune.records import Grade, Point, ProbeRequest, ProbeResult, Recipe
from autotune.runs import Run


def build_request(
    recipe: Recipe,
    point: Point,
    *,
    grade: Grade,
    run: Run,
    label: str,
    timeout_s: float | None = None,
    earlier: Iterable[ProbeResult] = (),
) -> ProbeRequest:
    """The request for one point; process i runs job i, `timeout_s` caps the recipe's own."""
    plan = recipe.quick if grade == "quick" else recipe.final
    if timeout_s is not None:
        plan = replace(plan, timeout_s=min(plan.timeout_s, timeout_s))
    before = tuple(earlier)
    jobs = tuple(recipe.jobs[i % len(recipe.jobs)] for i in range(point.concurrency))
    return ProbeRequest(
        workload=recipe.workload,
        hyperparameters=recipe.hyperparameters,
        point=point,
        jobs=jobs,
        grade=grade,
        plan=plan,
        limits=recipe.limits,
        log_folder=str(run.path / "logs"),
        samples_path=str(run.path / "samples" / f"{label}.jsonl"),
        label=label,
        checkpoints=recipe.checkpoints,
        steps_heard=any(result.first_iteration_s is not None for result in before),
        ran_before=any(result.ok and result.requested == point for result in before),
    )


def run_probe(
    recipe: Recipe,
    point: Point,
    executor: Executor,
    *,
    grade: Grade,
    run: Run,
    label: str,
    timeout_s: float | None = None,
    optional: bool = False,
    earlier: Iterable[ProbeResult] = (),
) -> ProbeResult:
    """Measure one point and say what limits it.

    Args:
        recipe: what is measured.
        point: the knobs.
        executor: carries it out.
        grade: quick figures rank, final ones are published.
        run: where logs and samples go.
        label: names them.
        timeout_s: at most this long, whatever the recipe's plan says.
        optional: a value that this device cannot take is an answer about a knob, a crash, and no misuse.
        earlier: results of the same run; once one told steps, a program that tells none fails at its point.

    Raises:
        UsageError: the workload refuses the point, which is not `optional`.
    """
    request = build_request(recipe, point, grade=grade, run=run, label=label, timeout_s=timeout_s, earlier=earlier)
    try:
        with redirect_stdout(sys.stderr):  # stdout is for data, and an installed meter may print
            result = executor.run(request)
    except UsageError as error:
        if not optional:
            raise
        result = ProbeResult(requested=point, status="crashed", grade=grade, detail=str(error))
    limit = limited_by(result, executor.device) if result.ok else result.limited_by
    envs = tuple(job.env for job in request.jobs)
    return replace(result, requested=point, grade=grade, envs=envs, limited_by=limit)
