"""SIGKILL of a training's supervisor, or of all its processes with the machine: the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from waiting import comes_true

from autotune.manifest import Manifest, build_manifest, load_manifest, parse_manifest, save_manifest
from autotune.records import Budget, Job, Point, Recipe
from autotune.report.training import load_training
from autotune.runs import Run
from autotune.store import canonical_json
from autotune.train.events import read_events
from autotune.train.folder import open_training_run
from autotune.train.status import read_snapshot, status_file
from autotune.worker.checkpoint import load_checkpoint, newest_checkpoint

SUPERVISE = """
import sys
from pathlib import Path
from autotune.device.inspect import inspect_device
from autotune.manifest import load_manifest
from autotune.runs import Run
from autotune.train.supervise import supervise

run = Run(Path(sys.argv[1]))
with run.hold():
    supervise(load_manifest(run.manifest_file), run, device=inspect_device("cpu"))
"""
WAIT_FOR_ORPHANS = (True, False, True)
BOOTED = 'mount --bind "$0" /proc/sys/kernel/random/boot_id && exec "$@"'
POINT = Point(num_envs=8, batch_size=32, concurrency=2)


def a_manifest(steps: float) -> Manifest:
    jobs = tuple(Job(id=name, env="busy", seed=1, budget=Budget(unit="steps", amount=steps)) for name in ("a", "b"))
    settings = {"rollout": 8, "env_s": 0.0, "step_overhead_s": 2e-3, "learn_s": 0.0}
    return build_manifest(
        Recipe(
            name="kill", workload="busywork", hyperparameters=settings, jobs=jobs, knobs={}, grid={}, baseline=POINT
        ),
        POINT,
    )


def start(run: Run) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SUPERVISE, str(run.path)])


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    assert comes_true(condition, timeout_s), f"not within {timeout_s:g} s: {what}"


def workers(run: Run) -> set[int]:
    return {event["pid"] for event in read_events(run) if event["kind"] == "started"}


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def saved_steps(run: Run) -> dict[str, int]:
    newest = {job: newest_checkpoint(run.train_folder / "jobs" / job / "checkpoints") for job in ("a", "b")}
    return {job: load_checkpoint(path).meta["progress"]["env_steps"] for job, path in newest.items() if path}


def has_gone_on(run: Run, before: dict[str, int]) -> bool:
    return status_file(run).exists() and all(job.env_steps > before[job.id] for job in read_snapshot(run).jobs)


def test_killed_supervisors_lose_nothing_that_was_saved(tmp_path: Path) -> None:
    endless = a_manifest(10**9)
    run = open_training_run(tmp_path / "kill.json", endless, tmp_path)
    before = {"a": 0, "b": 0}
    for patient in WAIT_FOR_ORPHANS:
        supervisor = start(run)
        wait_until(lambda: has_gone_on(run, before), "steps beyond those saved")
        os.kill(supervisor.pid, signal.SIGKILL)
        assert supervisor.wait() == -signal.SIGKILL
        if not patient:  # the successors wait until the orphans have saved
            before.update({job.id: job.env_steps for job in read_snapshot(run).jobs})
            continue
        wait_until(lambda: not any(alive(pid) for pid in workers(run)), "orphaned workers gone", 15.0)
        snapshot = read_snapshot(run)
        assert snapshot.state == "killed" and {job.status for job in snapshot.jobs} == {"stopped"}
        saved = saved_steps(run)
        assert all(saved[job] > before[job] for job in ("a", "b")), "an orphan saves before it ends"
        before.update(saved)

    save_manifest(run.manifest_file, a_manifest(max(before.values()) + 200))
    assert load_manifest(run.manifest_file).jobs[0].budget.amount == max(before.values()) + 200
    assert start(run).wait(60) == 0
    snapshot = read_snapshot(run)
    assert snapshot.state == "done" and {job.status for job in snapshot.jobs} == {"done"}
    last = {event["job"]: event["total_env_steps"] for event in read_events(run) if event["kind"] == "resumed"}
    assert last == before, "every step that was saved is counted once"
    assert not any(alive(pid) for pid in workers(run))


def test_a_signal_saves_and_the_same_command_resumes(tmp_path: Path) -> None:
    file, runs = tmp_path / "kill.json", tmp_path / "runs"
    save_manifest(file, a_manifest(10**9))
    command = [sys.executable, "-c", "import autotune.cli; autotune.cli.entry()"]
    command += ["train", str(file), "--device", "cpu", "--runs", str(runs)]
    run = Run(runs / "kill-1")
    before = {"a": 0, "b": 0}
    for number, exit_code in ((signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)):
        training = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: has_gone_on(run, before), "steps beyond those saved")
        training.send_signal(number)
        _, told = training.communicate(timeout=60)
        assert training.returncode == exit_code
        assert "Traceback" not in told
        assert read_snapshot(run).state == "stopped"
        before.update(saved_steps(run))
        assert before == {job.id: job.env_steps for job in read_snapshot(run).jobs}, "all that was done is saved"
    assert [path.name for path in runs.glob("kill-*")] == ["kill-1"]


def test_a_second_signal_ends_it_soon_and_the_run_says_so(tmp_path: Path) -> None:
    file, run = tmp_path / "kill.json", Run(tmp_path / "runs" / "kill-1")
    save_manifest(file, a_manifest(10**9))
    command = [sys.executable, "-c", "import autotune.cli; autotune.cli.entry()"]
    command += ["train", str(file), "--device", "cpu", "--runs", str(run.path.parent)]
    training = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: has_gone_on(run, {"a": 0, "b": 0}), "steps")
    for pid in workers(run):
        os.kill(pid, signal.SIGSTOP)
    training.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    training.send_signal(signal.SIGTERM)
    _, told = training.communicate(timeout=30)
    assert training.returncode == 143
    assert "autotune: stopped; the same command goes on from the last checkpoint" in told
    assert "Traceback" not in told
    assert read_snapshot(run).state == run.state()["training"] == "stopped"
    assert [event["kind"] for event in read_events(run)][-3:] == ["stopped", "stopped", "ended"]
    assert not any(alive(pid) for pid in workers(run))


def boot(folder: Path, number: int, *command: str) -> subprocess.Popen[bytes]:
    """A process, and what it starts, for which the machine has booted so many times."""
    own = folder / f"boot-{number}"
    own.write_text(f"boot-{number}\n")
    return subprocess.Popen(["unshare", "-m", "sh", "-c", BOOTED, str(own), *command], start_new_session=True)


@pytest.mark.slow
def test_a_machine_that_goes_down_twice_trains_on_at_a_lighter_rung(tmp_path: Path) -> None:
    if boot(tmp_path, 0, "true").wait() != 0:
        pytest.skip("needs the right to mount (root, and `unshare`)")
    data = a_manifest(10**9).model_dump(mode="json", by_alias=True)
    data["stability"]["checkpoint_interval_s"] = 1.0
    data["ladder"] = [{"point": {**data["point"], "num_envs": 4}, "goodput_sps": None}]
    run = open_training_run(tmp_path / "reboot.json", parse_manifest(canonical_json(data), "reboot"), tmp_path)
    steps = list[int]()
    for number in (1, 2, 3):
        before = len(saved(run))
        supervisor = boot(tmp_path, number, sys.executable, "-c", SUPERVISE, str(run.path))
        wait_until(lambda before=before: len(saved(run)) >= before + 4, "two checkpoints of each job")  # type: ignore[misc]
        for pid in (supervisor.pid, *workers(run)):
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        supervisor.wait()
        steps.append(max(event["total_env_steps"] for event in saved(run)))
    assert steps == sorted(steps) and len(set(steps)) == 3
    points = [event["point"]["num_envs"] for event in read_events(run) if event["kind"] == "opened"]
    assert points == [8, 8, 4]
    training = load_training(run)
    assert training is not None and [session.host_lost for session in training.sessions] == [True, True, False]


def saved(run: Run) -> list[dict[str, int]]:
    return [dict(event) for event in read_events(run) if event["kind"] == "saved"]
