import math

import numpy as np
import pytest

from autotune.stats import (
    LAUNCH_FRACTION,
    Trace,
    batch_rates,
    estimate,
    game_steps,
    launch_spread,
    nearest_by_ratio,
    pooled_game_steps,
    sampling_half_width,
    shrunk_correlation,
    summed_batch_rates,
    total_rate,
    window_noise,
)


def autoregressive_trace(rng, count, *, deviation=0.04, correlation=0.6, steps=100.0):
    noise, x = [], rng.normal(0, deviation)
    for _ in range(count):
        x = correlation * x + rng.normal(0, deviation * math.sqrt(1 - correlation**2))
        noise.append(x)
    return Trace(seconds=tuple(np.exp(noise)), steps=(steps,) * count)


def test_rate_is_total_steps_over_total_time_not_the_mean_of_rates():
    trace = Trace(seconds=(1.0, 3.0), steps=(100.0, 100.0))
    assert total_rate(trace) == pytest.approx(50.0)
    assert total_rate(Trace(seconds=(0.2, 0.05), steps=(4.0, 6.0))) == pytest.approx(40.0)
    assert total_rate(Trace(seconds=(0.0,), steps=(1.0,))) == 0, "a clock that stood still tells nothing"


def test_constant_iterations_leave_only_the_launch_term():
    figures = estimate([Trace(seconds=(0.5,) * 40, steps=(10.0,) * 40)], launch_fraction=0.01)
    assert figures.rate == pytest.approx(20.0)
    assert figures.high / figures.rate - 1 == pytest.approx(1.96 * 0.01, rel=1e-6)


def test_rates_of_processes_add_up():
    one = Trace(seconds=(1.0,) * 8, steps=(10.0,) * 8)
    two = Trace(seconds=(2.0,) * 8, steps=(10.0,) * 8)
    figures = estimate([one, two])
    assert figures.rate == pytest.approx(15.0)
    assert figures.per_process == pytest.approx((10.0, 5.0))


def test_one_iteration_has_no_upper_bound():
    figures = estimate([Trace(seconds=(1.0,), steps=(10.0,))])
    assert figures.high == math.inf
    assert figures.low == 0.0


def test_batches_are_single_iterations_below_16_and_12_above():
    assert batch_rates(Trace(seconds=(1.0,) * 15, steps=(1.0,) * 15))[0].shape == (15,)
    assert batch_rates(Trace(seconds=(1.0,) * 16, steps=(1.0,) * 16))[0].shape == (12,)
    rates, size = batch_rates(Trace(seconds=(1.0,) * 50, steps=(1.0,) * 50))
    assert (rates.shape, size) == ((12,), 4)


def test_processes_are_summed_from_their_ends_as_far_as_all_reach():
    ten, fifty = (Trace(seconds=(1.0,) * count, steps=tuple(range(count))) for count in (10, 50))
    rates, size = summed_batch_rates([ten, fifty])
    assert size == 1, "the correlation of single iterations is the stronger one"
    assert rates == pytest.approx([own + 2 + 4 * (own + 2) + 1.5 for own in range(10)])


def test_the_interval_and_the_noise_are_those_of_the_formula():
    """Rates 10 12 14 12 12: s = sqrt(2), no observed correlation, so r = 8 * 0.4 / 13; halves of 11 and 12."""
    trace, r = Trace(seconds=(1.0,) * 5, steps=(10.0, 12.0, 14.0, 12.0, 12.0)), 3.2 / 13
    error = math.sqrt(2 * (1 + r) / (1 - r) / 5)
    assert sampling_half_width([trace]) == pytest.approx((2.7764451 * error, 1.0))
    figures = estimate([trace], launch_fraction=0.1)
    half = math.sqrt((2.7764451 * error) ** 2 + (1.96 * 0.1 * 12) ** 2 + 1.0)
    assert (figures.low, figures.rate, figures.high) == pytest.approx((12 - half, 12, 12 + half))
    assert window_noise([trace, trace], 20.0) == pytest.approx(error * math.sqrt(5 / 20) / 12)
    assert window_noise([Trace(seconds=(1.0,), steps=(1.0,))], 20.0) is None
    assert window_noise([Trace(seconds=(1.0,) * 5, steps=(0.0,) * 5)], 20.0) is None


