"""Every way the trainer can work on a GPU, side by side in one process, and what its parts do alone.

    python reports/reference/trainer/gpu.py --out runs/gpu-trainer         # two minutes a point
    python reports/reference/trainer/gpu.py --device cpu --points 8/256 --seconds 1 --out /tmp/ways     # a trial run

A JSON line is one training at one point for some seconds after its first two iterations, where graphs are recorded.
After the lines of a point stand EnvPool's rate on all cores (in one lane and in two), inference and learning alone.
Last, the doctor's rates, and (profile.txt) what the learner's time on the device goes to. `learner_tflops` are the
learner's rate alone times the multiplications of the Nature CNN, forward once and backward twice that.
"""

from __future__ import annotations

import argparse
import json
import time
from math import prod
from pathlib import Path
from typing import Any

import torch
from run import GAME, points

from autotune.errors import AutotuneError
from autotune.records import Budget, Job, Point
from autotune.workloads.atari import AtariWorkload
from autotune.workloads.atari.environment import allowed_threads
from autotune.workloads.atari.model import CONVOLUTIONS
from autotune.workloads.atari.session import PPOSession
from autotune.workloads.doctor import DoctorWorkload

WAYS: tuple[dict[str, Any], ...] = (
    {"overlap": False, "cuda_graphs": False, "lanes": 1},
    {"overlap": False, "cuda_graphs": True, "lanes": 1},
    {"overlap": False, "cuda_graphs": True, "lanes": 2},
    {"overlap": True, "cuda_graphs": False, "lanes": 2},
    {"overlap": True, "cuda_graphs": True, "lanes": 2},
    {"overlap": True, "cuda_graphs": True, "lanes": 2, "env_threads": max(1, allowed_threads() * 3 // 4)},
    {"overlap": True, "cuda_graphs": True, "lanes": 2, "env_threads": max(1, allowed_threads() // 2)},
    {"overlap": True, "cuda_graphs": True, "lanes": 4},
)
JOB = Job(id="a", env=f"{GAME}-v5", seed=1, budget=Budget(unit="steps", amount=1e9))


def training_flop(actions: int) -> float:
    """Floating-point operations of one forward and backward pass over one sample of 4 x 84 x 84 pixels."""
    channels, side, products = 4, 84, 0
    for out, kernel, stride in CONVOLUTIONS:
        side = (side - kernel) // stride + 1
        products += prod((side, side, out, kernel, kernel, channels))
        channels = out
    products += side * side * channels * 512 + 512 * (actions + 1)
    return 3 * 2 * products


def open_session(point: Point, device: str, **ways: Any) -> PPOSession:
    """A training of Breakout with these hyperparameters."""
    session = AtariWorkload(ways).open(point, JOB, device)
    assert isinstance(session, PPOSession)
    return session


def timed(session: PPOSession, seconds: float) -> dict[str, Any]:
    """SPS and where a step's time goes, after the first iterations."""
    first_s = time.perf_counter()
    session.step()
    first_s = time.perf_counter() - first_s
    session.step()
    session.synchronize()
    began, steps, phases = time.perf_counter(), 0, dict[str, float]()
    while time.perf_counter() - began < seconds:
        work = session.step()
        steps += work.env_steps
        for name, took in work.seconds.items():
            phases[name] = phases.get(name, 0.0) + took
    session.synchronize()
    took = time.perf_counter() - began
    return {
        "sps": round(steps / took, 1),
        "first_iteration_s": round(first_s, 2),
        "phases": {name: round(value / took, 3) for name, value in phases.items()},
        "peak_mib": round((session.peak_memory_bytes() or 0) / 2**20),
        "effective": {k: session.effective[k] for k in ("precision", "acting_lanes", "env_threads", "cuda_graphs")},
    }


def profile(point: Point, device: str) -> str:
    """The learner's kernels at a point, by time on the device."""
    session = open_session(point, device)
    for _ in range(2):
        session.step()
    rollout = session._collector.collect(session._buffers[0], session.settings.rollout)
    samples = rollout.buffer.samples(rollout.steps, 0.99, 0.95)
    on_gpu = session._device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * on_gpu
    with torch.profiler.profile(activities=activities) as found:
        session._learner.update(samples, point.batch_size, 1e-4)
        session.synchronize()
    session.close()
    return str(found.key_averages().table(sort_by="cuda_time_total" if on_gpu else "cpu_time_total", row_limit=25))


def main() -> None:
    """Measure, a line at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--points", default="256/2048")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rollout", type=int, default=64, help="short, for short iterations")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [Point(num_envs=n, batch_size=b) for n, b in points(options.points)]
    began = time.perf_counter()
    with (options.out / "trainer.jsonl").open("a") as file:

        def keep(line: dict[str, Any]) -> None:
            print(f"{time.perf_counter() - began:5.0f} s", json.dumps(line), flush=True)
            file.write(json.dumps(line) + "\n")
            file.flush()

        for point in wanted:
            where = {"num_envs": point.num_envs, "batch_size": point.batch_size}
            for ways in WAYS:
                try:
                    session = open_session(point, options.device, rollout=options.rollout, **ways)
                    keep({**where, **ways, **timed(session, options.seconds)})
                    session.close()
                except (RuntimeError, AutotuneError) as error:  # a way that fails is a line too
                    keep({**where, **ways, "error": repr(error)})
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
            for lanes, graphs in ((1, True), (2, True), (2, False)):
                parts = {"lanes": lanes, "cuda_graphs": graphs}
                session = open_session(point, options.device, rollout=options.rollout, **parts)
                alone = session.ceilings(options.seconds / 2)
                tflops = alone["learn"] * session.settings.epochs * training_flop(session._spec.actions) / 1e12
                keep({**where, **parts, "alone": alone, "learner_tflops": round(tflops, 2)})
                session.close()
        checks = DoctorWorkload({"seconds": 0.5}).open(wanted[0], JOB, options.device)
        keep({name: rate for _ in checks.checks for name, rate in checks.step().metrics.items()})
    table = profile(wanted[0], options.device)
    (options.out / "profile.txt").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
