import base64
import json
import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_run import STEPS, device, make_run, recipe, result, search_trials

from autotune.cli import main
from autotune.codec import to_json
from autotune.errors import FileError
from autotune.machine import GpuProcess
from autotune.manifest import build_manifest, save_manifest
from autotune.probe.recipe import dump_recipe
from autotune.records import ENDED_EARLY, REFUSED, Budget, Job, Point
from autotune.report.facts import Facts, Price, gather
from autotune.report.figures import report_json
from autotune.report.render import priced_facts, render_report, render_sections, to_html
from autotune.report.wording import block, code, percent, text
from autotune.runs import Run, create_run
from autotune.search.learning import unchecked
from autotune.search.outcome import found_in
from autotune.search.sampler import IGNORED
from autotune.search.trials import load_trials
from autotune.store import append_line, canonical_json, durable_write, write_json
from autotune.train.status import JobSnapshot, Snapshot, status_file, write_snapshot
from autotune.units import format_duration
from autotune.views import search_text

SECTIONS = ["Time and cost", "What limits it", "Stability", "Learning and training", "All probes", "Device"]


class Tags(HTMLParser):
    """Collects a page's elements, attributes and visible text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def report(run: Run, price: float | None = 2.0) -> str:
    """The Markdown of every section, without drawing pictures or writing files."""
    sections = render_sections(priced_facts(run, price=price))
    return "\n\n".join(f"## {each.title}\n\n{each.markdown}" for each in sections)


def line(markdown: str, start: str) -> str:
    return next(each for each in markdown.splitlines() if each.startswith(start))


def test_first_lines_answer_the_payer(tmp_path: Path) -> None:
    files = render_report(make_run(tmp_path), price=2.0)
    lines = files.markdown.read_text().splitlines()
    assert lines[0] == "# atari-1: what to run, how long, what it costs"
    assert lines[2:7] == [
        "- **What to run:** `num_envs=64 batch_size=1024 concurrency=2`, the best of the 8 points measured "
        "on Example GPU.",
        # 4 jobs of 36 million steps, 2 at a time, at 8,050 / 2 steps per second
        "- **How long:** 4h 58m (4h 48m to 5h 9m) for 4 jobs, 2 at a time.",
        "- **What it costs:** 9.94 USD (9.60 to 10.30) at 2.00 USD per hour (given with --price).",
        "- **Saved against the baseline** (`num_envs=8 batch_size=256 concurrency=1`): 70.06 USD and 1d 11h "
        "(88 %; 87 % to 88 %); 8.05x its SPS (7.68x to 8.43x).",
        "- **Saved against the rule of thumb** (`num_envs=64 batch_size=256 concurrency=1`): 10.06 USD and 5h 2m "
        "(50 %; 48 % to 53 %); 2.01x its SPS (1.92x to 2.11x).",
    ]


def test_files_sections_and_pictures(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    files = render_report(run, price=2.0)
    assert files.markdown == run.path / "report.md" and files.html == run.path / "report.html"
    assert [plot.name for plot in files.plots] == ["throughput.png"]
    assert files.plots[0].read_bytes().startswith(b"\x89PNG")
    markdown = files.markdown.read_text()
    assert re.findall(r"^## (.*)$", markdown, re.MULTILINE) == SECTIONS
    assert "](plots/throughput.png)" in markdown
    page = files.html.read_text()
    assert base64.b64encode(files.plots[0].read_bytes()).decode() in page
    tags = Tags(page)
    assert [tag for tag in tags.tags if tag in ("script", "link", "iframe", "object")] == []
    assert all((value or "").startswith("data:image/png") for name, value in tags.attributes if name == "src")
    assert tags.tags.count("table") == 6 and tags.tags.count("img") == 1


def test_words_of_certainty(tmp_path: Path) -> None:
    markdown = report(make_run(tmp_path))
    assert "8,050 SPS ± 3.6 % (95 %, this machine, 2 launches), which is 4,025 SPS for each of 2 jobs" in markdown
    assert "no failure in 1m 12s, so at most 150 failures per hour (95 %)" in markdown
    assert "optimal" not in markdown.lower().replace("optimizer", "")
    assert "8 times more samples per update and 4 times fewer optimizer steps per env step" in markdown
    rows = [row for row in report(make_run(tmp_path, name="rows")).splitlines() if "% | " in row and "SPS" not in row]
    assert [" ".join(row.split("|")[4].split()) for row in rows[:3]] == [
        *["one launch, quick windows"] * 2,
        "2 launches",
    ], "each figure says what it rests on"
    quick = report(make_run(tmp_path, search_trials()[:-2], name="quick", tuned=search_trials()[-4][1]))
    assert "7,600 SPS (7,372 to 7,828; 95 %, this machine, one launch, quick windows)" in quick
    assert "**Not firm:**" in quick


def test_what_was_measured_beside_busy_programs_is_said_in_the_summary(tmp_path: Path) -> None:
    trials = search_trials()
    busy = {0: 1.2, len(trials) - 2: 1.66}  # the baseline, and one of the tuned point's two final launches
    shared = [
        (stage, replace(each, flags=("shared cpu",), others_cpu_cores=busy[number]) if number in busy else each)
        for number, (stage, each) in enumerate(trials)
    ]
    run = make_run(tmp_path, shared)
    assert line(report(run), "- **Not alone:**") == (
        "- **Not alone:** other programs took 1.7 CPU cores while the tuned point was measured and 1.2 CPU cores while "
        "the baseline was measured: the machine alone may be faster, so measure again without them."
    )
    found = found_in(run.state(), load_trials(run), recipe(), device(), None)
    assert found is not None
    assert "other programs took 1.2 CPU cores while the baseline was measured and 1.7 CPU cores while this" in (
        search_text(found, run, unchecked(found, recipe()))
    )
    itself = replace(found, baseline=found.result)
    assert "the baseline was measured" not in search_text(itself, run, unchecked(itself, recipe()))
    assert search_text(found, run, unchecked(found, recipe())).endswith(f"autotune report {run.path}")
    assert "Not alone" not in report(make_run(tmp_path, trials, name="alone"))


def test_points_at_which_a_program_ended_before_it_was_measured_are_told_beside_the_best_of_the_others(
    tmp_path: Path,
) -> None:
    fast, slow = Point(num_envs=8, batch_size=256), Point(num_envs=1, batch_size=256)
    ended = result(fast, status="crashed", detail="too early to be measured", flags=(REFUSED, ENDED_EARLY))
    last = result(slow, grade="final", status="crashed", flags=(REFUSED, ENDED_EARLY))
    run = make_run(tmp_path, [("baseline", ended), ("final", last), ("spread", result(slow, 900.0))])
    words = (
        "the program ended by itself before one point could be measured (num_envs=8 batch_size=256 concurrency=1), "
        "which may well be faster: let it do more steps (its own total) and search again"
    )
    found = found_in(run.state(), load_trials(run), recipe(), device(), None)
    assert found is not None
    told = search_text(found, run, unchecked(found, recipe()))
    assert words in told and "at the baseline (num_envs=8 batch_size=256 concurrency=1) the program ended" in told
    assert line(report(run), "- **Not all was measured:**") == f"- **Not all was measured:** {words}."
    assert "unknown: at the baseline the program ended before it was measured" in report(run)
    assert "ended by itself" not in report(make_run(tmp_path, name="all"))


def test_same_speed_is_a_tie_not_a_saving(tmp_path: Path) -> None:
    base, better = Point(num_envs=8, batch_size=256), Point(num_envs=16, batch_size=256)
    trials = [("baseline", result(base, 1000.0)), ("model", result(better, 1020.0))]
    markdown = report(make_run(tmp_path, trials))
    saved = line(markdown, "- **Saved against the baseline**")
    assert "no saving shown (2.0 %; -2.3 % to 6.0 %); tied: 1.02x its SPS (0.98x to 1.06x)" in saved
    assert "Tied with `num_envs=8 batch_size=256 concurrency=1`" in markdown
    assert report_json(gather(Run(tmp_path / "atari-1")))["savings"]["baseline"]["tied"] is True


def test_slower_than_the_baseline_is_said(tmp_path: Path) -> None:
    trials = [
        ("baseline", result(Point(num_envs=8, batch_size=256), 1000.0)),
        ("model", result(Point(num_envs=16, batch_size=256), 500.0)),
    ]
    saved = line(report(make_run(tmp_path, trials)), "- **Saved against the baseline**")
    assert "nothing, it takes 80.00 USD and 1d 16h **more** (100 % more)" in saved


def test_baseline_is_the_winner(tmp_path: Path) -> None:
    markdown = report(make_run(tmp_path, [("baseline", result(Point(num_envs=8, batch_size=256), 1000.0))]))
    assert "the only point measured" in markdown
    assert "nothing: these are the same settings" in line(markdown, "- **Saved against the baseline**")


def test_baseline_that_failed(tmp_path: Path) -> None:
    trials = [("baseline", result(Point(num_envs=8, batch_size=256), status="crashed", detail="exit 1"))]
    trials.append(("model", result(Point(num_envs=16, batch_size=256), 500.0)))
    assert "unknown: the baseline failed (crashed)" in report(make_run(tmp_path, trials))


def test_every_point_failed(tmp_path: Path) -> None:
    point = Point(num_envs=8, batch_size=256)
    run = make_run(tmp_path, [("baseline", result(point, status="oom")), ("model", result(point, status="host_lost"))])
    run.manifest_file.unlink()
    markdown = report(run)
    assert "**No stable point** among 2 probes (1 oom, 1 host lost)" in markdown
    assert "## Time and cost" not in markdown
    assert report_json(gather(run))["tuned"] is None
    told = line(markdown, "- **What the search cost:**")
    assert "29m 10s, 0.97 USD at 2.00 USD per hour (given with --price)." in told
    unpriced = render_report(run).markdown.read_text()
    assert "29m 10s; what an hour costs is given with `--price`." in line(unpriced, "- **What the search cost:**")
    assert "with what you know to run" in line(markdown, "- **Next:**")
    run.update(finished=False)
    assert line(report(run), "- **Next:**").endswith("the same `autotune search` command goes on.")


def test_every_point_slowed_down(tmp_path: Path) -> None:
    """It ran, so that neither the report nor the search may say that it failed."""
    slow = result(Point(num_envs=8, batch_size=256), 500.0, grade="final", flags=("one launch", "slowing"))
    run = make_run(tmp_path, [("baseline", slow), ("final", slow)])
    run.manifest_file.unlink()
    markdown = report(run)
    assert "**No stable point** among 2 probes (2 ok).\n" in markdown
    told = line(markdown, "- **Slowing down:**")
    assert "`num_envs=8 batch_size=256 concurrency=1` ran, but slowed down within the window in two launches" in told
    assert "No stable point measured in 2 probes." in markdown


def test_price_none_asks_for_one(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    files = render_report(run)
    markdown = files.markdown.read_text()
    assert files.facts.price is None
    assert "give what an hour of it costs with `--price`" in markdown and "needs `--price`" in markdown
    assert "USD" not in markdown
    facts = report_json(priced_facts(run))
    assert facts["price_usd_per_hour"] is None and facts["tuned"]["goodput_per_usd"] is None
    assert facts["tuned"]["projection"]["hours"] == pytest.approx(4 * 36e6 / 8050 / 3600)
    assert facts["tuned"]["projection"]["usd"] is None


def test_price_from_the_search_then_from_the_list(tmp_path: Path) -> None:
    searched = make_run(tmp_path, price=3.5)
    assert "at 3.50 USD per hour (given to the search)" in render_report(searched).markdown.read_text()
    listed = make_run(tmp_path, name="listed", own_device=device(sku="a100-80gb"))
    price = priced_facts(listed).price
    assert price is not None and "a100-80gb" in price.note and "--price" in price.note


def test_json_holds_the_figures(tmp_path: Path) -> None:
    facts = json.loads(canonical_json(report_json(priced_facts(make_run(tmp_path), price=2.0))))
    tuned = facts["tuned"]
    assert (tuned["num_envs"], tuned["batch_size"], tuned["concurrency"]) == (64, 1024, 2)
    assert tuned["sps"] == pytest.approx(8050) and tuned["launches"] == 2 and tuned["grade"] == "final"
    assert tuned["goodput_per_usd"] == pytest.approx(3600 * 8050 / 2)
    assert tuned["projection"]["usd"] == pytest.approx(4 * 36e6 / 8050 / 3600 * 2)
    assert [job["usd"] for job in tuned["projection"]["jobs"]] == pytest.approx([tuned["projection"]["usd"] / 4] * 4)
    assert facts["savings"]["baseline"]["usd"] == pytest.approx(80 - tuned["projection"]["usd"])
    failed = facts["trials"][8]
    assert failed["status"] == "oom" and failed["sps"] is None and failed["job_sps"] == []
    assert failed["goodput_per_usd"] is None


@pytest.mark.parametrize(
    ("used", "words"), [(3 * 2**30, "held by one process"), (None, "held by one process"), (4 * 2**20, "")]
)
def test_who_shares_the_gpu_is_said_but_no_display_server_without_a_screen(
    tmp_path: Path, used: int | None, words: str
) -> None:
    gpu = replace(device().gpus[0], processes=(GpuProcess(pid=7, used_bytes=used, name="python"),))
    text = render_report(make_run(tmp_path, own_device=device(gpus=(gpu,))), price=2.0).markdown.read_text()
    assert ("others on the GPU" in text, words in text) == (bool(words), True)


def test_unknown_numbers_are_words_never_floats(tmp_path: Path) -> None:
    odd = result(Point(num_envs=16, batch_size=256), 900.0)
    odd = replace(odd, sps_high=None, sps_low=None, gpu_utilisation=None, cpu_cores=None, vram_peak_bytes=None)
    trials = [("baseline", result(Point(num_envs=8, batch_size=256), 1000.0)), ("model", odd)]
    run = make_run(tmp_path, trials, tuned=odd)
    files = render_report(run, price=2.0)
    words = re.findall(r"[a-z]+", files.markdown.read_text().lower())
    assert [word for word in words if word in ("nan", "inf", "infinity", "none", "nat")] == []
    assert "no interval" in files.markdown.read_text()


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>|`[x](javascript:alert(1))` **b**\n# head\x1b[31m\u202e"
    jobs = [Job(id="job-1", env=evil, seed=0, budget=Budget(unit="steps", amount=1e6))]
    failed = result(Point(num_envs=64, batch_size=256), detail=evil, log_tail=f"{evil}\n```\n</code></pre><img src=x>")
    limited = result(Point(num_envs=16, batch_size=256), 500.0, limited_by=evil, effective={"num_envs": evil})
    trials = [("ladder", failed), (evil, limited)]
    own = device(name=evil)
    run = make_run(tmp_path, trials, own_recipe=recipe(jobs), own_device=own)
    files = render_report(run, price=2.0)
    tags = Tags(files.html.read_text())
    assert set(tags.tags) & {"script", "a", "b"} == set()
    assert tags.tags.count("img") == 1 and tags.tags.count("h1") == 1
    assert tags.tags.count("h2") == len(SECTIONS)
    assert "<script>alert(1)</script>" in tags.text
    assert "\x1b" not in files.markdown.read_text() + files.html.read_text()
    assert "\u202e" not in files.markdown.read_text() + files.html.read_text()
    assert [row for row in files.markdown.read_text().splitlines() if row.startswith("# ")] == [
        "# atari-1: what to run, how long, what it costs"
    ]


def test_unicode_names(tmp_path: Path) -> None:
    run = make_run(tmp_path, own_device=device(name="GPU 測試 ½ ü"))
    files = render_report(run, price=2.0)
    assert "GPU 測試 ½ ü" in files.markdown.read_text(encoding="utf-8")
    assert "GPU 測試 ½ ü" in files.html.read_text(encoding="utf-8")


def test_asked_for_and_effective_differ(tmp_path: Path) -> None:
    point = Point(num_envs=256, batch_size=2048)
    odd = result(point, 500.0, effective={"num_envs": 16, "batch_size": 512, "precision": "float32"})
    markdown = report(make_run(tmp_path, [("baseline", odd)]))
    assert "probe 0: num\\_envs=16 batch\\_size=512 took effect instead of what was asked for" in markdown


def test_a_knob_that_a_command_has_no_place_for_was_not_asked_for(tmp_path: Path) -> None:
    odd = result(Point(num_envs=8, batch_size=1), 500.0, effective={"num_envs": 8, "batch_size": None})
    assert "took effect instead" not in report(make_run(tmp_path, [("baseline", odd)]))


def test_a_knob_that_the_command_does_not_name_is_not_said_to_take_effect_as_none(tmp_path: Path) -> None:
    own = result(Point(num_envs=8, batch_size=256), 500.0, effective={"num_envs": 8, "batch_size": None})
    markdown = report(make_run(tmp_path, [("baseline", own), ("final", own)]))
    assert "None" not in markdown and "took effect instead" not in markdown
    assert "Not named in the command, so that the program has values of its own: `batch_size`." in markdown


def test_learning_uses_what_took_effect(tmp_path: Path) -> None:
    base = result(Point(num_envs=8, batch_size=256), 500.0)
    capped = result(Point(num_envs=64, batch_size=256), 900.0, effective={"num_envs": 8})
    markdown = report(make_run(tmp_path, [("baseline", base), ("model", capped)]))
    assert "Learning not checked, and it may change" not in markdown
    assert "**Learning not checked:** these figures are speed" in markdown


def test_what_a_program_of_ones_own_learns_from_is_loud_by_its_knobs(tmp_path: Path) -> None:
    far, alike = "32 times more environments and 4 times more samples per minibatch", Point(num_envs=16, batch_size=256)
    for name, point in (("far", Point(num_envs=256, batch_size=1024)), ("alike", alike)):
        rows = [("baseline", result(Point(num_envs=8, batch_size=256), 500.0)), ("model", result(point, 900.0))]
        markdown = report(make_run(tmp_path / name, rows, own_recipe=recipe(hyperparameters={})))
        loud = f"**Learning not checked, and it may change:** {far} than the baseline; see below." in markdown
        below = f"**The tuned point has {far} than the baseline**; what that does to samples per update" in markdown
        assert loud == below == (name == "far")


def test_grid_of_a_probe_has_no_manifest(tmp_path: Path) -> None:
    points = [Point(num_envs=8, batch_size=256), Point(num_envs=16, batch_size=256)]
    run = make_run(tmp_path, [("grid", result(point, 100.0 * point.num_envs)) for point in points])
    run.manifest_file.unlink()
    markdown = report(run)
    assert "`num_envs=16 batch_size=256 concurrency=1`, the best of the 2 points measured" in markdown
    assert "`autotune search --budget 30m` emits a manifest" in markdown
    assert "2.00x its SPS" in line(markdown, "- **Saved against the baseline**")
    assert report_json(gather(run))["tuned"]["role"] == "best measured"


def test_edited_manifest_has_no_projection(tmp_path: Path) -> None:
    run = make_run(tmp_path, tuned=result(Point(num_envs=32, batch_size=256), 700.0))
    markdown = report(run)
    assert "**No measurement of `num_envs=32 batch_size=256 concurrency=1`**" in markdown


def test_refused_and_ignored_trials(tmp_path: Path) -> None:
    point = Point(num_envs=8, batch_size=256)
    refused = result(Point(num_envs=64, batch_size=1024), flags=(IGNORED,), detail="not run")
    cut = result(point, status="timeout", flags=(IGNORED,), detail="cut by the budget")
    run = make_run(tmp_path, [("refused", refused), ("model", cut), ("baseline", result(point, 1000.0))])
    facts = gather(run)
    assert facts.refused == 1 and len(facts.trials) == 2
    assert facts.tuned is not None and facts.tuned.failures == 0
    assert "one point was not run: the memory rule" in report(run)


def test_failures_at_the_tuned_point_are_counted(tmp_path: Path) -> None:
    point = Point(num_envs=8, batch_size=256)
    good = result(point, 1000.0, grade="final", cost_s=3600.0)
    trials = [("baseline", good), ("final", result(point, status="crashed", grade="final", cost_s=0.0))]
    run = make_run(tmp_path, trials, tuned=good)
    markdown = report(run)
    assert "**Stability:** 1 of its launches failed" in markdown
    assert "One failure in 1h of running: about 1.5 per hour, at most 4.74 (95 %)." in markdown


def test_a_program_that_ran_out_of_steps_is_no_failure_of_the_tuned_point(tmp_path: Path) -> None:
    point = Point(num_envs=8, batch_size=256)
    good, flags = result(point, 1000.0, cost_s=3600.0), (REFUSED, ENDED_EARLY)
    ended = result(point, status="crashed", grade="final", cost_s=0.0, flags=flags)
    markdown = report(make_run(tmp_path, [("baseline", good), ("final", ended)], tuned=good))
    assert "of its launches failed" not in markdown and "No failure in 1h of running" in markdown


def test_long_quiet_run_bounds_the_cost(tmp_path: Path) -> None:
    point = Point(num_envs=8, batch_size=256)
    run = make_run(tmp_path, [("baseline", result(point, 1000.0, cost_s=1797.4))])
    # M = T / -ln 0.05 = 600 s, where Daly's interval is 74 s and 79 % of the time is kept
    assert "79 % of the time would still be kept work, with a checkpoint every 1m 14s" in report(run)


def test_episodes_by_measured_length(tmp_path: Path) -> None:
    """400 games in 8 environments: 1.96 / sqrt(400), and a quarter of the 8 that run at the end, of 400."""
    jobs = [Job(id="p", env="Pong-v5", seed=0, budget=Budget(unit="episodes", amount=3600))]
    measured = result(Point(num_envs=8, batch_size=256), 1000.0, games=(400,), game_steps=(2000.0,))
    run = make_run(tmp_path, [("baseline", measured)], own_recipe=recipe(jobs))
    markdown, tuned = report(run), gather(run).tuned
    assert tuned is not None and tuned.sps is not None and tuned.sps.low is not None and tuned.sps.high is not None
    least = math.hypot(math.log(1.103), math.log(tuned.sps.high / 1000))
    most = math.hypot(math.log(1.103), math.log(1000 / tuned.sps.low))
    ends = f"{format_duration(7200 * math.exp(-least))} to {format_duration(7200 * math.exp(most))}"
    games = "if a game goes on taking 2,000 env steps (± 10 %; 400 games ended) as measured"
    assert f"**How long:** 2h ({ends}) for the one job, {games}." in markdown
    assert f"**What it costs:** 4.00 USD ({4 * math.exp(-least):,.2f} to {4 * math.exp(most):,.2f}) at" in markdown
    assert "The length taken for each job: p its own." in markdown
    few = replace(measured, games=(15,), game_steps=(None,))
    blind = report(make_run(tmp_path, [("baseline", few)], own_recipe=recipe(jobs), name="b"))
    assert "too few episodes ended while measuring to turn them into steps; 2 or more in each environment" in blind


def test_a_games_length_is_pooled_over_probes_and_never_said_to_be_measured_of_another(tmp_path: Path) -> None:
    jobs = [
        Job(id=env.lower(), env=env, seed=0, budget=Budget(unit="episodes", amount=900)) for env in ("Pong", "Boxing")
    ]
    point = Point(num_envs=8, batch_size=256)
    probes = [result(point, 1000.0, games=(300,), game_steps=(1900.0,))]
    probes += [result(point, 1000.0, games=(100,), game_steps=(2300.0,)), result(point, 1000.0, games=(9,))]
    markdown = report(make_run(tmp_path, [("baseline", probe) for probe in probes], own_recipe=recipe(jobs)))
    said = (
        "if a game of Boxing, not measured, is as long as those of Pong, which take 2,000 env steps (± 11 %; 400 games"
    )
    assert said in markdown and "as measured" not in markdown
    assert "The length taken for each job: pong its own, boxing that of the others." in markdown
    assert "**How long:** about 1h for 2 jobs" in markdown


def test_the_games_told_of_are_those_of_budgets_in_episodes(tmp_path: Path) -> None:
    """A job with a budget in steps has games, too: their length says nothing of the hours."""
    jobs = [
        Job(id="pong", env="Pong", seed=0, budget=Budget(unit="episodes", amount=900)),
        Job(id="boxing", env="Boxing", seed=0, budget=STEPS),
        Job(id="qbert", env="Qbert", seed=0, budget=Budget(unit="episodes", amount=900)),
    ]
    point = Point(num_envs=8, batch_size=256, concurrency=3)
    measured = result(point, 1000.0, games=(400, 9000, 100), game_steps=(2000.0, 30.0, 500.0))
    two = report(make_run(tmp_path, [("baseline", measured)], own_recipe=recipe(jobs)))
    assert "if a game goes on taking 500 to 2,000 env steps (± at most 22 %; 500 games ended) as measured" in two
    last_in_steps = [*jobs[:2], replace(jobs[2], budget=STEPS)]
    one = report(make_run(tmp_path, [("baseline", measured)], own_recipe=recipe(last_in_steps), name="b"))
    assert "if a game goes on taking 2,000 env steps (± 10 %; 400 games ended) as measured" in one


def test_dollars_whose_ends_are_the_same_cents_are_one_amount(tmp_path: Path) -> None:
    """``0.05 USD (0.05 to 0.05)`` claims to be exact; its hours show how sure it is."""
    jobs = [Job(id=name, env="Pong", seed=0, budget=Budget(unit="steps", amount=324_000)) for name in "abc"]
    one = make_run(tmp_path, search_trials()[:1], own_recipe=recipe(jobs[:1]))
    assert "**What it costs:** 0.05 USD at 0.55 USD per hour" in report(one, price=0.55)
    left_at_the_end = make_run(tmp_path, own_recipe=recipe(jobs), name="b")
    assert "**What it costs:** 0.02 USD at 0.50 USD per hour" in report(left_at_the_end, price=0.5)


@pytest.mark.parametrize(
    ("workload", "words"),
    [
        ("busywork", "faster; `--from-checkpoint RUN` measures"),
        ("command", "faster; a search with the program's own option to resume in the command measures"),
        ("replay", "faster.\n"),
    ],
)
def test_from_checkpoint_is_advised_where_it_is_taken(tmp_path: Path, workload: str, words: str) -> None:
    run = make_run(tmp_path)
    chosen = recipe(workload=workload, hyperparameters={"argv": ["true", "{num_envs}"]})
    durable_write(run.recipe_file, dump_recipe(chosen))
    markdown = report(run)
    assert f"a trained policy can be slower or {words}" in markdown


def train_files(run: Run, rows: list[str], *events: dict[str, object]) -> None:
    folder = run.train_folder / "jobs" / "game-1"
    folder.mkdir(parents=True)
    header = "time,seconds,env_steps,episodes,sps,mean_return_100,best_return"
    durable_write(folder / "metrics.csv", "\n".join([header, *rows]) + "\n")
    for event in events:
        append_line(run.train_folder / "events.jsonl", event)


def test_an_event_whose_time_is_damaged_costs_no_report(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    times = [
        "2026-11-28T10:00:00+00:00",
        "2026-11-2<T10:00:01+00:00",
        "2026-11-28T10:00:02",
        "2026-11-28T10:01:00+00:00",
    ]
    train_files(run, ["t,10,20000,0,2000,,"], *({"kind": "ready", "job": "game-1", "time": time} for time in times))
    training = gather(run).training
    assert training is not None and training.machine_s == 60


def test_training_beside_the_prediction(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    rows = ["t,10,20000,0,2000,,", "t,100,402500,10,4025,1.5,4.0", "t,200,724500,20,3220,2.5,7.0"]
    train_files(run, rows, {"kind": "crashed", "job": "game-1"})
    files = render_report(run, price=2.0)
    assert [plot.name for plot in files.plots] == ["throughput.png", "training.png"]
    rows = [row for row in files.markdown.read_text().splitlines() if row.startswith("| game-1")]
    cells = [cell.strip() for cell in rows[-1].split("|")[1:-1]]
    assert cells == ["game-1", "724,500", "20", "3m 20s", "3,622", "-10 %", "2.5", "1"]
    assert "In training: one crash in 3m 20s" in files.markdown.read_text()
    assert gather(run).game_lengths["Game1-v5"].steps == pytest.approx(724500 / 20)


def test_a_job_that_crashed_before_its_first_row_is_counted(tmp_path: Path) -> None:
    """It was in no table, and its crash in no rate: 'no crash'."""
    run = make_run(tmp_path)
    totals = {"total_env_steps": 0, "total_episodes": 0, "total_seconds": 0.0, "mean_return": None}
    crashes = [{"kind": kind, "job": "game-2", **totals} for kind in ("started", "crashed", "started", "crashed")]
    gone = {"kind": "crashed", "job": "game-3", **totals, "total_env_steps": 5000, "total_seconds": 50.5}
    train_files(run, ["t,10,20000,0,2000,,"], {"kind": "started", "job": "game-1", **totals}, *crashes, gone)
    markdown = report(run)
    assert "In training: 3 crashes in 1m summed" in markdown
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in markdown.splitlines() if "| game-" in row]
    assert [(row[0], row[1], row[-1]) for row in rows[-3:]] == [
        ("game-1", "20,000", "0"),
        ("game-2", "0", "2"),
        ("game-3", "5,000", "1"),
    ]


def test_only_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = create_run(tmp_path, "train-1", command="train")
    train_files(run, ["t,10,20000,0,2000,,"])
    files = render_report(run)
    markdown = files.markdown.read_text()
    assert "**A training without probes of its own**" in markdown
    assert "| game-1 |" in markdown and "The device was not recorded" in markdown
    assert files.plots == ()
    assert main(["report", str(run.path)]) == 0
    assert "no price is known" not in capsys.readouterr().err, "one would show no dollars either"


def test_what_a_training_took_of_the_machine_is_said_in_dollars(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Half an hour until it was killed, a day of nothing, an hour, during which the clock was set back once."""
    run = create_run(tmp_path, "train-1", command="train")
    days = [("opened", "01T10:00"), ("saved", "01T10:30"), ("opened", "02T10:30"), ("saved", "02T11:00")]
    days += [("saved", "02T10:50"), ("ended", "02T11:20")]
    events = [{"kind": kind, "job": None, "time": f"2026-01-{at}:00+00:00", "state": "done"} for kind, at in days]
    train_files(run, ["t,10,20000,0,2000,,"], *events)
    assert "the training had the machine for 1h 30m, each start" in report(run, price=None)
    assert "the training had the machine for 1h 30m, 3.00 USD, each start" in report(run)
    assert main(["report", str(run.path)]) == 0
    assert "no price is known" in capsys.readouterr().err


