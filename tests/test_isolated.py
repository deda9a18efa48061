"""The isolated executor with real child processes of `busywork`: every failure is a value, nothing is left behind."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import fake_nvml
import psutil
import pytest

from autotune import registry
from autotune.codec import to_json
from autotune.device.inspect import inspect_device
from autotune.errors import UsageError, WorkerError
from autotune.executors import ending
from autotune.executors.isolated import IsolatedExecutor
from autotune.executors.process import WorkerProcess
from autotune.machine import GpuInfo
from autotune.meters import base
from autotune.probe.grid import run_grid
from autotune.probe.recipe import command_recipe, load_recipe
from autotune.probe.run import run_probe
from autotune.records import PAUSED, REFUSED, Budget, Job, MeasurePlan, Point
from autotune.runs import Run, create_run
from autotune.store import canonical_json, read_lines
from autotune.worker.protocol import WorkerTask

PLAN = MeasurePlan(discard_s=0.2, discard_iterations=2, window_s=0.6, window_iterations=2, timeout_s=20.0)
POINT = Point(num_envs=16, batch_size=64)


@pytest.fixture(scope="module")
def executor():
    return IsolatedExecutor(inspect_device("cpu"))


def recipe_with(**hyperparameters):
    recipe = load_recipe("busywork")
    return replace(recipe, hyperparameters={**recipe.hyperparameters, **hyperparameters}, quick=PLAN)


def probe(executor, tmp_path, point=POINT, **hyperparameters):
    recipe = recipe_with(**hyperparameters)
    return run_probe(recipe, point, executor, grade="quick", run=Run(tmp_path), label="t")


def no_workers_left():
    mine = psutil.Process().children(recursive=True)
    return not [p for p in mine if "autotune.worker" in " ".join(p.cmdline())]


def test_rate_matches_the_cost_model(executor, tmp_path):
    """A sleep of 0.1 s for a rollout of 32 x 16 rows: 5,120 rows per second at most, a little less in truth."""
    result = probe(
        executor, tmp_path, env_s=0.0, infer_s=0.0, learn_s=0.0, minibatch_overhead_s=0.0, step_overhead_s=0.1 / 32,
        noise_fraction=0.0, launch_noise_fraction=0.0, warmup_iterations=1, warmup_slowdown=5.0, reset_fraction=0.0,
    )  # fmt: skip
    assert result.status == "ok"
    assert 2500 < result.sps <= 5200
    assert result.sps_low <= result.sps <= result.sps_high
    assert result.first_iteration_s > 0.4  # the slow first iteration is reported apart
    assert result.vram_peak_bytes is None
    assert result.ram_peak_bytes > 2**20
    assert result.threads_peak >= result.processes_peak >= 1
    assert result.shm_peak_bytes >= 0
    assert result.others_cpu_cores is None or result.others_cpu_cores >= 0
    assert result.effective["ram_limit"] in ("cgroup", "watch")
    assert no_workers_left()


def test_processes_run_side_by_side_with_their_share_of_threads(executor, tmp_path):
    result = probe(executor, tmp_path, replace(POINT, concurrency=2))
    assert len(result.job_sps) == 2
    assert result.sps == pytest.approx(sum(result.job_sps))
    assert result.effective["threads"] == max(1, int(executor.device.host.cpu_cores_allowed // 2))
    rows = read_lines(tmp_path / "samples" / "t.jsonl")
    assert {row["process"] for row in rows if "process" in row} == {0, 1}


@pytest.mark.parametrize(
    ("fail", "after", "status"),
    [
        ("oom", 0, "oom"),
        ("oom", 2, "oom"),
        ("host_oom", 1, "oom"),
        ("crash", 1, "crashed"),
        ("exit", 1, "crashed"),
        ("segfault", 1, "crashed"),
    ],
)
def test_failures_are_values(executor, tmp_path, fail, after, status):
    result = probe(executor, tmp_path, fail=fail, fail_after_iterations=after)
    assert result.status == status
    assert result.sps is None
    assert result.detail
    assert no_workers_left()


@pytest.mark.parametrize("fail", ["hang", "ignore_sigterm"])
def test_a_hang_ends_at_the_timeout(executor, tmp_path, fail):
    recipe = recipe_with(fail=fail, fail_after_iterations=1)
    started = time.monotonic()
    result = run_probe(recipe, POINT, executor, grade="quick", run=Run(tmp_path), label="t", timeout_s=3.0)
    assert result.status == "timeout"
    assert time.monotonic() - started < 12
    assert no_workers_left()


def test_garbage_on_standard_output_does_no_harm(executor, tmp_path):
    result = probe(executor, tmp_path, fail="garbage", fail_after_iterations=1)
    assert result.ok, result.detail
    assert no_workers_left()


def test_a_window_of_one_iteration_has_no_interval(executor, tmp_path):
    plan = replace(PLAN, window_s=0.01, window_iterations=1)
    recipe = replace(recipe_with(step_overhead_s=0.5 / 32), quick=plan)
    result = run_probe(recipe, POINT, executor, grade="quick", run=Run(tmp_path), label="t")
    assert result.ok and result.sps > 0 and result.iterations == 1
    assert result.sps_low is None and result.sps_high is None
    assert json.loads(canonical_json(to_json(result)))["sps_high"] is None


class KillsItsWorkers(IsolatedExecutor):
    """As the kernel does."""

    def _launch(self, request, workers, environment):
        super()._launch(request, workers, environment)
        os.kill(workers[0].pid, signal.SIGKILL)


@pytest.mark.parametrize(("oom_kills", "status"), [([7, 8], "oom"), ([7, 7], "crashed")])
def test_a_worker_that_the_kernel_killed_for_memory_is_oom(executor, tmp_path, monkeypatch, oom_kills, status):
    counts = iter(oom_kills)
    monkeypatch.setattr("autotune.executors.process.count_oom_kills", lambda: next(counts))
    monkeypatch.setattr(IsolatedExecutor, "_ram_free", lambda self: 0.5)
    result = probe(KillsItsWorkers(executor.device), tmp_path)
    assert (result.status, result.detail) == (status, "process ended with signal 9")


class LosesItsLogs(KillsItsWorkers):
    """As a person who tidies up the run's folder does."""

    def _launch(self, request, workers, environment):
        super()._launch(request, workers, environment)
        shutil.rmtree(request.log_folder)


