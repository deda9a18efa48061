"""A synthetic run folder for the report's tests: a search on a made-up GPU, without measuring anything."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import optuna

from autotune.codec import to_json
from autotune.machine import DeviceInfo, GpuInfo, HostInfo
from autotune.manifest import build_manifest, save_manifest
from autotune.probe.recipe import dump_recipe
from autotune.records import Budget, Job, Point, ProbeResult, Recipe
from autotune.runs import Run, create_run
from autotune.search.sampler import RESULT
from autotune.search.trials import open_study
from autotune.store import canonical_json, durable_write, write_json

GIB = 2**30
STEPS = Budget(unit="steps", amount=36_000_000)


def device(**changes: Any) -> DeviceInfo:
    host = HostInfo(
        hostname="box",
        cpu_model="Example CPU 3000",
        cpu_cores_visible=16,
        cpu_cores_allowed=8.0,
        load_1m=0.2,
        pids_limit=None,
        ram_total_bytes=64 * GIB,
        ram_available_bytes=60 * GIB,
        ram_cgroup_limit_bytes=None,
        ram_limit_bytes=64 * GIB,
        shm_total_bytes=None,
        shm_free_bytes=None,
        disk_free_bytes=None,
        boot_id="b",
        boot_time=None,
        kernel="6.1",
        python="3.11.7",
        packages={"torch": "2.8.0", "jax": None},
    )
    gpu = GpuInfo(index=0, name="Example GPU", vram_total_bytes=80 * GIB, power_limit_w=400.0)
    known: dict[str, Any] = {"kind": "cuda", "name": "Example GPU", "host": host, "gpus": (gpu,), "gpu_index": 0}
    return DeviceInfo(**{**known, **changes})


def recipe(jobs: Sequence[Job] | None = None, **changes: Any) -> Recipe:
    jobs = tuple(jobs or (Job(id=f"game-{i}", env=f"Game{i}-v5", seed=i, budget=STEPS) for i in range(1, 5)))
    known: dict[str, Any] = {
        "name": "atari",
        "workload": "busywork",
        "hyperparameters": {"rollout": 128, "epochs": 4},
        "jobs": jobs,
        "knobs": {"num_envs": (8, 16, 32, 64), "batch_size": (256, 1024), "concurrency": (1, 2, 4)},
        "grid": {"num_envs": (8, 16), "batch_size": (256,), "concurrency": (1,)},
        "baseline": Point(num_envs=8, batch_size=256),
    }
    return Recipe(**{**known, **changes})


def result(point: Point, sps: float | None = None, *, width: float = 0.03, **changes: Any) -> ProbeResult:
    """A measured point, `width` its relative half-interval; without `sps` a failed one."""
    if sps is None:
        return ProbeResult(**{"requested": point, "status": "oom", "grade": "quick", "cost_s": 21.0, **changes})
    known: dict[str, Any] = {
        "requested": point,
        "status": "ok",
        "grade": "quick",
        "effective": dict(point.knobs()),
        "sps": sps,
        "sps_low": sps * (1 - width),
        "sps_high": sps * (1 + width),
        "job_sps": tuple([sps / point.concurrency] * point.concurrency),
        "cost_s": 24.0,
        "window_s": 8.0,
        "iterations": 9,
        "phase_seconds": {"env": 0.7 / sps, "infer": 0.1 / sps, "learn": 0.2 / sps},
        "reset_fraction": 0.03,
        "vram_peak_bytes": int(2.5 * GIB * point.concurrency),
        "ram_peak_bytes": 3 * GIB * point.concurrency,
        "cpu_cores": 7.6,
        "gpu_utilisation": 0.42,
        "limited_by": "env stepping takes 70% of the time",
    }
    return ProbeResult(**{**known, **changes})


def search_trials() -> list[tuple[str, ProbeResult]]:
    """A plausible search: baseline, rule of thumb, a grid with one out of memory, two final launches."""
    trials = [
        ("baseline", result(Point(num_envs=8, batch_size=256), 1000.0)),
        ("rule of thumb", result(Point(num_envs=64, batch_size=256), 4000.0)),
    ]
    for num_envs in (16, 32, 64):
        for concurrency in (1, 2):
            sps = 180.0 * num_envs**0.8 * concurrency**0.6
            point = Point(num_envs=num_envs, batch_size=1024, concurrency=concurrency)
            trials.append(("model", result(point, sps)))
    heavy = Point(num_envs=64, batch_size=1024, concurrency=4)
    log = "Traceback ...\nCUDA out of memory. Tried to allocate 2.00 GiB"
    trials.append(("ladder", result(heavy, detail="the device ran out of memory", log_tail=log)))
    best = Point(num_envs=64, batch_size=1024, concurrency=2)
    trials.append(("final", result(best, 8000.0, width=0.02, grade="final", window_s=30.0)))
    trials.append(("final", result(best, 8100.0, width=0.02, grade="final", window_s=30.0)))
    return trials


@cache
def study_bytes(rows: str) -> bytes:
    """A `study.db` with these (stage, result) rows; built once for the same rows, since SQLite's fsyncs are slow."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        run.study_file.write_bytes(_empty_study())
        study = optuna.load_study(study_name=None, storage=f"sqlite:///{run.study_file}")
        for stage, result_json in json.loads(rows):
            attributes = {"stage": stage, RESULT: result_json}
            study.add_trial(optuna.trial.create_trial(value=result_json["sps"] or 0.0, user_attrs=attributes))
        return run.study_file.read_bytes()


@cache
def _empty_study() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder))
        open_study(run)
        return run.study_file.read_bytes()


def make_run(
    root: Path,
    trials: Sequence[tuple[str, ProbeResult]] | None = None,
    *,
    own_recipe: Recipe | None = None,
    own_device: DeviceInfo | None = None,
    tuned: ProbeResult | None = None,
    price: float | None = None,
    name: str = "atari-1",
) -> Run:
    """A finished search; `tuned` is what its manifest runs (the last trial if None)."""
    run = create_run(root, name, command="search", recipe="atari", budget_s=1800.0, spent_s=1750.0, finished=True)
    rows = search_trials() if trials is None else list(trials)
    chosen = own_recipe or recipe()
    durable_write(run.recipe_file, dump_recipe(chosen))
    write_json(run.device_file, to_json(own_device or device()))
    run.study_file.write_bytes(study_bytes(canonical_json([[stage, to_json(measured)] for stage, measured in rows])))
    winner = tuned or rows[-1][1]
    manifest = build_manifest(chosen, winner.requested, result=winner, price=price, device=own_device or device())
    save_manifest(run.manifest_file, manifest)
    return run
