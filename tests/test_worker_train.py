"""The training loop of a worker, on a made-up session and clock."""

from __future__ import annotations

import math
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from filelock import FileLock

from autotune.device.host import process_identity
from autotune.errors import BusyError, FileError, UsageError, WorkerError
from autotune.records import Budget, Job, Point, Work
from autotune.worker import lock
from autotune.worker import train as train_module
from autotune.worker.checkpoint import best_checkpoint, generations, load_checkpoint
from autotune.worker.metrics import MetricsFile, read_metrics
from autotune.worker.protocol import TrainPlan, WorkerTask
from autotune.worker.train import train
from autotune.workloads.protocol import Finished, SessionState

POINT = Point(num_envs=4, batch_size=8)


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(train_module, "time", clock)
    return clock


class FakeSession:
    """10 env steps and one game of return `count` per iteration of `step_s` seconds."""

    effective: ClassVar = {"num_envs": 4, "shape": (1, 2)}

    def __init__(self, clock: Clock, step_s: float = 0.25, *, at: dict[int, BaseException] | None = None) -> None:
        self.clock, self.step_s, self.at = clock, step_s, at or {}
        self.count = 0

    def step(self, parts: int = 1) -> Work:
        if self.count + 1 in self.at:
            raise self.at.pop(self.count + 1)
        self.clock.now_s += self.step_s
        self.count += 1
        return Work(
            env_steps=10,
            reset_rows=1,
            episodes=1,
            samples=10,
            minibatches=2,
            seconds={"env": 0.1, "learn": 0.05},
            returns=(float(self.count),),
            lengths=(10,),
            metrics={"loss": 1.0 / self.count, "bad": math.nan},
        )

    def synchronize(self) -> None:
        pass

    def peak_memory_bytes(self) -> int | None:
        return None

    def state(self) -> SessionState:
        return SessionState(arrays={"w": np.array([self.count])}, meta={"count": self.count})

    def restore(self, state: SessionState) -> None:
        self.count = int(state.arrays["w"][0])
        assert state.meta == {"count": self.count}

    def close(self) -> None:
        pass


class StatelessSession(FakeSession):
    def state(self) -> SessionState:
        return SessionState(arrays={})


def run(
    folder: Path,
    session: FakeSession,
    *,
    unit: Any = "steps",
    amount: float = 100,
    interval_s: float = 60.0,
    stop_at: int | None = None,
    send: Callable[[dict[str, Any]], None] | None = None,
    job: str = "j",
    seed: int = 1,
    retried: bool = True,
) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    task = WorkerTask(
        mode="train",
        workload="fake",
        hyperparameters={},
        point=POINT,
        jobs=(Job(id=job, env="e", seed=seed, budget=Budget(unit=unit, amount=amount)),),
        train=TrainPlan(folder=str(folder), checkpoint_interval_s=interval_s, keep=2, retried=retried),
    )
    train(session, task, send or messages.append, lambda: stop_at is not None and session.count >= stop_at)  # type: ignore[arg-type]
    return messages


def kinds(messages: list[dict[str, Any]]) -> set[str]:
    return {message["type"] for message in messages}


@pytest.mark.parametrize(
    ("unit", "amount", "iterations"), [("steps", 95, 10), ("episodes", 7, 7), ("hours", 10 / 3600, 40)]
)
def test_each_budget_ends_the_job(tmp_path: Path, clock: Clock, unit: str, amount: float, iterations: int) -> None:
    session = FakeSession(clock)
    done = run(tmp_path, session, unit=unit, amount=amount)[-1]
    assert session.count == iterations
    assert (done["type"], done["reason"]) == ("done", "budget")
    assert done["total_env_steps"] == 10 * iterations
    assert done["total_episodes"] == iterations
    assert done["total_seconds"] == pytest.approx(iterations * 0.25)
    assert done["best_return"] == iterations
    assert done["effective"] == {"num_envs": 4, "shape": [1, 2]}


