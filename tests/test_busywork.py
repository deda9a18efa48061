from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autotune.errors import UsageError
from autotune.probe.recipe import load_recipe
from autotune.records import Budget, Job, Point
from autotune.workloads.busywork import BusyworkSession, BusyworkWorkload, OutOfMemoryError, pass_time

POINT = Point(num_envs=8, batch_size=64)
FAST = {"env_s": 0.0, "step_overhead_s": 0.0, "infer_s": 0.0, "learn_s": 0.0, "minibatch_overhead_s": 0.0}


def job(seed: int = 1) -> Job:
    return Job(id="job", env="busy", seed=seed, budget=Budget(unit="steps", amount=1000))


def open_session(point: Point = POINT, seed: int = 1, **hyperparameters) -> BusyworkSession:
    return BusyworkWorkload(hyperparameters).open(point, job(seed), "cpu")


@pytest.fixture
def planned(monkeypatch) -> list[float]:
    """Time does not pass: what busywork would have waited is noted and returned as passed."""
    waited: list[float] = []

    def note(duration_s: float, *, burn: bool) -> float:
        waited.append(duration_s)
        return duration_s

    monkeypatch.setattr("autotune.workloads.busywork.pass_time", note)
    return waited


def test_cost_model(planned, monkeypatch):
    monkeypatch.setenv("AUTOTUNE_THREADS", "2")
    session = open_session(
        Point(num_envs=10, batch_size=128, concurrency=3),
        rollout=20,
        epochs=2,
        env_s=1e-3,
        step_overhead_s=2e-3,
        infer_s=1e-4,
        learn_s=1e-5,
        minibatch_overhead_s=1e-2,
        concurrency_slowdown=0.5,
    )
    seconds = session.step().seconds
    assert seconds["env"] == pytest.approx(20 * 10 * 1e-3 / 2)
    assert seconds["infer"] == pytest.approx(2.0 * (20 * 2e-3 + 200 * 1e-4))
    assert seconds["learn"] == pytest.approx(2.0 * 2 * (200 * 1e-5 + 2 * 1e-2))  # 200 samples: 128 + 72


def test_counts_of_an_iteration(planned):
    session = open_session(Point(num_envs=10, batch_size=128), rollout=20, epochs=2, reset_fraction=0.1)
    works = [session.step() for _ in range(5)]
    assert sum(w.env_steps for w in works) == 900 and sum(w.reset_rows for w in works) == 100
    assert all(w.minibatches == 4 and w.samples == 2 * w.env_steps for w in works)


def test_games_and_a_rising_curve(planned):
    session = open_session(episode_steps=50, rollout=50, return_limit=10.0, return_scale_steps=2000.0)
    works = [session.step() for _ in range(40)]
    returns = [value for work in works for value in work.returns]
    assert len(returns) == 40 * 8 and {length for w in works for length in w.lengths} == {50}
    assert sum(returns[:8]) / 8 < 3 < 9 < sum(returns[-40:]) / 40 <= 10 * 1.2


def test_seed_determines_everything(planned):
    def run(seed):
        session = open_session(seed=seed, noise_fraction=0.1, noise_correlation=0.5, episode_steps=10)
        return [session.step() for _ in range(5)]

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_noise_has_the_deviation_and_correlation_asked_for(planned):
    import numpy as np

    session = open_session(noise_fraction=0.1, noise_correlation=0.6)
    logs = np.log([session.step().seconds["infer"] for _ in range(4000)])
    assert np.std(logs) == pytest.approx(0.1, rel=0.1)
    assert np.corrcoef(logs[:-1], logs[1:])[0, 1] == pytest.approx(0.6, abs=0.06)


def test_launches_differ_only_when_asked_to(planned):
    def first_s(**settings):
        return open_session(**settings).step().seconds["env"]

    assert len({first_s() for _ in range(3)}) == 1
    assert len({first_s(launch_noise_fraction=0.1) for _ in range(3)}) == 3


def test_warm_up_is_slow(planned):
    session = open_session(warmup_iterations=2, warmup_slowdown=5.0)
    env_s = [session.step().seconds["env"] for _ in range(4)]
    assert [value / env_s[-1] for value in env_s] == pytest.approx([5, 5, 1, 1])


def test_interrupted_training_is_the_same_as_an_uninterrupted_one(planned):
    settings = {"noise_fraction": 0.1, "noise_correlation": 0.5, "reset_fraction": 0.03, "episode_steps": 10}
    whole, first = open_session(**settings), open_session(**settings)
    expected = [whole.step() for _ in range(6)]
    works = [first.step() for _ in range(3)]
    second = open_session(**settings)
    second.restore(first.state())
    assert works + [second.step() for _ in range(3)] == expected


def test_state_of_another_workload_is_refused():
    from autotune.workloads.protocol import SessionState

    with pytest.raises(UsageError, match="another workload"):
        open_session().restore(SessionState(arrays={}, meta={"updates": 3}))


def test_knob_overrides_the_hyperparameter_of_its_name(planned):
    point = Point(num_envs=8, batch_size=64, extra=(("env_s", 1.0),))
    assert open_session(point, env_s=0.0).step().seconds["env"] == pytest.approx(32 * 8)
    with pytest.raises(UsageError, match="'colour'"):
        BusyworkWorkload({}).check(Point(num_envs=8, batch_size=64, extra=(("colour", "red"),)), [job()])


