"""The guard: pilots of the tuned point and of the baseline, their statistics, and what is said of them."""

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from analytic_surface import write_surface
from report_run import make_run

from autotune.cli import main
from autotune.device.inspect import inspect_device
from autotune.errors import FileError, ManifestError, UsageError
from autotune.guard.pilots import GuardPlan, default_steps, plan_pilots, refuse_guard
from autotune.guard.run import open_arm, run_guard
from autotune.guard.verdict import Curve, beginning, compare, curve_of, t_interval
from autotune.manifest import build_manifest, load_manifest, manifest_text, parse_manifest, save_manifest
from autotune.probe.recipe import command_recipe
from autotune.records import Budget, Job, Point, ProbeResult, Recipe
from autotune.report.render import render_report
from autotune.runs import create_run, open_run
from autotune.search.learning import concerns, sentences, unchecked
from autotune.search.result import StudyResult
from autotune.train.silence import Patience
from autotune.views import status_json, status_text
from autotune.worker.checkpoint import load_checkpoint, save_checkpoint
from autotune.workloads.learning import Learning, LearningChange

T_95_2 = 2.919985580
BASE = Point(num_envs=8, batch_size=64)
FAST = {"rollout": 8, "epochs": 2, "env_s": 1e-6, "step_overhead_s": 1e-4, "infer_s": 0.0, "learn_s": 0.0}
FAST |= {"minibatch_overhead_s": 0.0, "episode_steps": 20, "return_scale_steps": 1000.0}


def line(first, last, steps=1000, failure="", games=5):
    """A curve that rises evenly over the steps."""
    return Curve(env_steps=(0.0, float(steps)), returns=(first, last), first_games=games, failure=failure)


def compared(tuned, baseline, margin=0.1, steps=1000):
    return compare(tuned, baseline, env_steps=steps, margin_fraction=margin)


def test_a_curve_is_averaged_over_env_steps_not_over_rows():
    curve = Curve(env_steps=(100, 200, 1000), returns=(0.0, 10.0, 10.0), first_games=1)
    assert curve.mean(0, 100) == 0.0, "level before the first game"
    assert curve.mean(100, 200) == pytest.approx(5.0)
    assert curve.mean(0, 1000) == pytest.approx((100 * 5 + 800 * 10) / 1000)
    assert curve.mean(900, 2000) == pytest.approx(10.0), "level after the last row"
    assert line(0, 10).mean(800, 1000) == pytest.approx(9.0)
    assert Curve().mean(0, 10) is None
    assert line(0, 10, failure="crashed").mean(0, 10) is None


def test_what_a_last_iteration_did_beyond_the_end_is_left_out():
    over = Curve(env_steps=(0, 1000, 1400), returns=(0.0, 10.0, 1000.0), first_games=1)
    here = compared([over] * 2, [line(0, 10)] * 2)
    assert here.tuned.finals == pytest.approx(here.baseline.finals)


def test_rows_of_metrics_become_a_curve():
    rows = [
        {"env_steps": "64", "mean_return_100": "", "episodes": "0"},
        {"env_steps": "128", "mean_return_100": "2.5", "episodes": "3"},
        {"env_steps": "256", "mean_return_100": "4", "episodes": "250"},
    ]
    curve = curve_of(rows)
    assert (curve.env_steps, curve.returns, curve.first_games) == ((128.0, 256.0), (2.5, 4.0), 3)
    assert curve_of(rows[2:]).first_games == 100, "the mean is of the last 100 games"
    assert curve_of([]) == Curve() and beginning([Curve()]) is None
    assert beginning([line(1.0, 9, games=3), line(5.0, 9, games=1)]) == 2.0


def test_the_interval_is_the_t_interval():
    three = t_interval([1.0, 2.0, 3.0])
    assert three.mean == 2.0
    assert three.high - three.mean == three.mean - three.low == pytest.approx(T_95_2 / math.sqrt(3))
    assert t_interval([4.0]).low is None and t_interval([]) is None


def test_the_margin_is_a_share_of_what_the_baseline_learnt():
    """As in Pong, from -21: a share of the return itself would mean nothing."""
    baseline = [line(-21.0, last) for last in (19.0, 20.0, 21.0)]
    result = compared([line(-21.0, last) for last in (19.2, 20.2, 21.2)], baseline)
    learnt = 0.9 * 41 - 21 + 21
    assert result.margin == pytest.approx(0.1 * learnt, rel=1e-3)
    assert result.difference.mean == pytest.approx(0.9 * 0.2)
    assert result.verdict == "passed"


