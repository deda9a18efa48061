"""The first jobs of a migration go ahead: watched, judged, and rolled back when they do badly."""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from migration_run import NEW, QUICK, STEPS, a_manifest, content, old_run, steps_of

from autotune import cli
from autotune.device.inspect import inspect_device
from autotune.executors import listening
from autotune.machine import DeviceInfo
from autotune.manifest import Manifest, save_manifest
from autotune.records import JobResult, MeasurePlan, Point, TrainResult
from autotune.runs import Run
from autotune.train import canary as canary_module
from autotune.train.canary import CanaryError, collapsed, judge, train_run
from autotune.train.events import read_events
from autotune.train.folder import open_migrated_run
from autotune.train.migrate import take_over
from autotune.train.migration import Canary, MigratedJob, Migration, load_migration, successor, write_migration
from autotune.train.migration_plan import plan_migration
from autotune.train.status import Snapshot

PLAN = MeasurePlan(discard_s=0.1, discard_iterations=2)
POINT = replace(NEW, concurrency=2)


@pytest.fixture(scope="module")
def device() -> DeviceInfo:
    return inspect_device("cpu")


def migrated(root: Path, watch_s: float, point: Point = POINT, **settings: Any) -> tuple[Run, Run, Manifest]:
    """Old run, new run and its manifest, migrated with a canary; its games return about 20 unless told otherwise."""
    source = old_run(root)
    hyperparameters = QUICK | {"return_scale_steps": 1.0, "return_limit": 20.0} | settings
    manifest = a_manifest("ab", point, steps=10**9, name="new", hyperparameters=hyperparameters)
    run = open_migrated_run(root / "new.json", manifest, source, root)
    take_over(plan_migration(manifest, source, canary=(1, watch_s, 0.95)), source, run)
    return source, run, manifest


def started(run: Run) -> list[str]:
    return [event["job"] for event in read_events(run) if event["kind"] == "started"]


def test_a_canary_that_does_well_is_followed_by_all(tmp_path: Path, device: DeviceInfo) -> None:
    source, run, manifest = migrated(tmp_path, 0.5)
    said: list[str] = []
    more = lambda: len(started(run)) == 3  # noqa: E731
    result = train_run(manifest, run, device=device, warn=said.append, should_stop=more, plan=PLAN)
    assert started(run) == ["a", "a", "b"], "b waited for the verdict"
    assert {job.status for job in result.jobs} == {"stopped"}
    assert said[0].startswith("canary: one job at") and said[-1] == "canary: passed, all jobs go on"
    assert said[0].endswith("if 2 at once were as fast each; the old run had 200 SPS")
    heard = len(said)
    after = steps_of(run)
    assert after["a"] > STEPS["a"] and load_migration(run) is not None
    again = train_run(manifest, run, device=device, warn=said.append, should_stop=lambda: True, plan=PLAN)
    assert len(said) == heard, "the verdict is remembered"
    assert {job.id: job.env_steps for job in again.jobs} == {job.id: job.env_steps for job in result.jobs}
    assert successor(source) is not None


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({"fail": "crash", "fail_num_envs": 16, "fail_after_iterations": 3}, ["a crashed: RuntimeError: crashed, as"]),
        (
            {"step_overhead_s": 0.2, "rollout": 1},
            ["too slow: one job at", "the old run had 200 SPS, and at least 95% of it"],
        ),
        ({"return_limit": -100.0, "episode_steps": 1}, ["a fell from a mean return of 9.5 to -"]),
    ],
)
def test_a_canary_that_does_badly_is_rolled_back(
    tmp_path: Path, device: DeviceInfo, changes: dict[str, Any], faults: list[str]
) -> None:
    point = replace(POINT, batch_size=16)
    source, run, manifest = migrated(tmp_path, 0.3, point, **changes)
    before = content(source)
    with pytest.raises(CanaryError) as raised:
        train_run(manifest, run, device=device, plan=PLAN)
    assert all(fault in str(raised.value) for fault in faults), raised.value
    assert f"run {source.path} is as it was before (`autotune train" in str(raised.value)
    assert content(source) == before and successor(source) is None
    assert load_migration(run) is None
    aside = run.path / "rolled-back" / "1"
    assert (aside / "jobs" / "a" / "log").is_file(), "what the canary did is kept"


