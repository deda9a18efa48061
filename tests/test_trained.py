"""Probes that begin with the policies of a training."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from migration_run import NEW, OLD, QUICK, a_manifest, content, old_run

from autotune import cli
from autotune.errors import FileError, UsageError
from autotune.manifest import load_manifest, save_manifest
from autotune.records import Budget, Job, Recipe
from autotune.runs import find_run
from autotune.train.trained import begin_trained, where

RECIPE = """
name = "tuned"
workload = "busywork"
[hyperparameters]
rollout = 8
env_s = 1e-5
step_overhead_s = 1e-3
learn_s = 0.0
[knobs]
num_envs = [16]
batch_size = [64]
concurrency = [1, 2]
[quick]
discard_s = 0.2
window_s = 0.5
[[jobs]]
id = "a"
env = "busy"
seed = 1
steps = 100000
[[jobs]]
id = "c"
env = "busy"
seed = 1
steps = 100000
"""


def a_recipe(jobs: str = "ab", env: str = "busy", **changes: Any) -> Recipe:
    rows = tuple(Job(id=job, env=env, seed=1, budget=Budget(unit="steps", amount=1000)) for job in jobs)
    given = {"name": "tuned", "workload": "busywork", "hyperparameters": QUICK, **changes}
    return Recipe(jobs=rows, knobs={}, grid={}, baseline=NEW, **given)


def test_every_job_begins_with_its_newest_checkpoint(tmp_path: Path) -> None:
    source, said = old_run(tmp_path), list[str]()
    before = content(source)
    recipe = begin_trained(a_recipe("abc"), source, said.append)
    assert {job: Path(file).name.split("-")[1] for job, file in recipe.checkpoints.items()} == {"a": "300", "b": "500"}
    assert said == [
        f"probes begin where run {source.path} stands: a at 300 env steps, b at 500 env steps",
        "warning: not trained there, so measured untrained: c",
    ]
    assert content(source) == before
    newest = Path(recipe.checkpoints["a"])
    newest.write_bytes(b"torn")
    recipe = begin_trained(a_recipe("a"), source, said.append)
    assert "-200-" in Path(recipe.checkpoints["a"]).name and "continuing at env step 200" in said[-2]
    assert newest.read_bytes() == b"torn", "the run is only read"


def test_a_job_that_the_manifest_dropped_begins_where_it_stands(tmp_path: Path) -> None:
    source = old_run(tmp_path, a_manifest(point=replace(OLD, concurrency=1)))
    whole = load_manifest(source.manifest_file)
    save_manifest(source.manifest_file, whole.model_copy(update={"jobs": whole.jobs[:1]}))
    assert set(begin_trained(a_recipe("ab"), source, print).checkpoints) == {"a", "b"}


def test_another_jobs_checkpoint_is_refused(tmp_path: Path) -> None:
    source = old_run(tmp_path)
    shutil.rmtree(source.jobs_folder / "a")
    shutil.copytree(source.jobs_folder / "b", source.jobs_folder / "a")
    with pytest.raises(UsageError, match="is a checkpoint of job b, and this is job a"):
        begin_trained(a_recipe("a"), source, print)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"jobs": "xy"}, "no checkpoint of the jobs x, y: its jobs are a, b"),
        ({"env": "other"}, "job a plays busy in run .* and other in recipe 'tuned'"),
        ({"workload": "atari"}, "trains workload 'busywork', recipe 'tuned' is of 'atari'"),
        ({"workload": "command"}, "a program of your own keeps its own checkpoints"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        begin_trained(a_recipe(**changes), old_run(tmp_path), print)


def test_a_run_without_a_training_is_refused(tmp_path: Path) -> None:
    source = old_run(tmp_path)
    for file in (source.train_folder / "jobs" / "a" / "checkpoints").glob("*.safetensors"):
        file.unlink()
    with pytest.raises(FileError, match="job a saved at env step 300, but there is no checkpoint"):
        begin_trained(a_recipe(), source, print)
    source.train_folder.rename(tmp_path / "away")
    with pytest.raises(UsageError, match="has not trained: leave --from-checkpoint out"):
        begin_trained(a_recipe(), source, print)


def test_many_jobs_are_named_by_their_range() -> None:
    assert where({str(n): 1000 * n for n in range(1, 9)}) == "8 jobs at 1,000 to 8,000 env steps"


def test_probes_searches_and_reports_say_where_they_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = old_run(tmp_path / "runs", a_manifest(point=replace(OLD, concurrency=1)))
    (tmp_path / "tuned.toml").write_text(RECIPE)
    probe = ["probe", "tuned.toml", "--device", "cpu", "--from-checkpoint", source.path.name, "--json"]
    assert cli.main([*probe, "--concurrency", "1"]) == 0
    (row,) = json.loads(capfd.readouterr().out)["rows"]
    assert row["effective"]["trained_env_steps"] == 300
    search = ["search", "tuned.toml", "--device", "cpu", "--budget", "20s"]
    assert cli.main([*search, "--from-checkpoint", source.path.name, "--json"]) == 0
    assert "a at 300 env steps" in capfd.readouterr().err
    run = find_run(tmp_path / "runs", None)
    assert json.loads(run.manifest_file.read_text())["provenance"]["trained_env_steps"] == {"a": 300}
    assert cli.main(["report", run.name]) == 0
    assert "policies that had been trained (a at 300 env steps)" in capfd.readouterr().out
    run.update(finished=False)
    assert cli.main([*search, "--json"]) == 0
    assert find_run(tmp_path / "runs", None).name != run.name, "untrained probes do not go on with trained ones"
    assert "trained (" not in capfd.readouterr().out


def test_what_cannot_begin_trained_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    source = old_run(tmp_path / "runs")
    surface = Path(__file__).parents[1] / "reports/reference/surfaces/cartpole-cpu-2-cores.csv"
    replay = ["search", "--executor", f"replay:{surface}", "--from-checkpoint", source.path.name]
    assert cli.main(replay) == 2
    assert "--from-checkpoint cannot go with --executor replay" in capfd.readouterr().err
    own = ["probe", "--from-checkpoint", source.path.name, "--", "python", "train.py"]
    assert cli.main(own) == 2
    assert "a program of your own keeps its own checkpoints" in capfd.readouterr().err
    assert cli.main(["probe", "cartpole", "--from-checkpoint", "gone"]) == 2
    assert "there is no run 'gone'" in capfd.readouterr().err
