"""Space, memory rule, model and proposals: the pure parts of the search."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from analytic_surface import BATCHES, ENVS, GIB, LEVELS, memory_bytes, smooth_sps
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal, norm

from autotune.errors import UsageError
from autotune.probe.recipe import parse_recipe
from autotune.records import Limits, Point, ProbeResult
from autotune.search import confirm, memory, model
from autotune.search.confirm import Pooled, lighter, next_finalist, observed_s, pool, published, ran_s, winner
from autotune.search.memory import MemoryLimits, safe, upper_bound
from autotune.search.plan import Situation, Step, final_cost_s, final_reserve_s, next_step
from autotune.search.precision import launch_fraction
from autotune.search.propose import Problem, predict_cost_s, propose
from autotune.search.space import Space, counts, grid, space_of
from autotune.stats import LAUNCH_FRACTION

SPACE = Space(points=tuple(grid({"num_envs": ENVS, "batch_size": BATCHES, "concurrency": LEVELS})))


def at(envs: int, batch: int, processes: int = 1) -> Point:
    return Point(num_envs=envs, batch_size=batch, concurrency=processes)


def stable(point: Point, sps: float | None = None, *, error: float = 0.01, grade="quick", **changes) -> ProbeResult:
    knobs = (point.num_envs, point.batch_size, point.concurrency)
    value = smooth_sps(*knobs) if sps is None else sps
    vram, ram = memory_bytes(*knobs)
    known = {
        "requested": point, "status": "ok", "grade": grade, "sps": value, "cost_s": 30.0,
        "sps_low": value * (1 - 1.96 * error), "sps_high": value * (1 + 1.96 * error),
        "vram_peak_bytes": vram, "ram_peak_bytes": ram,
    }  # fmt: skip
    return ProbeResult(**(known | changes))


def failed(point: Point, status="oom") -> ProbeResult:
    return ProbeResult(requested=point, status=status, grade="quick", cost_s=10.0)


RECIPE = """
workload = "busywork"
[hyperparameters]
rollout = 4
[knobs]
num_envs = [8, 64]
batch_size = [32, 256]
concurrency = [1, 2]
precision = ["a", "b"]
[[jobs]]
id = "1"
env = "x"
steps = 1
[[jobs]]
id = "2"
env = "x"
steps = 1
"""


def test_the_space_leaves_out_minibatches_beyond_the_rollout_and_holes():
    recipe = parse_recipe(RECIPE, source="x", name="x")
    points = [tuple(p.knobs().values()) for p in space_of(recipe).points]
    assert points == [
        (8, 32, 1, "a"),
        (8, 32, 2, "a"),
        (64, 32, 1, "a"),
        (64, 32, 2, "a"),
        (64, 256, 1, "a"),
        (64, 256, 2, "a"),
    ]
    only = replace(recipe.baseline, num_envs=64)
    assert space_of(replace(recipe, points=(only,))).points == (only,)
    with pytest.raises(UsageError, match="every batch_size is larger"):
        space_of(replace(recipe, knobs={**recipe.knobs, "batch_size": (512,)}))


def test_neighbours_are_one_level_away():
    near = {tuple(SPACE.points[i].knobs().values()) for i in SPACE.neighbours(at(8, 64, 1))}
    assert near == {(16, 64, 1), (8, 128, 1), (8, 64, 2), (16, 128, 1)}


def test_nearest_goes_by_ratio():
    assert SPACE.nearest({"num_envs": 100, "batch_size": 90, "concurrency": 9}) == at(128, 64, 4)


def test_nothing_that_dominates_a_failed_point_is_safe():
    allowed = safe(SPACE, [stable(at(8, 64)), failed(at(64, 256, 2), "crashed")], MemoryLimits())
    for point, may in zip(SPACE.points, allowed, strict=True):
        assert may == (not point.dominates(at(64, 256, 2)))


def test_one_observation_scales_in_proportion():
    bound = upper_bound(
        counts([at(32, 64), at(8, 256), at(32, 512), at(8, 64)], None), counts([at(8, 64)], None), np.array([1e9])
    )
    assert bound == pytest.approx([4.32e9, 4.32e9, 8.64e9, 1.08e9], rel=1e-3)


def test_the_bound_holds_and_becomes_tight():
    """Over random additive laws the bound is never below the truth, and near it after varied observations."""
    random = np.random.default_rng(0)
    rows = counts(SPACE.points, None)
    for _ in range(50):
        law = random.uniform(0, 1, 5) * [1e9, 2e7, 3e6, 2e7, 1e9]
        truth = memory.features(rows) @ law
        seen = random.choice(len(rows), random.integers(1, 25), replace=False)
        noisy = truth[seen] * random.normal(1, 0.003, len(seen))
        assert (upper_bound(rows, rows[seen], noisy) >= truth * 0.995).all()
    corners = [i for i, p in enumerate(SPACE.points) if p.num_envs in (8, 64, 256) and p.batch_size in (64, 256, 1024)]
    assert (upper_bound(rows, rows[corners], truth[corners]) <= 1.07 * truth).all()


def test_the_memory_rule_keeps_within_the_limit():
    history = [stable(at(8, 256)), stable(at(32, 256)), stable(at(16, 1024, 2))]
    limits = MemoryLimits(vram_bytes=0.9 * 16 * GIB, ram_bytes=0.9 * 32 * GIB)
    allowed = safe(SPACE, history, limits)
    for point, may in zip(SPACE.points, allowed, strict=True):
        vram, ram = memory_bytes(point.num_envs, point.batch_size, point.concurrency)
        assert not may or (vram <= limits.vram_bytes and ram <= limits.ram_bytes)
    assert allowed.sum() > 40


def test_limits_leave_out_what_others_hold():
    from fake_host import host

    from autotune.machine import DeviceInfo, GpuInfo

    gpu = GpuInfo(index=0, name="g", vram_total_bytes=10 * GIB, vram_used_bytes=2 * GIB)
    device = DeviceInfo(kind="cuda", name="g", host=host(), gpus=(gpu,), gpu_index=0)
    found = memory.memory_limits(Limits(vram_fraction=0.8, ram_fraction=0.5), device)
    assert found.vram_bytes == pytest.approx(6 * GIB)
    assert found.ram_bytes == pytest.approx((32 - 4) * GIB)


def test_the_prior_recovers_its_own_law():
    points = [
        at(8, 64),
        at(64, 256, 2),
        at(256, 1024, 4),
        at(16, 512, 3),
        at(128, 128),
        at(32, 1024, 2),
        at(8, 1024, 4),
    ]
    rows = counts(points, None)
    sps = np.array([smooth_sps(*(int(v) for v in row)) for row in rows])
    law = model.fit_prior(rows, np.log(sps))
    assert law[0] == pytest.approx([20e-6, 1e-3, 2e-3], rel=1e-6)
    assert law[1] == pytest.approx([12e-6, 0.6e-3, 1.2e-3], rel=1e-6)
    everywhere = np.exp(model.prior_log_sps(SPACE.counts, *law))
    assert everywhere == pytest.approx([smooth_sps(p.num_envs, p.batch_size, p.concurrency) for p in SPACE.points])


def test_belief_passes_near_what_was_measured_and_is_unsure_elsewhere():
    bumpy = [
        stable(p, smooth_sps(p.num_envs, p.batch_size, p.concurrency) * f)
        for p, f in [
            (at(8, 64), 1.1),
            (at(256, 1024, 4), 0.8),
            (at(64, 256, 2), 1.0),
            (at(16, 512, 3), 1.2),
            (at(128, 64), 0.9),
        ]
    ]
    belief = model.believe(SPACE, bumpy)
    for result in bumpy:
        index = SPACE.index[result.requested]
        assert np.exp(belief.mean[index]) == pytest.approx(result.sps, rel=0.05)
        assert belief.deviation[index] < 0.03
    assert belief.deviation.max() > 2 * belief.deviation[SPACE.index[at(64, 256, 2)]]


def test_repeats_of_a_point_say_what_they_say_one_by_one():
    once = [at(8, 64), at(256, 1024, 4), at(64, 256, 2), at(16, 512, 3), at(128, 64)]
    where = np.log2(counts([*once, at(8, 64), at(256, 1024, 4), at(8, 64)], None))
    residual = np.array([0.1, -0.2, 0.0, 0.2, -0.1, 0.05, -0.15, 0.15])
    variance = np.array([0.01, 0.02, 0.015, 0.03, 0.01, 0.04, 0.02, 0.01]) ** 2
    joined = model._once(where, residual, variance)
    assert len(joined[0]) == len(once)
    belief = model._condition(*joined, SPACE.octaves, np.zeros(len(SPACE)))
    mean, deviation = conditioned_in_full(where, residual, variance, SPACE.octaves)
    assert belief.mean == pytest.approx(mean, abs=1e-8)
    assert belief.deviation == pytest.approx(deviation, abs=1e-8)


def conditioned_in_full(where, residual, variance, grid):
    """The textbook's regression (Rasmussen and Williams 2006, eqs. 2.25, 2.26), a row for every measurement."""
    scales = itertools.product(model._LENGTHS_OCTAVES, model._LENGTHS_OCTAVES, model._AMPLITUDES, model._ROUGHNESSES)

    def covariance(a, b, envs, batch, amplitude, rough):
        distance = cdist(a, b, "seuclidean", V=np.array([envs, batch, model._LENGTH_CONCURRENCY_OCTAVES]) ** 2) * 5**0.5
        smooth = (1 + distance + distance**2 / 3) * np.exp(-distance)
        return amplitude**2 * smooth + rough**2 * (cdist(a, b) == 0)

    def evidence(each):
        return multivariate_normal.logpdf(residual, cov=covariance(where, where, *each) + np.diag(variance))

    best = max(scales, key=evidence)
    cross = covariance(grid, where, *best)
    gain = cross @ np.linalg.inv(covariance(where, where, *best) + np.diag(variance))
    spread = best[2] ** 2 + best[3] ** 2 - (gain * cross).sum(axis=1)
    return gain @ residual, np.sqrt(spread)


