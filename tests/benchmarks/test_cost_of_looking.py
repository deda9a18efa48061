"""What measuring itself costs: `make bench`. Timings live here, never in tests.

`python reports/reference/measuring/looking.py` runs these and writes the table; a benchmark's ``extra_info`` says how
often its call happens (once an iteration, but ``times_per_s_at_most``, or ``times_per_s``; in the worker or
``in_parent``) or what it may take (``limit_s``).
"""

import json
import math
import os
import random
import time
from pathlib import Path
from time import perf_counter

import numpy as np
import optuna
import pytest

from autotune import registry
from autotune.codec import to_json
from autotune.device.host import ram_available_bytes
from autotune.device.inspect import inspect_device
from autotune.executors.process import WorkerProcess, receive_all
from autotune.executors.window import Step, windows
from autotune.meters.host import PRESSURE_PERIOD_S, pressures
from autotune.probe.recipe import load_recipe
from autotune.records import MeasurePlan, Point, ProbeResult, Work
from autotune.search.confirm import next_finalist
from autotune.search.memory import MemoryLimits
from autotune.search.model import _belief
from autotune.search.propose import Problem, propose
from autotune.search.sampler import RESULT, history_of
from autotune.search.space import Space, grid
from autotune.stats import Trace, estimate
from autotune.worker.measure import REPORT_PERIOD_S, step_message
from autotune.worker.protocol import WorkerTask

LEVELS = [1, 2, 3, 4, 6, 8, 12, 16]
MESSAGES_PER_S = 1 / REPORT_PERIOD_S
OTHERS = np.ones(2**23)
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


def others_work() -> None:
    """Read 64 MiB: nothing else is left in the processor's caches, as between two readings of a training."""
    OTHERS.sum()


def test_report(benchmark):
    """Once an iteration, or for 25 of 0.01 s together: added up, a message built, encoded and written."""
    benchmark.extra_info["times_per_s_at_most"] = MESSAGES_PER_S
    with Path(os.devnull).open("w", buffering=1) as pipe:

        def report():
            message = step_message([WORK] * 25, time.monotonic(), time.monotonic())
            pipe.write(json.dumps(message | {"parts": 1, "settled": True, "iterations": 25}) + "\n")

        benchmark(report)


def test_phases_of_32_vector_steps(benchmark):
    """The clock three times each, added up: an iteration of the CartPole recipes (atari's has 128, but is longer)."""
    benchmark.extra_info["times_per_s_at_most"] = math.inf
    vector_steps = range(32)

    def phases():
        clock = perf_counter
        acted = stepped = written = 0.0
        began = now = clock()
        for _ in vector_steps:
            acted += clock()
            stepped += clock()
            written += (now := clock())
        return acted - (began + written - now), stepped - acted, written - stepped

    benchmark(phases)


def test_message_in_the_parent(benchmark):
    """Once a report of each process: decoded and kept."""
    benchmark.extra_info |= {"times_per_s_at_most": MESSAGES_PER_S, "in_parent": True}
    line = json.dumps(step_message([WORK] * 25, time.monotonic(), time.monotonic())).encode()
    assert benchmark(lambda: Step.from_message(json.loads(line.decode()))).env_steps == 25 * 2048


@pytest.mark.parametrize("meter", registry.names("meter"))
def test_reading(benchmark, meter, worker):
    """Twice a second, in the parent, each after others' work."""
    benchmark.extra_info |= {"times_per_s": 2, "in_parent": True}
    made = registry.load("meter", meter)(inspect_device("cpu"), worker.descendants)
    made.open()
    made.read()
    benchmark.pedantic(made.read, setup=others_work, rounds=100)


def test_pressures(benchmark):
    """As often as the kernel works them out, in the parent; the readings of `test_reading` take the last ones."""
    benchmark.extra_info |= {"times_per_s": 1 / PRESSURE_PERIOD_S, "in_parent": True}
    benchmark.pedantic(pressures, setup=others_work, rounds=100)


def test_free_memory_in_the_parent(benchmark):
    """Twice a second while a probe runs."""
    benchmark.extra_info |= {"times_per_s": 2, "in_parent": True}
    benchmark.pedantic(ram_available_bytes, setup=others_work, rounds=100)


def test_look_for_messages(benchmark, worker):
    """Four times a second, in the parent."""
    benchmark.extra_info |= {"times_per_s": 4, "in_parent": True}
    benchmark.pedantic(lambda: receive_all([worker], 0.0), setup=others_work, rounds=100)


def test_windows_of_eight_processes(benchmark):
    """At the end of a probe, in the parent: not before its windows can be complete."""
    plan = MeasurePlan()
    steps = [[Step(t=float(t), started=t - 1.0, env_steps=100) for t in range(1, 60)] for _ in range(8)]
    assert benchmark(lambda: windows(steps, plan)) is not None


@pytest.mark.parametrize("probes", [60, 150])
def test_decision_of_the_search(benchmark, probes):
    """Once a probe: 624 points, so many probes told, a third of which repeat a point."""
    benchmark.extra_info["limit_s"] = 0.1
    knobs = {"num_envs": [2**n for n in range(13)], "batch_size": [2**n for n in range(6, 12)], "concurrency": LEVELS}
    points = grid(knobs)
    assert len(points) == 624
    random.Random(0).shuffle(points)
    problem = Problem(space=Space(points=tuple(points)), limits=MemoryLimits(ram_bytes=64e9))
    told = [{RESULT: to_json(measured(points[number * 2 // 3]))} for number in range(probes)]
    study = optuna.create_study(direction="maximize")
    study.add_trials([optuna.create_trial(value=1.0, user_attrs=attributes) for attributes in told])

    def decide():
        history = history_of(study.get_trials(deepcopy=False))
        return propose(problem, history), next_finalist(problem.space, history)

    benchmark.pedantic(decide, setup=_belief.cache_clear, rounds=10, warmup_rounds=1)


def measured(point: Point) -> ProbeResult:
    """A result of a machine that saturates."""
    rows = point.num_envs * point.concurrency
    sps = 1e5 * rows / (rows + 300) * point.batch_size / (point.batch_size + 100)
    return ProbeResult(
        requested=point, status="ok", grade="quick", sps=sps, sps_low=0.97 * sps, sps_high=1.03 * sps, cost_s=23.0,
        startup_s=3.0, iterations=8, window_s=8.0, noise_fraction=0.01,
        ram_peak_bytes=10**8 * point.concurrency + 10**6 * rows,
    )  # fmt: skip


@pytest.fixture
def worker(tmp_path):
    """A process that waits at the barrier."""
    recipe = load_recipe("busywork")
    point = Point(num_envs=8, batch_size=256)
    values = {"workload": "busywork", "hyperparameters": recipe.hyperparameters, "jobs": recipe.jobs[:1]}
    started = WorkerProcess(WorkerTask(mode="measure", point=point, **values), tmp_path / "log")
    assert any(message["type"] == "ready" for message in started.receive(60.0))
    yield started
    started.kill(grace_s=0.0)


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
