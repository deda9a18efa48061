"""The command line as a user meets it: the whole line on `busywork`, JSON keys, exit codes, messages."""

import csv
import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import fake_nvml
import pytest

from autotune import registry
from autotune.choices import open_measuring_run
from autotune.cli import cli, main
from autotune.device.inspect import inspect_device
from autotune.errors import UsageError
from autotune.executors.isolated import IsolatedExecutor
from autotune.executors.replay import ReplayExecutor
from autotune.manifest import build_manifest, save_manifest
from autotune.options import parse_counts, parse_knob_value, parse_settings
from autotune.probe.recipe import command_recipe, load_recipe
from autotune.records import Budget, MeasurePlan
from autotune.runs import Run, create_run
from autotune.search.trials import load_trials

FAST = """
name = "fast"
workload = "busywork"
[hyperparameters]
rollout = 32
{hyperparameters}
[knobs]
num_envs = [4, 8, 16]
batch_size = [64, 128]
concurrency = [1, 2]
[baseline]
num_envs = 4
batch_size = 64
concurrency = 1
[quick]
discard_s = 0.2
discard_iterations = 1
window_s = 0.4
{quick}
[final]
discard_s = 0.2
discard_iterations = 1
window_s = 0.8
window_iterations = 3
[[jobs]]
id = "one"
env = "busywork"
seed = 1
steps = 20000
[[jobs]]
id = "two"
env = "busywork"
seed = 2
steps = 20000
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_recipe(folder, hyperparameters="", quick=""):
    (folder / "autotune.toml").write_text(FAST.format(hyperparameters=hyperparameters, quick=quick))


def run(*arguments):
    return main([str(a) for a in arguments])


def test_whole_line_from_search_to_report(here, capsys):
    write_recipe(here)
    assert run("search", "--budget", "20s", "--price", "2.0", "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert "autotune.toml" in err
    assert set(found["point"]) == {"num_envs", "batch_size", "concurrency"}
    assert found["point"] == {name: found[name] for name in found["point"]}
    keys = "status sps sps_low sps_high job_sps vram_peak_bytes ram_peak_bytes goodput_per_usd trials oom crashed"
    assert set(keys.split()) <= set(found)
    assert found["sps_low"] <= found["sps"] <= found["sps_high"]
    assert found["goodput_per_usd"] == pytest.approx(3600 * found["sps"] / 2.0)
    assert found["vram_peak_bytes"] is None
    assert found["spent_s"] < 20 + 15
    stages = [trial["stage"] for trial in found["trials"]]
    assert stages[0] == "baseline"
    folder = here / "runs" / "fast-1"
    for name in ("recipe.toml", "device.json", "study.db", "manifest.json", "logs", "samples"):
        assert (folder / name).exists()
    provenance = json.loads((folder / "manifest.json").read_text())["provenance"]
    assert (provenance["study"], provenance["trials"]) == ("study.db", len(found["trials"]))

    assert run("train", folder / "manifest.json", "--json") == 0
    trained = json.loads(capsys.readouterr().out)
    assert {job["status"] for job in trained["jobs"]} == {"done"}
    assert all(job["env_steps"] >= 20000 for job in trained["jobs"])
    assert (folder / "train" / "jobs" / "one" / "metrics.csv").exists()

    assert run("status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["training"]["state"] == "done"
    assert run("report", "--price", "2.0") == 0
    assert "USD" in capsys.readouterr().out
    assert (folder / "report.md").exists()
    assert (folder / "report.html").exists()
    assert list((folder / "plots").glob("*.png"))


def test_probe_rows_and_failures_are_values(here, capsys):
    write_recipe(here, 'fail = "oom"\nfail_num_envs = 16')
    assert run("probe", "--num-envs", "8,16", "--batch-size", "64", "--json", "--export", "rows.csv") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["num_envs"], row["status"]) for row in rows] == [(8, "ok"), (16, "oom")]
    assert rows[1]["sps"] is None
    assert rows[0]["envs"] == rows[1]["envs"] == ["busywork"]
    assert (here / "rows.csv").read_text().startswith("number,stage,num_envs,batch_size,concurrency,")
    cells = list(csv.DictReader((here / "rows.csv").read_text().splitlines()))
    assert [cell["status"] for cell in cells] == ["ok", "oom"]
    assert json.loads(cells[0]["job_sps"]) == rows[0]["job_sps"]
    assert json.loads(cells[0]["envs"]) == ["busywork"]
    assert json.loads(cells[0]["effective"])["num_envs"] == 8


def test_a_watched_status_leaves_stdout_to_the_json(here, capsys, monkeypatch):
    create_run(here / "runs", "r", command="train")
    slept: list[float] = []
    monkeypatch.setattr("autotune.runs.is_held", lambda _: len(slept) < 2)
    monkeypatch.setattr("time.sleep", slept.append)
    assert main(["status", "--watch", "--json"]) == 0
    out, told = capsys.readouterr()
    assert json.loads(out)["command"] == "train"
    assert told.count("train r, created") == 2


def test_status_takes_the_run_that_runs_and_names_the_others(here, capsys):
    search, training, probe = (create_run(here / "runs", name, command="train") for name in ("s", "t", "later"))
    with search.hold(), training.hold():
        with probe.hold():
            pass
        assert main(["status"]) == 0
        shown = capsys.readouterr()
        assert shown.out.startswith("train t, created") and shown.out.endswith("also running: s\n")
        assert "run runs/t\n" in shown.err
        assert main(["status", "--json", "later"]) == 0
        assert json.loads(capsys.readouterr().out)["also_running"] == ["s", "t"]
    assert main(["status"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("train later, created") and "also running" not in shown


@pytest.mark.parametrize(
    ("words", "slow"),
    [
        (["search", "--name", "mine"], {"optuna", "scipy", "numpy", "pandas", "rich"}),
        (["probe", "--name", "mine"], {"optuna", "scipy", "numpy", "pandas", "rich"}),
        (["search", "--budget", "60s"], {"optuna", "sqlalchemy", "pandas", "rich"}),
    ],
)
def test_the_holder_of_a_run_is_named_before_the_slow_imports(here, words, slow):
    write_recipe(here)
    recipe, device = load_recipe(None), inspect_device("auto")
    options = {"runs": here / "runs", "name": "mine", "new": False}
    facts = {"sampler": "autotune", "seed": 0, "executor": "isolated"}
    held = open_measuring_run("search", recipe, device, options, **facts)
    code = "import sys\nfrom autotune.cli import main\nprint(main(sys.argv[1:]), *sys.modules)"
    with held.hold():
        command = [sys.executable, "-c", code, *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert f"runs/mine is in use by PID {os.getpid()} (since " in done.stderr
    exit_code, *modules = done.stdout.split()
    assert (exit_code, slow & set(modules)) == ("1", set())


def test_nothing_stable_is_exit_code_3(here, capsys):
    write_recipe(here, 'fail = "crash"\nfail_num_envs = 1')
    assert run("search", "--budget", "60s", "--json", "--export", "rows.csv") == 3
    shown = capsys.readouterr()
    assert "no point of recipe 'fast' ran stably" in shown.err
    found = json.loads(shown.out)
    assert found["point"] is None and found["sps"] is None and not found["interrupted"]
    assert [trial["status"] for trial in found["trials"]] == ["crashed"] * found["crashed"] and found["crashed"] > 0
    assert "ran stably" in found["summary"] and found["budget_s"] == 60
    assert len((here / "rows.csv").read_text().splitlines()) == 1 + found["crashed"]
    state = json.loads((here / "runs" / "fast-1" / "run.json").read_text())
    assert state["finished"] is True, "nothing is left to resume: the same command searches anew"
    assert run("probe", "--num-envs", "4", "--batch-size", "64") == 3


@pytest.mark.parametrize("command", [["python", "train.py"], ["python", "train.py", "--envs", "8"], ["--", "train.py"]])
def test_a_forgotten_double_dash_is_named(here, capsys, command):
    assert run("search", *command) == 2
    assert ("Your own command goes after --" in capsys.readouterr().err) == ("--" not in command)


def test_a_knob_without_its_place_in_the_command_is_named_and_a_further_one_reaches_it(here, capsys, monkeypatch):
    short = MeasurePlan(discard_s=0.5, discard_iterations=1, window_s=0.5)
    monkeypatch.setattr(
        "autotune.probe.recipe.command_recipe", lambda *a, **k: replace(command_recipe(*a, **k), quick=short)
    )
    script = "import sys, time\nfor n in range(10**6): print('steps:', n * int(sys.argv[1])); time.sleep(0.01)"
    options = ["probe", "--num-envs", "8", "--batch-size", "32", "--counter", r"steps: (\d+)"]
    assert run(*options, "--", sys.executable, "-c", script, "{num_env}", "{batch_size}") == 2
    err = capsys.readouterr().err
    assert "the command has no {num_envs}" in err and "placeholders that it has: {batch_size}, {num_env}" in err
    further = ["--knob", "lr=3", "--", sys.executable, "-c", script, "{lr}", "{num_envs}", "{batch_size}"]
    assert run(*options, *further) == 0
    assert "lr" in capsys.readouterr().out


OWN = """
workload = "command"
[hyperparameters]
argv = ["{python}", "own.py", "{{num_envs}}", "{{batch_size}}"]
counter = 'steps: (\\d+)'
grace_s = 1
[knobs]
num_envs = [8, 64]
batch_size = [32]
[quick]
discard_s = 0.2
discard_iterations = 1
window_s = 0.4
[[jobs]]
id = "a"
env = "own"
{budget}
"""
OWN_SCRIPT = """
import sys, time
for n in range(10**6):
    print("steps:", n * int(sys.argv[1]), flush=True)
    time.sleep(0.01)