def test_predicted_cost_learns_processes_and_iterations():
    def cost_s(point: Point) -> float:
        return 12.0 + 3.0 * point.concurrency

    points = [at(8, 64), at(64, 256, 2), at(256, 1024, 4), at(16, 512, 3), at(128, 128)]
    history = [stable(point, cost_s=cost_s(point)) for point in points]
    predicted = predict_cost_s(Problem(space=SPACE), history, model.believe(SPACE, history))
    assert predicted[SPACE.index[at(32, 256, 4)]] == pytest.approx(24, rel=0.05)
    assert predicted[SPACE.index[at(32, 256, 1)]] == pytest.approx(15, rel=0.05)


def test_a_slow_minibatch_is_predicted_to_cost_before_it_is_tried():
    """At 400 steps per second a minibatch of 1,024 samples takes 2.6 s, and a probe needs several."""
    points = [at(8, 64), at(8, 256)]
    history = [replace(stable(point, cost_s=25.0), sps=400.0, sps_low=390.0, sps_high=410.0) for point in points]
    predicted = predict_cost_s(Problem(space=SPACE), history, model.believe(SPACE, history))
    assert predicted[SPACE.index[at(256, 1024)]] > predicted[SPACE.index[at(16, 64)]] + 3
    assert predicted[SPACE.index[at(16, 64)]] == pytest.approx(25, rel=0.25)