def test_drift_widens_the_interval():
    steady = Trace(seconds=(1.0,) * 24, steps=(10.0,) * 24)
    slowing = Trace(seconds=(1.0,) * 12 + (1.2,) * 12, steps=(10.0,) * 24)
    assert sampling_half_width([steady])[1] == pytest.approx(0.0)
    assert sampling_half_width([slowing])[1] == pytest.approx(10.0 - 10.0 / 1.2)


def test_correlation_is_shrunk_towards_its_prior_and_bounded():
    rng = np.random.default_rng(0)
    assert shrunk_correlation(np.ones(10), 1) == pytest.approx(8 * 0.4 / 18)
    assert shrunk_correlation(np.array([0.0, 1.0, 2.0]), 2) == pytest.approx((3 * 1 + 8 * 0.2) / 11)
    for without_any in ([1.0, 1.0, 2.0], [2.0, 1.0, 1.0]):
        assert shrunk_correlation(np.array(without_any), 1) == pytest.approx(8 * 0.4 / 11)
    assert 0.0 <= shrunk_correlation(rng.normal(size=12), 4) <= 0.8
    assert shrunk_correlation(np.arange(100.0), 1) == 0.8


@pytest.mark.parametrize(("count", "least"), [(12, 0.87), (60, 0.93), (240, 0.93)])
def test_interval_covers_the_long_run_rate_of_correlated_series(count, least):
    """With a dozen strongly correlated iterations 95 % is out of reach (90 % seen); from 60 on it holds."""
    rng = np.random.default_rng(count)
    truth = 100.0 / math.exp(0.04**2 / 2)
    hits = 0
    for _ in range(200):
        launch = math.exp(rng.normal(0, 0.01))
        trace = autoregressive_trace(rng, count, steps=100.0 * launch)
        figures = estimate([trace])
        hits += figures.low <= truth <= figures.high
    assert hits >= least * 200


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("processes", [2, 8])
def test_interval_covers_the_sum_of_processes_that_a_machine_disturbs_together(processes, shared):
    """`shared` of the noise's variance is the machine's: two Breakout trainings on 2 busy cores correlated by 0.93."""
    rng = np.random.default_rng(processes)
    truth = processes * 100.0 / math.exp(0.04**2 / 2)
    hits, widths = 0, []
    for _ in range(200):
        common, *own = (np.log(autoregressive_trace(rng, 30, correlation=0.4).seconds) for _ in range(processes + 1))
        noises = [math.sqrt(shared) * common + math.sqrt(1 - shared) * each for each in own]
        traces = [Trace(seconds=tuple(np.exp(noise)), steps=(100.0,) * 30) for noise in noises]
        figures = estimate(traces, launch_fraction=0.0)
        hits += figures.low <= truth <= figures.high
        widths.append(figures.high / figures.rate - 1)
    assert hits >= 0.93 * 200
    assert np.mean(widths) < 0.045 * math.sqrt(shared + (1 - shared) / processes), "no wider than the noise of the sum"


def launches(rng, groups, each, *, spread, window):
    """Groups of (rate, window error) of `each` launches of one setting."""
    truth = np.exp(rng.normal(0, 1, groups))
    noise = rng.normal(0, spread, (groups, each)) + rng.normal(0, window, (groups, each))
    return [[(float(t * np.exp(n)), window) for n in row] for t, row in zip(truth, noise, strict=True)]


def test_without_repeats_the_launch_spread_is_the_one_assumed():
    assert launch_spread([]) == pytest.approx(LAUNCH_FRACTION)
    assert launch_spread([[(100.0, 0.01)], [(50.0, 0.002)]]) == pytest.approx(LAUNCH_FRACTION)


@pytest.mark.parametrize(("spread", "tolerance"), [(0.01, 0.05), (0.03, 0.05), (0.07, 0.05), (0.003, 0.5)])
def test_the_launch_spread_is_found_from_simulated_launches(spread, tolerance):
    """Below the windows' own errors of 0.5 % it is found roughly, drawn towards what is assumed, here 1 %."""
    rng = np.random.default_rng(7)
    found = [launch_spread(launches(rng, 40, 4, spread=spread, window=0.005), prior=0.01) for _ in range(40)]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(spread, rel=tolerance)