def test_a_failure_whose_log_was_removed_meanwhile_is_a_result(executor, tmp_path):
    """Its last lines are nice to have: reading them ended the command in a traceback."""
    result = probe(LosesItsLogs(executor.device), tmp_path)
    assert (result.status, result.log_tail) == ("crashed", "")


class Deaf:
    """A meter whose driver hangs in every call."""

    def __init__(self, device, pids, period_s=0.5):
        self.forever = threading.Event()

    def start(self):
        self.forever.wait()

    def stop(self):
        self.forever.wait()
        return ()


def test_a_meter_that_hangs_holds_up_neither_start_nor_end(executor, tmp_path, monkeypatch):
    """Were it waited for, this test would never end."""
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda kind, name: Deaf if name in HUNG else load(kind, name))
    monkeypatch.setattr("autotune.executors.ending._START_METERS_S", 0.3)
    monkeypatch.setattr("autotune.executors.ending._STOP_METERS_S", 0.3)
    result = probe(executor, tmp_path)
    assert result.ok, result.detail
    assert result.ram_peak_bytes > 2**20  # the others were read
    assert no_workers_left()


class Fan(base.SampledMeter):
    def read(self):
        return {"fan_rpm": 1200.0}


def test_an_installed_meter_is_read_beside_the_bundled_ones(executor, tmp_path, monkeypatch):
    load, names = registry.load, registry.names
    monkeypatch.setattr(registry, "names", lambda kind: [*names(kind), *(["fan"] if kind == "meter" else [])])
    monkeypatch.setattr(registry, "load", lambda kind, name: Fan if name == "fan" else load(kind, name))
    result = probe(executor, tmp_path)
    assert result.ok and result.ram_peak_bytes > 2**20, result.detail
    (samples,) = (tmp_path / "samples").glob("*.jsonl")
    assert '"fan_rpm"' in samples.read_text()


HUNG = ("vram", "power", "health")


def test_the_times_of_an_end_fit_the_promise():
    assert ending._STOP_METERS_S < ending.END_S <= 10
    assert base._STOP_PATIENCE_S < ending._STOP_METERS_S  # a hung meter still hands over what it has read