def climb(problem: Problem, fate=lambda point: "ok", count: int = 20) -> list[ProbeResult]:
    history = [stable(at(8, 256))]
    for _ in range(count):
        proposal = propose(problem, history)
        if proposal is None:
            break
        word = fate(proposal.point)
        history.append(stable(proposal.point) if word == "ok" else failed(proposal.point, word))
    return history


def test_proposals_find_the_best_of_a_smooth_surface_within_limits():
    limits = MemoryLimits(vram_bytes=14 * GIB, ram_bytes=28 * GIB)
    history = climb(Problem(space=SPACE, limits=limits), count=14)
    fits = [
        p
        for p in SPACE.points
        if all(
            used <= limit
            for used, limit in zip(
                memory_bytes(p.num_envs, p.batch_size, p.concurrency),
                (limits.vram_bytes, limits.ram_bytes),
                strict=True,
            )
        )
    ]
    best = max(smooth_sps(p.num_envs, p.batch_size, p.concurrency) for p in fits)
    assert max(result.sps for result in history) >= 0.97 * best
    assert len({result.requested for result in history}) == len(history)


def test_proposals_never_dominate_a_failure():
    def fate(point: Point) -> str:
        return "oom" if point.num_envs * point.concurrency > 128 else "ok"

    history = climb(Problem(space=SPACE), fate, count=40)
    for i, later in enumerate(history):
        for earlier in history[:i]:
            assert earlier.ok or not later.requested.dominates(earlier.requested)
    assert any(not result.ok for result in history)