def test_the_time_before_a_manifest_was_edited_is_none_of_the_machine(tmp_path: Path) -> None:
    run = create_run(tmp_path, "train-1", command="train")
    days = [("opened", "01T10:00"), ("ended", "01T10:30"), ("edited", "02T10:30"), ("opened", "02T10:30")]
    days += [("ended", "02T11:00")]
    events = [{"kind": kind, "job": None, "time": f"2026-01-{at}:00+00:00", "state": "done"} for kind, at in days]
    train_files(run, ["t,10,20000,0,2000,,"], *events)
    training = gather(run).training
    assert training is not None and training.machine_s == 3600


def test_a_clock_that_jumps_costs_no_dollars(tmp_path: Path) -> None:
    """Ten minutes, in which the clock was set forward by an hour; then five that were killed; then ten set back."""
    run = create_run(tmp_path, "train-1", command="train")
    days = [("opened", "01T10:00"), ("saved", "01T11:05"), ("ended", "01T11:10"), ("opened", "01T12:00")]
    days += [("saved", "01T12:05"), ("opened", "01T13:00"), ("saved", "01T12:05"), ("ended", "01T12:10")]
    events = [{"kind": kind, "job": None, "time": f"2026-01-{at}:00+00:00", "seconds": 600.0} for kind, at in days]
    train_files(run, ["t,10,20000,0,2000,,"], *events)
    training = gather(run).training
    assert training is not None and training.machine_s == 600 + 300 + 600


