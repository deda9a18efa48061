"""What measuring is worth: the length of the planned training, and a search that ends when a probe cannot pay."""

import math
from dataclasses import replace

import optuna
import pytest
from analytic_surface import write_surface

from autotune.executors.replay import ReplayExecutor, surface_recipe
from autotune.records import Budget, Job, Point, ProbeResult
from autotune.runs import create_run
from autotune.search.episodes import game_lengths, steps_of
from autotune.search.outcome import problem_of, sooner_than
from autotune.search.precision import interval_of, launch_fraction, stated_error, window_error
from autotune.search.result import economy
from autotune.search.study import run_study
from autotune.search.worth import job_steps, pays, training_s
from autotune.stats import LAUNCH_FRACTION


def jobs(*budgets: Budget) -> tuple[Job, ...]:
    return tuple(Job(id=str(n), env="x", seed=n, budget=budget) for n, budget in enumerate(budgets))


def at(concurrency: int, sps: float) -> ProbeResult:
    point = Point(num_envs=8, batch_size=64, concurrency=concurrency)
    return ProbeResult(requested=point, status="ok", grade="quick", sps=sps)


def test_the_planned_training_is_the_makespan_of_its_jobs():
    four = jobs(*[Budget(unit="steps", amount=1000)] * 4)
    assert training_s(four, at(1, 100.0), None) == pytest.approx(40)
    assert training_s(four, at(4, 160.0), None) == pytest.approx(25)
    assert training_s(four, at(3, 150.0), None) == pytest.approx(40), "two rounds of 20 s"
    assert training_s(jobs(Budget(unit="hours", amount=2)), at(1, 100.0), None) == 7200
    assert job_steps(Budget(unit="hours", amount=2), 50.0) is None, "however long a game is"
    assert training_s(four, at(3, 150.0), None, [at(1, 100.0)]) == pytest.approx(30), "the last one runs alone"
    assert training_s(four, at(3, 150.0), None, shared=True) == pytest.approx(80 / 3), "and with the speed of all"
    episodes = jobs(Budget(unit="episodes", amount=10))
    assert training_s(episodes, at(1, 100.0), 50.0) == pytest.approx(5)
    assert training_s(episodes, at(1, 100.0), None) is None
    assert training_s(four, replace(at(1, 1.0), sps=None), None) is None


def test_the_length_of_a_game_is_pooled_over_probes_and_stands_in_where_none_was_seen():
    planned = [Job(id=env, env=env, seed=0, budget=Budget(unit="episodes", amount=1)) for env in "abc"]
    probes = [
        replace(at(2, 1.0), games=(10, 16), game_steps=(100.0, 50.0)),
        replace(at(2, 1.0), games=(30, 3), game_steps=(200.0, None)),
        replace(at(1, 1.0), games=(99,), game_steps=(1.0,), status="crashed"),
    ]
    lengths = game_lengths(planned, probes)
    assert steps_of(lengths) == {"a": pytest.approx(175), "b": 50, "c": pytest.approx(225 / 2)}
    assert [lengths[env].games for env in "abc"] == [40, 16, 0]
    errors = [1.96 / 40**0.5 + 16 / 40 / 4, 1.96 / 4 + 8 / 16 / 4, math.inf]  # 8 games still run at a probe's end
    assert [lengths[env].error_fraction for env in "abc"] == pytest.approx(errors)
    assert [lengths[env].measured for env in "abc"] == [True, True, False]
    assert game_lengths(planned, probes[2:]) == {}


def test_a_probe_pays_when_it_saves_more_machine_time_than_it_costs():
    assert pays(0.01, 30.0, 3600.0)
    assert not pays(0.01, 40.0, 3600.0)
    assert pays(0.0, 1e9, None), "unknown: go on"


def memory() -> optuna.Study:
    return optuna.create_study(direction="maximize")


class Real(ReplayExecutor):
    """A replay that calls its clock real, so that break-even counts."""

    simulated = False


def search(tmp_path, name, steps, **options):
    path = write_surface(tmp_path / f"{name}.csv", noise=0.01)
    recipe = surface_recipe(path)
    budget = Budget(unit="steps", amount=steps)
    recipe = replace(recipe, workload="busywork", jobs=tuple(replace(job, budget=budget) for job in recipe.jobs))
    return run_study(
        recipe, Real(path), create_run(tmp_path, name), budget_s=1800.0, price=2.0, study=memory(), **options
    )


def test_the_search_ends_when_the_next_probe_cannot_pay_for_itself(tmp_path):
    """At about 80,000 steps per second: a minute, half an hour and a month of planned training."""
    short = search(tmp_path, "short", 1e6)
    hour = search(tmp_path, "hour", 3e7)
    month = search(tmp_path, "month", 5e10)
    assert short.ended == hour.ended == "worth"
    assert [record.stage for record in short.trials][:3] == ["baseline", "rule of thumb", "final"]
    assert short.spent_s < hour.spent_s < month.spent_s
    assert month.ended in ("known", "budget")
    assert "would have cost more than it was expected to save (--no-early-stop goes on)" in economy(short)
    anyway = search(tmp_path, "anyway", 1e6, early_stop=False)
    assert anyway.ended != "worth" and anyway.spent_s > 1500


