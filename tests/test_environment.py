"""What a worker finds in its environment, and which processes belong to it."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest

from autotune.executors.environment import kept_memory, processor_tag, worker_environment
from autotune.executors.process import descendants_of
from autotune.records import Budget, Job, Point, Work
from autotune.worker.measure import step_message
from autotune.worker.protocol import WorkerTask
from autotune.workloads.protocol import OPENMP

JOB = Job(id="a", env="busy", seed=0, budget=Budget(unit="steps", amount=1))
CACHES = ("JAX_COMPILATION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")


def task_of(workload="busywork", **values):
    point = Point(num_envs=1, batch_size=1)
    return WorkerTask(mode="measure", workload=workload, hyperparameters={}, point=point, jobs=(JOB,), **values)


@pytest.fixture
def caches(tmp_path, monkeypatch):
    for name in CACHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "autotune" / processor_tag()


def test_compiled_programs_go_to_the_users_cache_folder(caches):
    environment = worker_environment(task_of())
    assert environment["JAX_COMPILATION_CACHE_DIR"] == str(caches / "jax")
    assert environment["TORCHINDUCTOR_CACHE_DIR"] == str(caches / "torchinductor")


def test_a_cache_that_cannot_be_written_is_left_to_the_framework(caches, monkeypatch, tmp_path):
    caches.mkdir(parents=True)
    (caches / "torchinductor").touch()
    assert set(CACHES) & set(worker_environment(task_of())) == {"JAX_COMPILATION_CACHE_DIR"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda *_, **__: "~/.cache/autotune")  # of a user without a home
    assert not set(CACHES) & set(worker_environment(task_of()))
    assert not (tmp_path / "~").exists()


def test_a_user_without_a_home_has_no_caches(caches, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(user):
        raise KeyError(f"getpwuid(): uid not found: {user}")

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert not set(CACHES) & set(worker_environment(task_of()))


def test_a_cache_that_the_user_chose_is_kept(caches, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/mine")
    environment = worker_environment(task_of())
    assert environment["JAX_COMPILATION_CACHE_DIR"] == "/mine"
    assert environment["TORCHINDUCTOR_CACHE_DIR"] == str(caches / "torchinductor")


def test_an_own_script_finds_what_it_would_find_without_autotune(caches):
    assert not set(CACHES) & set(worker_environment(task_of("command")))


def test_the_trainers_malloc_keeps_what_was_freed_unless_the_user_chose(monkeypatch):
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "4096")
    kept = kept_memory(("glibc", "2.36"))
    assert set(kept) == {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"}
    assert kept_memory(("glibc", "2.35")) == kept_memory(("musl", "1.2")) == kept_memory(("", "")) == {}
    if kept_memory():
        environment = worker_environment(task_of())
        assert environment["MALLOC_MMAP_THRESHOLD_"] == "4096"
        assert environment["MALLOC_TRIM_THRESHOLD_"] == kept["MALLOC_TRIM_THRESHOLD_"]
        assert "MALLOC_TRIM_THRESHOLD_" not in worker_environment(task_of("command"))


@pytest.mark.skipif(not kept_memory(), reason="another malloc than a recent glibc's")
def test_kept_memory_is_not_given_back_to_the_kernel(monkeypatch):
    """Large blocks taken and freed again and again cost page faults once, not every time."""
    code = (
        "import resource; size = 64 << 20\n"
        "for n in range(12): block = bytearray(size); del block\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)"
    )
    faults = []
    for names in ({}, kept_memory()):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")} | names
        ran = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
        faults.append(int(ran.stdout))
    assert faults[1] < 0.5 * faults[0]


def test_openmp_waits_as_measured_whatever_the_shell_says(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    environment = worker_environment(task_of())
    assert {name: environment[name] for name in OPENMP} == OPENMP


def test_threads_and_memory_are_the_tasks_own(monkeypatch):
    monkeypatch.setenv("AUTOTUNE_MEMORY_FRACTION", "0.9")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    environment = worker_environment(task_of(threads=3), {"CUDA_VISIBLE_DEVICES": ""})
    assert environment["OMP_NUM_THREADS"] == environment["AUTOTUNE_THREADS"] == "3"
    assert "AUTOTUNE_MEMORY_FRACTION" not in environment
    assert worker_environment(task_of(memory_fraction=0.25))["AUTOTUNE_MEMORY_FRACTION"] == "0.2500"
    assert environment["CUDA_VISIBLE_DEVICES"] == ""


def test_processors_with_other_instructions_have_caches_of_their_own(tmp_path):
    tags = []
    for number, flags in enumerate(("fpu avx2", "avx2 fpu", "fpu avx2 avx512f")):
        root = tmp_path / str(number)
        (root / "proc").mkdir(parents=True)
        (root / "proc" / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: x\nflags\t\t: {flags}\n\n")
        tags.append(processor_tag(root))
    assert tags[0] == tags[1] != tags[2]


def test_jax_finds_what_another_process_compiled(caches):
    """The variables mean to JAX what is meant: even the smallest program is kept."""
    pytest.importorskip("jax")
    code = "import jax; print(jax.jit(lambda x: x * 3 + 1)(2.0))"
    environment = worker_environment(task_of()) | {"JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    assert any(path.name.endswith("-cache") for path in (caches / "jax").iterdir())


def test_a_point_is_compiled_anew_whatever_is_kept(caches):
    """Memory and seconds of a probe are those of a process that compiles: only what opens a session is kept."""
    pytest.importorskip("jax")
    code = (
        "from autotune.probe.recipe import load_recipe\n"
        "from autotune.records import Point\n"
        "from autotune.workloads.cartpole_jax import CartpoleJaxWorkload\n"
        "recipe = load_recipe('cartpole-jax')\n"
        "session = CartpoleJaxWorkload({}).open(Point(num_envs=4, batch_size=32), recipe.jobs[0], 'cpu')\n"
        "session.step()\n"
    )
    subprocess.run([sys.executable, "-c", code], env=worker_environment(task_of()), check=True, capture_output=True)
    kept = {path.name.rsplit("-", 2)[0] for path in (caches / "jax").iterdir()}
    assert any("orthogonal" in name for name in kept)
    assert not any("update" in name for name in kept)


def test_descendants_are_those_of_every_generation():
    code = (
        "import subprocess, sys, threading\n"
        "start = lambda: subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)\n"
        "threading.Thread(target=start).start(); start(); print('x', flush=True); input()"
    )
    outer = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        outer.stdout.readline()
        deadline = time.monotonic() + 20
        while len(descendants_of(outer.pid)) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert descendants_of(outer.pid)[0] == outer.pid
        assert set(descendants_of(outer.pid)[1:]) == {p.pid for p in psutil.Process(outer.pid).children(recursive=True)}
        assert len(descendants_of(outer.pid)) == 4
    finally:
        os.killpg(outer.pid, 9)
        outer.wait()
    assert descendants_of(outer.pid) == []


def test_a_step_message_holds_what_a_step_of_a_window_is():
    work = Work(
        env_steps=3,
        reset_rows=1,
        episodes=2,
        minibatches=4,
        seconds={"env": 0.5},
        lengths=(4, 5),
        metrics={"loss": 0.1},
    )
    message = json.loads(json.dumps(step_message([work], 2.0, 1.0)))
    told = {"env_steps": 3, "reset_rows": 1, "episodes": 2, "minibatches": 4, "lengths": [4, 5]}
    assert message == {
        "type": "step",
        "t": 2.0,
        "started": 1.0,
        "seconds": {"env": 0.5},
        "metrics": {"loss": 0.1},
        **told,
    }