@pytest.mark.parametrize(
    ("shift", "spread", "verdict"),
    [
        (0.0, 0.1, "passed"),
        (-5.0, 0.1, "passed"),
        (-20.0, 0.1, "failed"),
        (-10.0, 8.0, "inconclusive"),
        (20.0, 8.0, "passed"),
        (0.0, 60.0, "inconclusive"),
    ],
)
def test_non_inferiority_at_the_margin(shift, spread, verdict):
    baseline = [line(0.0, 100.0)] * 3
    tuned = [line(0.0, 100.0 + shift + spread * at) for at in (-1, 0, 1)]
    result = compared(tuned, baseline)
    half = 0.9 * spread * T_95_2 / math.sqrt(3)
    assert result.difference.low == pytest.approx(0.9 * shift - half)
    assert result.margin == pytest.approx(9.0)
    assert result.verdict == verdict


def test_a_point_that_is_worse_by_the_margin_passes_in_one_of_twenty_cases():
    rng = np.random.default_rng(0)
    passed = 0
    for tuned, baseline in rng.normal([[90.0] * 3, [100.0] * 3], 5.0, (2000, 2, 3)):
        difference = t_interval(list(tuned - baseline))
        passed += difference.low > -10.0
    assert passed / 2000 == pytest.approx(0.05, abs=0.015)


def test_a_pilot_that_crashed_at_the_tuned_point_alone_fails_it():
    broken = line(0, 1, failure="tuned-seed-2 crashed at env step 512: the loss is not finite")
    result = compared([line(0, 10), broken, line(0, 10)], [line(0, 10)] * 3)
    assert result.verdict == "failed" and "the loss is not finite" in result.detail
    assert result.tuned.finals[1] is None and result.difference.mean == pytest.approx(0)
    both = compared([line(0, 10), broken, line(0, 10)], [line(0, 10), broken, line(0, 10)])
    assert both.verdict == "passed", "two pairs are left"


def test_without_evidence_nothing_is_claimed():
    flat = compared([line(1, 1)] * 3, [line(1, 1)] * 3)
    assert flat.verdict == "inconclusive" and flat.margin is None and "learnt nothing in 1,000" in flat.detail
    better = compared([line(1, 9), line(1, 10), line(1, 11)], [line(1, 1)] * 3)
    assert better.verdict == "passed" and better.margin is None, "the interval excludes 0: no margin is needed"
    silent = compared([Curve()] * 3, [Curve()] * 3)
    assert silent.verdict == "inconclusive" and "no game ended" in silent.detail and silent.difference is None
    one = compared([line(0, 10)] * 2, [line(0, 10), line(0, 1, failure="baseline-seed-1 crashed")])
    assert one.verdict == "inconclusive" and "baseline-seed-1 crashed" in one.detail


def a_recipe(steps=4000, **hyperparameters):
    jobs = tuple(
        Job(id=f"job-{n}", env="busy", seed=7 + n, budget=Budget(unit="steps", amount=steps)) for n in range(4)
    )
    knobs = {"num_envs": (8, 32), "batch_size": (64,), "concurrency": (1, 2)}
    return Recipe(
        name="quick",
        workload="busywork",
        hyperparameters=FAST | hyperparameters,
        jobs=jobs,
        knobs=knobs,
        grid=knobs,
        baseline=BASE,
    )


def a_result(point, sps=1000.0, **changes):
    return ProbeResult(requested=point, status="ok", grade="quick", sps=sps, **changes)


def found(point, *, learning=None, baseline=None):
    base = baseline or a_result(BASE)
    return StudyResult(
        point=point,
        result=a_result(point),
        baseline=base,
        rule_of_thumb=None,
        tied=(),
        ladder=(),
        trials=(),
        points_measured=1,
        spent_s=1.0,
        budget_s=1.0,
        price_usd_per_hour=None,
        learning=learning,
    )


def change(samples, updates=0.5):
    base = Learning(samples_per_update=1024.0, updates_per_step=1 / 64)
    return LearningChange(tuned=Learning(samples_per_update=samples, updates_per_step=updates / 64), baseline=base)