def test_a_canary_that_is_interrupted_goes_on(tmp_path: Path, device: DeviceInfo) -> None:
    _, run, manifest = migrated(tmp_path, 3600.0)
    some = lambda: any(event["kind"] == "ready" for event in read_events(run))  # noqa: E731
    first = train_run(manifest, run, device=device, should_stop=some, plan=PLAN)
    assert [job.status for job in first.jobs] == ["stopped", "waiting"]
    migration = load_migration(run)
    assert migration is not None and migration.canary is not None and not migration.canary.passed
    write_migration(run.train_folder, replace(migration, canary=replace(migration.canary, watch_s=0.1)))
    done = lambda: "b" in started(run)  # noqa: E731
    train_run(manifest, run, device=device, should_stop=done, plan=PLAN)
    assert started(run)[:2] == ["a", "a"] and "b" in started(run)


def test_a_canary_whose_workers_were_stopped_is_not_judged(tmp_path: Path, device: DeviceInfo) -> None:
    source, run, manifest = migrated(tmp_path, 3600.0)
    said: list[str] = []

    def stop_worker(snapshot: Snapshot) -> None:
        if any(event["kind"] == "ready" for event in read_events(run)):
            pid = next(event["pid"] for event in read_events(run) if event["kind"] == "started")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    result = train_run(manifest, run, device=device, on_event=stop_worker, warn=said.append, plan=PLAN)
    assert [job.status for job in result.jobs] == ["stopped", "waiting"]
    assert said == [
        "a stopped: somebody sent its process a signal to end; the same command goes on",
        "canary: stopped before 1h of training, so it is not judged; the same command goes on",
    ]
    migration = load_migration(run)
    assert migration is not None and migration.canary is not None and not migration.canary.passed
    assert successor(source) is not None


def before(returns: list[float], first: float | None = 0.0, steps: int = 1000) -> MigratedJob:
    counts = {"env_steps": steps, "episodes": 100, "seconds": steps / 100, "best_return": None}
    return MigratedJob(id="a", checkpoint="x", returns=tuple(returns), first_return=first, **counts)


@pytest.mark.parametrize(
    ("returns", "first", "after", "lost"),
    [
        ([18.0, 22.0] * 50, 0.0, [19.0, 21.0] * 20, False),
        ([18.0, 22.0] * 50, 0.0, [9.0, 12.0] * 20, False),  # as if half were not lost yet
        ([18.0, 22.0] * 50, 0.0, [1.0, 3.0] * 20, True),
        ([18.0, 22.0] * 50, 0.0, [1.0, 3.0] * 4, False),  # eight games say little
        ([18.0, 22.0] * 50, None, [1.0, 3.0] * 20, False),  # nobody knows where it began
        ([-18.0, -17.0] * 50, -21.0, [-20.9, -20.8] * 20, True),  # Pong's returns are below zero
        ([0.0, 100.0] * 5, 0.0, [0.0, 50.0] * 5, False),  # within the noise
        ([10.0] * 100, 10.0, [10.0] * 50, False),
        ([10.0] * 100, 10.0, [4.0] * 50, True),  # below where it began
    ],
)
def test_a_collapse_is_told_from_noise(returns: list[float], first: float, after: list[float], lost: bool) -> None:
    assert collapsed(before(returns, first), after) is lost


def a_result(sps: float | None, steps: int = 2000, seconds: float = 20.0) -> TrainResult:
    job = JobResult(
        id="a", status="stopped", env_steps=steps, episodes=100, seconds=seconds, sps=None, mean_return=None,
        best_return=None,
    )  # fmt: skip
    return TrainResult(run="r", jobs=(job,), sps=sps, predicted_sps=None, seconds=1.0)