"""


def write_own(folder, budget="steps = 1000"):
    """A recipe of a program of one's own, and the program beside it."""
    (folder / "own.py").write_text(OWN_SCRIPT)
    (folder / "own.toml").write_text(OWN.format(python=sys.executable, budget=budget))
    return folder / "own.toml"


@pytest.mark.parametrize("command", [["search", "--budget", "1m"], ["probe"], ["record", "--out", "surface.csv"]])
def test_a_recipe_with_several_values_of_a_knob_that_the_command_has_no_place_for_is_refused(here, capsys, command):
    write_own(here)
    recipe = (here / "own.toml").read_text()
    (here / "own.toml").write_text(recipe.replace('"{batch_size}"', "").replace("[32]", "[32, 64]"))
    assert run(*command, "own.toml", *(["--batch-size", "32,64"] if command == ["probe"] else [])) == 2
    told = "batch_size=32 or 64 has no effect: the command has no {batch_size}; write it where the value belongs"
    assert told in capsys.readouterr().err
    assert not list(here.glob("runs/*"))


def test_a_program_of_ones_own_has_no_budget_in_episodes(here, capsys):
    recipe = load_recipe(str(write_own(here, "episodes = 100")))
    save_manifest(here / "own.json", build_manifest(recipe, recipe.baseline))
    for command in (["probe", "own.toml"], ["search", "own.toml"], ["record", "own.toml", "--out", "x.csv"]):
        assert run(*command) == 2
        assert "job 'a' has a budget of 100 episodes" in capsys.readouterr().err
    assert run("train", "own.json") == 2
    assert "job 'a' has a budget of 100 episodes" in capsys.readouterr().err
    assert not list(here.glob("runs/*"))


