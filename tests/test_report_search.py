"""What the report says of the search behind it: marks, starts, what was left out, sharing, knobs, what it earned."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from report_run import device, make_run, recipe, result, search_trials

from autotune.machine import DeviceInfo
from autotune.probe.recipe import dump_recipe
from autotune.records import Budget, Job, Point, ProbeResult
from autotune.report.figures import report_json
from autotune.report.projection import Quantity, Savings
from autotune.report.render import priced_facts, render_sections
from autotune.report.sections import bottleneck
from autotune.report.wording import saving
from autotune.runs import Run
from autotune.search.knobs import KnobDecision
from autotune.units import format_duration

BEST = Point(num_envs=64, batch_size=1024, concurrency=2)


def section(run: Run, name: str, price: float | None = 2.0) -> str:
    found = {each.name: each.markdown for each in render_sections(priced_facts(run, price=price))}
    return found.get(name, "")


def changed(**changes: object) -> list[tuple[str, ProbeResult]]:
    """The usual trials, the last two (finals of the best point) changed."""
    trials = search_trials()
    return [*trials[:-2], *((stage, replace(last, **changes)) for stage, last in trials[-2:])]


def test_marks_are_shown_and_explained_where_there_are_any(tmp_path: Path) -> None:
    trials = changed(flags=("one launch", "shared", "extrapolated"))
    text = section(make_run(tmp_path, trials), "trials")
    assert text.count("| shared, extrapolated |") == 2
    assert "- shared: another process used the GPU meanwhile" in text
    assert "- extrapolated: iterations too long" in text
    assert "slowing" not in text


def test_without_marks_and_starts_there_is_no_column_for_them(tmp_path: Path) -> None:
    text = section(make_run(tmp_path), "trials")
    assert "marks" not in text.splitlines()[2]
    assert "start (s)" not in text


def test_start_and_first_iteration_of_every_probe(tmp_path: Path) -> None:
    text = section(make_run(tmp_path, changed(startup_s=6.14, first_iteration_s=21.3)), "trials")
    assert text.count("6.1 + 21.3 |") == 2


def test_the_peaks_of_all_observers_stand_side_by_side(tmp_path: Path) -> None:
    gib = 2**30
    trials = changed(
        framework_peak_bytes=3 * gib, vram_process_bytes=4 * gib, vram_device_delta_bytes=5 * gib,
        shm_peak_bytes=gib // 2, processes_peak=18, threads_peak=96,
    )  # fmt: skip
    host = replace(device().host, pids_limit=4096, shm_total_bytes=gib)
    text = section(make_run(tmp_path, trials, own_device=device(host=host)), "stability")
    assert (
        "VRAM peak 5.0 GiB of 80.0 GiB (6.2 %); the framework's own count 3.0 GiB, the driver's by process 4.0 GiB, "
        "the device's growth 5.0 GiB." in text
    )
    assert "/dev/shm peak 512.0 MiB of 1.0 GiB (50 %)." in text
    assert "18 processes with 96 threads of 4,096 allowed." in text


def test_the_tuned_points_probes_are_bold_whatever_single_figure_is_higher(tmp_path: Path) -> None:
    lucky = ("model", result(Point(num_envs=32, batch_size=256), 9000.0, width=0.2))
    text = section(make_run(tmp_path, [lucky, *search_trials()]), "trials")
    assert ("**8,100**" in text, "**8,000**" in text, "**9,000**" in text) == (True, True, False)


def test_whether_sharing_pays_is_said(tmp_path: Path) -> None:
    assert "- Sharing pays here: 2 processes reach 1.58x" in section(make_run(tmp_path), "bottleneck")


def test_the_name_of_a_knob_is_written_as_it_is(tmp_path: Path) -> None:
    """Its sentence began with a capital, and `turbo` was another word than in the recipe."""
    facts = priced_facts(make_run(tmp_path))
    assert facts.search is not None
    found = KnobDecision(name="turbo", before="off", tried="on", chosen="on", sentence="turbo=on is faster")
    knobs = replace(facts, search=replace(facts.search, knobs=(found,)))
    assert "- turbo=on is faster." in bottleneck.render(knobs).splitlines()


def test_points_that_cost_too_much_to_measure_are_listed(tmp_path: Path) -> None:
    """A probe takes 8 s for each environment, and 15 % of half an hour are 270 s."""
    points = [Point(num_envs=n, batch_size=64) for n in (2, 4, 8, 16, 32)]
    trials = [("model", result(p, 10.0, cost_s=8.0 * p.num_envs, startup_s=7.0 * p.num_envs)) for p in points]
    knobs = {"num_envs": (2, 4, 8, 16, 32, 64, 128), "batch_size": (64,), "concurrency": (1,)}
    run = make_run(tmp_path, trials, own_recipe=recipe(knobs=knobs, grid=knobs, baseline=points[0]))
    found = priced_facts(run).search
    assert found is not None
    assert {point.num_envs for point, _ in found.skipped} == {64, 128}
    assert all(predicted_s > 270 for _, predicted_s in found.skipped)
    text = section(run, "trials")
    assert "**Left out**, because a probe would take more than 15 % of the budget" in text
    assert "`num_envs=64 batch_size=64 concurrency=1` (" in text


def test_when_the_search_is_earned_back(tmp_path: Path) -> None:
    """40 h at the baseline and 4.97 h at the tuned point, so t saves 7.05 t, and 1,750 s take 1,750 / 7.05 s."""
    run = make_run(tmp_path)
    assert "29m 10s, 0.97 USD, left out above. Against the baseline it is earned back after 4m 8s" in section(
        run, "cost"
    )
    run.update(ended="known")
    assert "29m 10s, 0.97 USD (it ended because nothing was left worth measuring), left out" in section(run, "cost")
    run.update(ended="budget")
    assert "29m 10s, 0.97 USD (it ended because no further probe fitted into the budget)" in section(run, "cost")


def test_jobs_too_short_to_earn_the_search_back_are_told_so(tmp_path: Path) -> None:
    short = recipe(
        jobs=[Job(id=f"{i}", env="Game-v5", seed=i, budget=Budget(unit="steps", amount=1e5)) for i in (1, 2)]
    )
    assert "too short to earn it back" in section(make_run(tmp_path, own_recipe=short), "cost")


def test_an_ending_that_is_not_known_is_passed_over(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    state = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(state | {"ended": "by magic"}))
    assert "it was stopped" in section(run, "cost")


@pytest.mark.parametrize("own_device", [device(), device(kind="cpu", gpus=(), gpu_index=None)])
def test_the_json_holds_starts_and_flags(tmp_path: Path, own_device: DeviceInfo) -> None:
    trials = changed(startup_s=6.14, first_iteration_s=21.3, flags=("shared cpu",))
    rows = report_json(priced_facts(make_run(tmp_path, trials, own_device=own_device)))["trials"]
    assert (rows[-1]["startup_s"], rows[-1]["first_iteration_s"], rows[-1]["flags"]) == (6.14, 21.3, ["shared cpu"])
    assert rows[0]["startup_s"] is None


def test_the_json_has_no_goodput_of_an_unstable_point_as_a_search_has_none(tmp_path: Path) -> None:
    trials = changed(status="unstable", detail="VRAM peak at 97% of the device")
    rows = report_json(priced_facts(make_run(tmp_path, trials), price=2.0))["trials"]
    assert rows[-1]["sps"] == 8100.0 and rows[-1]["goodput_per_usd"] is None
    assert trials[-1][1].goodput_per_usd(2.0) is None
    assert rows[0]["goodput_per_usd"] == trials[0][1].goodput_per_usd(2.0)


def test_a_failed_probe_is_named_with_its_further_knobs(tmp_path: Path) -> None:
    arm = Point(num_envs=8, batch_size=256, extra=(("precision", "bf16"),))
    text = section(make_run(tmp_path, [("knobs", result(arm)), *search_trials()]), "trials")
    assert "Probe 0 (num\\_envs=8 batch\\_size=256 concurrency=1 precision=bf16): oom after 21s." in text


def test_search_and_report_count_the_same_points(tmp_path: Path) -> None:
    """Eight of the search and one with another precision; one that also failed is none."""
    own = recipe(
        knobs={**recipe().knobs, "precision": ("fp32", "bf16")},
        baseline=Point(num_envs=8, batch_size=256, extra=(("precision", "fp32"),)),
    )
    trials = [
        (stage, replace(each, requested=replace(each.requested, extra=own.baseline.extra)))
        for stage, each in search_trials()
    ]
    compared = ("knobs", result(replace(BEST, extra=(("precision", "bf16"),)), 8000.0))
    facts = priced_facts(make_run(tmp_path, [*trials[:-2], compared, *trials[-2:]], own_recipe=own))
    assert facts.search is not None
    assert facts.points_measured == facts.search.points_measured == 9
    again = ("model", result(trials[2][1].requested))
    fewer = priced_facts(make_run(tmp_path, [*trials[:-2], again, *trials[-2:]], own_recipe=own, name="fewer"))
    assert fewer.search is not None
    assert fewer.points_measured == fewer.search.points_measured == 7


def test_a_launch_that_failed_before_it_was_ready_was_not_observed(tmp_path: Path) -> None:
    """Three launches of 24 s ran; two minutes of waiting for a fourth say nothing of how long it would have lasted."""
    late = ("model", result(BEST, status="timeout", cost_s=120.0, detail="not ready after 120 s"))
    trials = search_trials()
    text = section(make_run(tmp_path, [*trials[:-2], late, *trials[-2:]]), "stability")
    assert text.startswith("- One failure in 1m 12s of running: about ")


def unequal(long: float) -> list[Job]:
    """One long job, then three of a million steps."""
    amounts = (long, 1e6, 1e6, 1e6)
    return [
        Job(id=f"{n}", env="Game-v5", seed=n, budget=Budget(unit="steps", amount=amount))
        for n, amount in enumerate(amounts)
    ]


def test_what_is_left_at_the_end_of_a_plan_is_said_for_every_plan_that_has_one(tmp_path: Path) -> None:
    """Alone the tuned settings were measured; the baseline's four at once were not measured at fewer."""
    crowded = recipe(unequal(100e6), baseline=Point(num_envs=8, batch_size=256, concurrency=4))
    trials = [("baseline", result(crowded.baseline, 2000.0)), *search_trials()[1:]]
    run = make_run(tmp_path, trials, own_recipe=crowded)
    text, first = section(run, "cost"), section(run, "summary")
    assert (
        "- The baseline point runs up to 4 jobs at once; when fewer are left they would run faster, which was " in text
    )
    assert ": 2d 8h if each keeps its speed, 14h 18m if those left share the whole." in text
    assert (
        "- The tuned point runs up to 2 jobs at once; when fewer are left they would run faster, which is counted"
        in text
    )
    # 6 million steps at 8,050, then 97 million at the 5,014 of one process
    assert "**How long:** 5h 35m (5h 25m to 5h 45m) for 4 jobs, 2 at a time." in first
    assert "17.45 USD and 8h 44m (61 %; 59 % to 90 %)" in first


