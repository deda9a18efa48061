import math

import pytest

from autotune.availability import (
    availability,
    best_checkpoint_interval_s,
    effective_cost_usd,
)
from autotune.errors import UsageError
from autotune.records import Budget, Job, Point, ProbeResult
from autotune.report.projection import (
    Quantity,
    difference,
    job_hours,
    project,
    project_episode_rates,
    ratio,
    savings,
    tied,
)
from autotune.search.result import ratio as measured_ratio
from autotune.search.worth import spans
from autotune.stats import failure_rate_bound_per_hour, failure_rate_mean_per_hour

# The facts of a real ten-game effort at 2.00 USD per hour; episodes, hours and dollars are its own arithmetic.
EPISODES = {
    "MsPacman": 30000,
    "Asteroids": 25000,
    "Seaquest": 25000,
    "BeamRider": 20000,
    "SpaceInvaders": 15000,
    "Enduro": 15000,
    "Breakout": 10000,
    "Boxing": 10000,
    "Freeway": 3000,
    "Pong": 3000,
}
BASELINE_HOURS = dict(zip(EPISODES, (1500, 1250, 1250, 1000, 750, 750, 500, 500, 150, 150), strict=True))
TUNED_HOURS_ROUNDED = dict(zip(EPISODES, (33, 28, 28, 22, 17, 17, 11, 11, 3, 3), strict=True))


def steps_job(name: str, steps: float) -> Job:
    return Job(id=name, env=name, seed=0, budget=Budget(unit="steps", amount=steps))


def test_seed_effort_is_reproduced() -> None:
    before = project_episode_rates(EPISODES, 20, price_usd_per_hour=2.0)
    after = project_episode_rates(EPISODES, 900, price_usd_per_hour=2.0)
    assert before.hours is not None and before.usd is not None and after.hours is not None and after.usd is not None
    assert before.hours.value == 7800
    assert before.days == 325
    assert before.usd.value == 15600
    assert {job.id: job.hours.value for job in before.jobs if job.hours} == BASELINE_HOURS
    assert round(after.hours.value) == 173
    assert after.days == pytest.approx(7.2, abs=0.05)
    assert after.usd.value == pytest.approx(346, abs=1)  # the effort rounded 173.3 h to 173 h
    assert {job.id: round(job.hours.value) for job in after.jobs if job.hours} == TUNED_HOURS_ROUNDED
    saved = savings(before, after)
    assert saved is not None and saved.usd is not None
    assert saved.usd.value == pytest.approx(15254, abs=1)
    assert saved.hours.value / 24 == pytest.approx(318, abs=0.5)
    assert saved.fraction.value == pytest.approx(0.98, abs=0.005)
    assert not saved.tied


def test_seed_shares_of_the_bill_add_up() -> None:
    plan = project_episode_rates(EPISODES, 900, price_usd_per_hour=2.0, slots=3)
    assert plan.usd is not None
    assert sum(job.usd for job in plan.jobs if job.usd is not None) == pytest.approx(plan.usd.value)


@pytest.mark.parametrize(
    ("cost_usd", "downtime", "expected_usd"),
    [(15600, 0.0, 15600), (480, 0.01, 485), (288, 0.05, 303), (192, 0.17, 231)],
)
def test_effective_costs_of_the_seed_configurations(cost_usd: float, downtime: float, expected_usd: float) -> None:
    assert round(effective_cost_usd(cost_usd, downtime)) == expected_usd


@pytest.mark.parametrize("downtime", [-0.1, 1.0, 1.5, math.nan])
def test_impossible_downtime_is_refused(downtime: float) -> None:
    with pytest.raises(UsageError, match="downtime must be"):
        effective_cost_usd(100, downtime)


@pytest.mark.parametrize(
    ("lengths", "slots", "expected"),
    [([1, 2, 3], 1, 6), ([1, 2, 3], 2, 4), ([1, 2, 3], 3, 3), ([1, 2, 3], 9, 3), ([5, 1, 1, 1], 2, 5), ([], 2, 0)],
)
def test_a_job_begins_as_soon_as_a_place_is_free(lengths: list[float], slots: int, expected: float) -> None:
    assert max((end for _, end in spans(lengths, [1.0] * slots)), default=0) == expected


