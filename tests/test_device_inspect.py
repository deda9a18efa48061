"""Which device is used and what is known of it: NVML, nvidia-smi, neither; every kind of machine."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fake_nvml
import pytest
from fake_host import host, write_tree
from fake_nvml import GIB, FakeNvml

from autotune.codec import from_json, to_json
from autotune.device.doctor import diagnose
from autotune.device.inspect import child_environment, inspect_device, mps_active, usable_device, visible_gpus
from autotune.device.live_gpu import LiveGpu
from autotune.device.nvml import read_nvml
from autotune.device.prices import listed_price, price_table
from autotune.device.smi import read_smi, run_program
from autotune.errors import DeviceError, UsageError
from autotune.machine import DeviceInfo, GpuInfo, GpuProcess

NO_PROGRAM = {"run": lambda _: None}


def inspect(nvml: FakeNvml, want: str = "auto", **options: Any) -> DeviceInfo:
    settings: dict[str, Any] = {"environment": {}, "apple_gpu": False, "host": host(), **NO_PROGRAM}
    return inspect_device(want, pynvml=nvml, **settings | options)


def test_no_library_means_the_cpu_and_says_why() -> None:
    device = inspect(FakeNvml(init_error=fake_nvml.LIBRARY_NOT_FOUND))
    assert (device.kind, device.name, device.source, device.gpus) == ("cpu", "Fast CPU", None, ())
    assert device.nvml_problem == "NVML Shared Library Not Found"
    assert (device.driver, device.vram_total_bytes, device.sku, device.mps_active) == (None, None, None, None)


def test_a_goodbye_that_fails_takes_nothing_back() -> None:
    """The answer was lost in a traceback, and NVML said to have hung for 15 s."""
    device = inspect(FakeNvml(fake_nvml.t4(), refused={"nvmlShutdown": fake_nvml.GPU_IS_LOST}))
    assert (device.kind, device.name, device.nvml_problem) == ("cuda", "Tesla T4", None)


def test_no_gpu_means_the_cpu() -> None:
    device = inspect(FakeNvml())
    assert (device.kind, device.source, device.nvml_problem) == ("cpu", "nvml", None)
    assert device.driver == "550.54.15"


def test_t4() -> None:
    device = inspect(FakeNvml(fake_nvml.t4(used_gib=1, processes={42: 1 * GIB})))
    assert (device.kind, device.name, device.gpu_index, device.sku) == ("cuda", "Tesla T4", 0, "t4")
    assert (device.driver, device.cuda_driver, device.source) == ("550.54.15", "12.4", "nvml")
    gpu = device.gpu
    assert gpu is not None
    assert (gpu.vram_total_bytes, gpu.vram_used_bytes, gpu.vram_free_bytes) == (15 * GIB, 1 * GIB, int(13.5 * GIB))
    assert gpu.processes == (GpuProcess(pid=42, used_bytes=GIB, name="python42"),)
    assert (gpu.compute_capability, gpu.power_limit_w, gpu.temperature_c) == ((7, 5), 70.0, 40)
    assert (gpu.mig_enabled, gpu.ecc_enabled, gpu.ecc_uncorrected, gpu.throttle_reasons) == (None, True, 0, ())
    assert from_json(DeviceInfo, to_json(device)) == device


def test_a100_40_and_80_are_told_apart() -> None:
    assert inspect(FakeNvml(fake_nvml.a100_40())).sku == "a100-40gb"
    assert inspect(FakeNvml(fake_nvml.a100_80())).sku == "a100-80gb"


def test_mig_shows_the_instances_memory_and_has_no_price() -> None:
    device = inspect(FakeNvml(fake_nvml.a100_80_mig()))
    gpu = device.gpu
    assert gpu is not None
    assert (gpu.mig_enabled, gpu.uuid, gpu.vram_total_bytes) == (True, "MIG-1", int(39.5 * GIB))
    assert device.sku is None
    assert child_environment(device)["CUDA_VISIBLE_DEVICES"] == "MIG-1"


def test_mig_instance_named_in_the_environment_is_the_one() -> None:
    device = inspect(FakeNvml(fake_nvml.a100_80_mig()), environment={"CUDA_VISIBLE_DEVICES": "MIG-2"})
    assert device.gpu is not None
    assert device.gpu.uuid == "MIG-2"


@pytest.mark.parametrize(
    ("variable", "uuid"),
    [("MIG-2,MIG-1", "MIG-2"), ("MIG-1,MIG-2", "MIG-1"), ("GPU-a80", "MIG-1"), ("GPU-a", "MIG-1"), ("0", "MIG-1")],
)
def test_a_divided_gpu_is_the_instance_that_stands_first(variable: str, uuid: str) -> None:
    nvml = FakeNvml(fake_nvml.a100_80_mig())
    device = inspect(nvml, environment={"CUDA_VISIBLE_DEVICES": variable})
    assert (device.kind, device.gpus[0].uuid, device.gpus[0].board_uuid) == ("cuda", uuid, "GPU-a80")
    assert child_environment(device)["CUDA_VISIBLE_DEVICES"] == uuid


def test_h200_on_an_old_library_lacks_only_what_that_lacks() -> None:
    nvml = FakeNvml(
        fake_nvml.h200(used_gib=1),
        absent=("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetMigMode"),
        refused={"nvmlDeviceGetTotalEccErrors": fake_nvml.FUNCTION_NOT_FOUND},
    )
    gpu = inspect(nvml).gpu
    assert gpu is not None
    assert (gpu.mig_enabled, gpu.ecc_uncorrected, gpu.throttle_reasons) == (None, None, ())
    assert (gpu.name, gpu.vram_total_bytes) == ("NVIDIA H200", 141 * GIB)


def test_a_driver_that_is_older_than_the_binding_still_answers() -> None:
    lists = [f"nvmlDeviceGet{kind}RunningProcesses" for kind in ("Compute", "Graphics", "MPSCompute")]
    nvml = FakeNvml(fake_nvml.t4(used_gib=1, processes={42: GIB}), driver="470.82", cuda=11040, outdated=(*lists,))
    device = inspect(nvml)
    assert (device.kind, device.driver, device.nvml_problem) == ("cuda", "470.82", None)
    assert device.gpu is not None and device.gpu.processes == (GpuProcess(pid=42, used_bytes=GIB, name="python42"),)
    assert LiveGpu(device.gpu, nvml).processes() == {42: GIB}
    unknown = inspect(FakeNvml(fake_nvml.t4(), outdated=("nvmlDeviceGetMigMode",))).gpu
    assert unknown is not None and unknown.name == "Tesla T4"


def test_memory_without_version_2_counts_what_the_driver_reserves() -> None:
    class OldNvml(FakeNvml):
        nvmlMemory_v2 = None

    gpu = inspect(OldNvml(fake_nvml.h200(used_gib=1))).gpu
    assert gpu is not None
    assert gpu.vram_used_bytes == int(1.5 * GIB)


def test_two_gpus_by_number_and_by_visibility() -> None:
    nvml = FakeNvml(fake_nvml.t4(), fake_nvml.h200())
    assert inspect(nvml).gpu_index == 0
    assert inspect(nvml, "cuda:1").name == "NVIDIA H200"
    hidden = inspect(nvml, "cuda:0", environment={"CUDA_VISIBLE_DEVICES": "1"})
    assert (hidden.gpu_index, len(hidden.gpus)) == (1, 2)
    assert child_environment(hidden) == {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "GPU-h"}


def test_everything_hidden_means_the_cpu() -> None:
    device = inspect(FakeNvml(fake_nvml.t4()), environment={"CUDA_VISIBLE_DEVICES": ""})
    assert (device.kind, len(device.gpus)) == ("cpu", 1)
    assert child_environment(device)["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("variable", "expected"),
    [(None, [0, 1]), ("1,0", [1, 0]), ("0,7,1", [0]), ("-1", []), ("GPU-b", [1]), ("GPU-", []), (" 1 ", [1])],
)
def test_cuda_visible_devices(variable: str | None, expected: list[int]) -> None:
    gpus = tuple(GpuInfo(index=i, name="x", uuid=uuid) for i, uuid in enumerate(("GPU-aa", "GPU-bb")))
    assert visible_gpus(gpus, variable) == expected


def test_a_lost_gpu_is_told_and_a_healthy_one_used() -> None:
    device = inspect(FakeNvml(fake_nvml.t4(lost=True), fake_nvml.h200()))
    assert (device.gpu_index, device.name) == (1, "NVIDIA H200")
    assert device.gpus[0].problem == "GPU is lost"


def test_a_gpu_that_gets_lost_between_two_queries() -> None:
    nvml = FakeNvml(fake_nvml.t4(), refused={"nvmlDeviceGetName": fake_nvml.GPU_IS_LOST})
    device = inspect(nvml)
    assert (device.kind, device.gpus[0].problem) == ("cpu", "GPU is lost")


def test_gpus_of_other_jobs_are_passed_over_and_not_counted() -> None:
    """A batch system counts the GPUs of a job from 0; NVML counts the others too and refuses them."""
    nvml = FakeNvml(fake_nvml.t4(denied=True), fake_nvml.h200(), fake_nvml.a100_40())
    for variable, want, name in ((None, "cuda", "H200"), ("0", "auto", "H200"), ("0,1", "cuda:1", "A100")):
        device = inspect(nvml, want, environment={} if variable is None else {"CUDA_VISIBLE_DEVICES": variable})
        assert name in device.name
        assert device.gpu is not None and LiveGpu(device.gpu, nvml).total_bytes() == device.vram_total_bytes
        assert not [finding for finding in diagnose(device, {}, {}).findings if "does not answer" in finding.what]
    device = inspect(FakeNvml(fake_nvml.t4(denied=True)))
    assert (device.kind, device.nvml_problem) == ("cpu", "no permission to use any of its GPUs")
    assert any("/dev/nvidia" in fix for fix in diagnose(device, {}, {}).fixes)


def test_permission_refused_for_everything_and_for_a_part() -> None:
    device = inspect(FakeNvml(fake_nvml.t4(), init_error=fake_nvml.NO_PERMISSION))
    assert (device.kind, device.nvml_problem) == ("cpu", "Insufficient Permissions")
    names = ["nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses", "nvmlDeviceGetPowerUsage"]
    names += ["nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"]
    gpu = inspect(FakeNvml(fake_nvml.t4(), refused=dict.fromkeys(names, fake_nvml.NO_PERMISSION))).gpu
    assert gpu is not None
    assert (gpu.processes, gpu.throttle_reasons, gpu.power_draw_w, gpu.temperature_c) == (None, None, None, 40)


def test_bytes_are_text() -> None:
    device = inspect(FakeNvml(fake_nvml.t4(), driver=b"470.82"))
    assert device.driver == "470.82"
    assert inspect(FakeNvml(fake_nvml.h200(name=b"NVIDIA H200"))).name == "NVIDIA H200"


def test_a_hung_driver_is_given_up() -> None:
    release = threading.Event()

    class HungNvml(FakeNvml):
        def nvmlInit(self) -> None:
            release.wait()

    answer = read_nvml(HungNvml(fake_nvml.t4()), timeout_s=0.05)
    release.set()
    assert answer.problem == "NVML gave no answer within 0.05 s"
    assert answer.gpus == ()


def test_where_no_thread_may_be_started_the_driver_is_asked_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    assert read_nvml(FakeNvml(fake_nvml.t4())).gpus[0].name == "Tesla T4"


def test_nvml_is_let_go() -> None:
    nvml = FakeNvml(fake_nvml.t4())
    read_nvml(nvml)
    live = LiveGpu(read_nvml(nvml).gpus[0], nvml)
    assert nvml.opened == 1
    live.close()
    live.close()
    assert nvml.opened == 0


@pytest.mark.parametrize("want", ["gpu", "cuda:x", "cpu:1", "", "cuda:-1", "mps:0"])
def test_a_device_that_is_no_device(want: str) -> None:
    with pytest.raises(UsageError, match="auto, cpu, cuda, cuda:0 or mps"):
        inspect(FakeNvml(), want)


@pytest.mark.parametrize("want", ["cuda:2", "mps"])
def test_an_absent_device_names_those_that_are_there(want: str) -> None:
    with pytest.raises(DeviceError, match=rf"'{want}'.*cuda:0 \(Tesla T4\), cuda:1 \(NVIDIA H200\), cpu"):
        inspect(FakeNvml(fake_nvml.t4(), fake_nvml.h200()), want)


def test_an_absent_gpu_says_why() -> None:
    with pytest.raises(DeviceError, match="NVML Shared Library Not Found"):
        inspect(FakeNvml(init_error=fake_nvml.LIBRARY_NOT_FOUND), "cuda")
    with pytest.raises(DeviceError, match="CUDA_VISIBLE_DEVICES='' shows 0 of 1 GPUs"):
        inspect(FakeNvml(fake_nvml.t4()), "cuda", environment={"CUDA_VISIBLE_DEVICES": ""})


def test_cpu_can_be_asked_for_beside_a_gpu() -> None:
    device = inspect(FakeNvml(fake_nvml.t4()), "cpu")
    assert (device.kind, device.gpu, device.sku) == ("cpu", None, None)


def test_apple_gpu() -> None:
    nvml = FakeNvml(init_error=fake_nvml.LIBRARY_NOT_FOUND)
    assert inspect(nvml, apple_gpu=True).kind == "mps"
    assert inspect(nvml, "cpu", apple_gpu=True).kind == "cpu"


@pytest.mark.parametrize(
    ("variable", "kind"), [(None, "cuda"), ("1", "cuda"), ("GPU-t4", None), ("0", None), ("", "cpu"), ("-1", "cpu")]
)
def test_a_lost_gpu_is_missed_where_it_was_meant(
    variable: str | None, kind: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVML does not tell its UUID any more: named by it, it was no GPU, and the CPU was taken."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(fake_nvml.t4(lost=True), fake_nvml.h200()))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if variable is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    if kind is not None:
        assert usable_device().kind == kind
        return
    with pytest.raises(DeviceError, match="GPU 0 does not answer: GPU is lost"):
        usable_device()


def test_mps_daemon(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"proc/12/comm": "bash\n"})
    assert not mps_active(root, {})
    assert mps_active(write_tree(tmp_path, {"proc/13/comm": "nvidia-cuda-mps\n"}), {})
    pipe = tmp_path / "pipe"
    pipe.mkdir()
    assert not mps_active(tmp_path / "nowhere", {"CUDA_MPS_PIPE_DIRECTORY": str(pipe)})
    with socket.socket(socket.AF_UNIX) as daemon:  # as the real one: it accepts those that connect to this socket
        daemon.bind(str(pipe / "control"))
        daemon.listen()
        assert mps_active(tmp_path / "nowhere", {"CUDA_MPS_PIPE_DIRECTORY": str(pipe)})
    assert (pipe / "control").exists(), "as one that was killed leaves it"
    assert not mps_active(tmp_path / "nowhere", {"CUDA_MPS_PIPE_DIRECTORY": str(pipe)})


SMI_ROW = (
    "0, Tesla T4, GPU-t4, 15360, 14900, 460, 7.5, 70.00, 70.00, 9.50, 300, 1590, 405, 35, Enabled, 0, [N/A], "
    "Disabled, Exclusive_Process, 535.104.05"
)


def smi(rows: str = SMI_ROW, unknown_field: str | None = None) -> Any:
    def run(arguments: Sequence[str]) -> str | None:
        query = next((a for a in arguments if a.startswith("--query-gpu=")), None)
        if query and unknown_field and unknown_field in query:
            return f'Field "{unknown_field}" is not a valid field to query.'
        if query:
            asked = query.removeprefix("--query-gpu=").split(",")
            if unknown_field and "," in rows:
                cells = rows.split(", ")
                del cells[6]  # compute_cap
                assert len(asked) == len(cells)
                return ", ".join(cells)
            return rows
        if any(a.startswith("--query-compute-apps") for a in arguments):
            return "GPU-t4, 99, 400, python, train.py\nGPU-other, 5, [N/A], x"
        return "| NVIDIA-SMI 535.104.05   Driver Version: 535.104.05   CUDA Version: 12.2 |"

    return run


def test_nvidia_smi_answers_where_nvml_does_not() -> None:
    device = inspect(FakeNvml(init_error=fake_nvml.NO_PERMISSION), run=smi())
    assert (device.kind, device.source, device.nvml_problem) == ("cuda", "nvidia-smi", "Insufficient Permissions")
    assert (device.driver, device.cuda_driver, device.sku) == ("535.104.05", "12.2", "t4")
    gpu = device.gpu
    assert gpu is not None
    assert (gpu.vram_total_bytes, gpu.vram_used_bytes) == (15360 * 2**20, 460 * 2**20)
    assert (gpu.compute_capability, gpu.power_draw_w, gpu.sm_clock_mhz) == ((7, 5), 9.5, 300)
    assert (gpu.mig_enabled, gpu.ecc_enabled, gpu.persistence_enabled) == (None, True, False)
    assert gpu.compute_mode == "exclusive_process"
    assert gpu.processes == (GpuProcess(pid=99, used_bytes=400 * 2**20, name="python, train.py"),)


def test_the_cuda_version_is_read_from_the_header_of_drivers_since_610_too() -> None:
    header = "| NVIDIA-SMI 610.43.02              KMD Version: 610.43.02     CUDA UMD Version: 13.3     |"
    older = smi()
    answer = read_smi(lambda arguments: older(arguments) if arguments[1:] else header)
    assert (answer.problem, answer.cuda_driver) == (None, "13.3")


def test_an_old_nvidia_smi_does_without_a_field() -> None:
    answer = read_smi(smi(unknown_field="compute_cap"))
    assert answer.problem is None
    assert (answer.gpus[0].compute_capability, answer.gpus[0].power_limit_w) == (None, 70.0)


def test_an_nvidia_smi_that_cannot_be_killed_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the driver it sleeps uninterruptibly, and `subprocess.run` waits for its end after the timeout."""
    release = threading.Event()

    def hang(*_: Any, **__: Any) -> None:
        release.wait(20)
        raise OSError("killed")

    monkeypatch.setattr("autotune.device.smi.subprocess.run", hang)
    monkeypatch.setattr("autotune.device.smi._KILL_S", 0.0, raising=False)
    started_s = time.monotonic()
    assert run_program(["nvidia-smi"], timeout_s=0.1) is None
    assert time.monotonic() - started_s < 10
    release.set()


