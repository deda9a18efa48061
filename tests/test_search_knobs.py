"""Further knobs: which launches are compared, in which order, what is decided, and what compiling costs."""

from dataclasses import replace

import numpy as np
import pytest
from analytic_surface import smooth_sps, write_surface

from autotune.device.inspect import inspect_device
from autotune.errors import UsageError
from autotune.executors.isolated import IsolatedExecutor
from autotune.executors.replay import ReplayExecutor, surface_recipe
from autotune.manifest import build_manifest
from autotune.probe.recipe import load_recipe
from autotune.records import Budget, Job, MeasurePlan, Point, ProbeResult
from autotune.runs import create_run
from autotune.search.knobs import concluded, further_knobs, reserve_s, tune
from autotune.search.paired import compare
from autotune.search.study import run_study

INCUMBENT = Point(num_envs=32, batch_size=256, concurrency=2)


def recipe_with(knobs, baseline=None, *, jobs=4, steps=1e8, **hyperparameters):
    """busywork with further knobs, the first value each the baseline's."""
    recipe = load_recipe("busywork")
    extra = tuple(sorted((name, values[0]) for name, values in knobs.items()))
    return replace(
        recipe,
        hyperparameters={**recipe.hyperparameters, **hyperparameters},
        knobs={**recipe.knobs, **knobs},
        baseline=replace(recipe.baseline, extra=extra),
        jobs=tuple(Job(id=f"j{n}", env="busy", seed=n, budget=Budget(unit="steps", amount=steps)) for n in range(jobs)),
    )


def at(recipe, point=INCUMBENT):
    return replace(point, extra=recipe.baseline.extra)


def launch(point, sps, *, first_iteration_s=0.5, status="ok"):
    return ProbeResult(
        requested=point,
        status=status,
        grade="quick",
        detail="" if status == "ok" else "told to",
        sps=sps if status == "ok" else None,
        sps_low=0.97 * sps,
        sps_high=1.03 * sps,
        job_sps=(sps / point.concurrency,) * point.concurrency,
        first_iteration_s=first_iteration_s,
        window_s=8.0,
        iterations=32,
    )


def carried_out(recipe, incumbent, measure, crowd=None, limit=100):
    """The whole stage with a machine that is a function: (tuning, the points in the order measured)."""
    results = []
    while (tuning := tune(recipe, incumbent, results, crowd)).upcoming is not None and len(results) < limit:
        results.append(measure(tuning.upcoming, len(results)))
    return tuning, [result.requested for result in results]


def values(points, name):
    return [dict(point.extra)[name] for point in points]


def test_a_clear_gain_is_chosen_after_two_pairs_in_turned_order():
    recipe = recipe_with({"precision": ("fp32", "bf16")})
    tuning, order = carried_out(
        recipe, at(recipe), lambda p, n: launch(p, 1300 if dict(p.extra)["precision"] == "bf16" else 1000)
    )
    assert values(order, "precision") == ["bf16", "fp32", "fp32", "bf16"]
    assert tuning.point == replace(INCUMBENT, extra=(("precision", "bf16"),))
    (decision,) = tuning.decisions
    assert (decision.before, decision.tried, decision.chosen, decision.pairs) == ("fp32", "bf16", "bf16", 2)
    assert decision.ratio == pytest.approx(1.3)
    assert 1 < decision.low < 1.3 < decision.high
    assert decision.sentence.startswith("precision=bf16 is faster than precision=fp32 (1.30x [")
    assert "precision=bf16 is chosen (whether each step teaches as much was not measured)" in decision.sentence


def test_no_measurable_difference_keeps_the_baseline_after_four_pairs():
    recipe = recipe_with({"compile": (False, True)})
    wobble = [1.0, 1.01, 0.99, 1.02, 0.98, 1.0, 1.01, 0.995]
    tuning, order = carried_out(recipe, at(recipe), lambda p, n: launch(p, 1000 * wobble[n]))
    assert len(order) == 8 and order.count(at(recipe)) == 4
    (decision,) = tuning.decisions
    assert decision.chosen is False and decision.low < 1 < decision.high
    assert "makes no measurable difference to compile=False" in decision.sentence
    assert decision.sentence.endswith("compile=False is kept")
    assert tuning.point == at(recipe)