def test_a_program_of_ones_own_runs_in_its_recipes_folder(here, capsys):
    (here / "mine").mkdir()
    write_own(here / "mine")
    assert run("probe", "mine/own.toml", "--num-envs", "8", "--json") == 0  # own.py is not in the caller's folder
    assert json.loads(capsys.readouterr().out)["rows"][0]["status"] == "ok"
    recipe = load_recipe("runs/own-probe-1/recipe.toml")
    assert recipe.hyperparameters["cwd"] == str(here / "mine")
    manifest = build_manifest(recipe, recipe.baseline)
    assert manifest.workload.hyperparameters["cwd"] == str(here / "mine")


@pytest.mark.parametrize(("cwd", "folder"), [("..", "."), ("sub", "mine/sub"), ("/", "/")])
def test_a_recipes_relative_cwd_begins_in_its_folder(here, cwd, folder):
    (here / "mine").mkdir()
    recipe = write_own(here / "mine")
    recipe.write_text(recipe.read_text().replace("grace_s = 1", f'cwd = "{cwd}"'))
    assert load_recipe("mine/own.toml").hyperparameters["cwd"] == str((here / folder).resolve())


def test_a_search_stopped_before_its_first_result_is_an_object_too(here):
    write_recipe(here)
    command = [sys.executable, "-m", "autotune", "search", "--budget", "60s", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as stopped:
        while not list(here.glob("runs/*/logs/0000-*.log")):
            time.sleep(0.01)
        stopped.send_signal(signal.SIGINT)
        out, said = stopped.communicate(timeout=20)
    assert stopped.returncode == 130 and "before the search was stopped" in said
    found = json.loads(out)
    assert (found["point"], found["trials"], found["interrupted"]) == (None, [], True)


def test_a_stopped_probe_says_what_it_has_and_that_it_begins_anew(here, capsys):
    write_recipe(here)
    command = [sys.executable, "-m", "autotune", "probe", "--num-envs", "4,8", "--batch-size", "64"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as stopped:
        while not list(here.glob("runs/*/logs/0000-*.log")):
            time.sleep(0.01)
        stopped.send_signal(signal.SIGINT)
        _, said = stopped.communicate(timeout=20)
    assert stopped.returncode == 130
    assert "stopped after 0 of 2 points; a probe begins anew" in said
    assert run("status") == 0
    assert "resumable" not in (shown := capsys.readouterr().out) and "unknown time" not in shown


def test_interrupted_search_keeps_the_best_and_the_same_command_resumes(here):
    write_recipe(here)
    command = [sys.executable, "-m", "autotune", "search", "--budget", "20s", "--json"]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen = ""
    while "[2]" not in seen:
        line = first.stderr.readline()
        assert line, seen
        seen += line
    first.send_signal(signal.SIGINT)
    out, _ = first.communicate(timeout=20)
    assert first.returncode == 130
    found = json.loads(out)
    assert found["interrupted"]
    assert (here / "runs" / "fast-1" / "manifest.json").exists()
    started = time.monotonic()
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    rest = json.loads(second.stdout)
    assert rest["run"] == found["run"]
    assert len(rest["trials"]) > len(found["trials"])
    assert rest["trials"][: len(found["trials"])] == found["trials"]
    assert time.monotonic() - started < 20 - found["spent_s"] + 15


def test_two_searches_in_one_run_the_second_names_the_holder(here):
    write_recipe(here)
    command = [sys.executable, "-m", "autotune", "search", "--budget", "20s", "--name", "mine"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while "[1]" not in first.stderr.readline():
        pass
    second = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=20)
    assert first.returncode == 143
    assert second.returncode == 1
    assert f"PID {first.pid}" in second.stderr


BAD = [
    (["probe", "nosuch"], "unknown recipe 'nosuch'"),
    (["probe", "--num-envs", "0"], "at least 1"),
    (["probe", "--num-envs", "-4"], "at least 1"),
    (["probe", "--num-envs", "many"], "at least 1"),
    (["probe", "--num-envs", "512"], "num_envs=512 is outside"),
    (["probe", "--knob", "colour=1"], "has no hyperparameter 'colour'"),
    (["probe", "--knob", "lr=1,2", "--", "true", "{num_envs}"], "write {lr} where its value belongs"),
    (["probe", "--knob", "rollout"], "--knob 'rollout' must be a name and its values"),
    (["probe", "--knob", "rollout=16,"], "--knob 'rollout=16,' must be a name and its values"),
    (["probe", "--knob", "rollout=16", "--knob", "rollout=32"], "names rollout a second time"),
    (["probe", "--knob", "num_envs=8", "--num-envs", "16"], "names num_envs a second time"),
    (["search", "--budget", "2s"], "too short"),
    (["search", "--budget", "soon"], "not understood"),
    (["search", "--price", "-1"], "above zero"),
    (["search", "--price", "nan"], "above zero"),
    (["search", "--price", "0"], "above zero"),
    (["search", "--baseline", "num_envs=0"], "at least 1"),
    (["search", "--baseline", "num_envs=4,batch_size=4096"], "larger than the rollout"),
    (["search", "--baseline", "speed=4"], "unknown knob 'speed'"),
    (["search", "--try", "num_envs=8.5"], "whole number"),
    (["probe", "--num-envs", "9" * 30], "at least 1"),
    (["probe", "--num-envs", "9" * 30], "at most 2,147,483,647"),
    (["probe", "--export", ""], "must end in .csv, .jsonl or .json"),
    (["probe", "--export", "rows.xlsx"], "must end in .csv, .jsonl or .json"),
    (["search", "--export", "rows"], "must end in .csv, .jsonl or .json"),
    (["search", "--export", "none/rows.csv"], "in a folder that exists"),
    (["record", "--out", "none/rows.csv"], "in a folder that exists"),
    (["probe", "--concurrency", "999999999", "--", "true"], "at most 10,000"),
    (["search", "--jobs", "999999999", "--", "true"], "at most 10,000"),
    (["search", "--steps", "9" * 30, "--", "true"], "--steps"),
    (["probe", "--counter", "(x)"], "write it after --"),
    (["probe", "--jobs", "1"], "--jobs is for your own command"),
    (["probe", "--counter", "", "--", "true"], "needs parentheses"),
    (["probe", "--games", "Pong", "--", "true"], "{env}"),
    (["probe", "--"], "nothing follows --"),
    (["--debug", "probe", "--games", ","], "game '' is not a name"),
    (["probe", "--games", ""], "game '' is not a name"),
    (["search", "--try", "num_envs=99999999999"], "at most 2,147,483,647"),
    (["search", "--price", "1e-310"], "above zero"),
    (["search", "--seed", "-1"], "--seed"),
    (["search", "--seed", "4294967296"], "--seed"),
    (["search", "--seeds", "1" + 400 * "0"], "jobs are more than a manifest holds: at most 10,000"),
    (["search", "--seeds", "1-3"], "'1-3' must be a whole number in the range x>=1"),
    (["search", "--seed", "x"], "'x' must be a whole number in the range 0<=x<=4294967295"),
    (["search", "--guard-seeds", "1.5"], "'1.5' must be a whole number in the range 2<=x<=100"),
    (["search", "--guard-margin", "nan"], "'nan' must be a number in the range 0<x<=1"),
    (["search", "--baseline", "num_envs=4,num_envs=8"], "names num_envs twice"),
    (["search", "--sampler", "psychic", "--budget", "40s"], "unknown sampler 'psychic'"),
    (["search", "--name", "../up"], "letters, digits"),
    (["search", "--executor", "replay:none.csv"], "no file 'none.csv'"),
    (["search", "--executor", "isolated:8"], "nothing goes after a name but the file of replay:FILE"),
    (["search", "--device", "tpu"], "'tpu' is not understood"),
    (["search", "busywork", "--", "true"], "not both"),
    (["train", "nosuch"], "unknown manifest 'nosuch'"),
    (["train", "none.json"], "no file 'none.json'"),
    (["report", "nosuch"], "no run 'nosuch'"),
    (["report"], "no run in"),
    (["status"], "no run in"),
    (["frobnicate"], "No such command"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(a)[:60] for a, _ in BAD])
def test_bad_input_is_exit_code_2_with_a_message(here, capsys, arguments, message):
    write_recipe(here)
    command = arguments.index("--") if "--" in arguments else len(arguments)
    assert run(*arguments[:command], *arguments[command:]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert ("Traceback" in err) == ("--debug" in arguments)
    assert not list(here.glob("runs/*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "schema"),
        ({"speed": 1}, "speed"),
        ({"point": {"num_envs": 0, "batch_size": 64, "concurrency": 1}}, "num_envs"),
        ({"point": {"num_envs": 4, "batch_size": 100000, "concurrency": 1}}, "batch_size"),
        ({"jobs": []}, "jobs"),
    ],
)
def test_edited_manifests_are_refused(here, capsys, change, message):
    bundled = Path(__file__).parent.parent / "manifests" / "mini.json"
    (here / "mine.json").write_text(json.dumps(json.loads(bundled.read_text()) | change))
    assert run("train", "mine.json") == 2
    assert message in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_a_refused_edit_of_a_run_s_manifest_deletes_nothing(here, capsys):
    """The copy that a training made is the user's to edit, and to correct."""
    bundled = json.loads((Path(__file__).parent.parent / "manifests" / "mini.json").read_text())
    folder = here / "runs" / "mini-1"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"command": "train", "created": "2026-01-01", "finished": False}))
    point = {"num_envs": 4, "batch_size": 100000, "concurrency": 1}
    (folder / "manifest.json").write_text(json.dumps(bundled | {"point": point}))
    assert run("train", folder / "manifest.json") == 2
    assert "batch_size" in capsys.readouterr().err
    assert {path.name for path in folder.iterdir()} == {"run.json", "manifest.json"}


