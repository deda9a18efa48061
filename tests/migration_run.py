"""Runs to migrate: busywork that trained for a while, without ever having run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from autotune.manifest import Manifest, build_manifest
from autotune.records import Budget, Job, Point, Recipe
from autotune.runs import Run
from autotune.store import make_folder
from autotune.train.events import EventLog
from autotune.train.folder import open_training_run
from autotune.worker.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from autotune.worker.metrics import MetricsFile
from autotune.workloads.protocol import SessionState

OLD, NEW = Point(num_envs=8, batch_size=32, concurrency=2), Point(num_envs=16, batch_size=128, concurrency=3)
QUICK = {"rollout": 8, "env_s": 1e-5, "step_overhead_s": 1e-3, "learn_s": 0.0, "minibatch_overhead_s": 0.0}
STEPS = {"a": 300, "b": 500}


def a_manifest(
    jobs: str = "ab", point: Point = OLD, steps: float = 1000, name: str = "old", env: str = "busy", **changes: Any
) -> Manifest:
    workload = {"name": name, "workload": "busywork", "hyperparameters": QUICK, **changes}
    budget = Budget(unit="steps", amount=steps)
    rows = tuple(Job(id=job, env=env, seed=1, budget=budget) for job in jobs)
    return build_manifest(Recipe(jobs=rows, knobs={}, grid={}, baseline=point, **workload), point)


def progress_of(steps: int) -> dict[str, Any]:
    returns = [float(n) for n in range(20)]
    return {"env_steps": steps, "episodes": 20, "seconds": steps / 100, "best_return": 19.0, "returns": returns}


def save(run: Run, job: str, steps: int, keep: int = 3) -> Path:
    counts = {"rows": steps, "env_steps": steps, "samples": steps, "episodes": steps // 200}
    counters = {"slices": 1, "minibatches": 1, **counts}
    meta = {"session": counters, "progress": progress_of(steps), "job": job, "env": "busy"}
    state = SessionState(arrays={"noise": np.array([0.0])}, meta=meta)
    folder = run.train_folder / "jobs" / job / "checkpoints"
    return save_checkpoint(folder, state, env_steps=steps, keep=keep, score=float(steps == 200))


def old_run(root: Path, manifest: Manifest | None = None) -> Run:
    """A run that trained for a while: a to 300 steps, b to 500, with their curves."""
    run = open_training_run(root / "old.json", manifest or a_manifest(), root)
    events = EventLog(run)
    events.record("opened", manifest="x", point=OLD.knobs(), device="d")
    for job, last in STEPS.items():
        make_folder(run.train_folder / "jobs" / job)
        metrics = MetricsFile(run.train_folder / "jobs" / job / "metrics.csv", env_steps=0)
        for steps in range(100, last + 1, 100):
            save(run, job, steps)
            metrics.append({"env_steps": steps, "seconds": steps / 100, "mean_return_100": steps / 50})
            events.record("saved", job=job, path="p", **totals(steps))
    return run


def totals(steps: int) -> dict[str, Any]:
    return {"total_env_steps": steps, "total_episodes": 20, "total_seconds": steps / 100}


def content(run: Run) -> dict[str, bytes]:
    files = [path for path in run.train_folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    return {str(path.relative_to(run.path)): path.read_bytes() for path in files}


def steps_of(run: Run, jobs: str = "ab") -> dict[str, int]:
    found = {job: newest_checkpoint(run.train_folder / "jobs" / job / "checkpoints") for job in jobs}
    return {job: load_checkpoint(path).meta["progress"]["env_steps"] for job, path in found.items() if path}