def test_project_steps_with_interval() -> None:
    jobs = [steps_job("a", 3_600_000), steps_job("b", 3_600_000), steps_job("c", 7_200_000)]
    plan = project(jobs, Quantity(value=1000, low=900, high=1200), 2, price_usd_per_hour=2.0)
    assert plan.hours is not None and plan.usd is not None
    assert plan.hours.value == pytest.approx(3.0)  # a and b one hour beside each other, then c alone
    assert plan.hours.low == pytest.approx(3.0 / 1.2)
    assert plan.hours.high == pytest.approx(3.0 / 0.9)
    assert plan.usd.value == pytest.approx(6.0)
    assert [job.usd for job in plan.jobs] == pytest.approx([1.5, 1.5, 3.0])
    assert [job.steps for job in plan.jobs] == [3_600_000, 3_600_000, 7_200_000]


def test_slots_never_exceed_the_jobs() -> None:
    assert project([steps_job("a", 10)], Quantity(value=1), 8).slots == 1


def test_episodes_need_measured_steps_per_episode() -> None:
    job = Job(id="p", env="Pong", seed=0, budget=Budget(unit="episodes", amount=36))
    known = project([job], Quantity(value=10), 1, steps_per_episode={"Pong": Quantity(value=1000)})
    assert known.hours is not None and known.hours.value == pytest.approx(1.0)
    assert known.hours.low is None and known.usd is None
    sure = project([job], Quantity(value=10, low=9, high=11), 1, steps_per_episode={"Pong": Quantity(value=1000)})
    assert sure.hours == known.hours, "the length of a game has no interval"
    unknown = project([job, steps_job("s", 1)], Quantity(value=10), 1, price_usd_per_hour=1.0)
    assert unknown.hours is None and unknown.usd is None and unknown.unknown == ("p",)
    assert unknown.jobs[0].usd is None and unknown.jobs[1].hours is not None
    assert unknown.days is None and not unknown.open_end
    assert savings(unknown, known) is None and savings(known, unknown) is None
    assert job_hours(Budget(unit="steps", amount=1), Quantity(value=0, low=0, high=0), None) is None, "it never ends"


def test_the_length_of_a_game_and_the_speed_err_independently() -> None:
    jobs = [Job(id="p", env="Pong", seed=0, budget=Budget(unit="episodes", amount=36)), steps_job("s", 36_000)]
    length = Quantity(value=1000, low=1000 / 1.2, high=1200)
    plan = project(jobs, Quantity(value=10, low=10 / 1.1, high=11), 2, steps_per_episode={"Pong": length})
    both = math.exp(math.hypot(math.log(1.2), math.log(1.1)))
    episodes, steps = (job.hours for job in plan.jobs)
    assert episodes is not None and steps is not None and plan.hours is not None
    assert (episodes.low, episodes.value, episodes.high) == pytest.approx((1 / both, 1.0, both))
    assert (steps.low, steps.value, steps.high) == pytest.approx((1 / 1.1, 1.0, 1.1))
    assert plan.hours == Quantity(value=episodes.value, low=steps.low, high=episodes.high)


def test_an_error_that_both_plans_share_is_in_the_amount_saved_and_not_in_the_share() -> None:
    jobs = [steps_job("a", 3_600_000)]
    slow, fast = (project(jobs, Quantity(value=v, low=v, high=v), 1, price_usd_per_hour=2.0) for v in (500, 1000))
    for saved in (savings(slow, fast), savings(fast, slow)):
        assert saved is not None
        unsure, sign = saved.less_sure(0.25), math.copysign(1.0, saved.hours.value)
        assert unsure.fraction == saved.fraction and unsure.tied is saved.tied is False
        ends = sorted((sign * 0.8, sign * 1.25))
        assert unsure.usd is not None and (unsure.usd.low, unsure.usd.high) == pytest.approx([2 * end for end in ends])
        assert (unsure.hours.low, unsure.hours.value, unsure.hours.high) == pytest.approx((ends[0], sign, ends[1]))
        assert saved.less_sure(math.inf).hours == Quantity(value=saved.hours.value)
    for one_end in (Quantity(value=2, low=1), Quantity(value=2, high=3)):
        assert one_end.less_sure(0.25) == Quantity(value=2) and one_end.half_width_fraction is None
    assert Quantity(value=4, low=2, high=5).half_width_fraction == 0.5
    assert Quantity(value=4, low=3, high=6).half_width_fraction == 0.5


def test_hours_budget_is_its_own_answer() -> None:
    budget = Budget(unit="hours", amount=2.5)
    assert job_hours(budget, Quantity(value=7), None) == Quantity(value=2.5, low=2.5, high=2.5)
    plan = project([Job(id="h", env="x", seed=0, budget=budget)], Quantity(value=10), 1)
    assert plan.jobs[0].steps == pytest.approx(90_000)