def test_step_messages_add_up_and_are_few(tmp_path: Path, clock: Clock) -> None:
    messages = run(tmp_path, FakeSession(clock, step_s=0.01), amount=10_000)
    steps = [message for message in messages if message["type"] == "step"]
    assert sum(message["env_steps"] for message in steps) == 10_000
    assert sum(message["iterations"] for message in steps) == 1000
    assert sum(message["seconds"]["env"] for message in steps) == pytest.approx(1000 * 0.1)
    assert len(steps) <= 2 + 10.0 / 0.5
    assert [m["started"] for m in steps[1:]] == [m["t"] for m in steps[:-1]]
    assert steps[-1]["metrics"] == {"loss": 0.001}
    assert steps[-1]["mean_return"] == pytest.approx(sum(range(901, 1001)) / 100)


def test_stop_saves_and_the_next_call_goes_on(tmp_path: Path, clock: Clock) -> None:
    first = run(tmp_path, FakeSession(clock), stop_at=4)
    assert first[-1]["reason"] == "stopped"
    session = FakeSession(clock)
    second = run(tmp_path, session)
    assert second[0]["type"] == "resumed"
    assert (second[0]["total_env_steps"], second[0]["total_seconds"]) == (40, 1.0)
    assert session.count == 10
    assert (second[-1]["total_env_steps"], second[-1]["total_seconds"]) == (100, 2.5)
    assert second[-1]["mean_return"] == pytest.approx(5.5), "returns of before the stop count"
    third = run(tmp_path, FakeSession(clock))
    assert kinds(third) == {"resumed", "done"} and third[-1]["reason"] == "budget"


def test_checkpoints_by_interval_keep_and_best(tmp_path: Path, clock: Clock) -> None:
    messages = run(tmp_path, FakeSession(clock, step_s=1.0), amount=1250, interval_s=10.0)
    saved = [message["env_steps"] for message in messages if message["type"] == "saved"]
    assert saved == [*range(100, 1300, 100), 1250]
    assert [generation.env_steps for generation in generations(tmp_path / "checkpoints")] == [1200, 1250]
    best = best_checkpoint(tmp_path / "checkpoints")
    assert best is not None and best[1] == pytest.approx(sum(range(26, 126)) / 100)


def test_a_disk_slower_than_the_interval_leaves_time_to_train(tmp_path: Path, clock: Clock) -> None:
    """It saved after every iteration."""

    class Slow(FakeSession):
        def state(self) -> SessionState:
            self.clock.now_s += 10
            return super().state()

    messages = run(tmp_path / "j", Slow(clock), interval_s=1.0, amount=100)
    saved = [m for m in messages if m["type"] == "saved"]
    assert [m["env_steps"] for m in saved] == [40, 80, 100] and {m["seconds"] for m in saved} == {10}


def test_a_checkpoint_tells_where_it_comes_from(tmp_path: Path, clock: Clock) -> None:
    run(tmp_path, FakeSession(clock))
    meta = load_checkpoint(generations(tmp_path / "checkpoints")[-1].path).meta
    assert meta["point"] == POINT.knobs()
    assert (meta["job"], meta["env"]) == ("j", "e")
    assert meta["progress"]["returns"] == [float(n) for n in range(1, 11)]


def test_a_checkpoint_of_another_job_is_refused_and_another_seed_told(tmp_path: Path, clock: Clock) -> None:
    run(tmp_path, FakeSession(clock), stop_at=3)
    with pytest.raises(UsageError, match="is a checkpoint of job j, and this is job k"):
        run(tmp_path, FakeSession(clock), job="k")
    assert [generation.env_steps for generation in generations(tmp_path / "checkpoints")] == [30]
    messages = run(tmp_path, FakeSession(clock), seed=2)
    warnings = [message["detail"] for message in messages if message["type"] == "warning"]
    assert len(warnings) == 1 and "trained with seed 1, now with seed 2" in warnings[0]
    assert "warning" not in kinds(run(tmp_path, FakeSession(clock), seed=2, amount=200))


def test_a_failing_session_passes_through_and_keeps_what_was_saved(tmp_path: Path, clock: Clock) -> None:
    session = FakeSession(clock, step_s=10.0, at={8: RuntimeError("boom")})
    with pytest.raises(RuntimeError, match="boom"):
        run(tmp_path, session, interval_s=30.0)
    messages = run(tmp_path, FakeSession(clock))
    assert messages[0]["total_env_steps"] == 60
    assert [int(row["env_steps"]) for row in read_metrics(tmp_path / "metrics.csv")] == [*range(10, 101, 10)]