def test_a_training_that_is_not_done_says_what_is_left_and_why(tmp_path: Path) -> None:
    run = create_run(tmp_path, "train-1", command="train")
    save_manifest(run.manifest_file, build_manifest(recipe(), recipe().baseline))
    train_files(run, ["t,10,20000,0,2000,,"], {"kind": "crashed", "job": "game-1"})
    job = {"episodes": 0, "seconds": 10.0, "sps": None, "mean_return": None, "best_return": None}
    job |= {"vram_bytes": None, "ram_bytes": None, "eta_s": None}
    seen = [("done", 1.0, ""), ("crashed", 0.25, "the loss is\nnot finite"), ("waiting", 0.0, "")]
    jobs = [
        JobSnapshot(id=f"game-{n}", env="A", status=status, env_steps=0, fraction=share, detail=detail, **job)
        for n, (status, share, detail) in enumerate(seen)
    ]
    known = {"point": "", "sps": None, "measured_sps": None, "predicted_sps": None, "elapsed_s": 1.0, "updated": ""}
    write_snapshot(run, Snapshot(run=run.name, state="crashed", jobs=tuple(jobs), **known))
    append_line(run.train_folder / "events.jsonl", {"kind": "ended", "job": None, "state": "crashed"})
    markdown = report(run)
    left = "- game-1: crashed at 25 % of its budget: the loss is not finite\n- game-2: waiting at 0.0 % of its budget\n"
    assert f"**Not done:**\n\n{left}" in markdown
    assert (
        f"**Next:** `autotune train {run.manifest_file}` goes on with the training, in which jobs crashed" in markdown
    )
    assert "- In training: one crash in 10s" in markdown and "against prediction" not in markdown
    write_snapshot(run, Snapshot(run=run.name, state="done", jobs=tuple(jobs[:1]), **known))
    append_line(run.train_folder / "events.jsonl", {"kind": "ended", "job": None, "state": "done"})
    assert "Not done" not in report(run) and "**Next:** the training ended" in report(run)
    durable_write(status_file(run), "[]")
    assert "Not done" not in report(run), "damaged: nothing is known of it"


