"""Supervised training through real worker processes, and the parts of its supervisor."""

from __future__ import annotations

import errno
import functools
import itertools
import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import fake_nvml
import psutil
import pytest
from fake_nvml import FakeNvml

from autotune.cli import main
from autotune.device.host import process_identity
from autotune.device.inspect import inspect_device
from autotune.device.live_gpu import PatientGpu
from autotune.errors import DeviceError, FileError, UsageError, WorkerError
from autotune.executors import process
from autotune.machine import DeviceInfo, GpuInfo
from autotune.manifest import Manifest, build_manifest, load_manifest, manifest_text, parse_manifest, save_manifest
from autotune.records import (
    Budget,
    Job,
    MeasurePlan,
    Point,
    ProbeResult,
    Recipe,
    TrainResult,
)
from autotune.report.training import load_training
from autotune.runs import Run, create_run
from autotune.train.events import EventLog, last_worker, read_events
from autotune.train.folder import open_training_run
from autotune.train.job import JobRun
from autotune.train.ladder import next_step
from autotune.train.silence import Patience, Silence
from autotune.train.status import Snapshot, read_snapshot, stamp, status_file, write_snapshot
from autotune.train.supervise import supervise
from autotune.train.supervisor import Supervisor
from autotune.train.throughput import SharedThroughput
from autotune.worker.checkpoint import generations, load_checkpoint, newest_checkpoint
from autotune.worker.metrics import read_metrics

POINT = Point(num_envs=16, batch_size=64, concurrency=2)
QUICK = {"rollout": 8, "env_s": 1e-5, "step_overhead_s": 1e-3, "learn_s": 0.0, "minibatch_overhead_s": 0.0}
PLAN = MeasurePlan(discard_s=0.1, discard_iterations=2)


@pytest.fixture(scope="module")
def device() -> DeviceInfo:
    return inspect_device("cpu")


def a_manifest(
    *, jobs: int = 2, point: Point = POINT, steps: float = 4000, result: ProbeResult | None = None, **settings: Any
) -> Manifest:
    budget = Budget(unit="steps", amount=steps)
    recipe = Recipe(
        name="quick",
        workload="busywork",
        hyperparameters=QUICK | settings,
        jobs=tuple(Job(id=f"job-{n}", env="busy", seed=n, budget=budget) for n in range(1, jobs + 1)),
        knobs={},
        grid={},
        baseline=point,
    )
    return build_manifest(recipe, point, result=result)


def a_run(root: Path, manifest: Manifest) -> Run:
    return open_training_run(root / "elsewhere.json", manifest, root)


def go(manifest: Manifest, run: Run, device: DeviceInfo, **options: Any) -> TrainResult:
    return supervise(manifest, run, device=device, plan=PLAN, **options)


def a_supervisor(
    manifest: Manifest, run: Run, device: DeviceInfo, warn: Callable[[str], None], **options: Any
) -> Supervisor:
    step = next_step(manifest, run, device)
    return Supervisor(manifest, run, device, warn, PLAN, 1.0, step=step, shared=({}, {}), **options)


def events_of(run: Run, kind: str) -> list[Any]:
    return [event for event in read_events(run) if event["kind"] == kind]


def most_at_once(run: Run) -> int:
    """Jobs that ran side by side since the run was last opened."""
    running = most = 0
    for event in read_events(run):
        change = {"started": 1, "finished": -1, "stopped": -1, "crashed": -1}.get(event["kind"], 0)
        running, most = (0, 0) if event["kind"] == "opened" else (running + change, max(most, running + change))
    return most


def no_children() -> bool:
    running = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    return not [child for child in running if "autotune.worker" in child.cmdline()]