def test_pilots_suit_both_points_and_never_exceed_the_job():
    tuned = found(Point(num_envs=256, batch_size=1024), learning=change(32768.0))

    def job(amount, unit="steps"):
        return Job(id="a", env="x", seed=1, budget=Budget(unit=unit, amount=amount))

    assert default_steps(found(BASE), job(1e8)) == 300_000
    assert default_steps(tuned, job(1e9)) == 3_276_800, "100 updates"
    assert default_steps(tuned, job(1e7)) == 1_000_000, "a tenth of the job"
    assert default_steps(tuned, job(5e4)) == 50_000, "the job itself"
    assert default_steps(tuned, job(1000, "episodes")) == 3_276_800, "its length is not known"
    fast = replace(tuned, result=replace(tuned.result, sps=8000.0, requested=replace(tuned.point, concurrency=2)))
    assert default_steps(fast, job(0.01, "hours")) == 144_000, "what a process makes of the job's 36 s"
    assert default_steps(fast, job(1, "hours")) == 1_440_000, "a tenth of it"
    games = replace(tuned, result=replace(tuned.result, episode_steps=400.0))
    assert default_steps(games, job(30_000, "episodes")) == 1_200_000


def test_the_time_of_the_pilots_is_told_beforehand():
    point = Point(num_envs=32, batch_size=64, concurrency=2)
    tuned = replace(found(point, learning=change(2048.0)), result=a_result(point, 4000.0))
    pilots = plan_pilots(tuned, a_recipe(), GuardPlan(env_steps=200_000, seeds=3))
    # two rounds of two at 2000 SPS each, three of one at 1000; ten seconds a start
    assert pilots.predicted_s == pytest.approx(2 * (10 + 100) + 3 * (10 + 200))
    said = pilots.announcement()
    assert said == "guard: 2 x 3 pilots of 200,000 env steps on busy, about 14m 10s outside --budget"
    assert pilots.seeds == (7, 8, 9)
    assert [job.id for job in pilots.tuned.jobs] == ["tuned-seed-7", "tuned-seed-8", "tuned-seed-9"]
    assert [job.seed for job in pilots.baseline.jobs] == [7, 8, 9]
    assert {job.budget.amount for job in (*pilots.tuned.jobs, *pilots.baseline.jobs)} == {200_000}
    short = plan_pilots(tuned, a_recipe(), GuardPlan(env_steps=4096, seeds=2))
    assert "2 policy updates, which is few: raise --guard-steps" in short.announcement()
    assert short.tuned.point.concurrency == 2


def test_a_baseline_that_failed_may_be_trained_alone():
    failed = ProbeResult(requested=replace(BASE, concurrency=2), status="oom", grade="quick")
    here = replace(a_recipe(), baseline=failed.requested)
    pilots = plan_pilots(found(Point(num_envs=32, batch_size=64), baseline=failed), here, GuardPlan())
    assert pilots.baseline.point.concurrency == 1 and pilots.predicted_s is None
    assert "for an unknown time" in pilots.announcement()
    ran = found(Point(num_envs=32, batch_size=64), baseline=a_result(failed.requested, 1000.0))
    last = replace(here, jobs=(replace(here.jobs[0], seed=2**31 - 1), *here.jobs[1:]))
    pilots = plan_pilots(ran, last, GuardPlan(seeds=2))
    assert pilots.baseline.point.concurrency == 2 and pilots.seeds == (2**31 - 1, 0)


def test_what_can_never_be_compared_is_refused_before_the_search():
    with pytest.raises(UsageError, match="replayed surface trains nothing"):
        refuse_guard(a_recipe(), simulated=True)
    with pytest.raises(UsageError, match="only its steps are known"):
        refuse_guard(command_recipe(["python", "train.py", "{num_envs}"], progress="cleanrl"), simulated=False)
    refuse_guard(a_recipe(), simulated=False)


@pytest.fixture(scope="module")
def device():
    return inspect_device("cpu")


def guarded(tmp_path, device, point, recipe=None, **options):
    recipe = recipe or a_recipe()
    plan = GuardPlan(env_steps=3000, seeds=2, margin_fraction=0.2)
    result = found(point, learning=change(256.0))
    run = create_run(tmp_path, "quick-1") if not (tmp_path / "quick-1").exists() else options.pop("run")
    pilots = plan_pilots(result, recipe, plan)
    return run, run_guard(pilots, plan, unchecked(result, recipe), run, device=device, **options)


