"""Real PPO on CartPole: reproducible, resumed, stopped when it diverges, taken to another point."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune import cli
from autotune.device.inspect import inspect_device
from autotune.errors import UsageError, WorkerError
from autotune.manifest import Manifest, build_manifest, save_manifest
from autotune.records import Budget, Job, Point, Recipe
from autotune.runs import Run
from autotune.train.events import EventLog, read_events
from autotune.train.folder import open_migrated_run, open_training_run
from autotune.train.migrate import migrate
from autotune.train.migration import load_migration
from autotune.worker.checkpoint import generations, load_checkpoint
from autotune.worker.metrics import read_metrics
from autotune.worker.protocol import TrainPlan, WorkerTask
from autotune.worker.train import train
from autotune.workloads.atari import AtariWorkload
from autotune.workloads.guards import refuse_foreign_state

pytest.importorskip("torch")
pytest.importorskip("envpool")

POINT = Point(num_envs=4, batch_size=32)
HYPER = {"rollout": 16, "epochs": 2, "learning_rate": 1e-3, "schedule_horizon_steps": 5000}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOTUNE_THREADS", "1")


class Killed(BaseException):
    """Stands for SIGKILL."""


def train_here(
    folder: Path, steps: int, *, point: Point = POINT, kill_at: int = 0, interval_s: float = 0.0, **hyperparameters: Any
) -> list[dict[str, Any]]:
    """Train in this process, saving at every iteration; die at an iteration if told so. Returns the messages."""
    job = Job(id="a", env="CartPole-v1", seed=3, budget=Budget(unit="steps", amount=steps))
    session = AtariWorkload({**HYPER, **hyperparameters}).open(point, job, "cpu")
    plan = TrainPlan(folder=str(folder), checkpoint_interval_s=interval_s)
    task = WorkerTask(mode="train", workload="atari", hyperparameters={}, point=point, jobs=(job,), train=plan)
    messages: list[dict[str, Any]] = []
    step, count = session.step, 0

    def counted(parts: int = 1) -> Any:
        nonlocal count
        count += 1
        if count == kill_at:
            raise Killed
        return step(parts)

    session.step = counted  # type: ignore[method-assign]
    try:
        train(session, task, messages.append, lambda: False)
    finally:
        session.close()
    return messages


def curve(folder: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv without what a clock said."""
    clock = {"time", "seconds", "sps", "env_s", "infer_s", "transfer_s", "learn_s"}
    rows = read_metrics(folder / "metrics.csv")
    assert rows and clock <= set(rows[0])
    return [{name: value for name, value in row.items() if name not in clock} for row in rows]


def test_equal_trainings_are_bit_identical_and_a_killed_one_up_to_its_checkpoint(tmp_path: Path) -> None:
    train_here(tmp_path / "one", 1500, deterministic=True)
    train_here(tmp_path / "two", 1500, interval_s=3600.0, deterministic=True)
    assert curve(tmp_path / "one") == curve(tmp_path / "two"), "whenever they saved"
    assert len(curve(tmp_path / "one")) > 20
    with pytest.raises(Killed):
        train_here(tmp_path / "killed", 1500, kill_at=13)
    saved = generations(tmp_path / "killed" / "checkpoints")[-1].env_steps
    shutil.copytree(tmp_path / "killed", tmp_path / "again")
    for name in ("killed", "again"):
        assert train_here(tmp_path / name, 1500)[0]["total_env_steps"] == saved
    killed, undisturbed = curve(tmp_path / "killed"), curve(tmp_path / "one")
    assert killed == curve(tmp_path / "again"), "a checkpoint always continues alike"
    before = [row for row in undisturbed if int(row["env_steps"]) <= saved]
    assert len(before) == 12 and killed[:12] == before
    assert killed != undisturbed, "EnvPool cannot put running games back: other games follow"
    steps = [int(row["env_steps"]) for row in killed]
    assert steps == sorted(set(steps)) and sum(int(row["iterations"]) for row in killed) >= 23
    assert [float(row["elapsed_steps"]) for row in killed] == steps, "EnvPool's own count goes on as well"
    rates = [float(row["learning_rate"]) for row in killed]
    assert rates == [pytest.approx(1e-3 * (1 - count / 5000)) for count in steps], "one schedule over the restart"


