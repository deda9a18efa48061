"""Sentinel and epochs: a machine that changes while it is searched."""

from dataclasses import replace

import optuna
import pytest
from analytic_surface import smooth_sps, write_surface

from autotune.executors.replay import ReplayExecutor, surface_recipe
from autotune.records import Point, ProbeRequest, ProbeResult
from autotune.runs import create_run
from autotune.search.epochs import comparable, due, epochs_of
from autotune.search.result import economy
from autotune.search.study import run_study
from autotune.search.trials import comparable_history, load_trials
from autotune.stats import LAUNCH_FRACTION

BASELINE, OTHER = Point(num_envs=8, batch_size=256), Point(num_envs=64, batch_size=256)


def measured(point: Point, sps: float, error: float = 0.01) -> ProbeResult:
    low, high = sps * (1 - 1.96 * error), sps * (1 + 1.96 * error)
    return ProbeResult(requested=point, status="ok", grade="quick", sps=sps, sps_low=low, sps_high=high, job_sps=(sps,))


def test_the_sentinel_is_due_after_six_launches():
    history = [measured(BASELINE, 100.0), *[measured(OTHER, 200.0)] * 5]
    assert not due(history, BASELINE)
    assert due([*history, measured(OTHER, 200.0)], BASELINE)
    assert not due([*history, measured(OTHER, 200.0), measured(BASELINE, 100.0)], BASELINE)
    assert not due([measured(OTHER, 200.0)] * 9, BASELINE), "a baseline that was never measured says nothing"
    broken = ProbeResult(requested=BASELINE, status="oom", grade="quick")
    assert not due([broken, *[measured(OTHER, 200.0)] * 9], BASELINE)


def test_a_shift_beyond_noise_opens_an_epoch_and_a_noisy_one_does_not():
    def epochs(*sps: float, error: float = 0.01) -> tuple[int, ...]:
        return epochs_of([measured(BASELINE, each, error) for each in sps], BASELINE)

    assert epochs(100, 102, 99) == (0, 0, 0)
    assert epochs(100, 90, 91) == (0, 1, 1)
    assert epochs(100, 90, 101) == (0, 1, 2)
    assert epochs(100, 90, 91, error=0.06) == (0, 0, 0)
    assert epochs(100, 97.5, error=0.001) == (0, 0), "below 3 %, however sure"
    assert epochs_of([measured(BASELINE, 100), measured(OTHER, 50), measured(BASELINE, 80)], BASELINE) == (0, 0, 1)


def test_earlier_epochs_are_put_on_the_last_footing_with_the_ratios_error():
    sps = [(BASELINE, 100), (OTHER, 200), (BASELINE, 100), (BASELINE, 80), (OTHER, 165)]
    history = [measured(*each) for each in sps]
    seen = comparable(history, epochs_of(history, BASELINE))
    assert [result.sps for result in seen] == pytest.approx([80, 160, 80, 80, 165])
    assert seen[3:] == history[3:]
    assert seen[1].flags == ("epoch 0",) and seen[1].job_sps == pytest.approx((160,))
    half = 1.96 * 160 * (0.01**2 + 1.5 * LAUNCH_FRACTION**2) ** 0.5  # one launch, and the ratio of two to one
    assert (seen[1].sps_low, seen[1].sps_high) == pytest.approx((160 - half, 160 + half), rel=1e-3)
    assert comparable(history[:2], (0, 0)) == history[:2]


def test_what_was_measured_around_the_change_may_belong_to_either_side():
    history = [measured(BASELINE, 100), measured(OTHER, 200), measured(BASELINE, 64)]
    between = comparable(history, epochs_of(history, BASELINE))[1]
    assert between.sps == pytest.approx(160)
    assert between.sps_low < 200 * 0.64 and between.sps_high > 190


def test_a_failure_stays_one():
    failed = ProbeResult(requested=OTHER, status="oom", grade="quick")
    history = [measured(BASELINE, 100), failed, measured(BASELINE, 50)]
    assert comparable(history, epochs_of(history, BASELINE))[1] == replace(failed, flags=("epoch 0",))


class Slowing(ReplayExecutor):
    """A machine that loses 30 % of its speed after a while; its clock is called real, so the sentinel is measured."""

    simulated = False
    slow_from_s = 500.0

    def run(self, request: ProbeRequest) -> ProbeResult:
        result = super().run(request)
        if self.clock_s() < self.slow_from_s or result.sps is None:
            return result
        return replace(result, sps=0.7 * result.sps, sps_low=0.7 * result.sps_low, sps_high=0.7 * result.sps_high)


@pytest.mark.parametrize("seed", range(3))
def test_on_a_machine_that_slows_down_the_best_is_found_and_no_lucky_early_point_wins(tmp_path, seed):
    path = write_surface(tmp_path / "small.csv", noise=0.01)
    executor, run = Slowing(path, seed), create_run(tmp_path, "run-1")
    found = run_study(
        surface_recipe(path), executor, run, budget_s=1800.0, seed=seed, early_stop=False,
    )  # fmt: skip
    assert found.epochs == 2
    assert "the machine's speed changed once" in economy(found)
    best = max(row.sps for row in executor.surface.rows if row.sps and row.vram_bytes <= 0.9 * 16 * 2**30)
    truth = executor.surface.row(found.point).sps
    assert truth >= 0.97 * best
    assert found.result.sps == pytest.approx(0.7 * truth, rel=0.03)
    assert found.baseline.sps == pytest.approx(0.7 * smooth_sps(8, 256, 1), rel=0.03)
    records = load_trials(run)
    assert {record.epoch for record in records} == {0, 1}
    sentinels = [record for record in records if record.stage == "sentinel"]
    assert sentinels and all(record.result.requested == BASELINE for record in sentinels)
    history = comparable_history(records)
    truths = [0.7 * executor.surface.row(result.requested).sps for result in history]
    ratios = [result.sps / truth for result, truth in zip(history, truths, strict=True)]
    assert sum(0.93 < ratio < 1.07 for ratio in ratios) >= len(ratios) - 6
    assert all(r.sps_low <= 1.03 * t and r.sps_high >= 0.97 * t for r, t in zip(history, truths, strict=True))


def test_a_steady_replay_spends_nothing_on_the_sentinel(tmp_path):
    path = write_surface(tmp_path / "small.csv", noise=0.01)
    found = run_study(
        surface_recipe(path), ReplayExecutor(path), create_run(tmp_path, "run-1"), budget_s=900.0,
        study=optuna.create_study(direction="maximize"),
    )  # fmt: skip
    assert "sentinel" not in {record.stage for record in found.trials}
    assert found.epochs == 1


def test_a_recorded_machine_never_changes_however_noisy_it_is(tmp_path):
    path = write_surface(tmp_path / "small.csv", noise=1.0)
    for seed in (1, 2):  # one of them had two epochs
        found = run_study(
            surface_recipe(path), ReplayExecutor(path, seed), create_run(tmp_path, f"run-{seed}"), budget_s=1800.0,
            seed=seed, study=optuna.create_study(direction="maximize"),
        )  # fmt: skip
        assert found.epochs == 1