def test_one_setting_launched_often_on_a_drifting_host_outweighs_what_was_assumed():
    rng = np.random.default_rng(1)
    found = [launch_spread(launches(rng, 1, 20, spread=0.07, window=0.027)) for _ in range(20)]
    assert np.mean(found) == pytest.approx(0.065, abs=0.01)


def test_windows_that_are_far_noisier_than_the_spread_say_little_about_it():
    rng = np.random.default_rng(8)
    found = [launch_spread(launches(rng, 10, 2, spread=0.01, window=0.05), prior=0.01) for _ in range(100)]
    assert np.mean(found) == pytest.approx(0.01, rel=0.05) and max(found) < 0.02


@pytest.mark.parametrize(
    ("prior", "spread", "least"),
    [(0.01, 0.01, 930), (0.01, 0.015, 900), (LAUNCH_FRACTION, 0.015, 930), (LAUNCH_FRACTION, 0.02, 900)],
)
def test_intervals_with_the_pooled_spread_cover_the_truth(prior, spread, least):
    """Three launches of one setting among repeats of others: mean +- 1.96 errors holds the truth 95 times in 100.

    A few times less often where launches differ more than assumed, which few repeats do not outweigh.
    """
    rng, covered = np.random.default_rng(9), 0
    for _ in range(1000):
        found = launch_spread(launches(rng, 8, 3, spread=spread, window=0.005), prior=prior)
        own = 1000.0 * np.exp(rng.normal(0, spread, 3) + rng.normal(0, 0.005, 3))
        covered += abs(own.mean() - 1000.0) <= 1.96 * 1000.0 * math.hypot(found, 0.005) / math.sqrt(3)
    assert least <= covered <= 970


WIDE = math.log(1 + 1.5**2)
"""Variance of the logarithm of lengths that deviate by 1.5 times their mean."""


@pytest.mark.parametrize(
    ("draw", "low", "high"),
    [
        (lambda _: 1000.0, 0.8, 1.2),
        (lambda rng: rng.gamma(1 / 0.16, 160.0), 0.93, 1.07),
        (lambda rng: rng.exponential(1000.0), 0.83, 1.13),
        (lambda rng: rng.lognormal(math.log(1000.0) - WIDE / 2, math.sqrt(WIDE)), 0.65, 1.25),
    ],
    ids=["constant", "usual", "exponential", "wide"],
)
@pytest.mark.parametrize("steps", [2700, 3900, 12500])
def test_running_games_count_in_a_games_length(draw, low, high, steps):
    """128 environments for some thousand steps each, games of 1,000 on average."""
    rng = np.random.default_rng(5)
    ended = []
    for _ in range(128):
        played = 0.0
        while (played := played + (length := draw(rng))) <= steps:
            ended.append(length)
    found = game_steps(128 * steps, ended, 128)
    assert found is not None and low < found / 1000 < high


def test_too_few_games_have_no_length():
    assert game_steps(1000, [], 8) is None
    assert game_steps(1000, [50.0] * 15, 8) is None
    assert game_steps(1000, [50.0] * 16, 8) == pytest.approx(1000 / 20)
    assert game_steps(1000, [50.0, 150.0] * 8, 8) == pytest.approx(1000 / 19), "they deviate by half their mean"
    assert game_steps(1000, [10.0] * 15 + [1000.0], 8) == pytest.approx(1000 / 16), "by more than their mean"


def test_the_length_of_a_game_is_pooled_by_the_games_behind_it():
    assert pooled_game_steps([1, 3, 9], [10.0, 20.0, None]) == pytest.approx(70 / 4)
    assert pooled_game_steps([1], [None]) is None


def test_the_nearest_row_is_nearest_by_octaves_whichever_way():
    assert nearest_by_ratio([[1, 1], [16, 8], [8, 8], [8, 32], [4, 64]], [8, 16]) == 2