def test_a_process_that_cannot_be_started_is_a_value(executor, tmp_path, monkeypatch):
    def refuse(*_arguments, **_options):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr("autotune.executors.process.subprocess.Popen", refuse)
    result = probe(executor, tmp_path)
    assert result.status == "crashed" and "Resource temporarily unavailable" in result.detail
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_no_file_left_to_open_is_a_value_too(executor, tmp_path, monkeypatch):
    """Each process takes two of the parent's pipes."""

    def refuse():
        raise OSError(errno.EMFILE, "Too many open files")

    pipe, left = os.pipe, [True]
    monkeypatch.setattr(os, "pipe", lambda: pipe() if left and left.pop() else refuse())
    before = len(list(Path("/proc/self/fd").iterdir()))
    result = probe(executor, tmp_path)
    assert result.status == "crashed" and "Too many open files" in result.detail and "ulimit -n" in result.detail
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_point_that_takes_every_thread_there_may_be_ends_its_own_probe_alone(executor, tmp_path, monkeypatch):
    """The parent can start none for its meters, nor to end the workers."""

    def refuse(_thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    result = probe(executor, tmp_path)
    assert result.ok and result.ram_peak_bytes is None, result.detail
    assert no_workers_left()


def worker_that_is(program, folder):
    """A worker in whose place a Python program runs, with the worker's arguments."""
    job = Job(id="a", env="busywork", seed=0, budget=Budget(unit="steps", amount=1))
    task = WorkerTask(mode="check", workload="busywork", hyperparameters={}, point=POINT, jobs=(job,))
    (folder / "python").write_text(f"#!/bin/sh\nexec {sys.executable} -c '{program}' $@\n")
    (folder / "python").chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(folder / "python"))
        return WorkerProcess(task, folder / "log")


def test_a_descendant_that_holds_the_pipe_hides_no_end(tmp_path):
    """A worker that is killed while a process that it forked lives on (a data loader, say)."""
    holder = (
        "import os, time\n"
        "child = os.fork()\n"
        "if child == 0: os.setsid(); time.sleep(60); os._exit(0)\n"
        "print(child, flush=True); os.kill(os.getpid(), 9)\n"
    )
    worker = worker_that_is(holder, tmp_path)
    worker._process.wait(30)
    assert worker.receive(0.1) == []
    assert worker.ended
    worker.kill(grace_s=0.0)
    os.kill(int(worker.log.read_text()), signal.SIGKILL)


def test_a_failure_is_told_where_the_log_takes_nothing():
    """The disk is full: the message is not lost with the traceback."""
    job = Job(id="a", env="busy", seed=0, budget=Budget(unit="steps", amount=1))
    settings = {"fail": "crash"}
    task = WorkerTask(mode="measure", workload="busywork", hyperparameters=settings, point=POINT, jobs=(job,))
    (commands_read, commands), (messages, messages_write) = os.pipe(), os.pipe()
    pipes = (commands_read, messages_write)
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-P", "-m", "autotune.worker", *map(str, pipes)]
        worker = subprocess.Popen(command, pass_fds=pipes, stdout=full, stderr=full)
    os.close(commands_read)
    os.close(messages_write)
    os.write(commands, canonical_json(to_json(task), indent=None).encode() + b"\ngo\n")
    with os.fdopen(messages) as told:
        last = json.loads(told.read().splitlines()[-1])
    assert worker.wait(30) == 1
    os.close(commands)
    assert (last["type"], last["kind"]) == ("error", "crashed")


def test_a_worker_that_is_ending_by_itself_is_not_said_to_be_ended_by_a_signal(tmp_path):
    """What closed its pipe has come to its end, and takes a moment to leave."""
    program = "import os, sys, time; os.close(int(sys.argv[-1])); time.sleep(0.5); os._exit(3)"
    worker = worker_that_is(program, tmp_path)
    while not worker.ended:
        worker.receive(5.0)
    worker.kill(grace_s=5.0)
    assert worker.returncode == 3


def test_a_worker_that_may_start_no_thread_says_so(tmp_path):
    program = (
        "import sys, threading\n"
        'def refuse(thread): raise RuntimeError("can not start new thread")\n'
        "threading.Thread.start = refuse\n"
        "from autotune.worker.__main__ import main\n"
        "sys.exit(main(sys.argv[-2:]))"
    )
    worker, messages = worker_that_is(program, tmp_path), []
    while not worker.ended:
        messages += worker.receive(5.0)
    worker.kill(grace_s=5.0)
    assert [(message["type"], message["kind"]) for message in messages] == [("error", "crashed")]
    assert re.search(r"another thread \(can not .*\): lower concurrency.* `autotune doctor`", messages[0]["detail"])