def test_a_program_that_ends_by_itself_is_finished_when_its_budget_nearly_is(tmp_path: Path, clock: Clock) -> None:
    done = run(tmp_path, FakeSession(clock, at={4: Finished("ended")}))[-1]
    assert (done["reason"], done["total_env_steps"]) == ("early", 30)
    nearly = run(tmp_path / "nearly", FakeSession(clock, at={4: Finished("ended")}), amount=32)[-1]
    assert (nearly["reason"], nearly["detail"]) == ("finished", "")
    assert "ended by itself, with exit code 0, after 30 of 100 steps (30% of its budget)" in done["detail"]


def test_a_session_without_a_state_starts_its_count_anew(tmp_path: Path, clock: Clock) -> None:
    run(tmp_path, StatelessSession(clock), stop_at=4)
    assert generations(tmp_path / "checkpoints") == []
    messages = run(tmp_path, StatelessSession(clock))
    assert "resumed" not in kinds(messages)
    assert messages[-1]["total_env_steps"] == 100


def test_a_parent_that_is_gone_makes_it_save_and_end(tmp_path: Path, clock: Clock) -> None:
    def broken(_: dict[str, Any]) -> None:
        raise BrokenPipeError

    session = FakeSession(clock)
    run(tmp_path, session, send=broken)
    assert session.count == 1
    assert [generation.env_steps for generation in generations(tmp_path / "checkpoints")] == [10]


def test_a_damaged_checkpoint_is_told_and_the_one_before_used(tmp_path: Path, clock: Clock) -> None:
    run(tmp_path, FakeSession(clock, step_s=10.0), interval_s=20.0)
    newest = generations(tmp_path / "checkpoints")[-1]
    newest.path.write_bytes(newest.path.read_bytes()[:-1])
    messages = run(tmp_path, FakeSession(clock))
    warnings = [message["detail"] for message in messages if message["type"] == "warning"]
    assert len(warnings) == 2 and "env step 100" in warnings[0] and "continuing at env step 80" in warnings[1]
    assert messages[-1]["total_env_steps"] == 100


def test_only_damaged_checkpoints_stop_the_job(tmp_path: Path, clock: Clock) -> None:
    run(tmp_path, FakeSession(clock))
    for generation in generations(tmp_path / "checkpoints"):
        generation.path.write_bytes(b"")
    with pytest.raises(FileError, match="no valid checkpoint"):
        run(tmp_path, FakeSession(clock))


def test_two_workers_never_train_in_one_folder(tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "ORPHAN_S", 0.05)
    with FileLock(tmp_path / ".lock"), pytest.raises(BusyError, match="another worker"):
        run(tmp_path, FakeSession(clock))