def test_each_process_counts_on_its_share_of_the_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    share = 1.6e6 / inspect_device("cpu").host.ram_limit_bytes
    jobs = [
        {"id": name, "env": "CartPole-v1", "seed": 1, "budget": {"unit": "steps", "amount": 100}} for name in ("a", "b")
    ]
    manifest = {
        "schema": 1,
        "name": "share",
        "workload": {"name": "atari", "hyperparameters": {"rollout": 500}},
        "point": {"num_envs": 32, "batch_size": 64, "concurrency": 2},
        "jobs": jobs,
        "stability": {"ram_fraction": share},
    }
    (tmp_path / "share.json").write_text(json.dumps(manifest))
    assert cli.main(["train", str(tmp_path / "share.json"), "--device", "cpu", "--runs", str(tmp_path / "runs")]) == 1
    told = capsys.readouterr().err
    assert "num_envs = 32 needs 1." in told
    assert "this process may count on 78" in told  # KiB, half of it
    assert "(nothing was allocated)" in told


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("jobs", 0, "env"), "Acrobot-v1", "job a: .*'CartPole-v1' there and 'Acrobot-v1' here"),
        (("workload", "hyperparameters", "hidden"), 32, "job a: .*hidden is 64 there and 32 here"),
    ],
)
def test_a_finished_job_is_not_taken_for_another_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: tuple[Any, ...], value: Any, words: str
) -> None:
    job = {"id": "a", "env": "CartPole-v1", "seed": 1, "budget": {"unit": "steps", "amount": 100}}
    manifest: dict[str, Any] = {
        "schema": 1,
        "name": "other",
        "workload": {"name": "atari", "hyperparameters": {"rollout": 16, "hidden": 64}},
        "point": {"num_envs": 4, "batch_size": 32, "concurrency": 1},
        "jobs": [job],
    }
    (tmp_path / "other.json").write_text(json.dumps(manifest))
    command = ["train", str(tmp_path / "other.json"), "--device", "cpu", "--runs", str(tmp_path / "runs")]
    assert cli.main(command) == 0
    kept = Run(tmp_path / "runs" / "other-1")
    edited = json.loads(kept.manifest_file.read_text())
    part: Any = edited
    for name in place[:-1]:
        part = part[name]
    part[place[-1]] = value
    kept.manifest_file.write_text(json.dumps(edited))
    capsys.readouterr()
    assert cli.main(["train", str(kept.manifest_file), "--device", "cpu"]) == 2
    assert re.search(words, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("theirs", "words"), [({}, "is of another workload,"), ({"workload": "mine"}, "is of workload 'mine',")]
)
def test_a_checkpoint_of_another_workload_is_called_one(theirs: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as raised:
        refuse_foreign_state(theirs, {"workload": "atari", "environment": "CartPole-v1", "hidden": 64})
    assert words in str(raised.value) and "the job's is 'atari'" in str(raised.value)
    assert "None" not in str(raised.value)


def test_a_training_that_diverges_stops_and_goes_on_from_its_last_good_checkpoint(tmp_path: Path) -> None:
    train_here(tmp_path, 300)
    good = generations(tmp_path / "checkpoints")[-1]
    with pytest.raises(WorkerError, match=r"(not finite at update \d+: total \(|is not finite any more)") as raised:
        train_here(tmp_path, 3000, learning_rate=1e30, anneal=False, interval_s=3600.0)
    assert "last good checkpoint" in str(raised.value) or "checkpoints in" in str(raised.value)
    assert generations(tmp_path / "checkpoints")[-1] == good
    assert train_here(tmp_path, 600)[0]["total_env_steps"] == good.env_steps


def a_manifest(name: str, point: Point, steps: int, **hyperparameters: Any) -> Manifest:
    job = Job(id="a", env="CartPole-v1", seed=3, budget=Budget(unit="steps", amount=steps))
    recipe = Recipe(
        name=name, workload="atari", hyperparameters={**HYPER, **hyperparameters}, jobs=(job,), knobs={}, grid={},
        baseline=point,
    )  # fmt: skip
    return build_manifest(recipe, point)


def trained_run(root: Path, steps: int) -> Run:
    run = open_training_run(root / "old.json", a_manifest("old", POINT, steps), root)
    messages = train_here(run.train_folder / "jobs" / "a", steps)
    totals = {name: value for name, value in messages[-1].items() if name.startswith("total_")}
    EventLog(run).record("saved", job="a", **totals)
    return run


def test_a_training_moves_to_another_point_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = trained_run(tmp_path, 2000)
    rows = curve(source.train_folder / "jobs" / "a")
    newest = generations(source.train_folder / "jobs" / "a" / "checkpoints")[-1]
    file = tmp_path / "new.json"
    save_manifest(file, a_manifest("new", Point(num_envs=7, batch_size=50), 6000))
    command = ["train", str(file), "--device", "cpu", "--runs", str(tmp_path), "--resume-from", "old-1", "--json"]
    assert cli.main(command) == 0
    out, told = capsys.readouterr()
    assert f"a goes on at env step {newest.env_steps:,} of run old-1" in told
    assert json.loads(out)["jobs"][0]["status"] == "done"
    run = Run(tmp_path / "new-1")
    ready = [event["effective"] for event in read_events(run) if event["kind"] == "ready"]
    assert [(e["num_envs"], e["batch_size"]) for e in ready] == [(7, 50)]
    after = curve(run.train_folder / "jobs" / "a")
    assert after[: len(rows)] == rows and int(after[-1]["env_steps"]) >= 6000
    steps = [int(row["env_steps"]) for row in after]
    assert steps == sorted(set(steps))
    assert [float(row["learning_rate"]) for row in after] == [
        pytest.approx(1e-3 * max(0.01, 1 - count / 5000)) for count in steps
    ], "one schedule over the migration"
    meta = load_checkpoint(generations(run.train_folder / "jobs/a/checkpoints")[-1].path).meta
    assert meta["progress"]["episodes"] == int(after[-1]["episodes"]) > int(rows[-1]["episodes"])
    assert meta["session"]["updates"] > load_checkpoint(newest.path).meta["session"]["updates"] > 0


def refused(source: Run, manifest: Manifest, message: str) -> None:
    root = source.path.parent
    run = open_migrated_run(root / "new.json", manifest, source, root)
    with pytest.raises(UsageError, match=message):
        migrate(manifest, source, run, device=replace(inspect_device("cpu")))
    assert load_migration(run) is None


def test_checkpoints_of_another_network_are_refused(tmp_path: Path) -> None:
    source = trained_run(tmp_path, 200)
    wider = a_manifest("wider", Point(num_envs=7, batch_size=50), 6000, hidden=32)
    refused(source, wider, r"job a: this checkpoint does not fit the job: hidden is 64 there and 32 here")
