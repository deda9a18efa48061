"""What the search thinks of points near those that failed."""

from dataclasses import replace

import numpy as np
import optuna
import pytest
from analytic_surface import BATCHES, ENVS, LEVELS, write_surface

from autotune.executors.replay import ReplayExecutor, surface_recipe
from autotune.records import REFUSED, Point, ProbeResult
from autotune.runs import create_run
from autotune.search.propose import SURE, Problem, propose
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


def test_the_chance_is_that_of_the_hypotheses():
    """Of 48 thresholds, 10 lie beyond the heaviest point: its failure makes those twenty times less likely."""
    heaviest = result(ENVS[-1], BATCHES[-1], LEVELS[-1], "crashed")
    chances = chance_stable(SPACE, [], [heaviest])
    assert chances[SPACE.index[heaviest.requested]] == pytest.approx(0.5 / 38.5)
    assert chances[SPACE.index[Point(num_envs=ENVS[0], batch_size=BATCHES[0])]] == pytest.approx(1.0)


def test_signed_what_is_too_light_is_as_suspect_as_what_is_too_heavy():
    points = grid({"num_envs": (8, 16, 32), "batch_size": (64, 128, 256), "concurrency": (1, 2, 4)})
    space = Space(points=tuple(sorted(points, key=lambda point: tuple(point.knobs().values()))))
    chances = chance_stable(space, [], [result(16, 128, 2, "crashed")], signed=True)
    assert chances == pytest.approx(chances[::-1]), "the failure is in the middle"
    assert chances[0] < 0.6 and chances.min() == chances[len(points) // 2]


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


def test_that_one_level_of_a_knob_fails_is_learnt():
    """Of 64 environments both failed, lighter and heavier points ran."""
    ok = [result(*knobs) for knobs in [(32, 256, 1), (128, 64, 2), (256, 1024, 1), (16, 512, 4), (128, 512, 3)]]
    failed = [result(64, 128, 2, "timeout"), result(64, 512, 1, "timeout")]
    chances = chance_stable(SPACE, ok, failed, signed=True)
    at_64 = SPACE.counts[:, 0] == 64
    assert chances[at_64].max() < 0.2
    assert np.median(chances[~at_64]) > SURE


def history(cost_s: float) -> list[ProbeResult]:
    """Three that ran in 30 s each, and two failures."""
    ran = [replace(result(*knobs), sps=1000.0 * sum(knobs), cost_s=30.0) for knobs in [(8, 64, 1), (64, 64, 1)]]
    failures = [result(256, 1024, 4, "timeout"), result(64, 512, 3, "timeout")]
    return [*ran, replace(result(64, 128, 2), sps=9e4, cost_s=30.0), *(replace(r, cost_s=cost_s) for r in failures)]


@pytest.mark.parametrize(("cost_s", "cautious"), [(5.0, False), (300.0, True)])
def test_where_failures_cost_a_lot_only_what_will_run_is_tried(cost_s: float, cautious: bool) -> None:
    seen = history(cost_s)
    chances = chance_stable(SPACE, seen[:3], seen[3:])
    likely = [point for point, runs in zip(SPACE.points, chances, strict=True) if runs >= SURE]
    mostly_unlikely = Space(points=tuple(point for point in SPACE.points if point not in likely[8:]))
    proposal = propose(Problem(space=mostly_unlikely), seen)
    assert proposal is not None
    assert (chances[SPACE.index[proposal.point]] >= SURE) == cautious


def test_what_may_hang_is_tried_when_nothing_else_is_left() -> None:
    last = result(64, 256, 4).requested
    space = Space(points=(*(r.requested for r in history(0.0)), last))
    cheap, dear = (propose(Problem(space=space), history(cost_s)) for cost_s in (5.0, 300.0))
    assert cheap is not None and dear is not None and cheap.point == dear.point == last
    assert dear.gain_per_s < cheap.gain_per_s, "what it costs if it hangs counts"


def test_a_search_is_not_spent_on_hangs(tmp_path):
    def fate(envs: int, batch: int, processes: int) -> str:
        return "timeout" if envs * processes**1.5 > 256 else "ok"

    path = write_surface(tmp_path / "hangs.csv", status=fate, noise=0.01)
    executor, memory = ReplayExecutor(path), optuna.create_study(direction="maximize")
    found = run_study(surface_recipe(path), executor, create_run(tmp_path, "run-1"), budget_s=1800.0, study=memory)
    best = max(row.sps for row in executor.surface.rows if row.sps)
    assert sum(t.result.status == "timeout" for t in found.trials) <= 3
    assert executor.surface.row(found.point).sps >= 0.9 * best


@pytest.mark.parametrize(
    ("refuses", "best"),
    [
        (lambda envs, batch: envs < 32, (64, 256)),
        (lambda envs, batch: batch > 32 * envs, (256, 1024)),
        (lambda envs, batch: envs * 16 % batch, (64, 512)),
        (lambda envs, batch: envs > 100, (64, 1024)),
    ],
)
def test_what_a_program_refuses_is_learnt_and_forbids_nothing_heavier(refuses, best):
    """Too few environments, a minibatch beyond the rollout, one that does not divide it, too many environments."""

    def sps(envs: int, batch: int) -> float:
        return 1000 * 0.8 ** (abs(np.log2(envs / best[0])) + abs(np.log2(batch / best[1])))

    space = Space(points=tuple(point for point in SPACE.points if point.concurrency == 1))
    done: list[ProbeResult] = []
    upcoming = [result(8, 64, 1), result(16, 256, 1)]
    for _ in range(14):
        if upcoming:
            point = upcoming.pop(0).requested
        elif (proposal := propose(Problem(space=space), done)) is not None:
            point = proposal.point
        refused = refuses(point.num_envs, point.batch_size)
        ran = replace(result(0, 0, 0), requested=point, sps=sps(point.num_envs, point.batch_size), cost_s=20.0)
        done.append(replace(ran, status="crashed", flags=(REFUSED,), sps=None, cost_s=3.0) if refused else ran)
    assert (best[0], best[1]) in {(r.requested.num_envs, r.requested.batch_size) for r in done if r.ok}
    assert sum(not r.ok for r in done) <= 6


def test_a_program_that_refuses_everything_is_soon_believed():
    done: list[ProbeResult] = []
    while (proposal := propose(Problem(space=SPACE), done)) is not None:
        done.append(replace(result(0, 0, 0), requested=proposal.point, status="crashed", flags=(REFUSED,)))
    assert len(done) == 6


def test_what_is_careful_and_promises_nothing_waits_for_what_promises_something():
    """A neighbour without promise comes after a point that may hang, however much time failures took."""
    points = (*(r.requested for r in history(0.0)), result(8, 128, 1).requested, result(256, 64, 2).requested)
    proposal = propose(Problem(space=Space(points=points)), history(300.0))
    assert proposal is not None and proposal.point == points[-1] and proposal.stage == "model"
    assert proposal.gain_per_s > 1e-4
    tried = [*history(300.0), replace(result(256, 64, 2, "timeout"), cost_s=300.0)]
    after = propose(Problem(space=Space(points=points)), tried)
    assert after is not None and after.point == points[-2] and after.stage == "neighbours"


@pytest.mark.parametrize("status", ["crashed", "timeout"])
@pytest.mark.parametrize(
    "fails",
    [
        lambda envs, batch, processes: envs <= 8,
        lambda envs, batch, processes: (envs, batch, processes) == (8, 256, 1),
        lambda envs, batch, processes: envs <= 8 or batch > 16 * envs,
    ],
)
def test_what_fails_because_it_is_light_hides_nothing_heavier(tmp_path, fails, status):
    """The baseline fails; the rule of thumb is tried all the same, and what it shows counts."""
    fate, roomy = (lambda *knobs: status if fails(*knobs) else "ok"), {"vram_limit": 1e12, "ram_limit": 1e12}
    path = write_surface(tmp_path / "light.csv", status=fate, noise=0.01, **roomy)
    executor, study = ReplayExecutor(path), optuna.create_study(direction="maximize")
    found = run_study(surface_recipe(path), executor, create_run(tmp_path, "run-1"), budget_s=1800.0, study=study)
    best = max(row.sps for row in executor.surface.rows if row.sps)
    assert executor.surface.row(found.point).sps >= 0.95 * best
    assert sum(not record.result.ok for record in found.trials) <= 4


@pytest.mark.parametrize("status", ["crashed", "timeout"])
@pytest.mark.parametrize("memory_known", [True, False])
def test_a_failure_of_the_rule_of_thumb_alone_hides_nothing_heavier(tmp_path, status, memory_known):
    """The baseline runs; nearly all that is good asks for no less of any knob than what failed."""
    path = write_surface(
        tmp_path / "thumb.csv",
        status=lambda *knobs: status if knobs == (32, 256, 1) else "ok",
        noise=0.01,
        vram_limit=2**50,
        ram_limit=2**50,
    )
    if not memory_known:
        path.write_text(without_memory(path.read_text()))
    executor, study = ReplayExecutor(path), optuna.create_study(direction="maximize")
    found = run_study(surface_recipe(path), executor, create_run(tmp_path, "run-1"), budget_s=1800.0, study=study)
    assert [record.result.status for record in found.trials[:2]] == ["ok", status]
    assert executor.surface.row(found.point).sps >= 0.97 * max(row.sps or 0.0 for row in executor.surface.rows)


def without_memory(surface: str) -> str:
    """A surface without the last two cells of its rows."""
    return "\n".join(
        ",".join([*line.split(",")[:7], "", ""]) if line[0].isdigit() else line for line in surface.splitlines()
    )


@pytest.mark.parametrize("limit", [128, 256])
def test_a_machine_that_goes_down_without_a_word_about_memory_is_approached_with_care(tmp_path, limit):
    """No memory is reported: the first loss is bad luck, and few follow before the law is known."""

    def fate(envs: int, batch: int, processes: int) -> str:
        return "host_lost" if envs * processes > limit else "ok"

    path = write_surface(tmp_path / "blind.csv", status=fate, noise=0.01)
    path.write_text(without_memory(path.read_text()))
    executor, memory = ReplayExecutor(path), optuna.create_study(direction="maximize")
    found = run_study(surface_recipe(path), executor, create_run(tmp_path, "run-1"), budget_s=1800.0, study=memory)
    best = max(row.sps for row in executor.surface.rows if row.sps)
    assert found.counts["host_lost"] <= 3
    assert executor.surface.row(found.point).sps >= 0.9 * best


@pytest.mark.parametrize(("how", "too_light"), [("crashed", lambda e, b: e < 64), ("timeout", lambda e, b: b < 512)])
def test_where_the_lightest_points_crash_or_hang_a_heavier_one_is_tried(tmp_path, how, too_light):
    """Baseline and rule of thumb failed, and forbade every other point."""
    path = write_surface(
        tmp_path / "surface.csv",
        status=lambda envs, batch, _: how if too_light(envs, batch) else "ok",
        vram_limit=2**50,
        ram_limit=2**50,
        cores=2,
        baseline="num_envs=8 batch_size=64 concurrency=1",
    )
    executor = ReplayExecutor(path, 1)
    study = optuna.create_study(direction="maximize")
    found = run_study(surface_recipe(path), executor, create_run(tmp_path, "run-1"), budget_s=1800.0, study=study)
    assert [record.result.status for record in found.trials[:3]] == [how, how, "ok"]
    assert executor.surface.row(found.point).sps >= 0.95 * max(row.sps or 0.0 for row in executor.surface.rows)


def test_what_fails_everywhere_is_given_up_soon():
    failures = [result(8, 64, 1, "crashed"), result(16, 256, 1, "crashed")]
    third = propose(Problem(space=SPACE), failures)
    assert third is not None and third.point.concurrency == 1
    assert propose(Problem(space=SPACE), [*failures, replace(failures[0], requested=third.point)]) is None
    assert propose(Problem(space=SPACE), [result(8, 64, 1, "oom")]) is None