def test_a_predecessor_that_was_stopped_is_killed_and_a_stranger_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "ORPHAN_S", 0.05)
    script = (
        "import sys, time, filelock\n"
        "with filelock.FileLock(sys.argv[1]):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(99)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / ".lock")]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        holder.send_signal(signal.SIGSTOP)
        boot, pid, ticks = process_identity(holder.pid) or ("", 0, 0)
        for other in ((), ("another boot", pid, ticks), (boot, pid, ticks + 1)):
            with pytest.raises(BusyError, match="another worker still trains"):
                lock.lock_job(tmp_path, other)
        assert holder.poll() is None
        lock.lock_job(tmp_path, (boot, pid, ticks)).release()
        assert holder.wait(10) == -signal.SIGKILL
    finally:
        holder.kill()


def test_without_a_plan_or_with_a_foreign_state(tmp_path: Path, clock: Clock) -> None:
    task = WorkerTask(mode="train", workload="fake", hyperparameters={}, point=POINT, jobs=())
    with pytest.raises(WorkerError, match="TrainPlan"):
        train(FakeSession(clock), task, lambda _: None, lambda: False)  # type: ignore[arg-type]
    run(tmp_path, FakeSession(clock), stop_at=1)

    class Foreign(FakeSession):
        def restore(self, state: SessionState) -> None:
            raise UsageError("another network")

    with pytest.raises(UsageError, match="another network"):
        run(tmp_path, Foreign(clock))


def test_metrics_rows_say_what_was_done_since_the_row_before(tmp_path: Path, clock: Clock) -> None:
    run(tmp_path, FakeSession(clock), amount=4100)
    rows = read_metrics(tmp_path / "metrics.csv")
    steps = [int(row["env_steps"]) for row in rows]
    assert steps[:200] == [*range(10, 2001, 10)], "every iteration is more than half a percent at first"
    assert steps[200:300] == [*range(2020, 4001, 20)] and steps[300:] == [4030, 4060, 4090, 4100]
    assert [row["iterations"] for row in rows[199:]] == ["1", *["2"] * 100, "3", "3", "3", "1"]
    assert {float(row["sps"]) for row in rows} == {40.0}
    assert float(rows[-2]["env_s"]) == pytest.approx(0.3)
    assert float(rows[-1]["mean_return_100"]) == pytest.approx(sum(range(311, 411)) / 100)
    assert float(rows[-1]["loss"]) == pytest.approx(1 / 410)
    assert "bad" not in rows[-1]


@pytest.mark.parametrize("stop_at", [250, 251, 252, 300, 301, 302])
def test_a_stopped_or_killed_run_has_the_rows_of_an_undisturbed_one(tmp_path: Path, clock: Clock, stop_at: int) -> None:
    def rows(name: str) -> list[dict[str, str]]:
        return [{k: v for k, v in row.items() if k != "time"} for row in read_metrics(tmp_path / name / "metrics.csv")]

    run(tmp_path / "whole", FakeSession(clock), amount=4100)
    killed = FakeSession(clock, at={stop_at: RuntimeError("boom")})
    with pytest.raises(RuntimeError, match="boom"):  # as a kill: nothing more is written; saved every 4 iterations
        run(tmp_path / "killed", killed, amount=4100, interval_s=1.0)
    run(tmp_path / "killed", FakeSession(clock), amount=4100)
    assert rows("killed") == rows("whole")

    run(tmp_path / "stopped", FakeSession(clock), amount=4100, stop_at=stop_at)
    run(tmp_path / "stopped", FakeSession(clock), amount=4100)
    found = rows("stopped")
    assert sum(int(row["iterations"]) for row in found) == 410, "neither duplicates nor holes"
    assert sum(int(row["reset_rows"]) for row in found) == 410
    assert [row["env_steps"] for row in found] == sorted({row["env_steps"] for row in found}, key=int)


def test_a_stop_right_after_a_save_counts_nothing_twice(tmp_path: Path, clock: Clock) -> None:
    for stop_at in range(296, 308):  # saved every 3 iterations, a row every 2
        folder = tmp_path / str(stop_at)
        run(folder, FakeSession(clock), amount=4100, interval_s=0.75, stop_at=stop_at)
        run(folder, FakeSession(clock), amount=4100, interval_s=0.75)
        rows = read_metrics(folder / "metrics.csv")
        assert sum(int(row["iterations"]) for row in rows) == 410, stop_at
        assert {float(row["sps"]) for row in rows} == {40.0}, stop_at


def test_a_state_that_is_not_finite_is_never_saved(tmp_path: Path, clock: Clock) -> None:
    class Diverging(FakeSession):
        def state(self) -> SessionState:
            value = math.nan if self.count == 8 else float(self.count)
            arrays = {"w": np.array([self.count]), "model.bias": np.array([1.0, value])}
            return SessionState(arrays=arrays, meta={"count": self.count})

    with pytest.raises(WorkerError, match=r"model\.bias is not finite any more: nothing was saved"):
        run(tmp_path, Diverging(clock), interval_s=0.5)
    assert [generation.env_steps for generation in generations(tmp_path / "checkpoints")] == [40, 60]
    assert run(tmp_path, FakeSession(clock, step_s=1.0))[0]["total_env_steps"] == 60


def test_a_failure_says_what_the_same_command_goes_on_from(tmp_path: Path, clock: Clock) -> None:
    for folder, stop_at, way_on in (
        ("new", None, "nothing was saved before, and the same command begins anew"),
        ("kept", 2, "the last good checkpoint is of env step 20, and the same command goes on from it"),
    ):
        if stop_at:
            run(tmp_path / folder, FakeSession(clock), stop_at=stop_at)
        with pytest.raises(WorkerError, match=f"^e raised; {way_on}$"):
            run(tmp_path / folder, FakeSession(clock, at={4: WorkerError("e raised")}))
    with pytest.raises(WorkerError, match=r"^e raised$"):  # of a job that is not trained again
        run(tmp_path / "kept", FakeSession(clock, at={4: WorkerError("e raised")}), retried=False)


def test_a_curve_that_is_none_is_set_aside(tmp_path: Path, clock: Clock) -> None:
    run(tmp_path, FakeSession(clock), stop_at=2)
    (tmp_path / "metrics.csv").write_bytes(b"\x93\xff,\x00\n1,2\n")
    messages = run(tmp_path, FakeSession(clock))
    assert [m["detail"].split(":")[0] for m in messages if m["type"] == "warning"] == [
        f"{tmp_path / 'metrics.csv'} is damaged, since it has no column env_steps"
    ]
    assert (tmp_path / "metrics.csv.damaged").read_bytes() == b"\x93\xff,\x00\n1,2\n"
    assert [row["env_steps"] for row in read_metrics(tmp_path / "metrics.csv")] == [str(n) for n in range(30, 101, 10)]
    (tmp_path / "metrics.csv").write_text('env_steps\n"' + "x" * 200_000 + "\n")
    with pytest.raises(FileError, match=r"metrics\.csv is damaged .*: move it away"):
        read_metrics(tmp_path / "metrics.csv")


def test_a_curve_that_may_not_grow_is_told_with_the_remedy(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv", env_steps=0)
    file.append({"env_steps": 10})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.path.stat().st_size, before[1]))
    try:
        with pytest.raises(FileError, match=r"File too large. .* \(ulimit -f\)"):
            file.append({"env_steps": 20})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_curve_that_was_moved_away_begins_anew_with_its_columns(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "metrics.csv", env_steps=0)
    metrics.append({"env_steps": 1})
    metrics.path.unlink()
    metrics.append({"env_steps": 2})
    metrics.append({"env_steps": 3})
    assert [row["env_steps"] for row in read_metrics(metrics.path)] == ["2", "3"]