def test_a_measured_point_that_ends_unequal_jobs_sooner_is_named_at_once(tmp_path: Path) -> None:
    """100 and 3 times 1 million steps: 14,306 s at 7,200 alone, at 8,050 two at a time anything from 12,795 s on."""
    alone = Point(num_envs=32, batch_size=256)
    rest = [row for row in search_trials() if row[1].requested != replace(BEST, concurrency=1)]
    run = make_run(tmp_path, [("model", result(alone, 7200.0)), *rest], own_recipe=recipe(unequal(100e6)))
    said = (
        "**These jobs may end sooner at `num_envs=32 batch_size=256 concurrency=1`:** in 3h 58m (3h 51m to 4h 6m) and "
    )
    text = section(run, "summary")
    assert said + "7.95 USD (7.72 to 8.19); the point above takes 3h 33m to 6h 54m, by how fast those left" in text
    assert "What to do: search again with `concurrency = [1]` under `[knobs]`" in text
    later = make_run(
        tmp_path, [("model", result(alone, 7200.0)), *rest], own_recipe=recipe(unequal(100e6)[::-1]), name="later"
    )
    assert "What to do: put the longest job first, or search again" in section(later, "summary")
    known = [*rest, ("model", result(replace(BEST, concurrency=1), 4100.0))]
    measured = make_run(
        tmp_path,
        [("model", result(alone, 7200.0)), *known],
        own_recipe=recipe(unequal(100e6)),
        tuned=known[-2][1],
        name="known",
    )
    assert "**These jobs end sooner at `num_envs=32 batch_size=256 concurrency=1`:**" in section(measured, "summary")
    facts = priced_facts(measured)
    assert facts.search is not None and facts.search.sooner is not None and facts.soonest is not None
    assert facts.search.sooner[0] == facts.soonest.point == alone
    level = make_run(tmp_path, [("model", result(alone, 7200.0)), *rest], name="level")
    assert "sooner" not in section(level, "summary")