def test_a_slower_value_is_dropped_early_and_the_rest_go_on():
    recipe = recipe_with({"env_threads": (1, 2, 4)})
    speed = {1: 1000, 2: 700, 4: 1015}
    tuning, order = carried_out(recipe, at(recipe), lambda p, n: launch(p, speed[dict(p.extra)["env_threads"]]))
    counted = {value: values(order, "env_threads").count(value) for value in speed}
    assert counted == {1: 4, 2: 2, 4: 4}
    assert [decision.chosen for decision in tuning.decisions] == [1, 1]
    assert "is slower than env_threads=1" in tuning.decisions[0].sentence


def test_the_best_of_several_faster_values_is_taken_and_the_next_knob_builds_on_it():
    recipe = recipe_with({"env_threads": (1, 2, 4), "compile": (False, True)})

    def measure(point, number):
        knobs = dict(point.extra)
        return launch(point, 1000 * {1: 1.0, 2: 1.2, 4: 1.5}[knobs["env_threads"]] * (1.4 if knobs["compile"] else 1))

    tuning, order = carried_out(recipe, at(recipe), measure)
    assert dict(tuning.point.extra) == {"env_threads": 4, "compile": True}
    assert [(d.tried, d.chosen) for d in tuning.decisions] == [(2, 4), (4, 4), (True, True)]
    assert all(point.extra[1] == ("env_threads", 4) for point in order[6:])
    assert [d.pairs for d in tuning.decisions] == [2, 2, 2]


@pytest.mark.parametrize(("steps", "chosen"), [(1e9, True), (1e5, False)])
def test_compile_seconds_are_spread_over_the_planned_training(steps, chosen):
    """1e5 steps by each of 4 jobs, two at a time, take 400 s: 1.2x saves 67 s, and compiling twice 40 s costs 80."""
    recipe = recipe_with({"compile": (False, True)}, steps=steps)

    def measure(point, number):
        compiled = dict(point.extra)["compile"]
        return launch(point, 1200 if compiled else 1000, first_iteration_s=40.5 if compiled else 0.5)

    tuning, _ = carried_out(recipe, at(recipe), measure)
    (decision,) = tuning.decisions
    assert decision.compile_s == pytest.approx(40.0)
    assert decision.chosen is chosen and decision.low > 1
    assert "40s of compilation a launch" in decision.sentence
    assert ("not over the planned training of 6m 40s" in decision.sentence) is not chosen


def test_a_value_that_cannot_run_costs_one_launch_and_says_why():
    recipe = recipe_with({"precision": ("fp32", "fp16")})
    tuning, order = carried_out(recipe, at(recipe), lambda p, n: launch(p, 1, status="crashed"))
    assert values(order, "precision") == ["fp16"]
    (decision,) = tuning.decisions
    assert (decision.chosen, decision.ratio, decision.pairs) == ("fp32", None, 0)
    assert decision.sentence == "precision=fp16 was not measured (crashed: told to); precision=fp32 is kept"


def test_of_a_program_that_refuses_a_value_its_own_words_are_told():
    recipe = recipe_with({"precision": ("fp32", "fp16")})
    said = "the program ended with exit code 2; the last lines were:\nusage: train.py\ntrain.py: error: no fp16"
    tuning, _ = carried_out(recipe, at(recipe), lambda p, n: replace(launch(p, 1, status="crashed"), detail=said))
    told = "(crashed: the program ended with exit code 2; the last lines were: train.py: error: no fp16)"
    assert told in tuning.decisions[0].sentence


def test_a_failing_incumbent_ends_the_comparison():
    recipe = recipe_with({"precision": ("fp32", "bf16")})
    tuning, order = carried_out(
        recipe, at(recipe), lambda p, n: launch(p, 1000, status="oom" if p == at(recipe) else "ok")
    )
    assert len(order) == 2 and tuning.point == at(recipe)
    assert "the incumbent itself failed" in tuning.decisions[0].sentence


def test_a_rollout_too_short_for_the_minibatch_is_not_tried_and_a_longer_one_says_what_it_changes():
    recipe = recipe_with({"rollout": (32, 4, 64)}, rollout=32)
    tuning, order = carried_out(
        recipe, at(recipe), lambda p, n: launch(p, 1200 if dict(p.extra)["rollout"] == 64 else 1000)
    )
    assert 4 not in values(order, "rollout")
    refused, chosen = tuning.decisions
    assert refused.tried == 4 and "batch_size=256 is larger than the rollout of 128 samples" in refused.sentence
    assert chosen.chosen == 64 and "each update learns from 2,048 samples instead of 1,024" in chosen.sentence