def test_a_game_that_envpool_lacks_leaves_no_run(here, capsys):
    pytest.importorskip("envpool")
    bundled = Path(__file__).parent.parent / "manifests" / "mini.json"
    (here / "mine.json").write_text(bundled.read_text().replace("Breakout-v5", "NoSuchGame-v5"))
    assert run("train", "mine.json") == 2
    assert "unknown game 'NoSuchGame-v5'" in capsys.readouterr().err
    assert not list(here.glob("runs/*"))


def test_truncated_manifest(here, capsys):
    (here / "cut.json").write_text('{"schema": 1, "na')
    assert run("train", "cut.json") == 2
    assert "truncated" in capsys.readouterr().err


def test_named_run_of_another_search_is_refused(here, capsys):
    write_recipe(here)
    (here / "runs" / "mine").mkdir(parents=True)
    (here / "runs" / "mine" / "run.json").write_text(json.dumps({"command": "search", "recipe_hash": "other"}))
    assert run("search", "--name", "mine", "--budget", "20s") == 2
    assert "'mine'" in capsys.readouterr().err


def test_unwritable_run_folder_is_exit_code_1(here, capsys):
    write_recipe(here)
    (here / "file").write_text("in the way")
    assert run("search", "--budget", "20s", "--runs", "file/runs") == 1
    assert "file/runs" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs to mount a tiny file system")