def test_a_program_is_run_for_its_output() -> None:
    assert run_program(["echo", "one, two"]) == "one, two"
    assert run_program(["no-such-program-here"]) is None
    assert run_program(["sleep", "20"], timeout_s=0.1) is None


def test_nvidia_smi_without_a_gpu_is_a_problem_in_its_own_words() -> None:
    assert read_smi(smi(rows="No devices were found")).problem == "No devices were found"
    assert read_smi(lambda _: None).problem == "nvidia-smi is missing or does not answer"


@pytest.mark.parametrize(
    ("name", "vram_gib", "sku"),
    [
        ("NVIDIA A10", 23, "a10"),
        ("NVIDIA A10G", 23, "a10"),
        ("NVIDIA L4", 23, "l4"),
        ("NVIDIA L40S", 46, None),
        ("NVIDIA A100 80GB PCIe", 80, "a100-80gb"),
        ("NVIDIA A100-PCIE-40GB", 40, "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", 80, "h100"),
        ("Tesla V100-SXM2-16GB", 16, "v100"),
        ("NVIDIA GeForce RTX 4090", 24, "rtx-4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, None),
        ("NVIDIA GeForce RTX 3090", 24, None),
    ],
)
def test_prices_by_name_and_memory(name: str, vram_gib: float, sku: str | None) -> None:
    nvml = FakeNvml(fake_nvml.FakeGpu(name=name, uuid="GPU-x", vram_gib=vram_gib, capability=(8, 0)))
    device = inspect(nvml)
    assert device.sku == sku
    price = listed_price(device)
    assert (price.sku if price else None) == sku


def test_a_price_is_dated_sourced_and_hedged() -> None:
    price = listed_price(inspect(FakeNvml(fake_nvml.t4())))
    assert price is not None
    assert (price.usd_per_hour, price.source) == (0.526, "AWS g4dn.xlarge, us-east-1")
    assert "check your own invoice" in price.describe()
    assert listed_price(inspect(FakeNvml())) is None
    for row in price_table().values():
        assert 0 < row["usd_per_hour"] < 20
        assert row["date"].startswith("20")


@pytest.mark.gpu
def test_the_real_gpu() -> None:
    device = inspect_device("cuda")
    gpu = device.gpu
    assert gpu is not None
    assert device.source == "nvml"
    assert device.driver is not None
    assert device.cuda_driver is not None
    assert gpu.uuid is not None
    assert gpu.vram_total_bytes is not None
    assert gpu.vram_total_bytes > GIB
    live = LiveGpu(gpu)
    used, watts = live.used_bytes(), live.power_w()
    live.close()
    assert used is not None
    assert 0 <= used < gpu.vram_total_bytes
    assert watts is None or watts > 0
    fallback = read_smi()
    assert fallback.driver == device.driver
    assert [g.name for g in fallback.gpus] == [g.name for g in device.gpus]
