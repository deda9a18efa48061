"""What a training that has begun has left to do, and to pay."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from report_run import make_run, recipe, result

from autotune.manifest import build_manifest, load_manifest, manifest_hash, save_manifest
from autotune.records import Budget, Job, Point
from autotune.report.facts import gather
from autotune.report.figures import report_json
from autotune.report.plots import draw_returns
from autotune.report.render import priced_facts, render_sections
from autotune.runs import Run, create_run
from autotune.store import append_line
from autotune.train.status import JobSnapshot, Snapshot, stamp, write_snapshot
from autotune.units import format_duration

BEST = Point(num_envs=64, batch_size=1024, concurrency=2)
ALONE = 180.0 * 64**0.8 / 4025
"""How much faster one of its jobs is where only one runs, as its probes say."""


def event(
    run: Run, kind: str, job: str | None = None, steps: float | None = None, seconds: float = 0.0, **facts: Any
) -> None:
    totals = {"total_env_steps": steps, "total_episodes": facts.pop("games", 0), "total_seconds": seconds}
    line = {"kind": kind, "job": job, **({} if steps is None else totals), **facts}
    append_line(run.train_folder / "events.jsonl", line)


def opened(run: Run, point: Point = BEST, minute: int = 0, **facts: Any) -> None:
    run.train_folder.mkdir(exist_ok=True)
    known = {"manifest": manifest_hash(load_manifest(run.manifest_file)), "point": point.knobs()}
    event(run, "opened", time=f"2026-01-01T10:{minute:02}:00+00:00", **{**known, **facts})


def report(run: Run, price: float | None = 2.0) -> str:
    return "\n\n".join(each.markdown for each in render_sections(priced_facts(run, price=price)))


def cells(markdown: str, start: str) -> list[str]:
    table = markdown[markdown.index("**Left to train**") :]
    row = next(each for each in table.splitlines() if each.startswith(start))
    return [cell.strip() for cell in row.split("|")[1:-1]]


def left_s(run: Run) -> list[float | None]:
    plan = gather(run).plan_left
    assert plan is not None
    return [job.hours.value * 3600 if job.hours else None for job in plan.jobs]


def trained(run: Run) -> None:
    """Of 36e6 steps each, two at once: one done, one killed at a third, one killed before it saved, one not begun."""
    opened(run)
    for job in ("game-1", "game-2"):
        event(run, "started", job, 0)
    event(run, "saved", "game-1", 36_000_000, 10_000.0)
    event(run, "finished", "game-1", 36_000_000, 10_000.0, reason="budget")
    event(run, "saved", "game-2", 12_000_000, 8_000.0, time="2026-01-01T13:00:00+00:00")


def test_a_half_trained_run_says_what_is_left_to_train_and_to_pay(tmp_path: Path) -> None:
    """At its own 1,500 SPS the second takes 16,000 s; the others, at the mean of both (48e6 in 18,000 s), 13,500 s.

    The last begins when the third ends, runs beside the second for 2,500 s and then alone, which is faster.
    """
    run = make_run(tmp_path)
    trained(run)
    last_s = 2500 + (13_500 - 2500) / ALONE
    assert left_s(run) == pytest.approx([16_000, 13_500, last_s])
    markdown = report(run)
    assert "- **Trained so far:** 3h of the machine, 6.00 USD; 1 of 4 jobs done, 2 not begun.\n" in markdown
    total_s = 13_500 + last_s
    usd = f"{total_s / 3600 * 2:.2f} USD"
    assert (
        f"- **Left to train:** about {format_duration(total_s)}, about {usd}; see below at which speeds.\n" in markdown
    )
    assert f"about {format_duration(total_s)}, under 0.01 USD; see below" in report(run, price=0.0001)
    assert cells(markdown, "| game-2")[:5] == ["game-2", "33 %", "24,000,000 steps", "1,500", "4h 27m"]
    assert cells(markdown, "| game-4")[:5] == ["game-4", "0.0 %", "36,000,000 steps", "2,667", "3h 9m"]
    assert cells(markdown, "| **all**") == ["**all**", "", "", "", format_duration(total_s), usd]
    assert "counted from the last checkpoints" in markdown and "| saved |" in " ".join(markdown.split())
    told = report_json(priced_facts(run, price=2.0))["training"]
    assert told["machine_s"] == 10_800 and told["usd"] == pytest.approx(6.0)
    assert told["jobs_left"] == ["game-2", "game-3", "game-4"]
    assert told["left"]["usd"] == pytest.approx(total_s / 3600 * 2)
    assert "cost left" in markdown and "cost left" not in report(run, price=None)


def test_the_speed_before_stands_until_a_minute_of_training_was_seen(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    opened(run)
    event(run, "saved", "game-1", 10_000, 59.0)
    assert left_s(run)[0] == pytest.approx((36_000_000 - 10_000) / 4025, rel=1e-3)
    assert "SPS: where less than a minute of training was seen, the one measured before." in report(run)
    event(run, "saved", "game-1", 20_000, 61.0)
    assert left_s(run)[0] == pytest.approx((36_000_000 - 20_000) / (20_000 / 61))


def test_a_finished_training_says_what_it_took(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    opened(run)
    for n in range(1, 5):
        event(run, "finished", f"game-{n}", 36_000_000, 9_000.0, reason="budget")
    event(run, "ended", state="done", time="2026-01-01T15:00:00+00:00")
    markdown = report(run)
    assert "- **What the training took:** 5h of the machine, 10.00 USD, " in markdown
    assert "Left to train" not in markdown and "Trained so far" not in markdown
    assert report_json(gather(run))["training"]["left"] is None


def test_jobs_that_were_killed_at_their_end_have_nothing_left(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    opened(run)
    for n in range(1, 5):
        event(run, "saved", f"game-{n}", 36_000_000, 9_000.0)
    assert gather(run).plan_left is None
    assert "- **Left to train:** nothing of the budgets, the jobs only have to end.\n" in report(run)


def test_only_what_was_seen_at_the_present_point_tells_of_it(tmp_path: Path) -> None:
    """The first 1e6 steps at 100 SPS were made elsewhere; at the point at which it goes on it makes 1,000."""
    run = make_run(tmp_path)
    opened(run, Point(num_envs=8, batch_size=256))
    event(run, "saved", "game-1", 1_000_000, 10_000.0)
    opened(run)
    event(run, "resumed", "game-1", 1_000_000, 10_000.0)
    event(run, "saved", "game-1", 1_600_000, 10_600.0)
    assert left_s(run)[0] == pytest.approx(34_400_000 / 1_000)
    facts = gather(run)
    assert facts.manifest is not None
    knobs = facts.manifest.point.model_copy(update={"num_envs": 32})
    save_manifest(run.manifest_file, facts.manifest.model_copy(update={"point": knobs}))
    facts = gather(run)
    assert facts.left is not None and facts.left.point.num_envs == 32 and not facts.left.jobs[0].seen_s
    assert left_s(run)[0] == pytest.approx(34_400_000 / (180 * 32**0.8 * 2**0.6 / 2)), "as probed there"


def test_a_point_without_a_measurement_has_a_way_on_and_no_price_of_another(tmp_path: Path) -> None:
    """What the jobs cost while the machine is down was told of the rule of thumb, as if it were the manifest's."""
    run = make_run(tmp_path)
    facts = gather(run)
    assert facts.manifest is not None
    knobs = facts.manifest.point.model_copy(update={"num_envs": 48})
    save_manifest(run.manifest_file, facts.manifest.model_copy(update={"point": knobs}))
    opened(run, knobs.record())
    event(run, "saved", "game-1", 100_000, 100.0)
    markdown = report(run)
    assert "**No measurement of `num_envs=48 batch_size=1024 concurrency=2`**" in markdown
    assert f"- **Next:** `autotune train {run.manifest_file}`" in markdown
    assert "the jobs cost 20.20 USD at 1.0 %, 21.05 USD at 5.0 %, 24.10 USD at 17 %, at the rule of thumb." in markdown