def test_pilots_that_learn_alike_pass(tmp_path, device):
    run, learning = guarded(tmp_path, device, Point(num_envs=32, batch_size=64, concurrency=2))
    assert learning.status == "passed"
    assert learning.seeds == (7, 8) and learning.env_steps == 3000 and learning.env == "busy"
    # 100 * (1 - exp(-steps / 1000)), the mean of the last 100 games, which are 20 steps long
    assert learning.baseline_returns.final == pytest.approx(83, abs=8)
    assert learning.baseline_returns.area < learning.baseline_returns.final
    assert learning.difference_low <= learning.difference <= learning.difference_high
    assert learning.difference_low > -learning.margin
    assert sorted(folder.name.partition("-")[0] for folder in (run.path / "guard").iterdir()) == ["baseline", "tuned"]
    manifest = build_manifest(a_recipe(), Point(num_envs=32, batch_size=64, concurrency=2), learning=learning)
    assert parse_manifest(manifest_text(manifest), "m.json").learning == learning
    assert manifest.checked() == learning


def test_a_point_that_learns_less_fails_and_it_is_said(tmp_path, device):
    _, learning = guarded(tmp_path, device, Point.from_knobs({**BASE.knobs(), "return_limit": 50.0}))
    assert learning.status == "failed" and learning.difference_high < -learning.margin
    first, *others = sentences(learning)
    assert first.startswith("LEARNING FAILED THE GUARD")
    assert any("allow fewer environments" in other and "train at the baseline" in other for other in others)


def test_a_crash_is_a_value(tmp_path, device):
    recipe = a_recipe(fail="crash", fail_num_envs=32, fail_after_iterations=3)
    said = []
    _, learning = guarded(tmp_path, device, Point(num_envs=32, batch_size=64), recipe, warn=said.append)
    assert learning.status == "failed"
    assert "tuned-seed-7 crashed at env step" in learning.detail and "crashed, as asked for" in learning.detail
    assert learning.tuned_returns.by_seed == (None, None) and learning.difference is None
    first, *others = sentences(learning)
    assert first.startswith("LEARNING FAILED THE GUARD: the tuned point did not survive its pilots (a pilot there did")
    assert "teaches less" not in first and "in guard/ of the run" in others[-1] and "learning_rate" in others[-1]


def test_a_pilot_that_failed_promises_no_way_on(tmp_path, device, monkeypatch):
    """Its end is the verdict: the same command does not train it again."""
    impatient = Patience(start_s=60.0, silence_s=2.0, factor=1.0)
    monkeypatch.setattr("autotune.train.supervisor.Patience", lambda: impatient)
    recipe = a_recipe(fail="hang", fail_num_envs=32, fail_after_iterations=3)
    point, said = Point(num_envs=32, batch_size=64, concurrency=2), []
    _, learning = guarded(tmp_path, device, point, recipe, warn=said.append)
    assert learning.status == "failed" and "environment hangs" in learning.detail and "was killed" in learning.detail
    assert "same command" not in learning.detail and not any("same command" in text for text in said)


SLOW, SLOW_POINT = {"step_overhead_s": 8e-3}, Point(num_envs=8, batch_size=32, concurrency=2)


def stopped_guard(tmp_path, device):
    """A run whose guard was stopped amid its first pilots, and its last snapshot."""
    seen = []

    def stop():
        return bool(seen) and any(job.env_steps > 200 for job in seen[-1].jobs)

    run, learning = guarded(tmp_path, device, SLOW_POINT, a_recipe(**SLOW), on_event=seen.append, should_stop=stop)
    assert learning is None
    return run, seen[-1]


def test_a_stopped_guard_goes_on_where_it_was(tmp_path, device):
    run, last = stopped_guard(tmp_path, device)
    assert all(0 < job.env_steps < 3000 for job in last.jobs)
    _, learning = guarded(tmp_path, device, SLOW_POINT, a_recipe(**SLOW), run=run)
    assert learning.status == "passed"
    events = next((run.path / "guard").glob("tuned-*/train/events.jsonl")).read_text()
    assert '"kind": "resumed"' in events


