"""The search's quality on the bundled synthetic surfaces: a small, fixed part of reports/reference/search/bench.py."""

from pathlib import Path

import optuna
import pytest

from autotune.executors.replay import ReplayExecutor, surface_recipe
from autotune.runs import create_run
from autotune.search.study import run_study

SURFACES = Path(__file__).parent.parent / "reports" / "reference" / "surfaces"


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", ["a100-resnet-vram-cliff", "t4-cnn-ram-bound", "t4-mlp-plateau"])
def test_half_an_hour_finds_a_point_near_the_best_without_a_memory_failure(tmp_path, name, seed):
    path = SURFACES / f"synthetic-{name}.csv"
    executor = ReplayExecutor(path, seed)
    found = run_study(
        surface_recipe(path),
        executor,
        create_run(tmp_path, "run-1"),
        budget_s=1800.0,
        seed=seed,
        study=optuna.create_study(direction="maximize"),
    )
    best = max(row.sps for row in executor.surface.rows if row.sps)
    assert executor.surface.row(found.point).sps >= 0.95 * best
    assert found.counts["oom"] == found.counts["host_lost"] == 0
    assert len({record.result.requested for record in found.trials}) <= 0.08 * len(executor.surface.rows)
