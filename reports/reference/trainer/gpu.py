"""Every way the trainer can work on a GPU, side by side in one process, and what its parts do alone.

    python reports/reference/trainer/gpu.py --out runs/gpu-trainer         # two minutes a point
    python reports/reference/trainer/gpu.py --device cpu --points 8/256 --seconds 1 --out /tmp/ways     # a trial run

The first point's parts alone come first (EnvPool in as many lanes as the first way's, inference, learning), with what
the learner's time on the device goes to (profile.txt). A JSON line is then one training at one point for some seconds
after its first two iterations, where graphs are recorded. The fastest of them alternates with EnvPool alone, in one
lane with a thread for every core: their ratio is the share of the environments' own rate that is left while learning.
The doctor's rates end it.
`learner_tflops` are the learner's rate alone times the multiplications of the Nature CNN, forward once and backward
twice that. `env_threads` are those of each acting lane.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import statistics
import time
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from run import GAME, points

from autotune.errors import AutotuneError
from autotune.records import Budget, Job, Point
from autotune.workloads.atari import AtariWorkload
from autotune.workloads.atari.environment import VectorEnvironment, allowed_threads
from autotune.workloads.atari.model import CONVOLUTIONS
from autotune.workloads.atari.session import PPOSession
from autotune.workloads.doctor import DoctorWorkload

CORES = allowed_threads()
WAYS: tuple[dict[str, Any], ...] = (
    {"overlap": False, "cuda_graphs": False, "lanes": 1},
    {"overlap": False, "cuda_graphs": True, "lanes": 1},
    {"overlap": False, "cuda_graphs": True, "lanes": 2},
    {"overlap": True, "cuda_graphs": False, "lanes": 2},
    {"overlap": True, "cuda_graphs": True, "lanes": 2},
    {"overlap": False, "cuda_graphs": True, "lanes": 2, "env_threads": max(1, CORES // 2)},
    {"overlap": True, "cuda_graphs": True, "lanes": 2, "env_threads": max(1, CORES // 2)},
    {"overlap": True, "cuda_graphs": True, "lanes": 2, "env_threads": max(1, CORES * 5 // 8)},
    {"overlap": True, "cuda_graphs": True, "lanes": 4, "env_threads": max(1, CORES // 4)},
    {"overlap": True, "cuda_graphs": True, "lanes": 4, "env_threads": max(1, CORES * 3 // 8)},
    {"overlap": True, "cuda_graphs": True, "lanes": 4},
    {"overlap": True, "cuda_graphs": True, "lanes": 3, "env_threads": max(1, CORES * 3 // 8)},
)
ALTERNATIONS = 3
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


def first_iteration_s(session: PPOSession) -> float:
    """Seconds of a training's first iteration, which is done then."""
    began = time.perf_counter()
    session.step()
    return round(time.perf_counter() - began, 2)


def timed(session: PPOSession, seconds: float) -> dict[str, Any]:
    """SPS and where a step's time goes, after one more iteration."""
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
        "phases": {name: round(value / took, 3) for name, value in phases.items()},
        "peak_mib": round((session.peak_memory_bytes() or 0) / 2**20),
        "effective": {k: session.effective[k] for k in ("precision", "acting_lanes", "env_threads", "cuda_graphs")},
    }


def beside_the_environments(session: PPOSession, seconds: float) -> Iterator[dict[str, Any]]:
    """SPS of a training and of its environments alone, in turn; and how they compare."""
    alone = VectorEnvironment(session.environment.spec, session.environment.num_envs, CORES, JOB.seed)
    chosen = np.random.default_rng(0)
    shares = []
    session.step()
    for _ in range(ALTERNATIONS):
        training = timed(session, seconds)["sps"]
        began, before = time.perf_counter(), alone.executed_steps
        while time.perf_counter() - began < seconds:
            alone.step(chosen.integers(0, alone.spec.actions, alone.num_envs).astype(np.int32))
        environments = (alone.executed_steps - before) / (time.perf_counter() - began)
        shares.append(training / environments)
        yield {"training_sps": training, "environments_sps": round(environments, 1), "share": round(shares[-1], 3)}
    yield {"median_share": round(statistics.median(shares), 3)}
    alone.close()