def test_sharing_is_tried_with_several_processes_where_one_is_best():
    recipe = recipe_with({"sharing": ("time-slice", "cuda-mps")})
    alone, crowd = at(recipe, replace(INCUMBENT, concurrency=1)), at(recipe, replace(INCUMBENT, concurrency=4))
    tuning, order = carried_out(
        recipe, alone, lambda p, n: launch(p, 1000 if p == alone else 1700, first_iteration_s=0.5), crowd
    )
    assert tuning.point == replace(crowd, extra=(("sharing", "cuda-mps"),))
    assert len(order) == 4
    without, nothing = carried_out(recipe, alone, lambda p, n: launch(p, 1000))
    assert nothing == [] and without.point == alone
    assert "no point with several was stable" in without.decisions[0].sentence


def test_the_stage_goes_on_where_it_was_and_passes_over_what_it_did_not_ask_for():
    recipe = recipe_with({"precision": ("fp32", "bf16")})
    stray = launch(replace(INCUMBENT, num_envs=8), 5.0)
    first = launch(replace(INCUMBENT, extra=(("precision", "bf16"),)), 1000)
    tuning = tune(recipe, at(recipe), [stray, first, stray])
    assert tuning.upcoming == at(recipe)
    (left,) = concluded(recipe, tuning)
    assert left.sentence.startswith("precision=bf16 was not compared to the end: the budget had no room")
    assert left.sentence.endswith("precision=fp32 is kept")


def test_without_further_knobs_nothing_is_kept_or_asked():
    recipe = load_recipe("busywork")
    assert further_knobs(recipe) == {}
    assert reserve_s(recipe, 1800.0, 20.0) == 0.0
    assert tune(recipe, INCUMBENT, []).upcoming is None
    fixed = recipe_with({"precision": ("fp32",)})
    assert further_knobs(fixed) == {}


def test_time_is_kept_for_every_launch_up_to_a_quarter_of_the_budget():
    recipe = recipe_with({"precision": ("fp32", "bf16"), "env_threads": (1, 2, 4)})
    assert reserve_s(recipe, 10_000.0, 20.0) == 4 * 5 * 20.0
    assert reserve_s(recipe, 1000.0, 20.0) == 250.0


def test_intervals_of_pairs_cover_the_truth():
    """Equal arms with 2 % of noise a launch: over three looks, a false gain or loss in at most about 5 % of cases."""
    rng, wrong, wide = np.random.default_rng(1), 0, 0
    jobs = recipe_with({}).jobs
    for _ in range(400):
        arms = [[launch(INCUMBENT, 1000 * np.exp(0.02 * rng.normal())) for _ in range(4)] for _ in range(2)]
        looks = [compare(jobs, arms[0][:n], arms[1][:n]) for n in (2, 3, 4)]
        wrong += any(not look.low <= 1 <= look.high for look in looks)
        wide += looks[-1].high / looks[-1].low > 1.16
    assert wrong <= 0.06 * 400
    assert wide == 0


def test_a_single_pair_settles_nothing():
    one = compare(recipe_with({}).jobs, [launch(INCUMBENT, 1000)], [launch(INCUMBENT, 2000)])
    assert one.low > 1 and not one.faster and not one.settled


class Knobbed(ReplayExecutor):
    """A replayed surface on which further knobs multiply the throughput; what `fails` names crashes or is refused."""

    def __init__(self, path, factors, fails=()):
        super().__init__(path, seed=3)
        self._factors, self._fails = factors, fails

    def run(self, request):
        knobs = request.point.extra
        if refused := [knob for knob in knobs if knob in self._fails]:
            raise UsageError(f"{refused[0]} is not native here")
        result, factor = super().run(request), float(np.prod([self._factors.get(knob, 1.0) for knob in knobs]))
        scaled = {name: factor * getattr(result, name) for name in ("sps", "sps_low", "sps_high")}
        return replace(result, **scaled, effective=request.point.knobs())


KNOBS = {"compile": (False, True), "precision": ("fp32", "bf16")}


@pytest.fixture(scope="module")
def surface(tmp_path_factory):
    return write_surface(tmp_path_factory.mktemp("surfaces") / "small.csv", noise=0.01)


