"""What measuring itself costs: `make bench`. Timings live here, never in tests."""

import json
import os
import time
from pathlib import Path

import pytest

from autotune.device.inspect import inspect_device
from autotune.executors.process import WorkerProcess
from autotune.executors.window import Step, windows
from autotune.meters.host import HostMeter
from autotune.probe.recipe import load_recipe
from autotune.records import MeasurePlan, Point, Work
from autotune.stats import Trace, estimate
from autotune.worker.measure import step_message
from autotune.worker.protocol import WorkerTask

WORK = Work(
    env_steps=2048,
    reset_rows=60,
    episodes=5,
    samples=8192,
    minibatches=32,
    seconds={"env": 0.5, "infer": 0.4, "transfer": 0.01, "learn": 2.0},
    returns=(1.0,) * 5,
    lengths=(180,) * 5,
    metrics={name: 0.1 for name in ("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction")},
)


def test_report_of_one_iteration(benchmark):
    """Once an iteration: a message built, encoded and written."""
    with Path(os.devnull).open("w", buffering=1) as pipe:
        benchmark(lambda: pipe.write(json.dumps(step_message(WORK, time.monotonic(), 0.0)) + "\n"))


def test_reading_of_the_host_meter(benchmark):
    """Twice a second, in the parent."""
    meter = HostMeter(inspect_device("cpu"), lambda: [os.getpid()])
    meter.start()
    meter.stop()
    benchmark(meter.read)


def test_windows_of_eight_processes(benchmark):
    """After every batch of messages, in the parent."""
    plan = MeasurePlan()
    steps = [[Step(t=float(t), started=t - 1.0, env_steps=100) for t in range(1, 60)] for _ in range(8)]
    assert benchmark(lambda: windows(steps, plan)) is not None


def test_estimate_of_a_final_window(benchmark):
    trace = Trace(seconds=tuple(1.0 + 0.01 * (i % 7) for i in range(60)), steps=(2048.0,) * 60)
    assert benchmark(lambda: estimate([trace] * 8)).rate > 0


@pytest.mark.parametrize("workload", ["busywork", "atari"])
def test_start_of_a_worker_to_its_first_iteration(benchmark, workload, tmp_path):
    recipe = load_recipe(workload)
    task = WorkerTask(
        mode="measure",
        workload=workload,
        hyperparameters=recipe.hyperparameters,
        point=Point(num_envs=8, batch_size=256),
        jobs=recipe.jobs[:1],
        threads=max(1, int(inspect_device("cpu").host.cpu_cores_allowed)),
        device="cpu",
    )

    def start():
        worker = WorkerProcess(task, tmp_path / "log")
        kinds = []
        while "step" not in kinds:
            for message in worker.receive(1.0):
                kinds.append(message["type"])
                if message["type"] == "ready":
                    worker.send("go")
        worker.kill(grace_s=0.0)

    benchmark.pedantic(start, rounds=3)