def profile(point: Point, device: str, rollout: int) -> tuple[str, dict[str, float]]:
    """The learner's kernels at a point, by time on the device; and seconds in all, of the clock and of kernels."""
    session = open_session(point, device, rollout=rollout)
    for _ in range(2):
        session.step()
    rollout = session._collector.collect(session._buffers[0], session.settings.rollout)
    samples = rollout.buffer.samples(rollout.steps, 0.99, 0.95)
    on_gpu = session._device.type == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * on_gpu
    session.synchronize()
    with torch.profiler.profile(activities=activities) as found:
        began = time.perf_counter()
        session._learner.update(samples, point.batch_size, 1e-4)
        session.synchronize()
        took = time.perf_counter() - began
    session.close()
    events = found.key_averages()
    on_device = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation]
    kernels_s = sum(event.self_device_time_total for event in on_device) / 1e6  # the calls that launch them name it too
    table = str(events.table(sort_by="cuda_time_total" if on_gpu else "cpu_time_total", row_limit=25))
    return table, {"wall_s": round(took, 4), "kernels_s": round(kernels_s, 4), "samples": len(samples.rows)}


def release() -> None:
    """Give back the memory of sessions that are no longer used, and count its peak anew."""
    gc.collect()  # they hold themselves in a circle
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def train(point: Point, ways: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """What a training at a point reaches; a way that fails gives its error."""
    try:
        session = open_session(point, options.device, rollout=options.rollout, **ways)
        first_s = first_iteration_s(session)
        found = timed(session, options.seconds)
        session.close()
    except (RuntimeError, AutotuneError) as error:
        return {"error": repr(error)}
    return {**found, "first_iteration_s": first_s}


def parts_alone(point: Point, lanes: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rates of the environments, of inference and of learning, with graphs and without."""
    for graphs in (True, False):
        parts = {"lanes": lanes, "cuda_graphs": graphs}
        session = open_session(point, options.device, rollout=options.rollout, **parts)
        alone = session.ceilings(options.seconds / 2)
        tflops = alone["learn"] * session.settings.epochs * training_flop(session._spec.actions) / 1e12
        session.close()
        yield {**parts, "alone": alone, "learner_tflops": round(tflops, 2)}


def measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The lines, the most valuable first."""
    wanted = [Point(num_envs=n, batch_size=b) for n, b in points(options.points)]
    chosen = [WAYS[int(number)] for number in options.ways.split(",")]
    for line in parts_alone(wanted[0], chosen[0]["lanes"], options):
        yield {**named(wanted[0]), **line}
    release()
    table, seconds = profile(wanted[0], options.device, options.rollout)
    (options.out / "profile.txt").write_text(table)
    yield {**named(wanted[0]), "profiled": seconds}
    best: tuple[float, Point, dict[str, Any]] = (0.0, wanted[0], chosen[0])
    for point, ways in itertools.product(wanted, chosen):
        release()
        found = train(point, ways, options)
        yield {**named(point), **ways, **found}
        best = max(best, (found.get("sps", 0.0), point, ways), key=lambda each: each[0])
    _, point, ways = best
    session = open_session(point, options.device, rollout=options.rollout, **ways)
    for compared in beside_the_environments(session, options.seconds):
        yield {**named(point), **ways, **compared}
    session.close()
    checks = DoctorWorkload({"seconds": 0.5}).open(point, JOB, options.device)
    yield {name: rate for _ in checks.checks for name, rate in checks.step().metrics.items()}


def named(point: Point) -> dict[str, int]:
    """The knobs of a point."""
    return {"num_envs": point.num_envs, "batch_size": point.batch_size}


def main() -> None:
    """Measure, a line at a time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--points", default="256/2048")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rollout", type=int, default=64, help="short, for short iterations")
    parser.add_argument("--ways", default=",".join(map(str, range(len(WAYS)))), help="numbers of WAYS, from 0")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    with (options.out / "trainer.jsonl").open("a") as file:
        for line in measured(options):
            print(f"{time.perf_counter() - began:5.0f} s", json.dumps(line), flush=True)
            file.write(json.dumps(line) + "\n")
            file.flush()
    print((options.out / "profile.txt").read_text())


if __name__ == "__main__":
    main()