def test_a_point_of_as_many_processes_does_not_end_jobs_sooner_for_having_been_measured_alone(tmp_path: Path) -> None:
    other = Point(num_envs=32, batch_size=256, concurrency=2)
    pair = [("model", result(other, 7900.0)), ("model", result(replace(other, concurrency=1), 7800.0))]
    rest = [row for row in search_trials() if row[1].requested != replace(BEST, concurrency=1)]
    run = make_run(tmp_path, [*pair, *rest], own_recipe=recipe(unequal(100e6)))
    assert "`concurrency = [1]`" in section(run, "summary")


def test_the_longest_job_is_not_to_be_put_first_among_equal_ones(tmp_path: Path) -> None:
    equal = tuple(Job(id=f"j{i}", env="A", seed=i, budget=Budget(unit="steps", amount=1e7)) for i in range(1, 8))
    rest = [row for row in search_trials() if row[1].requested != replace(BEST, concurrency=1)]
    alone = ("model", result(Point(num_envs=32, batch_size=256), 8000.0))
    text = section(make_run(tmp_path, [alone, *rest], own_recipe=recipe(equal)), "summary")
    assert "What to do: search again with `concurrency = [1]`" in text


def test_less_than_a_cent_is_not_rounded_off_where_the_end_of_a_plan_is_open(tmp_path: Path) -> None:
    rest = [row for row in search_trials() if row[1].requested != replace(BEST, concurrency=1)]
    run = make_run(tmp_path, rest, own_recipe=recipe(unequal(100e6)))
    assert "**What it costs:** under 0.01 USD at 0.0005 USD" in section(run, "summary", price=0.0005)
    assert "**What it costs:** 0.01 to 0.02 USD at 0.003 USD" in section(run, "summary", price=0.003)