def test_status_tells_how_far_the_pilots_are(tmp_path, device):
    """It said 'search: running' while they trained, and nothing of them when they were stopped."""
    searched, plan, seen = make_run(tmp_path), GuardPlan(env_steps=3000, seeds=2, margin_fraction=0.2), []
    result, recipe = found(SLOW_POINT, learning=change(256.0)), a_recipe(**SLOW)
    pilots = plan_pilots(result, recipe, plan)
    searched.update(finished=False)

    def train(should_stop):
        with searched.hold():
            return run_guard(
                pilots, plan, unchecked(result, recipe), searched, device=device, should_stop=should_stop,
                on_event=lambda snapshot: seen.append((snapshot, status_text(searched), status_json(searched))),
            )  # fmt: skip

    assert train(lambda: any(job.env_steps > 200 for snapshot, *_ in seen for job in snapshot.jobs)) is None
    running = seen[-2][1]
    assert "search: finished, 11 probes in 29m 10s, recommended num_envs=64" in running
    assert "guard: pilots train, 0 of 4 pilots done\n" in running and "tuned-seed-7" in running
    stopped = status_text(searched)
    assert "search: unfinished, resumable" in stopped
    assert "guard: unfinished, the search with --guard resumes it, 0 of 4 pilots done\n" in stopped
    train(lambda: False)
    later = next(told for _, *told in seen if "baseline-seed-7" in told[0])
    assert "guard: pilots train, 2 of 4 pilots done\n" in later[0] and later[1]["guard"]["running"]
    searched.update(guarded=True)
    assert "guard" not in status_text(searched)


def test_a_baseline_that_crashed_is_not_settled_by_more_seeds(tmp_path, device):
    recipe = a_recipe(fail="crash", fail_batch_size=64, fail_after_iterations=3)
    _, learning = guarded(tmp_path, device, Point(num_envs=8, batch_size=32), recipe)
    assert learning.status == "inconclusive"
    first, *_, what = sentences(learning)
    assert "pilots of the baseline did not get to their end: baseline-seed-7 crashed" in first
    assert "guard-seeds" not in what and "--baseline" in what and "in guard/ of the run" in what


def test_a_pilot_that_cannot_go_on_from_its_files_is_no_evidence(tmp_path, device):
    run, _ = stopped_guard(tmp_path, device)
    (arm,) = (run.path / "guard").glob("tuned-*")
    kept = next((arm / "train/jobs/tuned-seed-7/checkpoints").glob("*.safetensors"))
    whole, state = kept.read_bytes(), load_checkpoint(kept)

    def refused(words):
        with pytest.raises(FileError, match=words) as told:
            guarded(tmp_path, device, SLOW_POINT, a_recipe(**SLOW), run=run)
        assert f"remove {arm}" in str(told.value)

    kept.write_bytes(whole[:-1])
    refused(r"tuned-seed-7 .*no valid checkpoint")
    kept.write_bytes(whole)
    foreign = save_checkpoint(kept.parent, replace(state, meta={**state.meta, "format": 99}), env_steps=999)
    refused(r"tuned-seed-7 .*it is of format 99")
    foreign.unlink()
    _, learning = guarded(tmp_path, device, SLOW_POINT, a_recipe(**SLOW), run=run)
    assert learning.status == "passed"


def test_another_point_never_goes_on_with_the_pilots_of_one(tmp_path, device):
    run = create_run(tmp_path, "quick-1")
    plan = GuardPlan(env_steps=3000, seeds=2)

    def arm(point, env_steps):
        pilots = plan_pilots(found(point), a_recipe(), replace(plan, env_steps=env_steps))
        return open_arm(run, "tuned", pilots.tuned)

    one = arm(Point(num_envs=32, batch_size=64), 3000)
    assert arm(Point(num_envs=32, batch_size=64), 6000) == one, "more steps go on"
    assert load_manifest(one.manifest_file).jobs[0].budget.amount == 6000
    assert arm(Point(num_envs=16, batch_size=64), 3000) != one


def test_points_that_differ_in_speed_alone_need_no_pilots():
    same = found(replace(BASE, concurrency=2, extra=(("compile", True),)), learning=change(1024.0, updates=1.0))
    learning = unchecked(same, a_recipe())
    assert learning.status == "not checked" and "only speed differs" in learning.detail
    assert sentences(learning) == [
        "Learning not checked (each process trains as at the baseline, only speed differs): 1x samples per update, "
        "1x optimizer steps per env step of the baseline's."
    ]


def test_a_better_point_passes_without_a_margin_and_says_so():
    known = unchecked(found(Point(num_envs=16, batch_size=64)), a_recipe())
    shown = {"status": "passed", "env": "x", "env_steps": 1000, "difference": 9.0, "margin_fraction": 0.1}
    said = sentences(known.model_copy(update=shown))[0]
    assert said.endswith("after 1,000 env steps of x, 0 seeds each: better than the baseline, which learnt nothing.")