def test_with_nothing_stable_the_lightest_open_point_is_next():
    assert propose(Problem(space=SPACE), [failed(at(64, 256))]).point == at(8, 64)
    assert propose(Problem(space=SPACE), [failed(at(8, 64))]) is None


def test_too_costly_points_are_left_out():
    points = [at(8, 256), at(8, 64), at(16, 128), at(64, 256, 2), at(32, 512, 3), at(16, 1024, 4)]
    history = [stable(point, cost_s=10.0 * point.concurrency) for point in points]
    for _ in range(10):
        proposal = propose(Problem(space=SPACE, cost_max_s=25.0), history)
        assert proposal is not None and proposal.point.concurrency <= 2
        history.append(stable(proposal.point, cost_s=10.0 * proposal.point.concurrency))


def test_repeats_are_pooled_by_precision_and_a_failure_disqualifies():
    point = at(8, 64)
    entry = pool(
        [
            stable(point, 100.0, error=0.02),
            stable(point, 110.0, error=0.01),
            stable(at(16, 64), 500.0),
            failed(at(16, 64)),
        ]
    )
    assert len(entry) == 1
    launch = launch_fraction([stable(point, 100.0, error=0.02), stable(point, 110.0, error=0.01)])
    windows = [(0.02**2 - LAUNCH_FRACTION**2) ** 0.5, 1e-3]  # the second states less than launches differ by
    weights = (105 * np.hypot(windows, launch)) ** -2.0  # errors in units of the median 105
    assert entry[0].sps == pytest.approx((weights * [100, 110]).sum() / weights.sum())
    assert entry[0].error_sps == pytest.approx(weights.sum() ** -0.5)
    assert launch > 1.2 * LAUNCH_FRACTION, "two launches 10 % apart"


def test_the_winner_is_confirmed_and_ties_go_to_the_lighter():
    heavy, light, slow, lucky = at(256, 1024, 4), at(64, 256, 2), at(8, 64), at(128, 512, 1)
    history = [
        stable(heavy, 1000.0, grade="final"),
        stable(light, 995.0, grade="final"),
        stable(slow, 900.0, grade="final"),
        stable(lucky, 1100.0, error=0.1),
    ]
    best, tied = winner(SPACE, history)
    assert best.point == light
    assert [entry.point for entry in tied] == [heavy]
    best, tied = winner(SPACE, [history[0], stable(light, 975.0, grade="final")])
    assert (best.point, [entry.point for entry in tied]) == (heavy, [light]), "2.5 % are not given away for lightness"
    assert published(history, light).flags == ("one launch",)
    assert published(history, lucky).flags == ("quick, one launch",)
    assert winner(SPACE, [failed(heavy)]) is None
    assert [rung.requested for rung in lighter(history, heavy)] == [lucky, slow]


def test_what_is_stated_of_each_process_adds_up_to_what_is_stated_of_all():
    point = at(64, 256, 2)
    history = [stable(point, sps, grade="final", job_sps=(0.6 * sps, 0.4 * sps)) for sps in (1000.0, 1100.0)]
    stated = published(history, point)
    assert 1000 < stated.sps < 1100
    assert stated.job_sps == pytest.approx((0.6 * stated.sps, 0.4 * stated.sps))


def test_what_is_stated_never_falls_below_zero():
    """A final window of few long iterations may know half of a rate or less; a manifest takes no negative one."""
    point = at(64, 256)
    for count in (1, 2):
        stated = published([stable(point, 1000.0, error=0.8, grade="final", sps_low=0.0)] * count, point)
        assert stated.sps_low == 0 and stated.sps_high > 2000


def test_a_point_far_above_every_confirmed_one_wins_unconfirmed():
    confirmed, near, far = at(8, 64), at(16, 64), at(64, 256)
    history = [stable(confirmed, 400.0, grade="final"), stable(near, 405.0, error=0.03)]
    assert winner(SPACE, history)[0].point == confirmed
    assert winner(SPACE, [*history, stable(far, 1500.0, error=0.03)])[0].point == far