def test_full_disk_is_exit_code_1(here):
    write_recipe(here)
    small = here / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        command = [sys.executable, "-m", "autotune", "search", "--budget", "20s", "--runs", small / "runs"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 1
        assert "free space" in ended.stderr
        assert "Traceback" not in ended.stderr
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENAMETOOLONG, "shorter name"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EFBIG, "ulimit -f"),
        (errno.ENOSPC, "free space of the folder"),
    ],
)
def test_what_the_system_refuses_has_a_remedy_of_its_kind(here, capsys, monkeypatch, number, remedy):
    def refuse(*_arguments):
        raise OSError(number, os.strerror(number), "a file")

    monkeypatch.setattr("autotune.runs.find_run", refuse)
    assert run("status") == 1
    told = capsys.readouterr().err
    assert remedy in told and "a file" in told


def test_help_names_every_command(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    for command in ("doctor", "probe", "search", "report", "train", "status"):
        assert command in text


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_do_no_harm(here, closed):
    write_recipe(here)
    command = f"{sys.executable} -m autotune probe --num-envs 8 --batch-size 64 --export rows.csv {closed}"
    assert subprocess.run(["sh", "-c", command], timeout=60, check=False).returncode == 0
    assert ",ok," in (here / "rows.csv").read_text()


def test_progress_that_cannot_be_shown_ends_no_work(here):
    """The disk with its log is full, or its terminal is gone: the measurement goes on."""
    write_recipe(here)
    command = f"{sys.executable} -P -m autotune probe --num-envs 8 --batch-size 64 --export rows.csv 2>/dev/full"
    assert subprocess.run(["sh", "-c", command], timeout=60, check=False, stdout=subprocess.PIPE).returncode == 0
    assert ",ok," in (here / "rows.csv").read_text()


def test_a_report_is_read_as_written_whatever_the_locale(here):
    write_recipe(here)
    assert run("probe", "--num-envs", "8", "--batch-size", "64") == 0
    plain = dict(os.environ, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    command = [sys.executable, "-m", "autotune", "report"]
    ended = subprocess.run(command, env=plain, capture_output=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.decode("utf-8", "replace").strip() == (here / "runs/fast-probe-1/report.md").read_text().strip()


def test_the_status_of_a_run_that_can_only_be_read(here, capsys, monkeypatch):
    write_recipe(here)
    assert run("probe", "--num-envs", 8, "--batch-size", 64, "--concurrency", 1) == 0

    def refuse(*_arguments, **_options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("autotune.locks.FileLock.acquire", refuse)
    monkeypatch.setattr(
        "autotune.search.trials._synchronous", lambda connection, _: connection.execute("PRAGMA query_only=ON")
    )
    capsys.readouterr()
    assert run("status") == 0
    assert "probe: finished, one probe" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["doctor", "status", "train mini"])
def test_a_removed_current_folder_is_named(here, command):
    left = f"mkdir gone; cd gone; rmdir ../gone; exec {sys.executable} -P -m autotune {command}"
    ended = subprocess.run(["sh", "-c", left], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "the current folder was removed" in ended.stderr


@pytest.mark.parametrize("content", ["", "[]", '{"created": 3}'])
def test_a_damaged_run_is_named_with_the_remedy(here, capsys, content):
    (here / "runs" / "bad").mkdir(parents=True)
    (here / "runs" / "bad" / "run.json").write_text(content)
    for command in ("status", "report"):
        assert run(command) == 1
        assert "move the folder runs/bad away" in capsys.readouterr().err.lower()


def test_a_damaged_run_hides_no_other_one(here, capsys):
    (here / "runs" / "bad").mkdir(parents=True)
    (here / "runs" / "bad" / "run.json").write_text("")
    with create_run(here / "runs", "good", command="train").hold():
        for words in (["good"], []):
            assert run("status", *words) == 0
            assert capsys.readouterr().out.startswith("train good, created")


def test_options_can_come_from_the_environment(here, capsys, monkeypatch):
    write_recipe(here)
    monkeypatch.setenv("AUTOTUNE_SEARCH_BUDGET", "1s")
    assert run("search") == 2
    assert "1.0s is too short" in capsys.readouterr().err


def test_a_refused_value_from_the_environment_names_its_variable(here, capsys, monkeypatch):
    write_recipe(here)
    monkeypatch.setenv("AUTOTUNE_SEARCH_PRICE", "2,0")
    assert run("search") == 2
    told = "The value stands in the environment variable AUTOTUNE_SEARCH_PRICE: correct or unset it."
    assert told in capsys.readouterr().err
    assert run("search", "--price", "3,0") == 2
    assert "environment variable" not in capsys.readouterr().err


@pytest.mark.parametrize("command", cli.commands.values(), ids=lambda command: command.name)
def test_the_variable_of_an_option_has_the_options_name(command):
    named = [option for option in command.params if option.param_type_name == "option"]
    assert [option.name for option in named] == [option.opts[0].strip("-").replace("-", "_") for option in named]


def test_the_variable_for_json_has_its_effect(here, capsys, monkeypatch):
    create_run(here / "runs", "some", command="probe", finished=True)
    monkeypatch.setenv("AUTOTUNE_STATUS_JSON", "1")
    assert run("status") == 0
    assert isinstance(json.loads(capsys.readouterr().out), dict)


def test_parsers():
    assert parse_counts("8,32") == (8, 32)
    assert parse_settings("num_envs=8,precision=bf16") == {"num_envs": 8, "precision": "bf16"}
    assert [parse_knob_value(v) for v in ("8", "0.5", "true", "x")] == [8, 0.5, True, "x"]
    for text in ("", "8", "=8", "num_envs="):
        with pytest.raises(UsageError):
            parse_settings(text)


ROWS = [(envs, batch) for envs in (8, 16, 32) for batch in (64, 256)]


def small_surface(here, scale=1.0, sd=0.01):
    lines = ["# price_usd_per_hour: 1.5", "# baseline: num_envs=8 batch_size=64 concurrency=1"]
    lines.append("num_envs,batch_size,concurrency,status,sps,sd_fraction,startup_s,vram_bytes,ram_bytes")
    lines += [f"{envs},{batch},1,ok,{scale * (envs + batch)},{sd},5,,1000000" for envs, batch in ROWS]
    (here / "small.csv").write_text("\n".join(lines))
    return ["search", "--executor", "replay:small.csv", "--budget", "10m", "--json"]


class Simulator:
    """An executor of somebody else's whose clock is simulated, and which replays no file."""

    name, simulated = "mine", True

    def __init__(self, device, should_stop):
        self._replay = ReplayExecutor("small.csv")
        self.device = device
        self.clock_s, self.check, self.run = self._replay.clock_s, self._replay.check, self._replay.run
        self.predict_cost_s = self._replay.predict_cost_s


def test_an_installed_executor_may_simulate(here, capsys, monkeypatch):
    small_surface(here)
    write_recipe(here)
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda kind, name: Simulator if name == "mine" else load(kind, name))
    assert run("search", "--executor", "mine", "--budget", "10m", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["point"]["num_envs"] == 16 and found["goodput_per_usd"] is None


def test_a_search_that_finds_nothing_answers_with_the_same_keys(here, capsys):
    command = small_surface(here)
    assert run(*command) == 0
    found = json.loads(capsys.readouterr().out)
    file = here / "small.csv"
    file.write_text(re.sub(r",ok,[0-9.]+,", ",oom,,", file.read_text()))
    assert run(*command, "--new") == 3
    nothing = json.loads(capsys.readouterr().out)
    figures = ("num_envs", "batch_size", "concurrency", "status", "sps", "sps_low", "sps_high", "job_sps")
    figures += ("vram_peak_bytes", "ram_peak_bytes", "goodput_per_usd")
    for key in ("point", *figures):
        assert key in found and nothing[key] is None
    assert (nothing["oom"], nothing["crashed"], nothing["host_lost"], nothing["timeout"]) == (1, 0, 0, 0)
    assert set(found["trials"][0]) == set(nothing["trials"][0]) >= set(figures)


def test_points_that_a_surface_lacks_are_its_nearest_ones(here, capsys):
    command = small_surface(here)
    assert run(*command, "--try", "num_envs=30,batch_size=300", "--baseline", "num_envs=17") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    tried = {(t["num_envs"], t["batch_size"]) for t in found["trials"]}
    assert tried <= set(ROWS)
    assert (found["baseline"]["num_envs"], found["baseline"]["batch_size"]) == (16, 64)
    assert "num_envs=30 batch_size=300 concurrency=1 was not recorded; the nearest point is num_envs=32" in err
    assert "num_envs=17 batch_size=64 concurrency=1 was not recorded; the nearest point is num_envs=16" in err


@pytest.mark.parametrize(("envs", "said"), [(900, 1), (8, 0)])
def test_a_baseline_that_a_surface_lacks_is_said_to_be_moved(here, capsys, envs, said):
    command = small_surface(here)
    file = here / "small.csv"
    file.write_text(file.read_text().replace("baseline: num_envs=8", f"baseline: num_envs={envs}"))
    assert run(*command) == 0
    sentence = f"the surface's baseline num_envs={envs} batch_size=64 concurrency=1 was not recorded; the nearest point"
    assert capsys.readouterr().err.count(sentence) == said


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("small",), "a recipe"),
        (("--games", "Pong"), "--games"),
        (("--seeds", "2"), "--seeds"),
        (("--steps", "5"), "--steps"),
        (("--jobs", "2"), "--jobs"),
    ],
)
def test_a_surface_is_its_own_recipe(here, capsys, words, named):
    assert run(*small_surface(here), *words) == 2
    assert f"{named} cannot go with --executor replay" in capsys.readouterr().err


def test_more_processes_than_jobs_name_the_remedy(here, capsys):
    (here / "fast.toml").write_text(FAST.format(hyperparameters="", quick=""))
    for command in (["probe", "fast.toml", "--concurrency", "3"], ["search", "fast.toml", "--try", "concurrency=3"]):
        assert run(*command) == 2
        assert "give --seeds N or " in capsys.readouterr().err
    assert run("probe", "--seeds", "2", "--", "python", "train.py") == 2
    assert "--seeds 2 is for recipes: your own command takes --jobs N and {seed}" in capsys.readouterr().err
    given = ["probe", "fast.toml", "--seeds", "2", "--num-envs", "4", "--batch-size", "64", "--concurrency", "2"]
    assert run(*given, "--json") == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["status"] == "ok" and len(row["job_sps"]) == 2


def test_steps_are_the_budget_of_every_job_of_a_recipe(here, capsys):
    write_recipe(here)
    once = ["record", "--num-envs", "4", "--batch-size", "64", "--concurrency", "1", "--out", "x.csv"]
    for steps, name in ((500, "fast-record-1"), (500, "fast-record-1"), (600, "fast-record-2")):
        assert run(*once, "--steps", steps) == 0
        assert f"run runs/{name}" in capsys.readouterr().err
        recipe = load_recipe(f"runs/{name}/recipe.toml")
        assert [job.budget for job in recipe.jobs] == [Budget(unit="steps", amount=steps)] * 2
        assert [job.budget.amount for job in build_manifest(recipe, recipe.baseline).jobs] == [steps] * 2
        Run(here / "runs" / name).update(finished=False)  # the same command goes on, another budget is another run


def test_more_jobs_of_ones_own_program_are_seeds_in_a_recipe_and_jobs_on_the_command_line(here, capsys):
    write_own(here)
    assert run("search", "own.toml", "--try", "concurrency=2") == 2
    assert "give --seeds N or lower concurrency" in capsys.readouterr().err
    assert run("search", "--try", "concurrency=2", "--", sys.executable, "own.py") == 2
    assert "give --jobs N or lower concurrency" in capsys.readouterr().err


def test_a_surface_that_changed_is_another_search(here, capsys):
    command = small_surface(here)
    assert run(*command) == 0
    first = json.loads(capsys.readouterr().out)
    Run(Path(first["run"])).update(finished=False)
    assert run(*command) == 0
    assert json.loads(capsys.readouterr().out)["run"] == first["run"]
    Run(Path(first["run"])).update(finished=False)
    small_surface(here, scale=0.1)
    assert run(*command) == 0
    other = json.loads(capsys.readouterr().out)
    assert other["run"] != first["run"]
    assert other["sps"] < 0.2 * first["sps"]


def test_a_report_of_a_very_noisy_replay_has_the_surfaces_price(here, capsys):
    assert run(*small_surface(here, sd=0.9)) == 0
    capsys.readouterr()
    assert run("report") == 0
    assert "no price is known" not in capsys.readouterr().err
    text = (here / "runs/small-1/report.md").read_text()
    assert "1.50 USD per hour (given to the search)" in text
    assert "a replay trains nothing" in text


def test_a_recorded_surface_is_searched_in_replay(here, capsys):
    write_recipe(here, 'fail = "oom"\nfail_num_envs = 16\nfail_concurrency = 2')
    grid = ["--num-envs", "4,16", "--batch-size", "64", "--concurrency", "1,2"]
    assert run("record", *grid, "--out", "surface.csv", "--price", "1.5", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "oom"]
    lines = (here / "surface.csv").read_text().splitlines()
    assert "# price_usd_per_hour: 1.5" in lines
    assert "# baseline: num_envs=4 batch_size=64 concurrency=1" in lines
    assert len([line for line in lines if not line.startswith("#")]) == 1 + 4
    assert run("search", "--executor", "replay:surface.csv", "--budget", "10m", "--seed", "1", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    best = max((row for row in rows if row["status"] == "ok"), key=lambda row: row["sps"])
    assert found["sps"] == pytest.approx(best["sps"], rel=0.1)
    assert found["goodput_per_usd"] == pytest.approx(3600 * found["sps"] / 1.5)
    assert not (here / "runs" / "surface-1" / "manifest.json").exists()  # a recorded machine cannot be trained on


@pytest.mark.parametrize("reboot", [True, False])
def test_a_recording_goes_on_beyond_the_point_at_which_the_machine_went_down(here, capsys, monkeypatch, reboot):
    write_recipe(here)
    grid = ["--num-envs", "4,8,16", "--batch-size", "64", "--concurrency", "1,2", "--knob", "noise_fraction=0.1"]
    command = ["record", *grid, "--out", "surface.csv", "--json"]
    measure, launched, state = IsolatedExecutor.run, [], here / "runs" / "fast-record-1" / "run.json"

    def go_down_at_the_third(executor, request):
        launched.append(request.point.label())
        if len(launched) != 3:
            return measure(executor, request)
        here.joinpath("as_it_was").write_text(state.read_text().replace(executor.device.host.boot_id, boot_id))
        raise KeyboardInterrupt

    boot_id = "before" if reboot else inspect_device("cpu").host.boot_id
    monkeypatch.setattr(IsolatedExecutor, "run", go_down_at_the_third)
    run(*command)
    here.joinpath("as_it_was").rename(state)
    capsys.readouterr()
    assert run(*command) == 0
    told = capsys.readouterr()
    found = {(row["num_envs"], row["concurrency"]): row["status"] for row in json.loads(told.out)["rows"]}
    if not reboot:
        assert found == dict.fromkeys([(4, 1), (4, 2), (8, 1), (8, 2), (16, 1), (16, 2)], "ok") and len(launched) == 7
        return
    assert found == {(4, 1): "ok", (4, 2): "ok", (8, 1): "host_lost"} and len(launched) == 3
    assert "3 points left out: each asks for at least as much of every knob as one at which the machine" in told.err
    assert ",host_lost," in (here / "surface.csv").read_text()


@pytest.fixture
def gpu(monkeypatch):
    """The one GPU of this machine, which can be lost."""
    own = replace(fake_nvml.t4(), uuid=f"GPU-of-{os.getpid()}")
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml.FakeNvml(own))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return own


def lose(gpu):
    gpu.xids, gpu.lost = [79], True


@pytest.mark.parametrize("measured", [0, 1])
@pytest.mark.parametrize(
    "command",
    [
        ["search", "--budget", "12s"],
        ["record", "--out", "surface.csv", "--num-envs", "4", "--batch-size", "64,128", "--concurrency", "1"],
    ],
)
def test_a_gpu_lost_meanwhile_condemns_no_point_and_the_same_command_goes_on(
    here, gpu, capsys, monkeypatch, command, measured
):
    write_recipe(here)
    launch, launched = IsolatedExecutor._launch, []

    def launch_and_lose(executor, request, *rest):
        launched.append(request.point)
        launch(executor, request, *rest)
        if len(launched) == measured + 1:
            lose(gpu)

    monkeypatch.setattr(IsolatedExecutor, "_launch", launch_and_lose)
    assert run(*command) == 5
    told = "".join(capsys.readouterr())
    assert "GPU 0 (Tesla T4) does not answer any more" in told and "XID 79 (hardware)" in told
    assert "reboot the machine" in told and ("same command goes on" in told or "run it again to go on" in told)
    (folder,) = (here / "runs").iterdir()
    before = load_trials(Run(folder))
    assert [trial.result.status for trial in before] == ["ok"] * measured and len(launched) == measured + 1
    gpu.lost = False
    assert run(*command) == 0
    after = load_trials(Run(folder))
    assert after[:measured] == before and launched[measured] in [trial.result.requested for trial in after[measured:]]
    assert [trial.result.status for trial in after] == ["ok"] * len(after)
    assert len(list((here / "runs").iterdir())) == 1


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize("command", [["search", "--budget", "12s"], ["probe"], ["train", "mini"]])
def test_a_gpu_that_is_lost_already_is_no_reason_to_take_the_cpu_unasked(here, gpu, capsys, command, device):
    write_recipe(here)
    lose(gpu)
    assert run(*command, "--device", device) == 4
    assert "GPU 0 does not answer: GPU is lost" in capsys.readouterr().err
    assert not (here / "runs").exists()
    if command == ["probe"]:
        one = ["--num-envs", "4", "--batch-size", "64", "--concurrency", "1"]
        assert run(*command, *one, "--device", "cpu") == 0


@pytest.mark.parametrize("runs", [".", "-x", "my runs/o'clock"])
def test_the_command_that_a_search_ends_with_can_be_typed_as_it_stands(here, capsys, runs):
    command = [word for word in small_surface(here) if word != "--json"]
    assert run(*command, f"--runs={runs}") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert run(*shlex.split(last.partition("autotune ")[2])) == 0, last


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ImportError("libgfortran.so.5: failed to map segment"), "cannot be loaded: libgfortran.so.5: failed to map"),
        (MemoryError(), "memory ran out: raise the limit"),
    ],
)
def test_a_package_that_cannot_be_loaded_and_a_want_of_memory_are_messages(here, capsys, monkeypatch, error, told):
    def fail(_want):
        raise error

    monkeypatch.setattr("autotune.device.inspect.inspect_device", fail)
    assert run("doctor") == 1
    assert told in capsys.readouterr().err