def test_a_large_move_is_loud_wherever_it_is_not_checked():
    learning = unchecked(found(Point(num_envs=128, batch_size=64), learning=change(16384.0)), a_recipe())
    assert learning.samples_per_update_ratio == 16 and learning.updates_per_step_ratio == 0.5
    assert learning.warning == "16 times more samples per update"
    (only,) = sentences(learning)
    assert only.startswith("LEARNING NOT CHECKED, AND IT MAY CHANGE: 16 times more samples per update")
    assert "autotune search --guard" in only
    quiet = unchecked(found(Point(num_envs=16, batch_size=64), learning=change(2048.0)), a_recipe())
    assert quiet.warning is None and sentences(quiet)[0].startswith("Learning not checked: 2x samples per update")
    assert sentences(unchecked(found(Point(num_envs=16, batch_size=64)), a_recipe())) == []


def test_a_large_move_is_loud_where_the_program_alone_knows_what_it_does():
    point = Point(num_envs=256, batch_size=512)
    learning = unchecked(found(point), a_recipe())
    moved = "32 times more environments and 8 times more samples per minibatch"
    assert build_manifest(a_recipe(), point, learning=learning).checked().warning == moved
    assert concerns(learning) == [
        f"LEARNING NOT CHECKED, AND IT MAY CHANGE: {moved} than the baseline (what that does to samples per update and "
        "optimizer steps per env step only the program knows); an env step may teach less. "
        "Compare a short training at both settings before a long one."
    ]
    assert sentences(unchecked(found(point), replace(a_recipe(), workload="replay"))) == [], "it trains nothing"


def test_old_manifests_load_and_keep_their_text():
    manifest = build_manifest(a_recipe(), BASE)
    assert manifest.learning is None and "learning" not in json.loads(manifest_text(manifest))
    assert parse_manifest(manifest_text(manifest), "m.json") == manifest


@pytest.mark.parametrize(
    ("edit", "word"),
    [
        (lambda d: d.update(status="good"), "not checked"),
        (lambda d: d.update(status="passed"), "a verdict needs its evidence"),
        (lambda d: d.update(margin_fraction=2.0), "margin_fraction"),
        (lambda d: d.update(retruns=1), "retruns"),
        (lambda d: d.pop("baseline"), "baseline is missing"),
    ],
)
def test_a_learning_section_that_says_nothing_true_is_refused(edit, word):
    learning = unchecked(found(Point(num_envs=16, batch_size=64)), a_recipe())
    data = json.loads(manifest_text(build_manifest(a_recipe(), BASE, learning=learning)))
    edit(data["learning"])
    with pytest.raises(ManifestError) as caught:
        parse_manifest(json.dumps(data), "m.json")
    assert word in str(caught.value)


def test_an_edited_point_has_no_evidence():
    learning = unchecked(found(Point(num_envs=16, batch_size=64)), a_recipe())
    data = json.loads(manifest_text(build_manifest(a_recipe(), Point(num_envs=16, batch_size=64), learning=learning)))
    assert parse_manifest(json.dumps(data), "m.json").checked() == learning
    data["point"]["num_envs"] = 32
    assert parse_manifest(json.dumps(data), "m.json").checked() is None


def test_the_report_states_the_verdict(tmp_path, device):
    best = Point(num_envs=64, batch_size=1024, concurrency=2)
    run = make_run(tmp_path / "runs")
    shown = {}
    for status, shift in (("passed", 0.0), ("failed", -50.0)):
        result = compared([line(0, 100 + shift), line(0, 102 + shift)], [line(0, 100), line(0, 102.5)])
        assert result.verdict == status
        manifest = load_manifest(run.manifest_file)
        begun = unchecked(found(best, learning=change(16384.0)), a_recipe())
        returns = {
            name: {
                **{f"{part}{end}": 1.0 for part in ("final", "area") for end in ("", "_low", "_high")},
                "by_seed": [1.0, None],
            }
            for name in ("tuned_returns", "baseline_returns")
        }
        data = begun.model_dump(mode="json") | returns
        data |= {"status": status, "env": "Game1-v5", "env_steps": 1000, "seeds": [1, 2], "margin": 9.0}
        data |= {"difference": result.difference.mean, "difference_low": -1.0, "difference_high": 1.0}
        whole = json.loads(manifest_text(manifest)) | {"learning": data}
        save_manifest(run.manifest_file, parse_manifest(json.dumps(whole), "m.json"))
        shown[status] = render_report(run).markdown.read_text()
    assert "- **Learning checked:** return 1" in shown["passed"]
    assert "- **LEARNING FAILED THE GUARD:** an env step at the tuned point teaches less" in shown["failed"]
    assert "Learning not checked" not in shown["passed"]
    assert "- **Next:** allow fewer environments" in shown["failed"] and "In spite of the guard" in shown["failed"]
    assert "- **Next:** `autotune train" in shown["passed"]
    assert "return at the end" in shown["failed"] and "1, unknown" in shown["failed"]
    assert "What to do:" in shown["failed"]
    whole["workload"]["hyperparameters"] = {}  # a workload that does not tell its rollout and epochs
    save_manifest(run.manifest_file, parse_manifest(json.dumps(whole), "m.json"))
    assert "return at the end" in render_report(run).markdown.read_text()


