"""CUDA MPS with a stand-in for the control program: it serves, it is gone afterwards, and it says why it cannot."""

import os
import shutil
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from fake_host import host
from waiting import comes_true

from autotune.device.inspect import inspect_device
from autotune.device.mps import (
    PROGRAM,
    check_sharing,
    mps_problem,
    shared_device,
    shared_if_possible,
    sharing_in_effect,
)
from autotune.errors import DeviceError, UsageError
from autotune.machine import DeviceInfo, GpuInfo
from autotune.records import Point

GPU = DeviceInfo(kind="cuda", name="GPU", host=host(), gpus=(GpuInfo(index=0, name="GPU", uuid="GPU-1"),), gpu_index=0)
SHARED = Point(num_envs=8, batch_size=64, concurrency=2, extra=(("sharing", "cuda-mps"),))


@pytest.fixture
def control(tmp_path, monkeypatch):
    """The stand-in on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    shutil.copy(Path(__file__).parent / "fake_mps_control.py", folder / PROGRAM)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("FAKE_MPS", raising=False)


def family(environment):
    """Pids of the daemon and its server."""
    pipes = Path(environment["CUDA_MPS_PIPE_DIRECTORY"])
    return [int((pipes / name).read_text()) for name in ("control", "servers")]


def gone(pids, within_s=10.0):
    """Whether all these processes end in time."""
    return comes_true(lambda: not any(map(psutil.pid_exists, pids)), within_s)


def test_it_serves_privately_and_leaves_nothing(control):
    with shared_device(GPU, SHARED) as environment:
        assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-1"
        pids = family(environment)
        assert all(map(psutil.pid_exists, pids))
        folders = [Path(environment[f"CUDA_MPS_{name}_DIRECTORY"]) for name in ("PIPE", "LOG")]
        for folder in (*folders, folders[0].parent):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert gone(pids, within_s=0.0)
    assert not folders[0].parent.exists()


def test_one_that_does_not_quit_is_killed_with_its_server_also_after_an_error(control, monkeypatch):
    monkeypatch.setenv("FAKE_MPS", "deaf")
    with pytest.raises(KeyboardInterrupt), shared_device(GPU, SHARED) as environment:
        pids = family(environment)
        raise KeyboardInterrupt
    assert gone(pids, within_s=0.0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_parent(control, number):
    code = (
        f"import sys, time; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_mps import GPU, SHARED, family, shared_device\n"
        "with shared_device(GPU, SHARED) as environment:\n    print(*family(environment), flush=True)\n"
        "    print(environment['CUDA_MPS_PIPE_DIRECTORY'], flush=True)\n"
        "    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2 and all(map(psutil.pid_exists, pids))
        folder = Path(parent.stdout.readline().strip()).parent
        assert folder.is_dir()
        parent.send_signal(number)
    assert gone(pids)
    assert comes_true(lambda: not folder.exists(), 10.0)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "refused",
            r"its control daemon ended at once; its logs end with: .*Failed to allocate the GPU: not permitted",
        ),
        ("no-server", r"no server appeared within 0 s; its logs are empty"),
    ],
)
def test_one_that_does_not_serve_is_told_and_stopped(control, monkeypatch, fault, message):
    monkeypatch.setenv("FAKE_MPS", fault)
    monkeypatch.setattr("autotune.device.mps._START_S", 0.4 if fault == "no-server" else 10.0)
    others = psutil.Process().children()
    with pytest.raises(DeviceError, match=message), shared_device(GPU, SHARED):
        pass
    assert set(psutil.Process().children()) <= set(others)


def test_turns_need_no_service(monkeypatch):
    monkeypatch.setenv("PATH", "")
    for point in (replace(SHARED, concurrency=1), replace(SHARED, extra=(("sharing", "time-slice"),))):
        with shared_device(GPU, point) as environment:
            assert set(environment) == {"CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"}
        assert sharing_in_effect(point) == {"sharing": "time-slice"}
    assert sharing_in_effect(SHARED) == {"sharing": "cuda-mps"}
    assert sharing_in_effect(replace(SHARED, extra=())) == {}


def test_turns_are_taken_also_beside_the_service_of_somebody_else():
    """CUDA goes to whatever daemon it finds: processes that were told to take turns shared the GPU by MPS."""
    served, turns = replace(GPU, mps_active=True), replace(SHARED, extra=(("sharing", "time-slice"),))
    with shared_device(served, turns) as environment:
        pipes = Path(environment["CUDA_MPS_PIPE_DIRECTORY"])
        assert list(pipes.iterdir()) == [] and stat.S_IMODE(pipes.stat().st_mode) == 0o700
    assert not pipes.exists()
    warnings = []
    with shared_if_possible(served, SHARED, warnings.append) as (environment, sharing):
        assert list(Path(environment["CUDA_MPS_PIPE_DIRECTORY"]).iterdir()) == []
        assert sharing == {"sharing": "time-slice"} and "of someone else" in warnings[0]
    with shared_device(served, replace(SHARED, extra=())) as environment:  # nothing is said: as the user has set it up
        assert "CUDA_MPS_PIPE_DIRECTORY" not in environment
    busy = replace(served, gpus=(replace(GPU.gpus[0], compute_mode="exclusive_process"),))
    with shared_device(busy, replace(turns, concurrency=1)) as environment:  # which the service holds: no other way
        assert "CUDA_MPS_PIPE_DIRECTORY" not in environment


@pytest.mark.parametrize(
    ("device", "problem"),
    [
        (inspect_device("cpu"), "it needs an NVIDIA GPU, and the device in use is cpu"),
        (replace(GPU, mps_active=True), "of someone else already runs"),
        (replace(GPU, gpus=(replace(GPU.gpus[0], mig_enabled=True),)), "split by MIG"),
        (GPU, "nvidia-cuda-mps-control, which comes with NVIDIA's driver, is not on PATH"),
    ],
)
def test_it_says_why_it_cannot_be_started(device, problem, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert problem in mps_problem(device)
    with pytest.raises(DeviceError, match="CUDA MPS cannot be started: "), shared_device(device, SHARED):
        pass


def test_a_training_takes_turns_where_mps_does_not_serve():
    warnings = []
    with shared_if_possible(inspect_device("cpu"), SHARED, warnings.append) as (environment, sharing):
        assert environment["CUDA_VISIBLE_DEVICES"] == ""
        assert sharing == {"sharing": "time-slice"}
    assert len(warnings) == 1 and warnings[0].endswith("The processes take turns on the device instead.")


def in_mode(mode):
    return replace(GPU, gpus=(replace(GPU.gpus[0], compute_mode=mode),))


def test_a_gpu_that_admits_one_process_refuses_several_that_take_turns(control):
    turns, one = replace(SHARED, extra=()), replace(SHARED, concurrency=1)
    message = r"mode is exclusive_process, .* concurrency is 2: .*nvidia-smi -c 0\), or sharing = cuda-mps"
    with pytest.raises(DeviceError, match=message), shared_device(in_mode("exclusive_process"), turns):
        pass
    for device, point in ((in_mode("exclusive_process"), one), (in_mode("exclusive_process"), SHARED), (GPU, turns)):
        with shared_device(device, point):
            pass
    with pytest.raises(DeviceError, match="mode is prohibited"), shared_device(in_mode("prohibited"), one):
        pass


def test_a_training_takes_no_turns_on_a_gpu_that_admits_one_process(monkeypatch):
    monkeypatch.setenv("PATH", "")
    warnings = []
    with (
        pytest.raises(DeviceError, match="mode is exclusive_process"),
        shared_if_possible(in_mode("exclusive_process"), SHARED, warnings.append),
    ):
        pass
    assert warnings == []


def test_mps_alone_means_apples():
    for good in (None, "time-slice", "cuda-mps"):
        check_sharing(good)
    with pytest.raises(UsageError, match=r"sharing = 'mps' is no way to share a GPU \(mps alone means Apple's"):
        check_sharing("mps")
    with pytest.raises(UsageError, match="write time-slice or cuda-mps"):
        check_sharing(True)


@pytest.mark.gpu
def test_the_real_one_serves_or_says_why_not():
    device = inspect_device()
    if (problem := mps_problem(device)) is not None:
        pytest.skip(f"CUDA MPS cannot be started here: {problem}")
    try:
        with shared_device(device, SHARED) as environment:
            assert (Path(environment["CUDA_MPS_PIPE_DIRECTORY"]) / "control").exists()
    except DeviceError as error:
        pytest.skip(str(error))
    names = {process.info["name"] or "" for process in psutil.process_iter(["name"])}  # some end meanwhile
    assert not any(name.startswith("nvidia-cuda-mps") for name in names)