def test_a_stop_while_the_jobs_are_checked_waits_for_no_answer(
    tmp_path: Path, device: DeviceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/sitecustomize.py").write_text("import time\ntime.sleep(60)\n")  # a disk that does not answer
    run = a_run(tmp_path, a_manifest())
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    started_s = time.monotonic()
    result = go(a_manifest(), run, device, should_stop=lambda: True)
    assert time.monotonic() - started_s < 30 and no_children()
    assert {job.status for job in result.jobs} == {"waiting"} and read_events(run) == []


def test_every_job_reaches_its_budget_two_at_a_time(tmp_path: Path, device: DeviceInfo) -> None:
    manifest, snapshots = a_manifest(jobs=3), list[Snapshot]()
    run = a_run(tmp_path, manifest)
    result = go(manifest, run, device, on_event=snapshots.append)
    assert [(job.id, job.status) for job in result.jobs] == [(f"job-{n}", "done") for n in (1, 2, 3)]
    per_iteration = 16 * 8
    assert {job.env_steps for job in result.jobs} == {-(-4000 // per_iteration) * per_iteration}
    assert most_at_once(run) == 2
    assert snapshots[0].state == "running" and snapshots[-1].state == "done"
    assert run.state()["finished"] is True
    for job in result.jobs:
        folder = run.train_folder / "jobs" / job.id
        newest = newest_checkpoint(folder / "checkpoints")
        assert newest is not None
        assert load_checkpoint(newest).meta["progress"]["env_steps"] == job.env_steps
        assert int(read_metrics(folder / "metrics.csv")[-1]["env_steps"]) == job.env_steps
        assert (folder / "log").is_file()
    assert {e["kind"] for e in read_events(run)} == {"opened", "started", "ready", "saved", "finished", "ended"}
    assert read_snapshot(run) == snapshots[-1]
    assert no_children()
    again = go(manifest, run, device)
    assert [job.env_steps for job in again.jobs] == [job.env_steps for job in result.jobs]
    assert len(events_of(run, "started")) == 3, "finished jobs are not started again"


def edited(manifest: Manifest, *edits: tuple[str, Any]) -> Manifest:
    """The manifest as a person with an editor leaves it: ``("point.num_envs", 24)``."""
    data = json.loads(manifest_text(manifest))
    for place, value in edits:
        *path, key = place.split(".")
        section = data
        for part in path:
            section = section[int(part)] if part.isdigit() else section[part]
        section[key] = value
    return parse_manifest(json.dumps(data), "edited")


class StopWhen:
    """Stops a training when a snapshot says so."""

    def __init__(self, reached: Callable[[Snapshot], bool]) -> None:
        self._reached = reached
        self.snapshots: list[Snapshot] = []

    def __call__(self, snapshot: Snapshot) -> None:
        self.snapshots.append(snapshot)

    def asked(self) -> bool:
        return bool(self.snapshots) and self._reached(self.snapshots[-1])


def test_the_edited_manifest_is_what_runs_and_keeps_its_progress(tmp_path: Path, device: DeviceInfo) -> None:
    manifest, warnings = a_manifest(steps=10**9), list[str]()
    run = a_run(tmp_path, manifest)
    stop = StopWhen(lambda s: all(job.env_steps > 0 for job in s.jobs))
    first = go(manifest, run, device, on_event=stop, should_stop=stop.asked)
    assert {job.status for job in first.jobs} == {"stopped"}
    assert read_snapshot(run).state == "stopped" and run.state()["finished"] is False

    goal = max(job.env_steps for job in first.jobs) + 500
    knobs = {"num_envs": 24, "batch_size": 48, "concurrency": 1}
    budgets = [(f"jobs.{n}.budget.amount", goal) for n in (0, 1)]
    save_manifest(run.manifest_file, edited(manifest, ("point", knobs), *budgets))
    changed = load_manifest(run.manifest_file)
    assert open_training_run(run.manifest_file, changed, tmp_path) == run
    second = go(changed, run, device, warn=warnings.append)
    assert {job.status for job in second.jobs} == {"done"}
    assert most_at_once(run) == 1
    assert len(warnings) == 1 and "edited" in warnings[0] and "num_envs=24" in warnings[0]
    assert events_of(run, "edited")[0]["point_before"] == POINT.knobs()
    effective = [event["effective"] for event in events_of(run, "ready")]
    assert [(e["num_envs"], e["minibatches"]) for e in effective] == [(16, 2), (16, 2), (24, 4), (24, 4)]
    resumed = {event["job"]: event["total_env_steps"] for event in events_of(run, "resumed")}
    assert resumed == {job.id: job.env_steps for job in first.jobs}, "nothing was thrown away"


def test_jobs_that_an_edited_manifest_lacks_are_named(tmp_path: Path, device: DeviceInfo) -> None:
    manifest, warnings = a_manifest(steps=500), list[str]()
    run = a_run(tmp_path, manifest)
    go(manifest, run, device)
    go(edited(manifest, ("jobs.0.id", "other"), ("jobs.1.budget.amount", 400)), run, device, warn=warnings.append)
    assert "the manifest was edited" in warnings[0]
    assert warnings[1:] == [
        f"the manifest has no job job-1 any more: what it trained stays in {run.train_folder / 'jobs'}"
    ]


def test_what_one_workload_trained_does_not_count_for_another(tmp_path: Path, device: DeviceInfo) -> None:
    run = a_run(tmp_path, a_manifest(steps=500))
    go(a_manifest(steps=500), run, device)
    program = {"argv": ["python", "x.py", "{num_envs}"], "counter": r"steps: (\d+)"}
    changed = edited(a_manifest(), ("workload", {"name": "command", "hyperparameters": program}))
    told = read_events(run)
    words = "was trained with workload 'busywork', and its manifest names 'command' now.*copy the manifest to another"
    with pytest.raises(UsageError, match=words):
        go(changed, run, device)
    assert read_events(run) == told, "nothing was changed"
    assert go(a_manifest(), run, device).jobs[0].status == "done", "with its own workload it goes on"


def test_a_start_that_was_killed_before_its_manifest_was_written_keeps_its_name(tmp_path: Path) -> None:
    manifest = a_manifest()
    create_run(tmp_path, "mine", command="train", finished=False)
    run = open_training_run(tmp_path / "x.json", manifest, tmp_path, name="mine")
    assert run.name == "mine" and load_manifest(run.manifest_file) == manifest
    with pytest.raises(UsageError, match="run 'mine' exists already"):
        open_training_run(tmp_path / "x.json", a_manifest(steps=7), tmp_path, name="mine")


def test_one_crash_leaves_the_others_alone(tmp_path: Path, device: DeviceInfo) -> None:
    script = (
        "import sys, time, autotune\n"
        "print('hello from', sys.argv[1], flush=True)\n"
        "for n in range(10):\n"
        "    autotune.tick(100); time.sleep(0.08)\n"
        "    if (n, sys.argv[1]) == (4, 'run-2'):\n"
        "        sys.exit(3)\n"
    )
    argv = [sys.executable, "-c", script, "{job}"]
    manifest, warnings = own_program(argv, steps=1000, jobs=3, concurrency=2), list[str]()
    run = a_run(tmp_path, manifest)
    result = go(manifest, run, device, warn=warnings.append)
    assert [job.status for job in result.jobs] == ["done", "crashed", "done"]
    assert "exit code 3" in result.jobs[1].detail and "hello from run-2" in result.jobs[1].detail
    assert sum("run-2 crashed" in text for text in warnings) == 1 == len(warnings)
    assert events_of(run, "crashed")[0]["job"] == "run-2"
    assert read_snapshot(run).state == "crashed" and run.state()["finished"] is False
    again = go(manifest, run, device)
    assert [job.status for job in again.jobs] == ["done", "crashed", "done"]
    assert [event["job"] for event in events_of(run, "started")][3:] == ["run-2"]


def test_an_interrupted_program_has_time_to_save(tmp_path: Path, device: DeviceInfo) -> None:
    script = (
        "import pathlib, signal, sys, time, autotune\n"
        "def save(*_):\n"
        "    time.sleep(1.5)\n"
        "    pathlib.Path(sys.argv[1]).write_text('saved')\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "while True:\n"
        "    autotune.tick(100); time.sleep(0.05)\n"
    )
    argv = [sys.executable, "-c", script, str(tmp_path / "model")]
    manifest, warnings = own_program(argv, steps=10**9, grace_s=0.1), list[str]()
    stop = StopWhen(lambda s: s.jobs[0].env_steps > 0)
    options: dict[str, Any] = {"on_event": stop, "should_stop": stop.asked, "warn": warnings.append}
    result = go(manifest, a_run(tmp_path, manifest), device, stop_grace_s=0.5, **options)
    assert result.jobs[0].status == "stopped" and (tmp_path / "model").exists()
    assert warnings == []


def test_a_program_that_ends_early_with_exit_code_0_is_not_done(tmp_path: Path, device: DeviceInfo) -> None:
    script = (
        "import sys, time, autotune\n"
        "for n in range(10 if sys.argv[1] == 'run-1' else 3):\n"
        "    autotune.tick(100); time.sleep(0.08)\n"
    )
    manifest, warnings = own_program([sys.executable, "-c", script, "{job}"], steps=1000, jobs=2), list[str]()
    run = a_run(tmp_path, manifest)
    result = go(manifest, run, device, warn=warnings.append)
    assert [job.status for job in result.jobs] == ["done", "crashed"]
    assert "ended by itself, with exit code 0, after 300 of 1,000 steps (30% of its budget)" in result.jobs[1].detail
    assert "lower the job's budget" in warnings[0] and len(warnings) == 1
    assert [event["error"] for event in events_of(run, "crashed")] == ["early"]
    go(manifest, run, device)
    assert [event["job"] for event in events_of(run, "started")] == ["run-1", "run-2", "run-2"]


def own_program(argv: list[str], *, steps: float, jobs: int = 1, concurrency: int = 1, **settings: Any) -> Manifest:
    budget, point = Budget(unit="steps", amount=steps), Point(num_envs=1, batch_size=1, concurrency=concurrency)
    recipe = Recipe(
        name="script",
        workload="command",
        hyperparameters={"argv": argv} | settings,
        jobs=tuple(Job(id=f"run-{n}", env="command", seed=n, budget=budget) for n in range(1, jobs + 1)),
        knobs={},
        grid={},
        baseline=point,
    )
    return build_manifest(recipe, point)


@pytest.mark.parametrize(("budget", "ends"), [(1000, True), (500, False)])
def test_a_program_at_its_budget_ends_by_itself_unless_it_goes_on(
    tmp_path: Path, device: DeviceInfo, budget: int, ends: bool
) -> None:
    """It evaluates and saves its model after its last step; one that trains on is ended, and that is said."""
    script = (
        "import autotune, sys, time, pathlib\n"
        "for n in range(10):\n"
        "    autotune.tick(100); time.sleep(0.08)\n"
        "time.sleep(1); pathlib.Path(sys.argv[1]).write_text('model')\n"
    )
    model, warnings = tmp_path / "model", list[str]()
    manifest = own_program([sys.executable, "-c", script, str(model)], steps=budget)
    result = go(manifest, a_run(tmp_path, manifest), device, warn=warnings.append)
    assert result.jobs[0].status == "done" and model.exists() == ends
    assert ["the budget is met, and the program goes on" in text for text in warnings] == [True] * (not ends)


def test_a_program_between_its_lines_is_told_to_stop_at_once(tmp_path: Path, device: DeviceInfo) -> None:
    """It tells its progress once a minute, and saves on SIGTERM; a shell stands before it."""
    saved, script = tmp_path / "saved", tmp_path / "train.py"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        f"def save(*_): time.sleep(0.5); pathlib.Path({str(saved)!r}).write_text('x'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "print('steps: 10', flush=True)\n"
        "time.sleep(60)\n"
    )
    manifest = own_program(["sh", "-c", f"{sys.executable} {script}; echo"], steps=1e6, counter=r"steps: (\d+)")
    stop = StopWhen(lambda s: s.jobs[0].env_steps > 0)
    result = go(manifest, a_run(tmp_path, manifest), device, on_event=stop, should_stop=stop.asked)
    assert (result.jobs[0].status, result.jobs[0].detail) == ("stopped", "") and saved.exists()


def totals_heard(goal: range, count: int) -> Callable[[Snapshot], bool]:
    """Whether so many totals of the first job within `goal` were seen."""
    totals = set[int]()

    def heard(snapshot: Snapshot) -> bool:
        totals.update(job.env_steps for job in snapshot.jobs[:1] if job.env_steps in goal)
        return len(totals) >= count

    return heard


@pytest.mark.parametrize("resumes", [True, False])
def test_a_program_that_resumed_by_itself_did_not_do_it_all_in_a_moment(
    tmp_path: Path, device: DeviceInfo, resumes: bool
) -> None:
    """Its first total after a restart holds what it did before; one that begins anew counts from nothing."""
    script = tmp_path / "train.py"
    script.write_text(
        "import pathlib, sys, time\n"
        "file = pathlib.Path(sys.argv[1])\n"
        "steps = int(file.read_text()) if file.exists() else 0\n"
        "while True:\n"
        "    time.sleep(0.4); steps += 400; print('steps:', steps, flush=True)\n"  # seldom: a late one matters less
        f"    new = file.with_suffix('.new'); new.write_text(str((steps // 400) * 400 * {int(resumes)}))\n"
        "    new.replace(file)\n"
    )
    argv = [sys.executable, str(script), str(tmp_path / "own")]
    manifest, warnings = own_program(argv, steps=1e6, counter=r"steps: (\d+)"), list[str]()
    run, done = a_run(tmp_path, manifest), list[Any]()
    again = totals_heard(range(2500, 10**6), 2) if resumes else totals_heard(range(500, 1500), 1)  # its first is no row
    for reached in (totals_heard(range(2000, 10**6), 1), again):
        stop = StopWhen(reached)
        done += go(manifest, run, device, warn=warnings.append, on_event=stop, should_stop=stop.asked).jobs
    assert len(warnings) == 1 and "the program keeps its own, and what it tells counts from here" in warnings[0]
    assert (done[1].env_steps > done[0].env_steps) == (done[1].seconds > done[0].seconds) == resumes
    rows = read_metrics(run.train_folder / "jobs" / "run-1" / "metrics.csv")
    assert max(float(row["sps"]) for row in rows) < 2000, "1,000 steps a second at most, as it was told"


def test_what_a_program_did_before_its_first_start_is_no_speed_of_it(tmp_path: Path, device: DeviceInfo) -> None:
    """A checkpoint of its own is there, of a probe say: its first total holds a million steps."""
    script = tmp_path / "train.py"
    script.write_text(
        "import pathlib, sys, time\n"
        "file = pathlib.Path(sys.argv[1])\n"
        "steps = int(file.read_text())\n"
        "while True:\n"
        "    time.sleep(0.1); steps += 100; print('steps:', steps, flush=True)\n"
        "    new = file.with_suffix('.new'); new.write_text(str(steps)); new.replace(file)\n"
    )
    (tmp_path / "own").write_text("1000000")
    argv = [sys.executable, str(script), str(tmp_path / "own")]
    manifest, warnings = own_program(argv, steps=2e6, counter=r"steps: (\d+)"), list[str]()
    run = a_run(tmp_path, manifest)
    for goal in (1_003_500, 1_005_000):
        stop = StopWhen(lambda s, goal=goal: s.jobs[0].env_steps >= goal)
        (job,) = go(manifest, run, device, warn=warnings.append, on_event=stop, should_stop=stop.asked).jobs
        assert job.env_steps >= goal and job.sps is not None and job.sps < 2000
        rows = read_metrics(run.train_folder / "jobs" / "run-1" / "metrics.csv")
        assert max(float(row["sps"] or 0) for row in rows) < 2000
        training = load_training(run)
        assert training and training.jobs[0].sps == pytest.approx(job.sps, rel=0.2)
    (warning,) = [each for each in warnings if "at once" in each]
    assert "1,000,100 steps at once, far more than it does since" in warning


KEEPS_ITS_OWN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
file, total, resumes = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == 'resumes'
begun = file.exists()
steps = int(file.read_text()) if begun and resumes else 0
while steps < total:
    time.sleep(0.1); steps += 100; print('steps:', steps, flush=True)
    file.write_text(str(steps))
    if not begun and sys.argv[3] == 'fails' and steps == 600: sys.exit(1)
print('saved final')
"""


def test_a_program_that_came_to_its_end_while_it_was_stopped_is_done(tmp_path: Path, device: DeviceInfo) -> None:
    argv = [sys.executable, "-c", KEEPS_ITS_OWN, str(tmp_path / "own"), "1500", "resumes"]
    manifest, warnings = own_program(argv, steps=1500, counter=r"steps: (\d+)"), list[str]()
    stop, run = StopWhen(lambda s: s.jobs[0].env_steps >= 300), a_run(tmp_path, manifest)
    result = go(manifest, run, device, on_event=stop, should_stop=stop.asked, warn=warnings.append)
    assert (result.jobs[0].status, result.jobs[0].env_steps, warnings) == ("done", 1500, [])
    rows = read_metrics(run.train_folder / "jobs" / "run-1" / "metrics.csv")
    assert int(rows[-1]["env_steps"]) == 1500


def test_a_resumed_program_with_nothing_left_to_do_is_done(tmp_path: Path, device: DeviceInfo) -> None:
    argv = [sys.executable, "-c", KEEPS_ITS_OWN, str(tmp_path / "own"), "600", "resumes"]
    manifest, warnings = own_program(argv, steps=1500, counter=r"steps: (\d+)"), list[str]()
    run = a_run(tmp_path, manifest)
    assert go(manifest, run, device, warn=warnings.append).jobs[0].status == "crashed", "early"
    (job,) = go(manifest, run, device, warn=warnings.append).jobs
    assert (job.status, job.env_steps) == ("done", 600)
    assert "after 0 of 1,500 steps (0% of its budget); when it was started before, it did 600" in warnings[-1]
    rows = read_metrics(run.train_folder / "jobs" / "run-1" / "metrics.csv")
    assert int(rows[-1]["env_steps"]) == 600, "its curve stays"


def test_a_program_that_counts_its_rest_from_0_is_done_with_both(tmp_path: Path, device: DeviceInfo) -> None:
    argv = [sys.executable, "-c", KEEPS_ITS_OWN, str(tmp_path / "own"), "800", "fails"]
    manifest, warnings = own_program(argv, steps=1500, counter=r"steps: (\d+)"), list[str]()
    run = a_run(tmp_path, manifest)
    assert go(manifest, run, device, warn=warnings.append).jobs[0].status == "crashed"
    assert go(manifest, run, device, warn=warnings.append).jobs[0].status == "done"
    assert "after 800 of 1,500 steps (53% of its budget); when it was started before, it did 600" in warnings[-1]


def test_a_killed_worker_is_a_crash_and_resumes(tmp_path: Path, device: DeviceInfo) -> None:
    endless = edited(a_manifest(steps=10**9), ("stability.checkpoint_interval_s", 1.0))
    run, victims = a_run(tmp_path, endless), list[int]()

    def kill_first(_: Snapshot) -> None:
        if not victims and any(event["job"] == "job-1" for event in events_of(run, "saved")):
            victims.append(next(event["pid"] for event in events_of(run, "started") if event["job"] == "job-1"))
            os.kill(victims[0], signal.SIGKILL)

    stopped = lambda: bool(events_of(run, "crashed"))  # noqa: E731
    result = go(endless, run, device, on_event=kill_first, should_stop=stopped)
    assert [job.status for job in result.jobs] == ["crashed", "stopped"]
    assert "signal 9" in result.jobs[0].detail
    checkpoint = newest_checkpoint(run.train_folder / "jobs" / "job-1" / "checkpoints")
    assert checkpoint is not None
    saved = load_checkpoint(checkpoint).meta["progress"]["env_steps"]
    goal = max(job.env_steps for job in result.jobs) + 500
    result = go(edited(endless, *((f"jobs.{n}.budget.amount", goal) for n in (0, 1))), run, device)
    assert [job.status for job in result.jobs] == ["done", "done"]
    resumed = {event["job"]: event["total_env_steps"] for event in events_of(run, "resumed")}
    assert resumed["job-1"] == saved > 0


def test_a_deaf_worker_is_killed_after_the_grace(tmp_path: Path, device: DeviceInfo) -> None:
    point = replace(POINT, concurrency=1)
    manifest = a_manifest(jobs=1, point=point, steps=10**9, fail="ignore_sigterm", fail_after_iterations=1)
    stepped_s = list[float]()

    def hangs(snapshot: Snapshot) -> bool:
        """A second after its first iteration it has begun the one in which it hangs."""
        if snapshot.jobs[0].env_steps:
            stepped_s.append(snapshot.elapsed_s)
        return bool(stepped_s) and stepped_s[-1] > stepped_s[0] + 1.0

    stop = StopWhen(hangs)
    result = go(manifest, a_run(tmp_path, manifest), device, on_event=stop, should_stop=stop.asked, stop_grace_s=0.5)
    assert result.jobs[0].status == "stopped" and "did not save within 0.5" in result.jobs[0].detail
    assert no_children()


@pytest.mark.parametrize("how", ["hang", "stopped"])
def test_a_worker_that_hangs_is_killed_and_the_same_command_goes_on(
    tmp_path: Path, device: DeviceInfo, how: str
) -> None:
    hanging = {"fail": "hang", "fail_after_iterations": 1} if how == "hang" else {"step_overhead_s": 5e-3}
    endless = a_manifest(jobs=1, point=replace(POINT, concurrency=1), steps=10**9, **hanging)
    manifest = edited(endless, ("stability.checkpoint_interval_s", 1.0))
    run, warnings, stopped = a_run(tmp_path, manifest), list[str](), list[int]()

    def stop_it(_: Snapshot) -> None:
        if how == "stopped" and not stopped and events_of(run, "saved"):
            stopped.append(events_of(run, "started")[0]["pid"])
            assert last_worker(read_events(run), "job-1") == process_identity(stopped[0])
            os.kill(stopped[0], signal.SIGSTOP)

    patience = Patience(start_s=60.0, silence_s=3.0)
    result = go(manifest, run, device, patience=patience, on_event=stop_it, warn=warnings.append)
    assert result.jobs[0].status == "crashed" and no_children()
    assert re.search(r"environment hangs: it said nothing for \d+ s .*, and was killed; the same command", warnings[0])
    crashed = events_of(run, "crashed")[0]
    on = f"goes on at env step {events_of(run, 'saved')[-1]['total_env_steps']:,}" if stopped else "begins anew"
    assert crashed["error"] == "hang" and on in crashed["detail"]


def test_silence_is_a_hang_when_it_is_longer_than_anything_before() -> None:
    patience, silence = Patience(start_s=100.0, silence_s=20.0, factor=10.0), Silence()
    silence.wait(90.0)
    assert silence.stale and not silence.hang(patience), "it may compile"
    silence.end()
    silence.wait(101.0)
    assert silence.hang(patience) == "it did not end its first iteration within 101 s"
    silence.end(1.0)
    silence.wait(19.0)
    assert silence.stale and not silence.hang(patience)
    silence.wait(2.0)
    assert silence.hang(patience) == "it said nothing for 21 s (1 s was the longest until then)"
    silence.end()
    assert not silence.stale and not silence.hang(patience)
    silence.wait(209.0)
    assert not silence.hang(patience), "21 s were nothing to worry about"
    silence.wait(2.0)
    assert silence.hang(patience)


def test_a_rate_that_is_old_is_unknown() -> None:
    job = JobRun(Job(id="a", env="e", seed=1, budget=Budget(unit="steps", amount=300)), Path("x"))
    job.status = "running"
    for second in range(3):
        totals = {"total_env_steps": second, "total_episodes": 0, "total_seconds": float(second)}
        job.take_step({"t": float(second), "started": second - 1.0, "iterations": 1, **totals})
    assert job.sps == pytest.approx(1.0) and job.eta_s is not None
    job.silence.wait(11.0)
    assert job.sps is None and job.eta_s is None


def test_an_iteration_longer_than_the_grace_ends_and_is_saved(tmp_path: Path, device: DeviceInfo) -> None:
    manifest = a_manifest(jobs=1, point=replace(POINT, concurrency=1), steps=10**9, step_overhead_s=0.2)
    run, stop = a_run(tmp_path, manifest), StopWhen(lambda s: s.jobs[0].env_steps > 0)
    result = go(manifest, run, device, on_event=stop, should_stop=stop.asked, stop_grace_s=0.3)
    assert (result.jobs[0].status, result.jobs[0].detail) == ("stopped", "")
    assert events_of(run, "saved")[-1]["total_env_steps"] == result.jobs[0].env_steps > 0


def test_an_interrupt_says_how_long_the_iteration_is_and_a_killed_one_what_was_lost(
    tmp_path: Path, device: DeviceInfo
) -> None:
    manifest, warnings = a_manifest(jobs=1, point=replace(POINT, concurrency=1)), list[str]()
    run = a_run(tmp_path, manifest)
    supervisor = a_supervisor(manifest, run, device, warnings.append)
    job, sent = supervisor._jobs[0], list[str]()
    job.start(cast(Any, SimpleNamespace(send=sent.append)))
    totals = {"total_episodes": 0, "total_seconds": 1.0}
    job.take_saved({**totals, "total_env_steps": 1000})
    job.take_step({**totals, "t": 90.0, "started": 0.0, "iterations": 2, "total_env_steps": 4500})
    supervisor._stop()
    supervisor._notice_stop()
    assert warnings == [], "not before it has lasted for a while"
    supervisor._notice_s = 0.0
    supervisor._notice_stop()
    supervisor._notice_stop()
    assert sent == ["stop"] and job.stop_by_s is not None
    assert job.stop_by_s - time.monotonic() == pytest.approx(91.0, abs=0.5), "1 s beside two iterations of 45 s"
    supervisor._conclude(job, cast(Any, SimpleNamespace(returncode=None)), late=True)
    assert "has 91 s more" in warnings[0] and "second interrupt" in warnings[0]
    assert "did not save within 91 s: 3,500 env steps after its last checkpoint are lost" in warnings[1]


def test_a_gpu_that_admits_no_process_is_refused_before_anything_is_opened_or_written(
    tmp_path: Path, device: DeviceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = list[GpuInfo]()
    monkeypatch.setattr("autotune.train.supervisor.PatientGpu", opened.append)
    gpu = GpuInfo(index=0, name="GPU", compute_mode="prohibited")
    manifest = a_manifest()
    run = a_run(tmp_path, manifest)
    with pytest.raises(DeviceError, match="mode is prohibited"):
        supervise(manifest, run, device=replace(device, kind="cuda", gpus=(gpu,), gpu_index=0))
    assert opened == [] and not run.train_folder.exists()


def test_a_driver_that_hangs_holds_no_training_up(
    tmp_path: Path, device: DeviceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor waited for NVML for ever: no worker that hung with it was ended, and Ctrl-C did nothing."""
    release, asked = threading.Event(), list[str]()

    class HungNvml(FakeNvml):
        def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]:
            asked.append("processes")
            release.wait(30)
            return []

    nvml = HungNvml(fake_nvml.t4())
    impatient = functools.partial(PatientGpu, pynvml=nvml, timeout_s=0.2)
    monkeypatch.setattr("autotune.train.supervisor.PatientGpu", impatient)
    monkeypatch.setattr("autotune.train.supervisor._STATUS_PERIOD_S", 0.1)
    gpu = GpuInfo(index=0, name="Tesla T4", uuid="GPU-t4")
    manifest = a_manifest(steps=20_000)
    started_s = time.monotonic()
    result = go(manifest, a_run(tmp_path, manifest), replace(device, gpus=(gpu,), gpu_index=0))
    assert {job.status for job in result.jobs} == {"done"}
    assert time.monotonic() - started_s < 25 and asked == ["processes"]
    release.set()


@pytest.mark.parametrize("fault", ["crash", "hang"])
def test_a_gpu_that_is_lost_stops_the_training_and_blames_no_job(
    tmp_path: Path, device: DeviceInfo, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Every job was begun and crashed, one after the other; a guard took it for what the point had learnt."""
    gpu = fake_nvml.t4()
    monkeypatch.setattr("autotune.train.supervisor.PatientGpu", functools.partial(PatientGpu, pynvml=FakeNvml(gpu)))
    machine = replace(device, name="Tesla T4", gpus=(GpuInfo(index=0, name="Tesla T4"),), gpu_index=0)
    failing = a_manifest(jobs=5, steps=3000, fail=fault)
    run, said = a_run(tmp_path, failing), list[str]()

    def lose(snapshot: Snapshot) -> None:
        gpu.lost = gpu.lost or any(job.status == "running" for job in snapshot.jobs)

    monkeypatch.setattr("autotune.train.supervisor._VIEW_PERIOD_S", 0.0)
    if fault == "crash":  # which comes before the next look at the device
        monkeypatch.setattr("autotune.train.supervisor._STATUS_PERIOD_S", 60.0)
    started_s = time.monotonic()
    result = go(failing, run, machine, on_event=lose, warn=said.append, stop_grace_s=2.0)
    assert time.monotonic() - started_s < 60 and no_children()
    assert [job.status for job in result.jobs] == ["stopped", "stopped", "waiting", "waiting", "waiting"]
    assert len(events_of(run, "started")) == 2 and run.state()["training"] == "stopped"
    (lost,) = [each for each in said if each.startswith("GPU 0 (Tesla T4) does not answer any more")]
    assert "reboot the machine" in lost and "the same command goes on" in lost
    gpu.lost = False
    mended = a_manifest(jobs=5, steps=3000)
    assert {job.status for job in go(mended, run, machine).jobs} == {"done"}


def test_device_memory_is_that_of_each_job(tmp_path: Path, device: DeviceInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(fake_nvml.t4(processes={10: 1000, 11: 200, 12: 30, 99: 4}))
    monkeypatch.setattr("autotune.train.supervisor.PatientGpu", functools.partial(PatientGpu, pynvml=nvml))
    manifest = a_manifest()
    machine = replace(device, gpus=(GpuInfo(index=0, name="Tesla T4"),), gpu_index=0)
    supervisor = a_supervisor(manifest, a_run(tmp_path, manifest), machine, lambda _: None)
    for job, pids in zip(supervisor._jobs, ([10, 11], [12]), strict=True):
        job.worker = cast(Any, SimpleNamespace(descendants=lambda pids=pids: pids, kill=lambda grace_s: None))
    supervisor._read_memory()
    assert [job.snapshot().vram_bytes for job in supervisor._jobs] == [1200, 30]
    supervisor.close()
    assert nvml.opened == 0


def test_a_worker_that_the_kernel_killed_for_memory_is_told_so(
    tmp_path: Path, device: DeviceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It said signal 9, as of a worker that somebody killed."""
    kills = itertools.count(7)
    monkeypatch.setattr("autotune.executors.process.count_oom_kills", lambda: next(kills))
    manifest, killed = a_manifest(steps=10**9), list[int]()

    def kill(snapshot: Snapshot) -> None:
        for child in psutil.Process().children():
            if "autotune.worker" in child.cmdline() and child.pid not in killed:
                killed.append(child.pid)
                child.kill()

    result = go(manifest, a_run(tmp_path, manifest), device, on_event=kill)
    assert result.jobs[0].status == "crashed"
    assert "was killed by the kernel, which had no memory left: train at a lighter point" in result.jobs[0].detail


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_an_environment_that_cannot_be_closed_takes_nothing_back(
    tmp_path: Path, device: DeviceInfo, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A job that was done had crashed, each time again; of a broken one the cause was lost."""
    (tmp_path / "site").mkdir()
    ends = "raise RuntimeError('no close')" if how == "raises" else "time.sleep(600)"
    (tmp_path / "site/sitecustomize.py").write_text(
        "import time\nfrom autotune.workloads.busywork import BusyworkSession\n"
        f"def close(session):\n    {ends}\nBusyworkSession.close = close\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr("autotune.train.supervisor._EXIT_S", 1.0)
    one, patience = replace(POINT, concurrency=1), Patience(silence_s=5.0)
    manifest = a_manifest(jobs=1, point=one, steps=500)
    run = a_run(tmp_path, manifest)
    assert [job.status for job in go(manifest, run, device, patience=patience).jobs] == ["done"]
    assert ("no close" in (run.jobs_folder / "job-1/log").read_text()) == (how == "raises")
    manifest = a_manifest(jobs=1, point=one, steps=500, fail="crash", fail_after_iterations=1)
    result = go(manifest, a_run(tmp_path, manifest), device, patience=patience)
    assert result.jobs[0].status == "crashed" and "as asked for" in result.jobs[0].detail
    assert no_children()


def test_a_crash_of_a_worker_whose_log_is_gone_leaves_the_others_alone(tmp_path: Path, device: DeviceInfo) -> None:
    """That its last lines could not be read ended the whole training, and nothing said of the crash."""
    manifest, killed = a_manifest(steps=60_000), list[int]()
    run = a_run(tmp_path, manifest)

    def kill(snapshot: Snapshot) -> None:
        if not killed and snapshot.jobs[0].env_steps:
            killed.append(events_of(run, "started")[0]["pid"])
            (run.jobs_folder / "job-1/log").unlink()
            os.kill(killed[0], signal.SIGKILL)

    result = go(manifest, run, device, on_event=kill)
    assert [job.status for job in result.jobs] == ["crashed", "done"]
    assert result.jobs[0].detail == "its process ended with signal 9"


def test_a_job_that_a_signal_to_its_process_stopped_says_so(tmp_path: Path, device: DeviceInfo) -> None:
    """It was stopped for no reason, far from its budget."""
    manifest, signalled, warnings = a_manifest(steps=60_000), list[int](), list[str]()
    run = a_run(tmp_path, manifest)

    def end(snapshot: Snapshot) -> None:
        if not signalled and snapshot.jobs[0].env_steps:
            signalled.append(events_of(run, "started")[0]["pid"])
            os.kill(signalled[0], signal.SIGTERM)

    result = go(manifest, run, device, on_event=end, warn=warnings.append)
    assert [job.status for job in result.jobs] == ["stopped", "done"]
    assert "a signal" in result.jobs[0].detail and "the same command goes on" in result.jobs[0].detail
    assert warnings == [f"job-1 stopped: {result.jobs[0].detail}"]
    assert read_snapshot(run).jobs[0].detail == events_of(run, "stopped")[0]["detail"] == result.jobs[0].detail


def test_a_job_that_cannot_be_started_leaves_the_others_alone(tmp_path: Path, device: DeviceInfo) -> None:
    """It stopped those that ran."""
    manifest, warnings = a_manifest(jobs=4, steps=20_000), list[str]()
    run = a_run(tmp_path, manifest)
    run.jobs_folder.mkdir(parents=True)
    (run.jobs_folder / "job-3").touch()
    result = go(manifest, run, device, warn=warnings.append)
    assert [job.status for job in result.jobs] == ["done", "done", "crashed", "done"]
    assert "job-3: File exists" in result.jobs[2].detail and len(warnings) == 1
    assert (run.state()["finished"], read_snapshot(run).state) == (False, "crashed")
    (run.jobs_folder / "job-3").unlink()
    assert {job.status for job in go(manifest, run, device).jobs} == {"done"}


def test_a_process_that_the_system_refuses_waits_for_one_that_runs(
    tmp_path: Path, device: DeviceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That the limit on processes was reached for a moment stopped the whole training."""
    start, started = process._start, list[str]()

    def refuse_one(task: Any, log: Path, *rest: Any) -> Any:
        started.append(log.parent.name)
        if started[-1].startswith("job-") and (patience == 0 or started.count("job-2") == 1):
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return start(task, log, *rest)

    monkeypatch.setattr(process, "_start", refuse_one)
    manifest, warnings, patience = a_manifest(jobs=3, steps=20_000), list[str](), 1
    run = a_run(tmp_path, manifest)
    assert {job.status for job in go(manifest, run, device, warn=warnings.append).jobs} == {"done"}
    assert started[1:] == ["job-1", "job-2", "job-2", "job-3"] and len(warnings) == 1
    assert re.search(r"^job-2 waits until another job has ended: no worker process .*: Resource temp", warnings[0])
    patience = 0
    with pytest.raises(WorkerError, match="`autotune doctor` shows the pids limit"):
        go(manifest, a_run(tmp_path, manifest), device)


def test_a_crash_says_that_the_rest_goes_on_only_where_it_does(tmp_path: Path, device: DeviceInfo) -> None:
    """It was said of the last of several jobs, too, and of one that crashed while the training was stopped."""
    manifest, warnings = a_manifest(jobs=2), list[str]()
    supervisor = a_supervisor(manifest, a_run(tmp_path, manifest), device, warnings.append)
    worker = cast(Any, SimpleNamespace(returncode=1, starved=False, log_tail=lambda lines: "", log="x"))
    for job in supervisor._jobs:
        supervisor._conclude(job, worker, late=False)
    assert ["the rest goes on" in said for said in warnings] == [True, False]
    supervisor._jobs[1].end("waiting")
    supervisor._stop()
    supervisor._conclude(supervisor._jobs[0], worker, late=False)
    assert "the rest goes on" not in warnings[2]


def test_a_worker_that_dies_while_stopping_has_crashed(tmp_path: Path, device: DeviceInfo) -> None:
    manifest = a_manifest()
    run, warnings = a_run(tmp_path, manifest), list[str]()
    supervisor = a_supervisor(manifest, run, device, warnings.append)
    supervisor._stop()
    worker = SimpleNamespace(returncode=-signal.SIGSEGV, starved=False, log_tail=lambda lines: "", log="x")
    supervisor._conclude(supervisor._jobs[0], cast(Any, worker), late=False)
    assert (supervisor._jobs[0].status, supervisor._jobs[0].detail) == ("crashed", "its process ended with signal 11")
    supervisor._conclude(supervisor._jobs[1], cast(Any, worker), late=True)
    assert supervisor._jobs[1].status == "stopped" and "did not save within" in supervisor._jobs[1].detail
    assert len(warnings) == 2 and supervisor._jobs[1].detail in warnings[1]


def test_an_exception_of_the_view_leaves_no_process(tmp_path: Path, device: DeviceInfo) -> None:
    manifest = a_manifest(steps=1e9)
    run = a_run(tmp_path, manifest)

    def interrupt(snapshot: Snapshot) -> None:
        if all(job.env_steps for job in snapshot.jobs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(manifest, run, device, on_event=interrupt)
    assert no_children()
    for job in ("job-1", "job-2"):
        assert newest_checkpoint(run.train_folder / "jobs" / job / "checkpoints") is not None, "they were told to save"
    assert {event["job"] for event in events_of(run, "stopped")} == {"job-1", "job-2"}
    assert [event["state"] for event in events_of(run, "ended")] == ["stopped"]
    assert read_snapshot(run).state == run.state()["training"] == "stopped"


def test_a_status_that_cannot_be_written_is_told_once_and_ends_no_training(
    tmp_path: Path, device: DeviceInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise FileError("cannot write status.json: No space left on device")

    monkeypatch.setattr("autotune.train.status.write_snapshot", full)
    monkeypatch.setattr("autotune.train.supervisor._STATUS_PERIOD_S", 0.0)
    manifest, warnings = a_manifest(), list[str]()
    result = go(manifest, a_run(tmp_path, manifest), device, warn=warnings.append)
    assert {job.status for job in result.jobs} == {"done"}
    assert len(warnings) == 1 and "training goes on" in warnings[0] and "No space left" in warnings[0]


def test_progress_without_a_checkpoint_is_not_lost_in_silence(tmp_path: Path, device: DeviceInfo) -> None:
    manifest = a_manifest(jobs=1, point=replace(POINT, concurrency=1))
    run = a_run(tmp_path, manifest)
    go(manifest, run, device)
    curve = run.train_folder / "jobs" / "job-1" / "metrics.csv"
    before = curve.read_text()
    shutil.rmtree(curve.parent / "checkpoints")
    longer = edited(manifest, ("jobs.0.budget.amount", 8000))
    warnings: list[str] = []
    refused = go(longer, run, device).jobs[0]
    assert refused.status == "crashed" and curve.read_text() == before
    assert "job job-1 saved at env step 4,096, but there is no checkpoint in" in refused.detail
    assert "Restore a backup, or train from the beginning in a new run with --new" in refused.detail
    (run.train_folder / "events.jsonl").unlink()
    go(longer, run, device, warn=warnings.append)
    assert any("job-1: no checkpoint in" in text and "from the beginning" in text for text in warnings), warnings
    assert curve.with_name("metrics.csv.before-restart").read_text() == before
    assert "metrics.csv.before-restart" in " ".join(warnings)


def test_a_training_folder_that_is_gone_is_told_before_all_begins_at_0(tmp_path: Path, device: DeviceInfo) -> None:
    manifest, warnings = a_manifest(jobs=1, point=replace(POINT, concurrency=1)), list[str]()
    run = a_run(tmp_path, manifest)
    go(manifest, run, device, warn=warnings.append)
    go(manifest, run, device, warn=warnings.append)
    assert not warnings
    shutil.rmtree(run.train_folder)
    assert go(manifest, run, device, warn=warnings.append).jobs[0].status == "done"
    assert len(warnings) == 1 and f"nothing of that is left in {run.train_folder}" in warnings[0], warnings
    assert "begins again at 0" in warnings[0]


def test_an_older_checkpoint_is_announced_and_the_curve_kept(tmp_path: Path, device: DeviceInfo) -> None:
    manifest = edited(
        a_manifest(jobs=1, point=replace(POINT, concurrency=1), step_overhead_s=1e-2, steps=3000),
        ("stability.checkpoint_interval_s", 1.0),
    )
    run, warnings = a_run(tmp_path, manifest), list[str]()
    go(manifest, run, device)
    folder = run.train_folder / "jobs" / "job-1"
    before = (folder / "metrics.csv").read_text()
    (older, newest) = generations(folder / "checkpoints")[-2:]
    newest.path.unlink()
    longer = edited(manifest, ("jobs.0.budget.amount", newest.env_steps + 500))
    go(longer, run, device, warn=warnings.append)
    assert [event["total_env_steps"] for event in events_of(run, "resumed")] == [older.env_steps]
    told = [text for text in warnings if "goes back to env step" in text]
    assert len(told) == 1 and f"{older.env_steps:,}: the checkpoint that was saved at {newest.env_steps:,}" in told[0]
    assert (folder / "metrics.csv.before-fallback").read_text() == before and "before-fallback" in told[0]
    rows = [int(row["env_steps"]) for row in read_metrics(folder / "metrics.csv")]
    assert rows == sorted(set(rows)) and rows[-1] > newest.env_steps


def test_an_event_of_another_kind_of_file_is_named(tmp_path: Path) -> None:
    run = create_run(tmp_path, "r")
    EventLog(run)
    (run.train_folder / "events.jsonl").write_text('{"kind": "ended", "job": null}\n3\n')
    with pytest.raises(FileError, match=r"events\.jsonl is damaged: 3 is no event. Move the file away"):
        read_events(run)
    (run.train_folder / "events.jsonl").write_text('{bad\n{"kind": "ended", "job": null}\n')
    with pytest.raises(FileError, match=r"events\.jsonl, line 1 is damaged .*: remove that line, or restore the file"):
        read_events(run)


@pytest.mark.parametrize(
    "damage",
    [
        ("total_env_steps", "total_env_stepr"),
        ("total_episodes", "Total_episodes"),
        (": 42", ': "42"'),
        (": 42", ": NaN"),
        (": 42", ": 1e999"),
        ('"job-1"', "[]"),
    ],
)
def test_an_event_with_a_flipped_bit_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: tuple[str, str]
) -> None:
    run = a_run(tmp_path, a_manifest())
    counts = {"total_env_steps": 42, "total_episodes": 1, "total_seconds": 2.0}
    EventLog(run).record("saved", job="job-1", path="p", **counts)
    EventLog(run).record("ended", state="done")
    file = run.train_folder / "events.jsonl"
    file.write_text(file.read_text().replace(*damage, 1))
    with pytest.raises(FileError, match=r"events\.jsonl is damaged: .* is no event. Move the file away"):
        read_events(run)
    assert main(["report", str(run.path)]) == 1
    assert "is no event. Move the file away" in capsys.readouterr().err


def test_what_can_never_run_is_refused_before_anything_starts(tmp_path: Path, device: DeviceInfo) -> None:
    manifest = a_manifest(point=replace(POINT, batch_size=10_000))
    run = a_run(tmp_path, manifest)
    with pytest.raises(UsageError, match="batch_size 10000 is larger than the rollout"):
        go(manifest, run, device)
    assert not run.train_folder.exists()


def test_another_device_is_a_warning(tmp_path: Path, device: DeviceInfo) -> None:
    tuned_on = {"fingerprint": "Abacus 9000, 1 cores, 1GiB RAM", "name": "Abacus 9000", "kind": "cpu"}
    one = a_manifest(jobs=1, point=replace(POINT, concurrency=1), steps=100)
    manifest, warnings = edited(one, ("device", tuned_on)), list[str]()
    result = go(manifest, a_run(tmp_path, manifest), device, warn=warnings.append)
    assert result.jobs[0].status == "done"
    assert len(warnings) == 1 and "Abacus 9000" in warnings[0] and "autotune search" in warnings[0]


def test_measured_stands_beside_predicted(tmp_path: Path, device: DeviceInfo) -> None:
    probed = ProbeResult(requested=POINT, status="ok", grade="final", sps=12_345.0)
    manifest = a_manifest(result=probed, steps=10**9)
    stop = StopWhen(lambda s: s.measured_sps is not None)
    result = go(manifest, a_run(tmp_path, manifest), device, on_event=stop, should_stop=stop.asked)
    assert result.predicted_sps == 12_345.0
    assert result.sps is not None and 0 < result.sps < 2 * 16 / 1e-3, "no faster than its overhead lets it be"


def step(t: float, iteration: int, env_steps: int) -> dict[str, Any]:
    return {"t": t, "iteration": iteration, "env_steps": env_steps}


def test_throughput_leaves_warm_up_out_and_adds_processes_up() -> None:
    throughput = SharedThroughput(2, MeasurePlan(discard_s=10.0, discard_iterations=3))
    for second in range(1, 21):
        throughput.add("a", step(second, second, 100))
        throughput.add("b", step(second + 2.5, second, 10))
    assert throughput.sps() == pytest.approx(110.0)
    throughput.leave("a")
    for second in range(21, 60):
        throughput.add("b", step(second + 2.5, second, 10_000))
    assert throughput.sps() == pytest.approx(110.0), "b alone does not count"
    for n in range(1, 31):
        throughput.add("c", step(60.0 + n, n, 50))
        throughput.add("b", step(60.5 + n, 60 + n, 40))
    # a with b: warm from 13.5 s on, so 14 to 20 s of a; c with b: 71 to 90 s of both
    assert throughput.sps() == pytest.approx((110.0 * 6 + 90.0 * 19) / 25)


def test_throughput_is_unknown_until_all_run_warm() -> None:
    throughput = SharedThroughput(2, MeasurePlan(discard_s=1.0, discard_iterations=5))
    for second in range(1, 10):
        throughput.add("a", step(second, second, 100))
    assert throughput.sps() is None
    throughput.add("b", step(9.5, 1, 100))
    throughput.add("a", step(12.0, 12, 100))
    throughput.add("a", step(13.0, 13, 100))
    throughput.add("b", step(13.5, 4, 100))
    assert throughput.sps() is None, "b has not done its five iterations"


def test_eta_and_rate_come_from_the_last_half_minute() -> None:
    job = JobRun(Job(id="a", env="e", seed=1, budget=Budget(unit="episodes", amount=300)), Path("x"))
    job.status = "running"
    assert job.sps is None and job.eta_s is None
    for second in range(101):
        totals = {"total_env_steps": second * (10 if second < 50 else 20), "total_episodes": second}
        times = {"t": float(second), "started": second - 1.0, "total_seconds": float(second)}
        job.take_step({**times, "iterations": 1, **totals})
    assert job.sps == pytest.approx(20.0)
    assert job.eta_s == pytest.approx(200.0)
    assert job.fraction == pytest.approx(1 / 3)


def test_memory_is_the_framework_s_newest_peak_where_the_device_does_not_tell(
    tmp_path: Path, device: DeviceInfo
) -> None:
    manifest = a_manifest()
    supervisor = a_supervisor(manifest, a_run(tmp_path, manifest), device, lambda _: None)
    job = supervisor._jobs[0]
    job.worker = cast(Any, SimpleNamespace(descendants=list))
    for peak in (1000, 3000):
        job.take_step({"t": 1.0, "started": 0.0, "iterations": 1, "peak_memory_bytes": peak})
        supervisor._read_memory()
        assert job.snapshot().vram_bytes == peak


def test_the_rate_of_a_canary_is_not_held_against_what_was_predicted_of_all(tmp_path: Path, device: DeviceInfo) -> None:
    manifest = a_manifest(result=ProbeResult(requested=POINT, status="ok", grade="final", sps=500.0))
    run = a_run(tmp_path, manifest)
    for only, predicted in ((None, 500.0), (frozenset({"job-1"}), None), (frozenset({"job-1", "job-2"}), 500.0)):
        supervisor = a_supervisor(manifest, run, device, lambda _: None, only=only)
        assert supervisor._snapshot("running").predicted_sps == predicted


def test_a_raised_budget_makes_a_finished_job_go_on() -> None:
    totals = {"total_env_steps": 100, "total_episodes": 1, "total_seconds": 1.0}
    events = [{"kind": "finished", "job": "a", "reason": "budget", **totals}]

    def status(amount: float, reason: str) -> str:
        job = JobRun(Job(id="a", env="e", seed=1, budget=Budget(unit="steps", amount=amount)), Path("x"))
        job.recall([{**events[0], "reason": reason}])
        assert job.env_steps == 100
        return job.status

    assert status(100, "budget") == "done"
    assert status(200, "budget") == "waiting"
    assert status(200, "finished") == "done", "a program that ended by itself has no more to do"


def a_snapshot(**changes: Any) -> Snapshot:
    job = JobRun(Job(id="a", env="e", seed=1, budget=Budget(unit="steps", amount=10)), Path("x"))
    job.status = "running"
    facts = {"run": "r", "state": "running", "jobs": (job.snapshot(),), "point": "", "sps": 1.0, "measured_sps": None}
    return Snapshot(**{**facts, "predicted_sps": None, "elapsed_s": 1.0, **stamp(), **changes})


def test_a_snapshot_whose_writer_is_gone_is_killed(tmp_path: Path) -> None:
    run = create_run(tmp_path, "r")
    with pytest.raises(UsageError, match="has not trained yet"):
        read_snapshot(run)
    run.train_folder.mkdir()
    write_snapshot(run, a_snapshot())
    assert read_snapshot(run) == a_snapshot(updated=read_snapshot(run).updated)
    boot, pid, ticks = stamp()["writer"]
    for writer in [(boot, pid, ticks + 1), ("another-boot", pid, ticks), (boot, 2**22 - 1, 5), ()]:
        write_snapshot(run, a_snapshot(writer=writer))
        found = read_snapshot(run)
        assert found.state == "killed", "pids are used again: boot and start time tell them apart"
        assert found.jobs[0].status == "stopped" and "resumes" in found.jobs[0].detail
        write_snapshot(run, a_snapshot(writer=writer, state="done"))
        assert read_snapshot(run).state == "done"
    write_snapshot(run, a_snapshot())
    written = status_file(run).read_text()
    for damage in [
        (written, '{"state": "running"}'),
        ('"env_steps": ', '"env_steps": "x'),
        ('"detail": ""', '"detail": null'),
        ('"fraction": ', '"fraction": NaN, "f": '),
        ('"jobs": [', '"jobs": [3, '),
    ]:
        status_file(run).write_text(re.sub(r'"x[\d.]+', '"x"', written.replace(*damage, 1)))
        with pytest.raises(FileError, match=r"status\.json is damaged, it is no whole snapshot: the next `autotune tr"):
            read_snapshot(run)


def test_the_run_of_a_manifest(tmp_path: Path) -> None:
    manifest, other = a_manifest(), a_manifest(steps=5)
    elsewhere = tmp_path / "quick.json"
    save_manifest(elsewhere, manifest)
    open_run: Callable[..., Run] = open_training_run
    first = open_run(elsewhere, manifest, tmp_path)
    assert first.name == "quick-1" and load_manifest(first.manifest_file) == manifest
    assert open_run(elsewhere, manifest, tmp_path) == first, "the same command resumes"
    assert open_run(elsewhere, other, tmp_path).name == "quick-2", "another content is another training"
    assert open_run(elsewhere, manifest, tmp_path, new=True).name == "quick-3"
    assert open_run(elsewhere, manifest, tmp_path) == Run(tmp_path / "quick-3"), "the newest unfinished one"
    Run(tmp_path / "quick-3").update(finished=True)
    assert open_run(elsewhere, manifest, tmp_path) == first
    assert open_run(first.manifest_file, other, tmp_path) == first, "a manifest in a run trains there"
    named = open_run(elsewhere, manifest, tmp_path, name="mine")
    assert named.name == "mine" and open_run(elsewhere, manifest, tmp_path, name="mine") == named
    with pytest.raises(UsageError, match="exists already"):
        open_run(elsewhere, other, tmp_path, name="mine")
    with pytest.raises(UsageError, match="letters"):
        open_run(elsewhere, other, tmp_path, name="../mine")


def test_a_torn_event_is_dropped_and_the_next_one_whole(tmp_path: Path) -> None:
    run = create_run(tmp_path, "r")
    EventLog(run).record("opened", manifest="x")
    file = run.train_folder / "events.jsonl"
    whole = file.read_bytes()
    for length in range(len(whole) - 1):  # without its newline alone, a line is whole
        file.write_bytes(whole + whole[:length])
        EventLog(run).record("ended")
        assert [event["kind"] for event in read_events(run)] == ["opened", "ended"]