def test_what_to_do_follows_what_the_point_moves():
    begun = unchecked(found(Point(num_envs=16, batch_size=64), learning=change(2048.0)), a_recipe())
    for samples, updates, words in ((1.0, 0.5, "0.5x optimizer steps"), (4.0, 1.0, "4x samples per update")):
        moved = {"samples_per_update_ratio": samples, "updates_per_step_ratio": updates, "warning": None}
        learning = begun.model_copy(update={**moved, "status": "failed", "env": "Game1-v5", "env_steps": 1000})
        verdict, although, what = sentences(learning)
        assert verdict.startswith("LEARNING FAILED THE GUARD") and words in although
        assert ("samples_per_update = [" in what) is (samples > 1)
        assert ("smaller minibatches" in what) is (updates < 1)


@pytest.mark.parametrize(("samples", "said"), [(16384.0, True), (2048.0, False)])
def test_a_training_is_told_what_is_unchecked(tmp_path, capsys, samples, said):
    point = Point(num_envs=16, batch_size=64)
    learning = unchecked(found(point, learning=change(samples)), a_recipe())
    data = json.loads(manifest_text(build_manifest(a_recipe(), point, learning=learning)))
    data["jobs"] = data["jobs"][:1]
    data["jobs"][0]["budget"] = {"unit": "steps", "amount": 500}
    (tmp_path / "m.json").write_text(json.dumps(data))
    assert main(["train", str(tmp_path / "m.json"), "--runs", str(tmp_path / "runs"), "--device", "cpu"]) == 0
    assert ("LEARNING NOT CHECKED, AND IT MAY CHANGE: 16 times" in capsys.readouterr().err) == said


@pytest.mark.parametrize(("status", "said"), [("passed", False), ("failed", True), ("inconclusive", True)])
def test_a_verdict_is_repeated_unless_it_is_good(status, said):
    known = unchecked(found(Point(num_envs=16, batch_size=64)), a_recipe())
    learning = known.model_copy(update={"status": status, "env_steps": 1000})
    assert concerns(learning) == (sentences(learning) if said else [])


SEARCHED = """
name = "fast"
workload = "busywork"
[hyperparameters]
rollout = 8
epochs = 2
env_s = 1e-5
step_overhead_s = 2e-3
episode_steps = 20
return_scale_steps = 1000.0
[knobs]
num_envs = [4, 32]
batch_size = [32]
concurrency = [1]
[baseline]
num_envs = 4
batch_size = 32
[quick]
discard_s = 0.2
discard_iterations = 1
window_s = 0.4
[final]
discard_s = 0.2
discard_iterations = 1
window_s = 0.8
window_iterations = 3
[[jobs]]
id = "one"
env = "busywork"
seed = 1
steps = 200000
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "autotune.toml").write_text(SEARCHED)
    return tmp_path


SEARCH = ["search", "--budget", "25s", "--no-early-stop", "--name", "mine"]


@pytest.fixture(scope="module")
def searched_once(tmp_path_factory):
    """A folder with a finished search in it, and what the search printed."""
    folder = tmp_path_factory.mktemp("searched")
    (folder / "autotune.toml").write_text(SEARCHED)
    ended = subprocess.run([sys.executable, "-m", "autotune", *SEARCH], cwd=folder, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return folder, ended.stdout


@pytest.fixture
def searched(searched_once, here):
    """A copy of it of one's own to work in, and what the search printed."""
    folder, text = searched_once
    shutil.copytree(folder, here, dirs_exist_ok=True)
    return here, text