@pytest.mark.parametrize(
    ("end", "oom_kills", "words"),
    [
        ("os._exit(3)", [7, 7], "ended with exit code 3 and no answer"),
        ("os.kill(os.getpid(), 9)", [7, 7], "ended with signal 9 and no answer"),
        ("os.kill(os.getpid(), 9)", [7, 8], "was killed by the kernel, which had no memory left: it gave no answer"),
    ],
)
def test_a_question_whose_worker_leaves_without_an_answer_tells_how(
    executor, tmp_path, monkeypatch, end, oom_kills, words
):
    """Its pipe is closed a moment before it has gone."""
    program = f"import os, sys, time; os.close(int(sys.argv[-1])); time.sleep(0.5); {end}"
    (tmp_path / "python").write_text(f"#!/bin/sh\nexec {sys.executable} -c '{program}' $@\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    counts = iter(oom_kills)
    monkeypatch.setattr("autotune.executors.process.count_oom_kills", lambda: next(counts))
    with pytest.raises(WorkerError, match=words):
        executor.check(load_recipe("busywork"))


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_meter_that_may_start_no_thread_of_its_own_makes_no_noise():
    def refuse():
        raise RuntimeError("can't start new thread")

    assert ending.side_by_side([refuse, lambda: 1], 5.0) == [None, 1]


def test_a_task_reaches_its_worker_whole_however_little_a_pipe_takes_at_once(executor, monkeypatch):
    """A write of more than a pipe holds ends early when the command is suspended meanwhile (Ctrl-Z)."""
    write = os.write
    monkeypatch.setattr("autotune.executors.process.os.write", lambda file, data: write(file, data[:100]))
    executor.check(load_recipe("busywork"))


def test_questions_work_where_only_the_temporary_folder_is_writable(executor, monkeypatch):
    """A user who is not root may write neither to /dev nor to the current folder."""
    folders = []
    monkeypatch.setattr("autotune.executors.process.make_folder", folders.append)
    executor.check(load_recipe("busywork"))
    assert len(folders) == 1
    assert folders[0].is_relative_to(tempfile.gettempdir())
    assert not folders[0].exists()


@pytest.mark.parametrize("nap_s", [0.0, 9.0])
def test_a_time_that_ran_out_while_the_command_stood_still_says_so(executor, tmp_path, monkeypatch, nap_s):
    """Ctrl-Z stops the command, not its workers."""
    naps = [nap_s]
    sleepy = IsolatedExecutor(executor.device, lambda: bool(naps and time.sleep(naps.pop())))
    recipe = replace(recipe_with(fail="hang"), quick=replace(PLAN, timeout_s=6.0))
    result = run_probe(recipe, POINT, sleepy, grade="quick", run=Run(tmp_path), label="t")
    assert result.status == "timeout"
    assert (PAUSED in result.flags) == ("this command stood still for 4 s" in result.detail) == (nap_s > 0)


def test_a_question_ends_when_a_stop_is_asked_for(executor):
    stopped = IsolatedExecutor(executor.device, lambda: True)
    with pytest.raises(KeyboardInterrupt):
        stopped.ceilings(recipe_with(fail="hang"), POINT, 20.0)
    assert no_workers_left()


def test_an_answer_that_does_not_come_shows_the_log(executor):
    recipe = recipe_with(fail="exit")
    with pytest.raises(
        WorkerError, match=r"ended with exit code 3 and no answer. The last lines of its log:\n\(empty\)"
    ):
        executor.ask("steps", recipe.workload, recipe.hyperparameters, recipe.jobs, POINT, steps=1)


def test_misuse_is_raised_not_measured(executor):
    with pytest.raises(UsageError, match="batch_size"):
        executor.check(load_recipe("busywork"), [Point(num_envs=1, batch_size=100_000)])
    with pytest.raises(UsageError, match="no_such"):
        executor.check(recipe_with(no_such=1))


@pytest.mark.parametrize(("held", "within_s"), [(False, 10), (True, 30)])
def test_workers_die_with_their_parent(tmp_path, held, within_s):
    """A parent killed with SIGKILL leaves no worker behind, not even one that holds the interpreter's lock for good."""
    hold = (
        "import ctypes, autotune.workloads.busywork as it\nit.pass_time = lambda *_, **__: ctypes.PyDLL(None).sleep(90)"
    )
    (tmp_path / "sitecustomize.py").write_text(hold if held else "")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    script = f"""
import os, sys, time
from pathlib import Path
from autotune.executors.process import WorkerProcess
from autotune.probe.grid import run_grid
from autotune.probe.recipe import command_recipe, load_recipe
from autotune.records import Point
from autotune.worker.protocol import WorkerTask
recipe = load_recipe("busywork")
task = WorkerTask(mode="measure", workload="busywork", hyperparameters=recipe.hyperparameters,
                  point=Point(num_envs=4, batch_size=16), jobs=recipe.jobs[:1])
worker = WorkerProcess(task, Path({str(tmp_path / "log")!r}))
worker.receive(20)
worker.send("go")
print(worker.pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    pid = int(parent.stdout.readline())
    time.sleep(1.0)  # it has begun to step
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + within_s
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_kill_ends_the_whole_group(tmp_path):
    recipe = load_recipe("busywork")
    job = Job(id="a", env="busywork", seed=0, budget=Budget(unit="steps", amount=1))
    task = WorkerTask(
        mode="measure", workload="busywork", hyperparameters=recipe.hyperparameters, point=POINT, jobs=(job,)
    )
    worker = WorkerProcess(task, tmp_path / "log")
    assert any(message["type"] == "ready" for message in worker.receive(20.0))
    worker.kill(grace_s=0.0)
    assert not worker.alive
    assert worker.descendants() == []
    with pytest.raises(ProcessLookupError):
        os.killpg(worker.pid, 0)
    worker.kill()  # twice is harmless


def test_a_resumed_search_has_heard_what_its_history_heard(executor, tmp_path):
    code = "import sys, time\nif sys.argv[1] == '8': sys.exit(0)\nn = 0\nwhile True:\n"
    code += "    n += 10; print('steps', n, flush=True); time.sleep(0.01)"
    recipe = replace(command_recipe([sys.executable, "-c", code, "{num_envs}"], counter=r"steps (\d+)"), quick=PLAN)
    points, recorded = [Point(num_envs=4, batch_size=64), Point(num_envs=8, batch_size=64)], []
    grid = partial(run_grid, recipe, points, executor, grade="quick", record=recorded.append)
    first, refused = grid(run=create_run(tmp_path, "r-1", finished=False))
    assert first.ok and (refused.status, refused.flags) == ("crashed", (REFUSED,))
    _, again = grid(run=create_run(tmp_path, "r-2", finished=False), done={points[0]: first})
    assert again.flags == (REFUSED,) and len(recorded) == 3


def test_a_script_that_counts_nothing_is_misuse_at_once(tmp_path):
    """Measuring further points would waste the same minutes again."""
    argv = [sys.executable, "-c", "import time\nfor i in range(100): print('epoch', i, flush=True); time.sleep(0.1)"]
    recipe = replace(
        command_recipe([*argv, "{num_envs}"], counter=r"steps=(\d+)"),
        quick=PLAN,
    )
    recipe = replace(recipe, hyperparameters={**recipe.hyperparameters, "progress_timeout_s": 1.0})
    with pytest.raises(UsageError, match="no line matched --counter") as caught:
        fresh = IsolatedExecutor(inspect_device("cpu"))  # one that has heard steps before would take it for a hang
        run_probe(recipe, recipe.baseline, fresh, grade="quick", run=Run(tmp_path), label="t")
    assert "epoch" in str(caught.value)
    assert no_workers_left()


@pytest.mark.parametrize(
    "fault",
    [
        {"fail": "hang", "fail_after_iterations": 1},
        {"fail": "crash", "fail_after_iterations": 1},
        {"rollout": -1},  # as a framework that finds no device refuses what it is told
    ],
)
def test_a_gpu_that_is_lost_ends_its_probe_at_once_and_says_nothing_of_the_point(
    executor, tmp_path, monkeypatch, fault
):
    gpu = fake_nvml.t4()
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml.FakeNvml(gpu))
    with_gpu = replace(executor.device, name="Tesla T4", gpus=(GpuInfo(index=0, name="Tesla T4"),), gpu_index=0)
    lossy = IsolatedExecutor(with_gpu)
    launch = lossy._launch

    def launch_and_lose(*arguments):
        launch(*arguments)
        gpu.xids, gpu.lost = [79], True

    monkeypatch.setattr(lossy, "_launch", launch_and_lose)
    started_s = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        probe(lossy, tmp_path, **fault)
    assert time.monotonic() - started_s < 15  # its processes would hang for 20 s
    assert lossy.lost.startswith("GPU 0 (Tesla T4) does not answer any more (")
    assert no_workers_left()