def test_savings_tie_when_intervals_overlap() -> None:
    jobs = [steps_job("a", 3_600_000)]
    slow = project(jobs, Quantity(value=1000, low=900, high=1100), 1, price_usd_per_hour=1.0)
    same = project(jobs, Quantity(value=1050, low=950, high=1150), 1, price_usd_per_hour=1.0)
    fast = project(jobs, Quantity(value=2000, low=1900, high=2100), 1, price_usd_per_hour=1.0)
    near, far = savings(slow, same), savings(slow, fast)
    assert near is not None and near.tied
    assert far is not None and not far.tied
    assert far.hours.value == pytest.approx(0.5)
    assert far.hours.low == pytest.approx(0.5 - math.hypot(1 - 1 / 1.1, 1 / 1.9 - 0.5))
    assert far.hours.high == pytest.approx(0.5 + math.hypot(1 / 0.9 - 1, 0.5 - 1 / 2.1))
    assert far.fraction.value == pytest.approx(0.5)
    loss = savings(fast, slow)
    assert loss is not None and loss.usd is not None and loss.usd.value == pytest.approx(-0.5) and not loss.tied


def test_ratio_and_tie_without_interval() -> None:
    assert tied(ratio(Quantity(value=9), Quantity(value=3, low=2, high=4)))
    clear = ratio(Quantity(value=9, low=8, high=10), Quantity(value=3, low=2, high=4))
    assert clear.value == 3 and not tied(clear)
    assert tied(Quantity(value=1.1, low=0.9, high=1.3)) and not tied(Quantity(value=0.8, low=0.7, high=0.9))
    open_ended = difference(Quantity(value=9, low=8, high=10), Quantity(value=3, low=2))
    assert open_ended == Quantity(value=6, high=6 + math.hypot(1, 1))
    assert difference(Quantity(value=9, low=8, high=10), Quantity(value=3, high=5)).high is None
    assert clear.low == pytest.approx(3 * math.exp(-math.hypot(math.log(9 / 8), math.log(4 / 3))))
    assert clear.high == pytest.approx(3 * math.exp(math.hypot(math.log(10 / 9), math.log(3 / 2))))


@pytest.mark.parametrize("rate", [0, -1, math.nan, math.inf])
def test_episode_rate_must_be_positive(rate: float) -> None:
    with pytest.raises(UsageError, match="above zero"):
        project_episode_rates({"Pong": 1}, rate)


def test_daly_interval_and_availability() -> None:
    best_s = best_checkpoint_interval_s(600, 5)
    assert best_s == pytest.approx(74.2, abs=0.05)
    assert best_s == pytest.approx(math.sqrt(2 * 5 * 600) - 5, rel=0.03)
    at_best = availability(600, 60, 5, best_s)
    assert at_best == pytest.approx(0.79, abs=0.005)  # half an hour without a failure: M = T / 3
    assert at_best > availability(600, 60, 5, best_s * 0.9)
    assert at_best > availability(600, 60, 5, best_s * 1.1)
    assert availability(1e12, 0, 0, 60) == pytest.approx(1.0)
    assert availability(1, 600, 5, 60) == 0.0


def test_availability_agrees_with_simulated_failures() -> None:
    # Independent route to Daly's mean: time to get through one interval when failures strike at rate 1/M,
    # each costing the time since the interval began plus a restart that may itself fail.
    import numpy as np

    generator = np.random.default_rng(7)
    mean_s, restart_s, checkpoint_s, interval_s = 600.0, 60.0, 5.0, 74.0

    def attempt(length_s: float) -> tuple[bool, float]:
        failure_s = generator.exponential(mean_s)
        return (True, length_s) if failure_s >= length_s else (False, failure_s)

    total_s = 0.0
    for _ in range(20_000):
        length_s = interval_s + checkpoint_s
        while True:
            done, spent_s = attempt(length_s)
            total_s += spent_s
            if done:
                break
            length_s = restart_s + interval_s + checkpoint_s
    assert 20_000 * interval_s / total_s == pytest.approx(
        availability(mean_s, restart_s, checkpoint_s, interval_s), rel=0.02
    )


def test_failure_bounds() -> None:
    assert failure_rate_bound_per_hour(0, 2.0) == pytest.approx(-math.log(0.05) / 2)  # 3/T
    assert failure_rate_bound_per_hour(2, 1.0) == pytest.approx(6.296, abs=0.001)  # Garwood's table, 95 % one-sided
    assert failure_rate_mean_per_hour(2, 5.0) == 0.5