def search(surface, run, factors, *, fails=(), knobs=KNOBS, budget_s=900.0, **options):
    recipe = surface_recipe(surface)
    extra = tuple((name, values[0]) for name, values in knobs.items())
    recipe = replace(recipe, knobs={**recipe.knobs, **knobs}, points=(), baseline=replace(recipe.baseline, extra=extra))
    return run_study(recipe, Knobbed(surface, factors, fails), run, budget_s=budget_s, **options)


def test_a_search_tunes_further_knobs_after_the_model_and_confirms_what_it_chose(surface, tmp_path):
    run = create_run(tmp_path, "run-1")
    found = search(surface, run, {("precision", "bf16"): 1.3}, fails=[("compile", True)])
    assert dict(found.point.extra) == {"compile": False, "precision": "bf16"}
    assert (found.result.requested, found.result.grade) == (found.point, "final")
    assert found.result.sps == pytest.approx(1.3 * smooth_sps(*list(found.point.knobs().values())[:3]), rel=0.03)
    stages = [record.stage for record in found.trials]
    first, last = stages.index("knobs"), len(stages) - 1 - stages[::-1].index("knobs")
    assert set(stages[first : last + 1]) == {"knobs"}
    assert set(stages[:first]) <= {"baseline", "rule of thumb", "spread", "model", "neighbours", "sentinel"}
    assert set(stages[last + 1 :]) <= {"final", "soak"}
    assert {r.result.requested.extra for r in found.trials[:first]} == {found.baseline.requested.extra}
    refused, chosen = found.knobs
    assert (refused.name, refused.chosen, chosen.name, chosen.chosen) == ("compile", False, "precision", "bf16")
    assert "('compile', True) is not native here" in refused.sentence
    assert chosen.low < 1.3 < chosen.high
    assert found.tied == () and all(rung.requested.extra == found.baseline.requested.extra for rung in found.ladder)
    manifest = build_manifest(replace(load_recipe("busywork"), jobs=surface_recipe(surface).jobs), found.point)
    assert manifest.point.record() == found.point


def test_knobs_that_change_nothing_leave_the_search_as_it_was(surface, tmp_path):
    found = search(surface, create_run(tmp_path, "run-1"), {}, knobs={"compile": (False, True)}, budget_s=1200.0)
    assert dict(found.point.extra) == {"compile": False}
    assert found.result.grade == "final"
    (decision,) = found.knobs
    assert "no measurable difference" in decision.sentence and decision.chosen is False


def test_a_resumed_comparison_asks_what_an_uninterrupted_one_does(surface, tmp_path):
    factors = {("compile", True): 1.05, ("precision", "bf16"): 1.3}
    whole = search(surface, create_run(tmp_path, "whole"), factors)
    middle = [record.stage for record in whole.trials].index("knobs") + 3
    run, asked = create_run(tmp_path, "parts"), iter([False] * middle + [True])
    cut = search(surface, run, factors, should_stop=lambda: next(asked))
    assert cut.interrupted and len(cut.knobs) == 2
    parts = search(surface, run, factors)
    assert [r.result.requested for r in parts.trials] == [r.result.requested for r in whole.trials]
    assert (parts.point, parts.knobs) == (whole.point, whole.knobs)


def test_a_real_search_over_a_further_knob(tmp_path):
    """Vector steps of 2 ms take less than those of 8 ms: no noise hides a factor of 2."""
    recipe = load_recipe("busywork")
    quick = MeasurePlan(discard_s=0.1, discard_iterations=1, window_s=0.3, window_iterations=2, timeout_s=20.0)
    recipe = replace(
        recipe,
        hyperparameters={**recipe.hyperparameters, "noise_fraction": 0.0, "warmup_iterations": 0},
        knobs={"num_envs": (8,), "batch_size": (64,), "concurrency": (1,), "step_overhead_s": (2e-3, 8e-3)},
        baseline=Point(num_envs=8, batch_size=64, extra=(("step_overhead_s", 8e-3),)),
        quick=quick,
        final=replace(quick, window_s=0.5),
    )
    executor = IsolatedExecutor(inspect_device("cpu"))
    found = run_study(recipe, executor, create_run(tmp_path, "run-1"), budget_s=60.0)
    assert found.point.extra == (("step_overhead_s", 2e-3),)
    (decision,) = found.knobs
    assert decision.pairs == 2 and decision.ratio > 2
    assert found.result.effective["step_overhead_s"] == 2e-3