def test_a_run_that_was_rolled_back_says_so(tmp_path: Path) -> None:
    run = create_run(tmp_path, "train-1", command="train")
    run.update(training="rolled back")
    assert f"- **Rolled back:** what was trained here lies in `{run.path / 'rolled-back'}`." in report(run)


@pytest.mark.parametrize("trials", [None, [("baseline", result(Point(num_envs=8, batch_size=256)))], []])
def test_a_report_of_a_run_in_use_does_not_call_it_stopped(tmp_path: Path, trials: list | None) -> None:
    run = make_run(tmp_path, trials, tuned=search_trials()[-1][1])
    run.update(finished=False, spent_s=0.0)
    if trials is not None:
        run.manifest_file.unlink()
    if trials == []:
        run.study_file.unlink()
    stopped = ["command goes on", "emits a manifest", "fills it"]
    assert any(word in report(run) for word in stopped)
    with run.hold():
        markdown = report(run)
    assert f"- **Next:** it still runs, and this report is as of now: `autotune status {run.path}`\n" in markdown
    assert not any(word in markdown for word in stopped)


def test_a_search_that_was_killed_is_gone_on_with_and_not_begun_anew(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.manifest_file.unlink()
    assert "- **Next:** `autotune search --budget 30m` emits a manifest to train from." in report(run)
    run.update(finished=False)
    assert "- **Next:** the same `autotune search` command goes on, and emits a manifest" in report(run)


def test_empty_run(tmp_path: Path) -> None:
    run = create_run(tmp_path, "empty", command="search")
    assert "**Nothing was measured yet**" in report(run)
    assert canonical_json(report_json(gather(run)))


def test_only_failures_have_no_picture_of_throughput(tmp_path: Path) -> None:
    run = make_run(tmp_path, [("baseline", result(Point(num_envs=8, batch_size=256), status="oom"))], tuned=None)
    assert render_report(run).plots == ()


def test_damaged_device_file_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    durable_write(run.device_file, '{"kind": ')
    with pytest.raises(FileError, match=r"device\.json is not valid JSON"):
        render_report(run)
    durable_write(run.device_file, "[3]")
    with pytest.raises(FileError, match=r"device\.json is damaged"):
        render_report(run)


def test_a_line_of_events_that_is_none_is_named(tmp_path: Path) -> None:
    run = create_run(tmp_path, "train-1", command="train")
    train_files(run, ["t,10,20000,0,2000,,"], {"kind": "opened", "job": None})
    with (run.train_folder / "events.jsonl").open("a") as file:
        file.write("3\n")
    with pytest.raises(FileError, match=r"events\.jsonl is damaged: 3 is no event"):
        render_report(run)


def test_facts_frame_and_round_trip(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    facts = gather(run, Price(usd_per_hour=1.0, note="x"))
    assert list(facts.trials["sps"])[:2] == [1000.0, 4000.0]
    assert facts.trials["sps"][8] is None
    assert facts.points_measured == 8 and facts.device == device()
    assert facts.baseline is not None and facts.baseline.result.phase_seconds["env"] == pytest.approx(0.7 / 1000)
    write_json(run.path / "copy.json", to_json(facts.baseline.result))


def test_sections_are_extensible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from autotune import registry

    def own(_facts: Facts) -> str:
        return "own *words*"

    known = registry.load
    monkeypatch.setattr(registry, "names", lambda kind: [*registry.BUNDLED[kind], "mine"])
    monkeypatch.setattr(registry, "load", lambda kind, name: own if name == "mine" else known(kind, name))
    last = render_sections(gather(make_run(tmp_path)))[-1]
    assert (last.name, last.title, str(last.html)) == ("mine", "mine", "<p>own <em>words</em></p>")


@pytest.mark.parametrize("broken", [lambda: "", lambda _facts: {}["*lost*"], lambda _facts: sys.exit(3), None])
def test_an_installed_section_that_fails_costs_nobody_the_report(tmp_path, monkeypatch, broken) -> None:
    from autotune import registry

    known = registry.load
    monkeypatch.setattr(registry, "names", lambda kind: [*registry.BUNDLED[kind], "mine"])
    monkeypatch.setattr(registry, "load", lambda kind, name: broken if name == "mine" else known(kind, name))
    sections = render_sections(gather(make_run(tmp_path)))
    assert [section.name for section in sections][0 :: len(sections) - 1] == ["summary", "mine"]
    assert sections[-1].markdown.startswith("This section could not be written: ")
    assert "*lost*" not in sections[-1].markdown.replace(r"\*", "")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a_b|c", r"a\_b\|c"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("x\ny\x07", "x y"),
        ("é🙂", "é🙂"),
        ("k" * 400, "k" * 299 + "…"),
    ],
)
def test_text_is_one_inert_line(value: str, shown: str) -> None:
    assert text(value) == shown