def test_a_search_says_what_moved_and_a_later_guard_checks_the_same_run(searched, capsys):
    here, text = searched
    assert "LEARNING NOT CHECKED, AND IT MAY CHANGE: 8 times more samples per update" in text
    manifest = load_manifest(here / "runs/mine/manifest.json")
    assert (manifest.learning.status, manifest.learning.samples_per_update_ratio) == ("not checked", 8.0)
    assert main(SEARCH) == 2, "finished"
    capsys.readouterr()
    guard = ["--guard", "--guard-steps", "3000", "--guard-seeds", "2", "--guard-margin", "0.2"]
    assert main([*SEARCH, *guard, "--json"]) == 0
    out, err = capsys.readouterr()
    assert "guard: 2 x 2 pilots of 3,000 env steps on busywork, about" in err
    learning = json.loads(out)["learning"]
    assert learning["status"] == "passed" and learning["warning"] == "8 times more samples per update"
    assert load_manifest(here / "runs/mine/manifest.json").learning.status == "passed"
    assert main([*SEARCH, *guard]) == 2, "finished, and checked"


def test_ctrl_c_during_the_guard_keeps_the_search(searched):
    here, _ = searched
    command = [sys.executable, "-m", "autotune", *SEARCH, "--guard"]
    with subprocess.Popen([*command, "--guard-steps", "100000"], stderr=subprocess.PIPE, text=True) as process:
        said = []
        for text in process.stderr:
            said.append(text)
            if text.startswith("guard:") and "outside --budget\n" in text:
                time.sleep(3)
                process.send_signal(signal.SIGINT)
                break
        process.stderr.read()
    assert process.wait() == 130, said
    learning = load_manifest(here / "runs/mine/manifest.json").learning
    assert (learning.status, learning.detail) == (
        "not checked",
        "the guard was stopped; the same command goes on with it",
    )
    state = json.loads((here / "runs/mine/run.json").read_text())
    assert not state["finished"] and not state["guarded"]


def test_a_guard_that_a_lost_gpu_ended_is_work_left(searched, monkeypatch):
    here, _ = searched
    monkeypatch.setattr("autotune.guard.run.run_guard", lambda *_, **__: None)
    assert main([*SEARCH, "--guard"]) == 5
    assert not json.loads((here / "runs/mine/run.json").read_text())["finished"]


@pytest.mark.parametrize("first", [["--guard"], []])
def test_a_search_that_found_nothing_leaves_a_guard_nothing_to_do(here, capsys, first):
    recipe = here / "autotune.toml"
    recipe.write_text(SEARCHED.replace("rollout = 8", 'rollout = 8\nfail = "crash"\nfail_after_iterations = 1'))
    assert main(["search", "--budget", "20s", *first]) == 3
    capsys.readouterr()
    assert main(["search", "--budget", "20s", "--guard"]) == 3
    assert "run runs/fast-2" in capsys.readouterr().err, "the same command searches anew, with a budget"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--guard-steps", "1000"], ["--guard-steps needs --guard"]),
        (["--guard-seeds", "5"], ["--guard-seeds needs --guard"]),
        (["--guard-margin", "0.2"], ["--guard-margin needs --guard"]),
        (["--guard", "--guard-steps", "0"], ["--guard-steps", "1<="]),
        (["--guard", "--guard-seeds", "1"], ["--guard-seeds", "2<="]),
        (["--guard", "--guard-margin", "0"], ["--guard-margin", "0<"]),
        (["--guard", "--guard-margin", "nan"], ["--guard-margin"]),
        (["--guard", "--executor", "replay:surface.csv"], ["replayed surface trains nothing"]),
        (["--guard", "--progress", "sb3", "--", "python", "train.py", "{num_envs}"], ["only its steps are known"]),
    ],
)
def test_bad_options_are_refused_in_words(here, capsys, options, words):
    write_surface(here / "surface.csv")
    assert main(["search", "--budget", "20s", *options]) == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words), err
    assert not (here / "runs").exists()


def test_a_run_that_lacks_a_fact_is_gone_on_with(tmp_path):
    def opened(lacking=None, name=None):
        return open_run(
            tmp_path, command="search", stem="a", recipe="r", device="d", name=name, new=False, lacking=lacking
        )

    first = opened()
    first.update(finished=True)
    assert opened("guarded") == first == opened("guarded", first.name)
    first.update(guarded=True)
    assert opened("guarded") != first
    with pytest.raises(UsageError, match="finished"):
        opened("guarded", first.name)