def test_a_job_whose_folder_is_removed_goes_on_and_saves(tmp_path: Path, clock: Clock) -> None:
    """It crashed at the next row, and all that it had learnt was lost with the checkpoints."""
    folder, session, messages = tmp_path / "j", FakeSession(clock), list[dict[str, Any]]()

    def send(message: dict[str, Any]) -> None:
        messages.append(message)
        if [m["type"] for m in messages].count("saved") == 2 and message["type"] == "saved":
            shutil.rmtree(folder)

    run(folder, session, interval_s=1.0, amount=200, send=send)
    assert (messages[-1]["type"], messages[-1]["reason"]) == ("done", "budget")
    assert load_checkpoint(generations(folder / "checkpoints")[-1].path).meta["progress"]["env_steps"] == 200
    assert read_metrics(folder / "metrics.csv")[-1]["env_steps"] == "200"


def test_metrics_file_survives_torn_lines_new_columns_and_lost_work(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    file = MetricsFile(path, env_steps=0)
    file.append({"env_steps": 10, "loss": 1.0})
    file.append({"env_steps": 20, "loss": None})
    file.append({"env_steps": 30, "entropy": 0.5})
    assert [(r["env_steps"], r["loss"], r["entropy"]) for r in read_metrics(path)] == [
        ("10", "1.0", ""),
        ("20", "", ""),
        ("30", "", "0.5"),
    ]
    with path.open("a") as raw:
        raw.write("2026-01-01,4")
    assert len(read_metrics(path)) == 3
    again = MetricsFile(path, env_steps=20)
    again.append({"env_steps": 25, "loss": 0.5})
    assert [row["env_steps"] for row in read_metrics(path)] == ["10", "20", "25"]
    path.unlink()
    path.mkdir()
    with pytest.raises(FileError):
        again.append({"env_steps": 40, "loss": 0.5})