@pytest.mark.parametrize(
    ("sps_before", "sps", "processes", "fault"),
    [
        (100.0, 96.0, 1, None),
        (100.0, 94.0, 1, "too slow: one job at 94 SPS; the old run had 100 SPS"),
        (100.0, 49.0, 2, None),  # 98 if two at once were as fast each
        (100.0, 47.0, 2, "too slow: one job at 47 SPS, 94 SPS if 2 at once were as fast each"),
        (105.0, None, 1, None),  # 1,000 steps in 10 seconds of training since the migration
        (106.0, None, 1, "too slow: one job at 100 SPS"),
        (None, 1.0, 1, None),
    ],
)
def test_speed_is_that_of_the_whole_device(
    tmp_path: Path, sps_before: float | None, sps: float | None, processes: int, fault: str | None
) -> None:
    canary = Canary(jobs=("a",), watch_s=10.0, sps_fraction=0.95)
    migration = Migration(source="../old", jobs=(before([1.0]),), fresh=(), sps_before=sps_before)
    manifest = a_manifest("ab", replace(POINT, concurrency=processes))
    verdict = judge(migration, canary, manifest, Run(tmp_path), a_result(sps))
    assert (verdict.faults == ()) is (fault is None)
    if fault:
        assert verdict.faults[0].startswith(fault)
    if sps_before is None:
        assert "so speed was not judged" in verdict.notes[0]


def test_a_canary_that_does_not_train_is_stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, run, manifest = migrated(tmp_path, 10.0)
    migration = load_migration(run)
    assert migration is not None and migration.canary is not None
    now = [0.0]
    monkeypatch.setattr(listening.time, "monotonic", lambda: now[0])
    watch = canary_module._Watch(migration, migration.canary, lambda _: None, lambda: False)
    job = canary_module.JobSnapshot(
        id="a", env="busy", status="running", env_steps=300, episodes=0, seconds=3.0, fraction=0.0, sps=None,
        mean_return=None, best_return=None, vram_bytes=None, ram_bytes=None, eta_s=None,
    )  # fmt: skip
    facts = {"run": "r", "point": "", "sps": None, "measured_sps": None, "predicted_sps": None, "elapsed_s": 1.0}
    snapshot = Snapshot(state="running", jobs=(job,), updated="", **facts)
    now[0] = 7200.0  # the command stood still, and its workers wait to be heard: five seconds of it count
    watch.update(snapshot)
    for since_s in range(1, 327):
        now[0] = 7200.0 + since_s
        watch.update(snapshot)
        assert (watch.over(), watch.stuck) == ((since_s > 325,) * 2)
    verdict = judge(migration, migration.canary, manifest, run, a_result(None, 300, 3.0), stuck=True)
    assert verdict.faults[0] == "a did not train for 10s in time"


def test_the_command_line_says_why_it_rolled_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, file = old_run(tmp_path), tmp_path / "new.json"
    slow = {"hyperparameters": QUICK | {"step_overhead_s": 0.2, "rollout": 1}}
    save_manifest(file, a_manifest("ab", replace(POINT, batch_size=16), steps=10**9, name="new", **slow))
    command = ["train", str(file), "--device", "cpu", "--runs", str(tmp_path), "--resume-from", source.name]
    assert cli.main([*command, "--canary", "3"]) == 2
    assert "--canary 3 must lie between 1 and the 2 jobs" in capsys.readouterr().err
    assert cli.main([*command, "--canary", "1", "--canary-time", "0.2s"]) == 1
    told = capsys.readouterr().err
    assert "autotune: the canary failed: too slow: one job at" in told and "The migration was rolled back" in told
    assert successor(source) is None and (tmp_path / "new-1" / "rolled-back" / "1").is_dir()
