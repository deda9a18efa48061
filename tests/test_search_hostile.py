"""Real searches on `busywork` whose processes hang, ignore SIGTERM, run out of memory or take long iterations."""

import time
from dataclasses import replace

import psutil
import pytest

from autotune.device.inspect import inspect_device
from autotune.executors.isolated import IsolatedExecutor
from autotune.probe.recipe import load_recipe
from autotune.records import MeasurePlan, Point, ProbeRequest, ProbeResult
from autotune.runs import create_run
from autotune.search.study import run_study

QUICK = MeasurePlan(discard_s=0.2, discard_iterations=1, window_s=0.4, window_iterations=2, timeout_s=4.0)
FINAL = replace(QUICK, window_s=0.8, window_iterations=3)


class Faulty(IsolatedExecutor):
    """Makes the probes of certain numbers fail in certain ways."""

    def __init__(self, faults: dict[str, str]) -> None:
        super().__init__(inspect_device("cpu"))
        self.faults = faults
        self.seen: list[tuple[ProbeRequest, ProbeResult]] = []

    def run(self, request: ProbeRequest) -> ProbeResult:
        fail = self.faults.get(request.label, "none")
        broken = {**request.hyperparameters, "fail": fail, "fail_after_iterations": 0 if fail == "oom" else 1}
        result = super().run(replace(request, hyperparameters=broken))
        self.seen.append((request, result))
        return result


def recipe_with(**hyperparameters):
    recipe = load_recipe("busywork")
    return replace(
        recipe, quick=QUICK, final=FINAL, hyperparameters={**recipe.hyperparameters, **hyperparameters}
    )  # fmt: skip


def workers() -> list[psutil.Process]:
    mine = psutil.Process().children(recursive=True)
    return [p for p in mine if "autotune.worker" in " ".join(p.cmdline())]


def test_the_budget_is_met_with_a_hung_probe_one_that_ignores_sigterm_and_an_oom(tmp_path):
    executor = Faulty({"0001": "oom", "0002": "hang", "0004": "ignore_sigterm"})
    started_s = time.monotonic()
    found = run_study(recipe_with(), executor, create_run(tmp_path, "run-1"), budget_s=20.0, early_stop=False)
    assert time.monotonic() - started_s < 20.0 + 15.0
    assert found.spent_s < 20.0 + 15.0
    records = found.trials
    assert [record.result.status for record in records[:5:2]] == ["ok", "timeout", "timeout"][: len(records[:5:2])]
    assert (records[1].result.status, found.counts["oom"]) == ("oom", 1)
    cut = [record for record in records if not record.counts]
    assert all(r.result.detail.startswith("cut by the budget") and r is records[-1] for r in cut)
    failed = [record.result.requested for record in records[1:3]]
    later = [record.result.requested for record in records[3:]]
    assert later and not any(point.dominates(bad) for point in later for bad in failed)
    assert found.result.ok and not workers()


@pytest.mark.slow
def test_long_iterations_are_no_hang_the_timeout_grows_with_the_prediction(tmp_path):
    """One iteration takes 1.3 s, a probe some 8 s; a fixed timeout of 4 s would call that a hang."""
    executor = Faulty({})
    slow = recipe_with(step_overhead_s=0.04, infer_s=0.0, env_s=0.0, learn_s=0.0, minibatch_overhead_s=0.0)
    slow = replace(slow, knobs={**slow.knobs, "num_envs": (8, 16), "batch_size": (64,)})
    found = run_study(slow, executor, create_run(tmp_path, "run-1"), budget_s=60.0, early_stop=False)
    assert found.counts["timeout"] == 0
    assert found.result.ok
    patience = [request.plan.timeout_s for request, _ in executor.seen]
    predicted = [record.started["predicted_s"] for record in found.trials]
    left_s = [60.0 - sum(result.cost_s for _, result in executor.seen[:n]) for n in range(len(patience))]
    assert max(predicted) > 4.0 / 3
    for timeout_s, predicted_s, room_s in zip(patience, predicted, left_s, strict=True):
        assert timeout_s == pytest.approx(min(max(4.0, 3 * predicted_s), room_s), abs=3.0)


@pytest.mark.slow
def test_the_last_final_window_of_long_iterations_fits_into_the_budget(tmp_path):
    """Whole iterations of 0.6 s: three are discarded and six measured, more than the plan's seconds."""
    recipe = recipe_with(step_overhead_s=0.02, infer_s=0.0, env_s=0.0, learn_s=0.0, minibatch_overhead_s=0.0)
    recipe = replace(
        recipe,
        quick=replace(QUICK, timeout_s=60.0, long_iteration_s=0.3),
        final=replace(FINAL, timeout_s=60.0, discard_iterations=3, window_iterations=6, long_iteration_s=5.0),
        knobs={**recipe.knobs, "num_envs": (8, 16), "batch_size": (64,), "concurrency": (1,)},
    )
    found = run_study(recipe, Faulty({}), create_run(tmp_path, "run-1"), budget_s=45.0, early_stop=False)
    assert found.result.grade == "final"
    assert not [record for record in found.trials if not record.counts], "a final window was cut by the budget"
    finals = [record for record in found.trials if record.result.grade == "final"]
    assert finals[0].result.cost_s <= finals[0].started["predicted_s"] * 1.3
    assert found.point in (Point(num_envs=16, batch_size=64), Point(num_envs=8, batch_size=64))