def test_a_probe_may_cost_a_share_of_the_budget_and_two_quick_ones_at_least(tmp_path):
    path = write_surface(tmp_path / "share.csv")
    recorded, device = surface_recipe(path), ReplayExecutor(path).device
    own = replace(recorded, workload="busywork")
    assert problem_of(own, device, 1800.0).cost_max_s == pytest.approx(0.15 * 1800)
    assert problem_of(own, device, 60.0).cost_max_s == 2 * (10 + 8)
    assert (problem_of(own, device, 60.0).slice_s, problem_of(recorded, device, 60.0).slice_s) == (4 / 4, None)


def test_what_the_search_cost_and_saves_is_said(tmp_path):
    found = search(tmp_path, "day", 1e9)
    assert found.training_s == pytest.approx(4e9 / found.result.sps)
    assert found.baseline_training_s == pytest.approx(4 * 1e9 / found.baseline.sps)
    text = economy(found)
    assert f"({2.0 * found.spent_s / 3600:.2f} USD)" in text
    saved_usd = 2.0 * (found.baseline_training_s - found.training_s) / 3600
    assert f"({saved_usd:,.2f} USD) against the baseline" in text
    assert "against the rule of thumb" in text
    assert "no failure in" in text and "per hour" in text
    timed = economy(replace(found, training_s=3600.0, baseline_training_s=3600.0))
    assert "no saving against the baseline is shown" in timed, "hours are those of the budget at any speed"


def test_an_interval_that_ends_at_0_is_as_wide_as_its_upper_half():
    wide = replace(at(1, 100.0), sps_low=0.0, sps_high=296.0)
    assert stated_error(wide) == pytest.approx(1.0)
    assert window_error(wide) == pytest.approx((1 - 0.015**2) ** 0.5)
    for unknown in ({"sps": None}, {"sps_low": None}, {"sps_high": None}):
        assert stated_error(replace(wide, **unknown)) == 0.03
    assert interval_of(wide) == (100, 0, 296)
    assert interval_of(replace(wide, sps_high=None)) == pytest.approx((100, 100 - 1.96 * 3, 100 + 1.96 * 3))


def test_launches_of_one_epoch_alone_tell_their_spread():
    one, other = (replace(at(1, sps), sps_low=sps * 0.99, sps_high=sps * 1.01) for sps in (100.0, 120.0))
    assert launch_fraction([one, other]) > 1.5 * LAUNCH_FRACTION
    assert launch_fraction([one, replace(other, flags=("epoch 1",))]) == pytest.approx(LAUNCH_FRACTION)
    assert launch_fraction([one, replace(other, status="crashed")]) == pytest.approx(LAUNCH_FRACTION)


def test_a_point_that_ends_unequal_jobs_sooner_is_named(tmp_path):
    """108 thousand steps at 110 alone end in 982 s; two at a time the long job takes 1,333 s at 75."""
    unequal = jobs(*(Budget(unit="steps", amount=1000 * amount) for amount in (100, 4, 4)))
    two = replace(at(2, 150.0), sps_low=148.0, sps_high=152.0, grade="final")
    alone = replace(at(1, 110.0), sps_low=108.0, sps_high=112.0)
    other = replace(alone, requested=Point(num_envs=16, batch_size=64))
    assert sooner_than(two.requested, unequal, {}, [two, other]) == (other.requested, pytest.approx(108000 / 110))
    assert sooner_than(two.requested, unequal, {}, [two, alone]) is None, "the long job then runs alone at 110"
    assert sooner_than(two.requested, unequal[1:], {}, [two, other]) is None
    wider = replace(two, requested=Point(num_envs=16, batch_size=64, concurrency=2), sps=149.0)
    assert sooner_than(two.requested, unequal, {}, [two, wider, replace(other, sps=140.0, sps_low=138.0)]) == (
        other.requested,
        pytest.approx(108000 / 140),
    ), "as many processes are no slower where fewer of them were not measured"
    close = [replace(two, sps_low=145.5, sps_high=154.5), replace(other, sps=85.5, sps_low=82.9, sps_high=88.1)]
    # 1,226 to 1,303 s against 1,294 to 1,375 s: the intervals meet, that of the ratio ends at 0.99
    assert sooner_than(two.requested, unequal, {}, close) == (other.requested, pytest.approx(108000 / 85.5))
    found = replace(search(tmp_path, "sooner", 1e6), sooner=(other.requested, 3600.0))
    assert "num_envs=16 batch_size=64 concurrency=1 ENDS IT SOONER, in 1h (2.00 USD)" in economy(found)