def test_code_and_block_are_inert() -> None:
    assert code("a`b\nc") == "`a'b c`"
    assert block("one\n\n  <b>\x1b[0m\nlast", lines=2) == "      <b> [0m\n    last"
    assert str(to_html("<div onclick=x>hi</div>")) == "<p>&lt;div onclick=x&gt;hi&lt;/div&gt;</p>"


@pytest.mark.parametrize(
    ("fraction", "shown"),
    [
        (0.98, "98.0 %"),
        (0.88, "88 %"),
        (1.0, "100 %"),
        (0.031, "3.1 %"),
        (0.999, "99.9 %"),
        (-0.02, "-2.0 %"),
        (-0.0004, "0.0 %"),
        (None, "unknown"),
        (float("nan"), "unknown"),
    ],
)
def test_percent(fraction: float | None, shown: str) -> None:
    assert percent(fraction) == shown


def test_further_knobs_are_shown_and_drawn(tmp_path: Path) -> None:
    points = [Point(num_envs=8, batch_size=256, extra=(("env_threads", n), ("precision", "bf16"))) for n in (1, 2)]
    rows = [("baseline", result(points[0], 500.0)), ("model", result(points[1], 900.0))]
    trials = [*rows, ("model", result(Point(num_envs=8, batch_size=512), status="crashed"))]
    run = make_run(tmp_path, trials, tuned=rows[1][1])
    files = render_report(run, price=2.0)
    assert "`num_envs=8 batch_size=256 concurrency=1 env_threads=2 precision=bf16`" in files.markdown.read_text()
    assert "model, quick (env\\_threads=2, precision=bf16)" in files.markdown.read_text()
    assert len(files.plots) == 1
    tuned = report_json(gather(run))["tuned"]
    assert tuned["env_threads"] == 2 and tuned["precision"] == "bf16"


def test_ceilings_give_the_share_of_the_serial_bound(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    rates = {"env": 40_000.0, "infer": 80_000.0, "learn": 16_000.0}
    run.update(ceilings={"point": {"num_envs": 64, "batch_size": 256, "concurrency": 1}, "sps": rates})
    text = render_report(run, price=2.0).markdown.read_text()
    assert "env stepping 40,000, inference 80,000, learning 16,000; taking turns, 10,000." in text
    assert "reaches 80 % of that" in text  # 8,050 of 10,000, half to even


@pytest.mark.parametrize(("left", "left_as"), [(None, "missing"), (b"", "empty")])
def test_a_report_is_not_replaced_by_one_of_a_study_that_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], left: bytes | None, left_as: str
) -> None:
    run = make_run(tmp_path)
    assert main(["report", str(run.path)]) == 0
    before = run.report_file.read_text(encoding="utf-8")
    run.study_file.unlink()
    if left is not None:
        run.study_file.write_bytes(left)
    assert main(["report", str(run.path)]) == 1
    assert f"is {left_as}, and 29m 10s were spent on it: restore it" in capsys.readouterr().err
    assert run.report_file.read_text(encoding="utf-8") == before