def test_a_plan_with_an_open_end_is_no_surer_than_its_longest_job(tmp_path: Path) -> None:
    """100 million steps take 6h 54m (6h 41m to 7h 8m) at half of 8,050: all jobs were said to take 6h 54m at most."""
    rest = [row for row in search_trials() if row[1].requested != replace(BEST, concurrency=1)]
    run = make_run(tmp_path, rest, own_recipe=recipe(unequal(100e6)))
    facts = priced_facts(run, price=2.0)
    plan = facts.projection(facts.tuned)
    assert plan is not None and plan.open_end and plan.hours and plan.least and plan.least.low and plan.hours.high
    assert plan.least.low < plan.least.value and plan.hours.high > plan.hours.value
    ends = " to ".join(format_duration(end * 3600) for end in (plan.least.low, plan.hours.high))
    text = section(run, "summary", price=2.0)
    assert f"**How long:** {ends} for 4 jobs, 2 at a time (how fast those left at its end are was not" in text
    assert f"**What it costs:** {2 * plan.least.low:,.2f} to {2 * plan.hours.high:,.2f} USD at 2.00 USD" in text


def test_a_search_that_was_stopped_is_said_to_go_on(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert section(run, "summary").endswith(f"**Next:** `autotune train {run.manifest_file}`")
    run.update(finished=False)
    assert "or the search again, which was stopped: the same command goes on" in section(run, "summary")


def test_rows_without_phases_are_not_under_their_unit(tmp_path: Path) -> None:
    assert "microseconds per env step (share)" in section(make_run(tmp_path), "bottleneck")
    trials = [(stage, replace(each, phase_seconds={})) for stage, each in search_trials()]
    text = section(make_run(tmp_path, trials, name="own"), "bottleneck")
    assert "GPU utilisation" in text and "microseconds" not in text


def test_search_and_report_state_the_same_interval(tmp_path: Path) -> None:
    """The launch-to-launch spread is pooled over all points, not of each point alone."""
    final = ("final", result(Point(num_envs=8, batch_size=256), 1010.0, width=0.02, grade="final"))
    facts = priced_facts(make_run(tmp_path, [*search_trials()[:-1], final, *changed(sps=8600.0)[-1:]]))
    assert facts.search is not None and facts.search.baseline is not None
    assert facts.baseline is not None and facts.baseline.sps is not None
    assert facts.baseline.sps.low == facts.search.baseline.sps_low
    assert facts.baseline.sps.high == facts.search.baseline.sps_high


def test_a_replays_jobs_are_said_to_be_an_example(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.manifest_file.unlink()
    assert "example" not in section(run, "summary")
    run.recipe_file.write_text(dump_recipe(recipe(workload="replay")))
    text = section(run, "summary")
    assert (
        "**How long, as an example:** " in text
        and "a recorded surface plans no training, these jobs are made up" in text
    )
    assert report_json(priced_facts(run))["tuned"]["projection"] is not None


def test_single_budgets_and_exact_rates_are_put_plainly(tmp_path: Path) -> None:
    one = recipe([Job(id=name, env="x", seed=1, budget=Budget(unit="steps", amount=1)) for name in "ab"])
    text = section(make_run(tmp_path, own_recipe=one), "cost")
    assert "| 1 step |" in " ".join(text.split()) and "under 0.1s" in text
    exact = Quantity(value=0.978, low=0.978, high=0.978)
    saved = Savings(hours=Quantity(value=2.0), usd=None, fraction=exact, tied=False)
    assert saving(saved) == "2h (97.8 %)"