def test_jobs_left_at_the_end_have_the_speed_measured_with_so_few() -> None:
    """100 beside 10: 20 end after 10 h at 1 each, then 90 alone at 1, at 1.5 (measured) or at 2 (sharing the whole)."""
    jobs = [steps_job("long", 100 * 3600), steps_job("short", 10 * 3600)]
    unknown = project(jobs, Quantity(value=1, low=0.9, high=1.1), 2)
    assert unknown.hours is not None and unknown.least is not None and unknown.tail and unknown.open_end
    assert (unknown.hours.value, unknown.least.value) == pytest.approx((100, 10 + 90 / 2))
    assert unknown.hours.low == pytest.approx(100 / 1.1)
    known = project(jobs, Quantity(value=1, low=0.9, high=1.1), 2, fewer={1: Quantity(value=1.5, low=1.4, high=1.6)})
    assert known.hours is not None and known.least is not None and known.tail and not known.open_end
    assert known.hours.value == known.least.value == pytest.approx(10 + 90 / 1.5)
    assert known.hours.high == pytest.approx(10 / 0.9 + 90 / 1.4)
    assert known.slots == 2
    level = project([jobs[1], steps_job("other", 10 * 3600)], Quantity(value=1), 2)
    assert not level.tail and not level.open_end


def test_no_saving_is_overstated_by_a_reference_with_more_at_once() -> None:
    """One job at an eighth of 1,600 against one at 4,000: 2.5 times the speed, and a saving of 60 %, not of 95 %."""
    job = [steps_job("only", 36e6)]
    crowded = project(job, Quantity(value=200, low=196, high=204), 8)
    alone = project(job, Quantity(value=4000, low=3900, high=4100), 1)
    saved = savings(crowded, alone)
    assert saved is not None and not saved.tied
    assert saved.fraction.value == pytest.approx(1 - 1600 / 4000)
    assert saved.fraction.high == pytest.approx(0.95, abs=0.003)
    turned = savings(alone, crowded)
    assert turned is not None and not turned.tied and turned.fraction.value == pytest.approx(1 - 4000 / 1600)
    unclear = savings(project(job, Quantity(value=1000, low=990, high=1010), 1), crowded)
    assert unclear is not None and unclear.tied, "0.6 to 5 times the hours"


def test_a_job_in_hours_takes_them_beside_any_other() -> None:
    jobs = [Job(id="h", env="x", seed=0, budget=Budget(unit="hours", amount=3)), steps_job("s", 3600)]
    plan = project(jobs, Quantity(value=1, low=0.9, high=1.1), 2, fewer={1: Quantity(value=2, low=1.9, high=2.1)})
    assert plan.hours == Quantity(value=3, low=3, high=3) and plan.least == plan.hours
    assert project(jobs[:1], Quantity(value=1), 2).hours == Quantity(value=3, low=3, high=3), "however little is known"
    unsure = project(jobs, Quantity(value=1, low=0.9, high=1.1), 2, fewer={1: Quantity(value=2)}).hours
    assert unsure == Quantity(value=3), "the other one's speed alone has no interval"


@pytest.mark.parametrize("times", [1.02, 1.05, 1.07, 1.1, 1.3, 2.0])
@pytest.mark.parametrize("errors", [(0.03, 0.05), (0.2, 0.03), (0.9, 0.2), (1.2, 0.1)])
def test_search_and_report_agree_about_ties(times: float, errors: tuple[float, float]) -> None:
    speeds = [(1000 * times, errors[0]), (1000.0, errors[1])]
    tuned, reference = (
        ProbeResult(
            requested=Point(num_envs=8, batch_size=32), status="ok", grade="quick",
            sps=sps, sps_low=max(0.0, sps * (1 - error)), sps_high=sps * (1 + error),
        )
        for sps, error in speeds
    )  # fmt: skip
    compared = measured_ratio(tuned, reference)
    assert compared is not None
    plans = [
        project([steps_job("a", 1e8)], Quantity(value=each.sps or 0, low=each.sps_low, high=each.sps_high), 1)
        for each in (reference, tuned)
    ]
    saved = savings(*plans)
    assert saved is not None and saved.tied == (compared[1] <= 1 <= compared[2])


def test_a_speed_at_fewer_whose_interval_reaches_0_leaves_the_hours_without_an_end() -> None:
    jobs = [steps_job("long", 100 * 3600), steps_job("short", 10 * 3600)]
    plan = project(jobs, Quantity(value=1, low=0.9, high=1.1), 2, fewer={1: Quantity(value=1.5, low=-0.1, high=3.1)})
    assert plan.hours is not None and plan.hours.high is None and plan.hours.low is not None