def test_without_finals_the_measurements_decide():
    few = [
        stable(at(8, 64), 253.0, error=0.1),
        stable(at(16, 256), 470.0, error=0.3),
        stable(at(256, 2048), 301.0, error=0.42),
    ]
    best, tied = winner(SPACE, few)
    assert best.point == at(8, 64)
    assert {entry.point for entry in tied} == {at(16, 256), at(256, 2048)}


def test_a_point_that_beats_another_is_not_tied_with_it_because_their_intervals_overlap():
    """6,222 (4,386 to 8,058) is 1.07 to 2.06 times 4,024 (3,553 to 4,495): a report said that, and a tie."""
    slow, fast, near = at(8, 256), at(16, 256), at(32, 256)
    history = [stable(slow, 4024.0, error=0.0597), stable(fast, 6222.0, error=0.1505)]
    best, tied = winner(SPACE, history)
    assert best.point == fast and best.low < 4495 and tied == ()
    assert [entry.point for entry in winner(SPACE, [*history, stable(near, 5500.0, error=0.2)])[1]] == [near]


def test_room_for_finals_is_that_of_the_finalist_not_of_the_slowest_point():
    recipe = parse_recipe(RECIPE, source="", name="r")
    longer_s = recipe.final.discard_s + recipe.final.window_s - recipe.quick.discard_s - recipe.quick.window_s
    history = [stable(at(8, 64), cost_s=20.0), stable(at(256, 2048), cost_s=250.0)]
    assert final_cost_s(recipe, history, 1.0, at(8, 64)) == 20.0 + longer_s
    assert final_cost_s(recipe, history, 1.0) == 250.0 + longer_s
    assert final_reserve_s(600.0, 20.0 + longer_s, 20.0) == 120.0
    assert final_reserve_s(600.0, 250.0 + longer_s, 20.0) == 0.0
    assert final_reserve_s(600.0, 100.0, 97.0) == 0.0, "four probes and no more would be left"


def test_no_reference_is_confirmed_before_a_finalist_is():
    """The baseline's final window fits and the leader's does not: the only confirmed point would be recommended."""
    recipe = parse_recipe(RECIPE.replace('precision = ["a", "b"]', ""), source="", name="r")
    baseline, leader = recipe.baseline, at(64, 1024)
    history = [stable(baseline, 440.0, cost_s=20.0), stable(leader, 1445.0, cost_s=45.0)]
    situation = Situation(
        recipe=recipe, problem=Problem(space=SPACE), opening=(Step(stage="baseline", point=baseline),),
        history=history, budget_s=180.0, left_s=71.0, first_quick_s=20.0, first_final_s=50.0, planned_s=None,
        drifts=False,
    )  # fmt: skip
    assert final_cost_s(recipe, history, 1.0, baseline) < situation.left_s < final_cost_s(recipe, history, 1.0, leader)
    more = Step(stage="spread", point=at(16, 256), predicted_s=25.0)
    asked: list[float] = []

    def search(left_s: float) -> Step | str:
        asked.append(left_s)
        return more if left_s >= 71.0 else "budget"

    assert next_step(situation, search) is more and asked[-1] == 71.0, "what no final window can use goes to quick ones"
    assert next_step(situation, lambda _left_s: "budget") == "budget"
    confirmed = replace(situation, history=[*history, stable(leader, 1445.0, grade="final", cost_s=80.0)])
    step = next_step(confirmed, lambda _left_s: "budget")
    assert (step.grade, step.point) == ("final", baseline)


def test_a_lighter_finalist_is_confirmed_whatever_the_gain_in_speed():
    leader, light, heavy = at(64, 256), at(32, 256), at(128, 256)
    history = [stable(leader, 1000.0, grade="final"), stable(light, 985.0), stable(heavy, 985.0)]
    gains: dict[Point, float] = {}
    assert next_finalist(SPACE, history, lambda point, gain: bool(gains.setdefault(point, gain) < 0)) is None
    assert gains[light] == np.inf
    assert 0 < gains[heavy] < 0.03 and gains[leader] < 0.03
    gains.clear()
    open_ = [stable(leader, 1000.0), stable(heavy, 985.0)]
    assert next_finalist(SPACE, open_, lambda point, gain: bool(gains.setdefault(point, gain) < 0)) is None
    assert gains[leader] == np.inf and gains[heavy] < 0.03, "nothing is recommended unconfirmed"