def test_memory_is_really_taken():
    program = (
        "import psutil, test_busywork\n"
        "before = psutil.Process().memory_info().rss\n"
        "session = test_busywork.open_session(ram_base_bytes=20 * 2**20, ram_bytes_per_env=10 * 2**20)\n"
        "print(psutil.Process().memory_info().rss - before)\n"
    )  # in a process of its own: a large one has free memory to give
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    assert int(done.stdout) == pytest.approx(100 * 2**20, rel=0.1)


def test_burning_takes_cpu_time_and_sleeping_does_not():
    begin_s = time.process_time()
    assert pass_time(0.1, burn=True) >= 0.099
    burnt_s = time.process_time() - begin_s
    assert pass_time(0.1, burn=False) >= 0.099
    assert burnt_s >= 0.099 and time.process_time() - begin_s - burnt_s < 0.08


@pytest.mark.parametrize(
    ("failure", "error"), [("oom", OutOfMemoryError), ("host_oom", MemoryError), ("crash", RuntimeError)]
)
@pytest.mark.parametrize("after", [0, 2])
def test_failures_that_raise(failure, error, after):
    with pytest.raises(error, match="as asked for"):
        session = open_session(fail=failure, fail_after_iterations=after, **FAST)
        for _ in range(after):
            session.step()
        assert after > 0, "it must have failed while opening"
        session.step()


@pytest.mark.parametrize(
    ("point", "fails"),
    [
        (Point(num_envs=16, batch_size=64, concurrency=2), True),
        (Point(num_envs=32, batch_size=64, concurrency=4), True),
        (Point(num_envs=8, batch_size=64, concurrency=2), False),
        (Point(num_envs=16, batch_size=64, concurrency=1), False),
    ],
)
def test_fails_at_or_above_every_threshold(point, fails):
    assert (
        BusyworkWorkload({"fail": "oom", "fail_num_envs": 16, "fail_concurrency": 2}).settings.fails_at(point) is fails
    )


@pytest.mark.parametrize(("failure", "code"), [("exit", 3), ("segfault", -signal.SIGSEGV)])
def test_failures_that_end_the_process(failure, code):
    assert start_failing(failure).wait(30) == code


def ignores_sigterm(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(re.search(r"SigIgn:\s+(\w+)", status)[1], 16) & 1 << signal.SIGTERM - 1)


@pytest.mark.parametrize(("failure", "survives"), [("hang", False), ("ignore_sigterm", True)])
def test_hangs(failure, survives):
    process = start_failing(failure)
    assert process.stdout.readline() == b"ready\n"
    while survives and not ignores_sigterm(process.pid):
        time.sleep(0.01)
    process.terminate()
    try:
        process.wait(0.5 if survives else 30)
    except subprocess.TimeoutExpired:
        assert survives
    process.kill()
    assert process.wait(30) == (-signal.SIGKILL if survives else -signal.SIGTERM)


def test_garbage_is_megabytes_without_utf8():
    output = start_failing("garbage").stdout.read()
    assert len(output) > 2**21
    with pytest.raises(UnicodeDecodeError):
        output.decode()


def start_failing(failure: str) -> subprocess.Popen[bytes]:
    code = (
        "from autotune.records import *; from autotune.workloads.busywork import BusyworkWorkload; import os\n"
        "job = Job(id='job', env='busy', seed=1, budget=Budget(unit='steps', amount=1))\n"
        f"session = BusyworkWorkload({{'fail': {failure!r}, 'fail_after_iterations': 1}}).open("
        "Point(num_envs=8, batch_size=64), job, 'cpu')\n"
        "session.step(); os.write(1, b'ready\\n'); session.step()"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=dict(os.environ))


@pytest.mark.parametrize(
    ("hyperparameters", "words"),
    [
        ({"rolout": 3}, "no hyperparameter 'rolout'. Did you mean 'rollout'"),
        ({"rollout": 0}, "'rollout' .* is 0: .*greater than or equal to 1"),
        ({"env_s": float("nan")}, "'env_s' .* is nan: .*finite"),
        ({"env_s": "fast"}, "'env_s' .* is 'fast'"),
        ({"fail": "sometimes"}, "'fail' .* is 'sometimes': .*'oom'"),
        ({"noise_correlation": 1.0}, "less than 1"),
    ],
)
def test_impossible_hyperparameters_are_refused_in_words(hyperparameters, words):
    with pytest.raises(UsageError, match=words):
        BusyworkWorkload(hyperparameters)


def test_bundled_recipe_can_run_at_every_point_of_its_grid():
    recipe = load_recipe("busywork")
    workload = BusyworkWorkload(recipe.hyperparameters)
    for num_envs in recipe.grid["num_envs"]:
        for batch_size in recipe.grid["batch_size"]:
            workload.check(Point(num_envs=num_envs, batch_size=batch_size), recipe.jobs)
    workload.check(recipe.baseline, recipe.jobs)
    assert len(recipe.jobs) == 4
