"""Rows of a run for other programs; pytest-benchmark itself reads its own format."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pytest_benchmark.stats import Stats
from report_run import device, make_run, result

from autotune.cli import main
from autotune.errors import UsageError
from autotune.export.benchmark import benchmark_json, commit_info, machine_info, statistics_of, step_seconds
from autotune.export.files import check_export, export_run
from autotune.records import Point
from autotune.runs import Run

FAST, SLOW, HEAVY = (Point(num_envs=n, batch_size=256) for n in (64, 8, 128))
BATCHES = (1000.0, 800.0, 1250.0)
TRIALS = [
    ("baseline", result(SLOW, 100.0, batch_sps=(100.0,))),
    ("model", result(FAST, 900.0, batch_sps=(900.0, 900.0))),
    ("model", result(HEAVY, detail="the device ran out of memory")),
    ("final", result(FAST, 1000.0, grade="final", window_s=30.0, batch_sps=BATCHES)),
    ("final", result(FAST, 1010.0, grade="final", window_s=30.0, envs=("Pong-v5",))),
]


def compare(*files: Path, columns: str = "min,max,mean,rounds,iterations") -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("pytest-benchmark"), "compare", *files, f"--columns={columns}"]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=files[0].parent)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "runs", TRIALS)


def test_every_format_holds_every_trial(run, tmp_path):
    files = [tmp_path / name for name in ("rows.csv", "rows.jsonl", "rows.json")]
    said = export_run(files, run, price=2.0)
    assert said == [
        f"wrote {files[0]}: 5 rows",
        f"wrote {files[1]}: 5 rows",
        f"wrote {files[2]}: 2 points (1 without a stable measurement left out)",
    ]
    lines = [json.loads(line) for line in files[1].read_text().splitlines()]
    assert [(line["stage"], line["num_envs"], line["status"]) for line in lines][:3] == [
        ("baseline", 8, "ok"),
        ("model", 64, "ok"),
        ("model", 128, "oom"),
    ]
    assert lines[3]["batch_sps"] == list(BATCHES)
    assert (lines[0]["goodput_per_usd"], lines[2]["goodput_per_usd"], lines[2]["sps"]) == (180_000.0, None, None)
    cells = list(csv.DictReader(files[0].read_text().splitlines()))
    assert [cell["sps"] for cell in cells] == ["100.0", "900.0", "", "1000.0", "1010.0"]
    assert json.loads(cells[3]["batch_sps"]) == list(BATCHES)


def test_a_knob_that_only_some_trials_have_is_an_empty_cell_of_the_others(tmp_path):
    wide = Point(num_envs=8, batch_size=256, extra=(("precision", "bf16"),))
    made = make_run(tmp_path, [("baseline", result(SLOW, 100.0)), ("knobs", result(wide, 110.0))], tuned=TRIALS[0][1])
    export_run([tmp_path / "rows.csv"], made, price=None)
    cells = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert [cell["precision"] for cell in cells] == ["", "bf16"]


def test_rounds_are_the_batches_of_the_final_launches_and_nothing_else():
    found = benchmark_json("atari", [trial for _, trial in TRIALS], device())
    slow, fast = found["benchmarks"]
    assert fast["fullname"] == "atari[num_envs=64 batch_size=256 concurrency=1]"
    # three batches of the first final launch; the second, which carries none, is one round; the quick one is out
    assert fast["stats"]["data"] == [1 / rate for rate in BATCHES] + [1 / 1010.0]
    assert (fast["stats"]["rounds"], fast["extra_info"]["launches"]) == (4, 2)
    assert fast["extra_info"]["envs"] == ["Pong-v5"]
    assert (fast["stats"]["min"], fast["stats"]["max"]) == (1 / 1250.0, 1 / 800.0)
    assert fast["stats"]["iterations"] == round((1000.0 + 1010.0) * 30 / 4)
    assert (slow["stats"]["rounds"], slow["stats"]["stddev"]) == (1, 0.0)


@pytest.mark.parametrize("data", [[0.5], [0.3, 0.1], [0.1, 0.4, 0.2, 0.9, 0.3], [float(n**2) for n in range(1, 14)]])
def test_statistics_are_pytest_benchmarks(data):
    theirs = Stats()
    for value in data:
        theirs.update(value)
    ours = statistics_of(data)
    for name in ("min", "max", "mean", "stddev", "rounds", "median", "stddev_outliers", "ops", "total"):
        assert ours[name] == pytest.approx(getattr(theirs, name)), name
    assert set(theirs.as_dict()) <= set(ours)
    assert ours["q1"] <= ours["median"] <= ours["q3"]


def test_pytest_benchmark_compares_one_file_and_two(run, tmp_path):
    other = make_run(tmp_path / "runs", [("model", result(FAST, 500.0)), ("model", result(SLOW, 100.0))], name="b")
    one, two = tmp_path / "before.json", tmp_path / "after.json"
    export_run([one], run, price=None)
    export_run([two], other, price=None)
    alone = compare(one)
    assert alone.returncode == 0, alone.stderr
    assert "benchmark: 2 tests" in alone.stdout
    assert "atari[64-256-1]" in alone.stdout
    both = compare(one, two)
    assert both.returncode == 0, both.stderr
    assert "benchmark: 4 tests" in both.stdout
    assert "before" in both.stdout
    assert "after" in both.stdout


def test_machine_and_commit_are_stated_where_they_are_known(tmp_path):
    info = machine_info(device())
    assert (info["node"], info["gpu"]["name"], info["cpu"]["count"]) == ("box", "Example GPU", 16)
    assert machine_info(None) == {}
    assert commit_info(tmp_path)["id"] == "unversioned"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for arguments in (["init", "-q", "-b", "trunk"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    found = commit_info(tmp_path)
    assert len(found["id"]) == 40
    assert (found["branch"], found["dirty"], found["project"]) == ("trunk", False, tmp_path.name)
    assert found["time"].startswith("20")


def test_a_launch_without_batches_is_one_round_of_its_window():
    assert step_seconds([result(FAST, 200.0)]) == [0.005]


def test_a_search_exports_its_trials(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    surface = tmp_path / "small.csv"
    surface.write_text(
        "# device: Made up\n# baseline: num_envs=8 batch_size=64 concurrency=1\n"
        "num_envs,batch_size,concurrency,status,sps,sd_fraction,startup_s,vram_bytes,ram_bytes\n"
        "8,64,1,ok,100,0.01,2,,1000\n16,64,1,ok,180,0.01,2,,1500\n32,64,1,oom,,,2,,\n"
    )
    arguments = ["search", "--executor", f"replay:{surface}", "--budget", "4m", "--json"]
    assert main([*arguments, "--export", "rows.jsonl", "--export", "bench.json"]) == 0
    captured = capsys.readouterr()
    trials = json.loads(captured.out)["trials"]
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == trials
    assert "wrote bench.json: 2 points" in captured.err
    names = {each["fullname"] for each in json.loads((tmp_path / "bench.json").read_text())["benchmarks"]}
    assert names == {f"small[num_envs={n} batch_size=64 concurrency=1]" for n in (8, 16)}
    assert main(["report", "--export", "again.jsonl"]) == 0
    assert (tmp_path / "again.jsonl").read_text() == (tmp_path / "rows.jsonl").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows", "must end in .csv, .jsonl or .json"),
        ("rows.parquet", "must end in .csv, .jsonl or .json"),
        ("", "must end in .csv, .jsonl or .json"),
        (".csv", "must end in .csv, .jsonl or .json"),
        ("nowhere/rows.csv", "in a folder that exists"),
        ("folder.csv", "in a folder that exists"),
    ],
)
def test_what_cannot_be_written_is_refused_beforehand(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(UsageError, match=message):
        check_export(name)


def test_a_read_only_folder_is_refused_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UsageError, match="its folder is read-only"):
        check_export(str(tmp_path / "rows.csv"))


def test_suffixes_are_read_in_any_case(tmp_path):
    assert check_export(str(tmp_path / "ROWS.CSV")).name == "ROWS.CSV"