def test_the_regret_left_is_the_expected_positive_part_of_the_difference():
    leader, near, far = (
        Pooled(point=at(envs, 64), sps=sps, error_sps=error, finals=1)
        for envs, sps, error in ((8, 1000.0, 6.0), (16, 990.0, 8.0), (32, 960.0, 8.0))
    )
    expected = 0.01 * (norm.pdf(1) - norm.cdf(-1))  # an error of 10 in 1,000, and one error behind
    finalists = [leader, near, far]
    assert confirm._regret_left(near, finalists) == pytest.approx(expected)
    assert confirm._regret_left(leader, finalists) == pytest.approx(expected), "the other is the nearest"
    assert confirm._regret_left(far, finalists) == pytest.approx(0.01 * (norm.pdf(4) - 4 * norm.cdf(-4)))
    assert confirm._regret_left(leader, [leader]) == 0


def test_a_point_is_observed_while_its_processes_run():
    point = at(8, 64)
    launches = [
        stable(point, cost_s=50.0, startup_s=20.0),
        stable(point, cost_s=7.0),
        stable(at(16, 64), cost_s=100.0, startup_s=20.0),
        replace(failed(point, "crashed"), cost_s=40.0, startup_s=10.0),
        replace(failed(point, "crashed"), cost_s=300.0),
    ]
    assert [ran_s(launch) for launch in launches] == [30, 7, 80, 30, 0]
    assert observed_s(launches, point) == 37


def test_finalists_take_turns_then_end():
    history = [stable(at(8, 64), 100.0), stable(at(16, 64), 99.0), stable(at(32, 64), 95.0)]
    order = []
    while (point := next_finalist(SPACE, history)) is not None:
        order.append(point.num_envs)
        history.append(stable(point, {8: 100.0, 16: 99.0}[point.num_envs], grade="final"))
    assert order == [8, 16, 8, 16, 8, 16]
    assert next_finalist(SPACE, []) is None
    level = [stable(at(16, 64), 100.0), stable(at(8, 64), 99.6)]
    assert next_finalist(SPACE, level) == at(8, 64), "of those as fast as the leader the lightest"


def test_a_point_at_which_a_program_runs_out_of_steps_stays_and_is_not_tried_again():
    fast, slow = at(64, 256), at(8, 64)
    ended = ProbeResult(
        requested=fast, status="crashed", grade="final", cost_s=24.0, flags=("refused", "ended early"),
        detail="the program ended after 300,032 steps, too early to be measured",
    )  # fmt: skip
    history = [stable(slow, 100.0), stable(fast, 125.0), ended]
    assert next_finalist(SPACE, history) is None, "the slow one is too slow for a finalist"
    best, tied = winner(SPACE, [*history, stable(slow, 100.0, grade="final")])
    assert best.point == fast and not tied
    refused = replace(ended, flags=("refused",))
    assert winner(SPACE, [*history[:2], refused])[0].point == slow, "one that it refuses is not stable"


def test_long_iterations_make_a_final_window_longer_than_its_plan():
    """Iterations of 10 s: quick slices of 1 s, whole ones in final windows: 3 discarded, 6 measured, 1 to settle."""
    recipe = parse_recipe(RECIPE, source="", name="r")
    sliced = replace(
        stable(at(8, 64), 3.2, cost_s=28.0), window_s=8.0, iterations=8, effective={"rollout": 4},
        flags=("one launch", "extrapolated"),
    )  # fmt: skip
    assert final_cost_s(recipe, [sliced], 1.0, at(8, 64)) == pytest.approx(28.0 - 18.0 + 30.0 + 60.0 + 10.0)
    whole = replace(sliced, window_s=9.0, iterations=3, flags=("one launch",))
    assert final_cost_s(recipe, [whole], 1.0, at(8, 64)) == pytest.approx(28.0 - (12.0 + 9.0) + 21.0 + 30.0)
    longest = replace(sliced, sps=0.1)  # iterations of 320 s are sliced in final windows too, by 3.75 s
    assert final_cost_s(recipe, [longest], 1.0, at(8, 64)) == pytest.approx(28.0 - 18.0 + 22.5 + 30.0 + 3.75)
