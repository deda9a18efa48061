"""What the search thinks of points near those that failed."""

import optuna
import pytest
from analytic_surface import BATCHES, ENVS, LEVELS, write_surface

from autotune.executors.replay import ReplayExecutor, surface_recipe
from autotune.records import Point, ProbeResult
from autotune.runs import create_run
from autotune.search.risk import chance_stable
from autotune.search.space import Space, grid
from autotune.search.study import run_study

SPACE = Space(points=tuple(grid({"num_envs": ENVS, "batch_size": BATCHES, "concurrency": LEVELS})))


def result(envs: int, batch: int, processes: int, status: str = "ok") -> ProbeResult:
    point = Point(num_envs=envs, batch_size=batch, concurrency=processes)
    return ProbeResult(requested=point, status=status, grade="quick")


def chance(ok: list[ProbeResult], failed: list[ProbeResult], *knobs: int) -> float:
    point = Point(num_envs=knobs[0], batch_size=knobs[1], concurrency=knobs[2])
    return float(chance_stable(SPACE, ok, failed)[SPACE.index[point]])


def test_while_nothing_failed_everything_is_expected_to_run():
    assert (chance_stable(SPACE, [result(8, 64, 1)], []) == 1).all()


def test_between_what_ran_and_what_failed_the_chance_falls():
    ok, failed = [result(16, 128, 1)], [result(128, 512, 4, "crashed")]
    chances = [chance(ok, failed, *knobs) for knobs in [(8, 64, 1), (32, 128, 1), (64, 256, 2), (128, 512, 3)]]
    assert chances == sorted(chances, reverse=True)
    assert chances[0] > 0.95 and chances[-1] < 0.5
    assert chance(ok, failed, 256, 1024, 4) < 0.1


def test_the_knob_that_counts_is_learnt():
    """What fails has 128 environments or more over all processes, whatever the minibatch."""
    ok, failed = [], []
    for envs, batch, processes in [(8, 1024, 4), (64, 64, 1), (256, 64, 1), (64, 1024, 2), (32, 512, 2), (32, 128, 4)]:
        status = "ok" if envs * processes < 128 else "crashed"
        (ok if status == "ok" else failed).append(result(envs, batch, processes, status))
    assert chance(ok, failed, 64, 1024, 1) > 0.8
    assert chance(ok, failed, 128, 64, 2) < 0.1


@pytest.mark.parametrize("limit", [128, 256])
def test_a_machine_that_goes_down_without_a_word_about_memory_is_approached_with_care(tmp_path, limit):
    """No memory is reported: the first loss is bad luck, and few follow before the law is known."""

    def fate(envs: int, batch: int, processes: int) -> str:
        return "host_lost" if envs * processes > limit else "ok"

    path = write_surface(tmp_path / "blind.csv", status=fate, noise=0.01)
    lines = path.read_text().splitlines()
    path.write_text(
        "\n".join(",".join([*line.split(",")[:7], "", ""]) if line[0].isdigit() else line for line in lines)
    )
    executor, memory = ReplayExecutor(path), optuna.create_study(direction="maximize")
    found = run_study(surface_recipe(path), executor, create_run(tmp_path, "run-1"), budget_s=1800.0, study=memory)
    best = max(row.sps for row in executor.surface.rows if row.sps)
    assert found.counts["host_lost"] <= 3
    assert executor.surface.row(found.point).sps >= 0.9 * best