def test_budgets_in_games_and_in_hours_are_left_in_their_own_units(tmp_path: Path) -> None:
    jobs = [
        Job(id="games", env="A", seed=1, budget=Budget(unit="episodes", amount=1000)),
        Job(id="hours", env="B", seed=2, budget=Budget(unit="hours", amount=3)),
        Job(id="unknown", env="C", seed=3, budget=Budget(unit="episodes", amount=1000)),
    ]
    run = create_run(tmp_path, "train-1", command="train")
    save_manifest(run.manifest_file, build_manifest(recipe(jobs), Point(num_envs=8, batch_size=256, concurrency=3)))
    opened(run, Point(num_envs=8, batch_size=256, concurrency=3))
    event(run, "saved", "games", 100_000, 1_000.0, games=400)
    event(run, "saved", "hours", 100_000, 1_800.0, games=100)
    markdown = report(run, price=None)
    assert left_s(run)[0] == pytest.approx(600 * 250 / 100, rel=1e-3)
    assert cells(markdown, "| games")[1:4] == ["40 %", "600 episodes", "100"]
    assert cells(markdown, "| hours")[1:3] == ["17 %", "2h 30m"]
    assert "- **Left to train:** " in markdown and "USD" not in markdown


def test_a_training_that_runs_is_counted_from_what_its_jobs_do_now(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    trained(run)
    event(run, "started", "game-3", 0, time="2026-01-01T13:00:00+00:00")
    job: dict[str, Any] = {"env": "A", "episodes": 0, "sps": 1.0, "mean_return": None, "best_return": None}
    job |= {"vram_bytes": None, "ram_bytes": None, "eta_s": None}
    seen = [("done", 36_000_000), ("running", 18_000_000), ("running", 9_000_000), ("waiting", 0)]
    jobs = tuple(
        JobSnapshot(id=f"game-{n}", status=status, env_steps=steps, seconds=1.0, fraction=steps / 36e6, **job)
        for n, (status, steps) in enumerate(seen, start=1)
    )
    known: dict[str, Any] = {"point": "", "sps": None, "measured_sps": None, "predicted_sps": None, "elapsed_s": 1.0}
    write_snapshot(
        run,
        Snapshot(
            run=run.name, state="running", jobs=jobs, **known, **stamp() | {"updated": "2026-01-01T13:12:00+00:00"}
        ),
    )
    markdown = report(run)
    assert "- **Trained so far:** 3h 12m of the machine, 6.40 USD; 1 of 4 jobs done, 1 not begun.\n" in markdown
    assert [cells(markdown, f"| game-{n}")[1] for n in (2, 3, 4)] == ["50 %", "25 %", "0.0 %"]
    assert "counted from what its jobs have done" in markdown and "| done |" in " ".join(markdown.split())


def test_a_training_without_a_known_speed_says_so(tmp_path: Path) -> None:
    run = create_run(tmp_path, "train-1", command="train")
    save_manifest(run.manifest_file, build_manifest(recipe(), Point(num_envs=8, batch_size=256)))
    opened(run, Point(num_envs=8, batch_size=256))
    event(run, "started", "game-1", 0)
    markdown = report(run)
    assert "; 0 of 4 jobs done, 3 not begun.\n- **Left to train:** of an unknown length; see below." in markdown
    assert "SPS are not known: nothing was measured, and nothing was seen in training." in markdown


def test_on_a_rung_of_the_ladder_its_own_speed_is_taken(tmp_path: Path) -> None:
    rung = Point(num_envs=8, batch_size=256)
    run = create_run(tmp_path, "train-1", command="train")
    manifest = build_manifest(recipe(), BEST, result=result(BEST, 8000.0), ladder=[(rung, 1000.0)])
    save_manifest(run.manifest_file, manifest)
    opened(run, BEST)
    event(run, "started", "game-1", 0)
    assert left_s(run) == pytest.approx([9_000] * 4)
    opened(run, rung)
    assert left_s(run) == pytest.approx([36_000] * 4)


def test_a_manifest_from_elsewhere_predicts_what_is_left(tmp_path: Path) -> None:
    point = Point(num_envs=8, batch_size=256, concurrency=2)
    run = create_run(tmp_path, "train-1", command="train")
    save_manifest(run.manifest_file, build_manifest(recipe(), point, result=result(point, 2000.0)))
    opened(run, point)
    event(run, "started", "game-1", 0)
    assert left_s(run) == pytest.approx([36_000] * 4)


def test_what_a_guard_took_is_part_of_what_the_search_cost(tmp_path: Path) -> None:
    """At 8,050 SPS the jobs save 35.03 of 40 hours, so that the search and 27 minutes of pilots are soon repaid."""
    run = make_run(tmp_path)
    alone = "- The search itself took 29m 10s, 0.97 USD, left out above. Against the baseline it is earned back after "
    assert f"{alone}4m 8s of training." in report(run)
    for name, start, end in (("tuned-1", "10:00", "10:07"), ("baseline-1", "11:00", "11:20")):
        arm = create_run(run.guard_folder, name, command="guard")
        arm.train_folder.mkdir()
        for kind, at in (("opened", start), ("ended", end)):
            event(arm, kind, time=f"2026-01-01T{at}:00+00:00")
    told = "29m 10s, 0.97 USD, and the pilots of its guard 27m, 0.90 USD, left out above. "
    told += "Against the baseline it is earned back after 7m 58s of training."
    assert f"- The search itself took {told}" in report(run)
    assert report_json(gather(run))["guard_s"] == 27 * 60
    run.update(finished=False, ended="budget")
    assert "or the search again, whose guard was stopped: the same command goes on with it\n" in report(run)
    run.update(ended="stopped")
    assert "or the search again, which was stopped: the same command goes on\n" in report(run)


def test_nobody_knows_what_a_program_saved_that_keeps_its_own_checkpoints(tmp_path: Path) -> None:
    run = create_run(tmp_path, "train-1", command="train")
    point = Point(num_envs=8, batch_size=256)
    manifest = build_manifest(recipe(), point)
    own = manifest.workload.model_copy(update={"name": "command"})
    save_manifest(run.manifest_file, manifest.model_copy(update={"workload": own}))
    opened(run, point)
    event(run, "stopped", "game-1", 9_000_000, 3_000.0)
    markdown = report(run)
    told = "counted from what its jobs have done, if the program goes on from there (one that begins anew has all of it"
    assert f"**Left to train**, {told} left):" in markdown
    assert cells(markdown, "| game-1")[1:4] == ["25 %", "27,000,000 steps", "3,000"]


def test_the_first_lines_tell_of_crashes_in_training(tmp_path: Path) -> None:
    """They said 'no failure' of the probes, and nothing of the training that had crashed twice."""
    run = make_run(tmp_path)
    opened(run)
    event(run, "crashed", "game-1", 0)
    event(run, "crashed", "game-1", 0)
    assert "\n- **Crashed in training:** 2 times; see below.\n" in report(run)


@pytest.mark.parametrize("jobs", [2, 10, 60, 200])
def test_the_curves_of_many_jobs_can_be_told_apart(jobs: int, recwarn: pytest.WarningsRecorder) -> None:
    """From the ninth on they repeated colours; the legend of sixty was cut, and left no room to the curves."""
    curve = pd.DataFrame({"env_steps": [0.0, 1.0], "mean_return": [0.0, 1.0]})
    axes = draw_returns({f"job-{n}": curve for n in range(jobs)}).axes[0]
    looks = [(each.get_color(), each.get_linestyle()) for each in axes.lines]
    assert len(set(looks)) == min(jobs, 32)
    legend = axes.get_legend()
    assert legend is not None and len(legend.get_texts()) == min(jobs, 90)
    axes.figure.draw_without_rendering()
    box, page = legend.get_window_extent(), axes.figure.bbox
    assert not recwarn.list and box.y0 >= 0 and box.x1 <= page.x1 + 1
    assert axes.get_window_extent().height > 0.5 * page.height
