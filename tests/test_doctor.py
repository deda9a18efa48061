"""The doctor: findings of every machine it may meet, the verdict, and its real checks on a CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import fake_nvml
import pytest
from fake_host import GIB, host
from fake_nvml import FakeNvml

from autotune.codec import to_json
from autotune.device.doctor import Diagnosis, check_rows, device_rows, diagnose, render_diagnosis
from autotune.device.inspect import inspect_device
from autotune.errors import UsageError
from autotune.machine import DeviceInfo, HostInfo
from autotune.records import Budget, Job, Point
from autotune.workloads import doctor as checks
from autotune.workloads.doctor import DoctorWorkload
from autotune.workloads.protocol import Finished

CUDA_CHECKS = {
    "cuda_matmul_fp32_tflops": 15.0,
    "cuda_matmul_bf16_tflops": 200.0,
    "cuda_matmul_fp16_tflops": 210.0,
    "envpool_steps_per_s": 6000.0,
}


def device(nvml: FakeNvml, machine: HostInfo | None = None, want: str = "auto") -> DeviceInfo:
    return inspect_device(
        want, pynvml=nvml, run=lambda _: None, host=machine or host(), environment={}, apple_gpu=False
    )


def judge(nvml: FakeNvml, machine: HostInfo | None = None, **options: Any) -> Diagnosis:
    return diagnose(device(nvml, machine), options.get("rates", CUDA_CHECKS), options.get("errors", {}))


def said(diagnosis: Diagnosis) -> dict[str, str]:
    """Severity by what was found."""
    return {finding.what: finding.severity for finding in diagnosis.findings}


def only(diagnosis: Diagnosis, words: str) -> Any:
    """The one finding that holds these words."""
    found = [finding for finding in diagnosis.findings if words in finding.what]
    assert len(found) == 1, said(diagnosis)
    return found[0]


def test_a_healthy_gpu_machine_has_nothing_to_say() -> None:
    diagnosis = judge(FakeNvml(fake_nvml.a100_40()))
    assert diagnosis.findings == ()
    assert (diagnosis.fit, diagnosis.fixes) == (True, ())
    assert diagnosis.verdict == "Fit for training on CUDA (NVIDIA A100-SXM4-40GB)."


def test_no_library_is_fine_on_a_cpu_with_a_hint() -> None:
    diagnosis = judge(FakeNvml(init_error=fake_nvml.LIBRARY_NOT_FOUND))
    finding = only(diagnosis, "no NVIDIA GPU or driver answers; the CPU is used")
    assert (finding.severity, finding.cause) == ("info", "NVML: NVML Shared Library Not Found")
    assert "--gpus all" in finding.fix
    assert diagnosis.fit


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (fake_nvml.DRIVER_NOT_LOADED, "modprobe"),
        (fake_nvml.MISMATCH, "reboot"),
        (fake_nvml.NO_PERMISSION, "/dev/nvidia"),
    ],
)
def test_a_driver_that_refuses_is_a_warning_with_its_remedy(code: int, words: str) -> None:
    finding = only(judge(FakeNvml(init_error=code)), "driver answers")
    assert finding.severity == "warning"
    assert words in finding.fix


def test_no_gpu_with_a_driver() -> None:
    assert only(judge(FakeNvml()), "lists no GPU").severity == "info"


def test_a_t4_that_emulates_bf16_is_measured_not_believed() -> None:
    rates = CUDA_CHECKS | {"cuda_matmul_bf16_tflops": 2.5, "cuda_matmul_fp16_tflops": 22.0}
    finding = only(judge(FakeNvml(fake_nvml.t4()), rates=rates), "bf16 is emulated")
    assert finding.severity == "warning"
    assert "2.5 TFLOP/s against 22" in finding.what
    rates["cuda_matmul_bf16_tflops"] = 11.1
    assert not judge(FakeNvml(fake_nvml.t4()), rates=rates).findings


def test_mig() -> None:
    finding = only(judge(FakeNvml(fake_nvml.a100_80_mig())), "MIG is on")
    assert "3g.40gb with 39.5 GiB" in finding.what
    assert "-mig 0" in finding.fix


def test_mig_without_an_instance_shows_no_part_of_the_gpu() -> None:
    diagnosis = judge(FakeNvml(fake_nvml.a100_80(mig=True)))
    finding = only(diagnosis, "MIG is on, and the GPU has no instance")
    assert (finding.severity, diagnosis.fit) == ("fatal", False)
    assert "-mig 0" in finding.fix and "mig -cgi" in finding.fix


def test_a_compute_mode_that_keeps_processes_out() -> None:
    one = judge(FakeNvml(fake_nvml.t4(compute_mode=3)))
    finding = only(one, "compute mode is exclusive_process")
    assert (finding.severity, one.fit) == ("warning", True)
    assert "nvidia-smi -c 0, or sharing = cuda-mps" in finding.fix
    none = judge(FakeNvml(fake_nvml.t4(compute_mode=2)))
    assert (only(none, "compute mode is prohibited").severity, none.fit) == ("fatal", False)
    assert not judge(FakeNvml(fake_nvml.t4(compute_mode=None))).findings


def test_two_gpus_say_which_is_used() -> None:
    diagnosis = judge(FakeNvml(fake_nvml.h200(), fake_nvml.h200()))
    assert said(diagnosis) == {"training uses one of 2 GPUs: index 0": "info"}
    assert diagnosis.verdict == "Fit for training on CUDA (NVIDIA H200)."


def test_gpus_that_differ_may_be_counted_in_another_order() -> None:
    mixed = FakeNvml(fake_nvml.t4(), fake_nvml.h200())
    finding = only(judge(mixed), "the GPUs differ; index 0 is Tesla T4")
    assert finding.severity == "warning"
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in finding.fix
    order = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    told = inspect_device(pynvml=mixed, run=lambda _: None, host=host(), environment=order, apple_gpu=False)
    assert set(said(diagnose(told, CUDA_CHECKS, {}))) == {"training uses one of 2 GPUs: index 0"}


def test_a_driver_too_old_for_torch_is_fatal() -> None:
    diagnosis = judge(FakeNvml(fake_nvml.h200(), driver="470.82", cuda=11040), rates={})
    finding = only(diagnosis, "too old")
    assert finding.severity == "fatal"
    assert "470.82 runs CUDA up to 11.4; torch is built for 12.4" in finding.what
    assert not diagnosis.fit
    assert diagnosis.verdict.startswith("Not fit for training on CUDA (NVIDIA H200): the NVIDIA driver is too old")
    assert diagnosis.fixes[0] == finding.fix


def test_an_older_minor_version_of_the_driver_works() -> None:
    diagnosis = judge(FakeNvml(fake_nvml.h200(), cuda=12010))
    assert only(diagnosis, "CUDA up to 12.1").severity == "info"
    assert diagnosis.fit


def test_a_lost_gpu_is_fatal_alone_and_a_warning_beside_a_healthy_one() -> None:
    alone = judge(FakeNvml(fake_nvml.t4(lost=True)), rates={})
    assert only(alone, "GPU 0 does not answer: GPU is lost").severity == "fatal"
    assert not alone.fit
    beside = judge(FakeNvml(fake_nvml.t4(lost=True), fake_nvml.t4()))
    assert only(beside, "GPU 0 does not answer").severity == "warning"
    assert beside.fit


def test_everything_that_slows_a_gpu() -> None:
    gpu = fake_nvml.a100_40(
        power_limit_w=250.0,
        power_default_w=400.0,
        ecc_errors=3,
        throttle_bits=0x20 | 0x80,
        temperature_c=92,
        persistence=False,
        used_gib=6,
        processes={4242: 5 * GIB, 4243: None},
    )
    diagnosis = judge(FakeNvml(gpu))
    assert said(diagnosis) == {
        "the power limit is 250 W, below the default 400 W": "warning",
        "3 uncorrected memory errors since the driver was loaded": "warning",
        "clocks are lowered by heat (GPU at 92 °C)": "warning",
        "clocks are lowered by the power brake": "warning",
        "process 4242 (python4242) is on the GPU with 5.0 GiB": "warning",
        "process 4243 (python4243) is on the GPU with unknown": "warning",
        "persistence mode is off": "info",
    }
    assert diagnosis.verdict.endswith("with 6 warnings.")


def test_a_display_server_without_a_screen_disturbs_nothing() -> None:
    """Many a rented machine's lists one of 4 MiB; a probe is not labelled shared for it."""
    with_display = fake_nvml.t4(used_gib=0.01, processes={1234: 4 * 2**20})
    assert judge(FakeNvml(with_display)).findings == ()
    hidden = fake_nvml.t4(used_gib=3, processes={1234: 4 * 2**20})
    assert "by no process that is visible here" in only(judge(FakeNvml(hidden)), "3.0 GiB of GPU memory is in use").what


def test_memory_in_use_by_nobody_visible() -> None:
    assert only(judge(FakeNvml(fake_nvml.t4(used_gib=3))), "3.0 GiB of GPU memory is in use").severity == "warning"


def test_everything_that_limits_a_host() -> None:
    machine = host(
        cpu_cores_allowed=2.0,
        pids_limit=100,
        load_1m=6.5,
        ram_limit_bytes=2 * GIB,
        ram_available_bytes=GIB,
        shm_total_bytes=64 * 2**20,
        disk_free_bytes=GIB,
    )
    diagnosis = judge(FakeNvml(fake_nvml.t4()), machine)
    assert said(diagnosis) == {
        "2 of 8 visible CPU cores may be used": "warning",
        "at most 100 processes and threads": "warning",
        "the load is 6.5 on 8 cores before anything is measured": "warning",
        "1.0 GiB of 2.0 GiB RAM is free": "warning",
        "/dev/shm holds only 64.0 MiB": "warning",
        "1.0 GiB of disk is free": "warning",
    }
    assert any("--shm-size" in fix for fix in diagnosis.fixes)
    assert not any(
        "the load is" in what for what in said(judge(FakeNvml(fake_nvml.t4()), replace(machine, load_1m=5.5)))
    )
    busy = host(cpu_cores_allowed=8.0, load_1m=4.5)
    assert "the load is 4.5 on 8 cores before anything is measured" in said(judge(FakeNvml(fake_nvml.t4()), busy))


def test_packages() -> None:
    machine = host(packages={"torch": "2.8.0+cpu", "torch-cuda": None, "pynvml": "11.5.0", "pytest-benchmark": "5"})
    diagnosis = judge(FakeNvml(fake_nvml.t4()), machine)
    assert said(diagnosis) == {
        "jax is not installed": "info",
        "envpool is not installed": "info",
        "the deprecated package pynvml 11.5.0 is installed": "warning",
        "torch 2.8.0+cpu is built without CUDA": "warning",
    }
    assert only(diagnosis, "envpool").fix == "pip install 'gpu-autotune[envpool]'"


def test_failed_checks() -> None:
    errors = {"matmul_fp32": "RuntimeError: no kernel image", "envpool": "ImportError: libx", "jax_matmul_fp32": "x"}
    diagnosis = judge(FakeNvml(fake_nvml.t4()), errors=errors, rates={})
    assert only(diagnosis, "check matmul_fp32 failed: RuntimeError: no kernel image").severity == "fatal"
    assert only(diagnosis, "EnvPool does not run: ImportError: libx").severity == "warning"
    assert only(diagnosis, "check jax_matmul_fp32 failed").severity == "warning"
    assert not diagnosis.fit


def test_a_precision_that_torch_claims_in_vain_does_not_make_a_gpu_unfit() -> None:
    """A P100 gets bf16 from torch, and CUBLAS_STATUS_NOT_SUPPORTED from its first product."""
    old = fake_nvml.t4(name="Tesla P100-PCIE-16GB")
    errors = {"matmul_bf16": "RuntimeError: CUDA error: CUBLAS_STATUS_NOT_SUPPORTED"}
    rates = {"cuda_matmul_fp32_tflops": 9.0, "cuda_matmul_fp16_tflops": 18.0}
    diagnosis = judge(FakeNvml(old), rates=rates, errors=errors)
    finding = only(diagnosis, "check matmul_bf16 failed")
    assert (finding.severity, finding.fix, diagnosis.fit) == ("warning", "use precision fp32, or auto", True)
    assert not judge(FakeNvml(old), rates={}, errors=errors).fit


def test_torch_that_measured_on_the_cpu_of_a_gpu_machine() -> None:
    diagnosis = judge(FakeNvml(fake_nvml.t4()), rates={"cpu_matmul_fp32_tflops": 0.1})
    assert only(diagnosis, "does not see the GPU").severity == "warning"


def test_the_text_ends_in_the_verdict_and_numbered_fixes() -> None:
    machine = host(shm_total_bytes=64 * 2**20, disk_free_bytes=GIB)
    diagnosis = judge(FakeNvml(fake_nvml.t4(power_draw_w=None, ecc=None, used_gib=1, processes={7: GIB})), machine)
    text = render_diagnosis(diagnosis)
    assert text.splitlines()[-4:] == [
        "Fit for training on CUDA (Tesla T4), with 3 warnings.",
        "  1. stop process 7 or wait until it ends",
        "  2. docker --shm-size 8g (or --ipc host)",
        "  3. free space, or choose another folder with --runs",
    ]
    rows = dict(device_rows(diagnosis.device) + check_rows(diagnosis.checks))
    assert rows["  VRAM"] == "15.0 GiB total, 13.5 GiB free, 1.0 GiB used by 7 python7 1.0 GiB"
    assert rows["  power"] == "unknown of 70 W (default 70 W)"
    assert rows["  ECC"] == "unknown, uncorrected errors 0"
    assert rows["  MIG, persistence"] == "unknown, on"
    assert rows["cuda matmul bf16"] == "200 TFLOP/s"
    assert rows["NVIDIA driver"] == "550.54.15, CUDA 12.4 (torch needs 12.4)"
    assert "0.53 USD/h is a typical on-demand price" in rows["listed price"]


def test_a_diagnosis_is_json() -> None:
    data = json.loads(json.dumps(to_json(judge(FakeNvml(fake_nvml.t4(lost=True)))), allow_nan=False))
    assert data["fit"] is False
    assert data["findings"][0]["severity"] == "fatal"
    assert data["device"]["gpus"][0]["problem"] == "GPU is lost"


JOB = Job(id="doctor", env="Breakout-v5", seed=0, budget=Budget(unit="steps", amount=1))
POINT = Point(num_envs=4, batch_size=4)


def test_the_real_checks_on_a_cpu() -> None:
    session = DoctorWorkload({"seconds": 0.05}).open(POINT, JOB, "cpu")
    assert session.checks == ("matmul_fp32", "matmul_bf16", "autograd", "envpool")
    works = [session.step() for _ in session.checks]
    rates = {name: value for work in works for name, value in work.metrics.items()}
    assert set(rates) == {
        "cpu_matmul_fp32_tflops",
        "cpu_matmul_bf16_tflops",
        "cpu_autograd_steps_per_s",
        "envpool_steps_per_s",
        "envpool_threads",
    }
    assert all(value > 0 for value in rates.values())
    assert works[-1].env_steps >= 4
    assert session.effective["errors"] == {}
    with pytest.raises(Finished):
        session.step()
    session.close()


def test_a_failing_check_is_a_text_and_the_next_one_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, num_envs: int, threads: int, seconds: float) -> tuple[int, float]:
        raise ImportError("libGL.so.1 is missing\nand more")

    monkeypatch.setattr(checks, "step_environments", broken)
    session = DoctorWorkload({"seconds": 0.01}).open(POINT, JOB, "cpu")
    for _ in session.checks:
        session.step()
    assert session.effective["errors"] == {"envpool": "ImportError: libGL.so.1 is missing"}


def test_a_device_that_the_framework_lacks_is_a_text() -> None:
    session = DoctorWorkload({"seconds": 0.01}).open(POINT, JOB, "mps")
    assert session.checks == ("envpool",)
    assert "torch" in session.effective["errors"]


def test_what_is_not_installed_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "find_spec", lambda _: None)
    session = DoctorWorkload({}).open(POINT, JOB, "cpu")
    assert session.checks == ()
    assert session.effective["errors"] == {}
    assert session.effective["skipped"] == {
        "torch": "torch is not installed",
        "envpool": "envpool is not installed",
    }


def test_unknown_hyperparameter() -> None:
    with pytest.raises(UsageError, match="framework"):
        DoctorWorkload({"framwork": "torch"})


@pytest.mark.parametrize("slow", [0.001, 0.3])
def test_a_rate_counts_calls_over_time(monkeypatch: pytest.MonkeyPatch, slow: float) -> None:
    now = [0.0]
    monkeypatch.setattr(checks.time, "perf_counter", lambda: now[0])

    def call() -> None:
        now[0] += slow

    assert checks.rate_per_s(call, lambda: None, 1.0) == pytest.approx(1 / slow)
    assert now[0] < 1.0 + 2 * slow + 0.35  # the bound holds, but for the last batch


@pytest.mark.gpu
def test_the_real_checks_on_a_gpu() -> None:
    session = DoctorWorkload({"seconds": 0.5}).open(POINT, JOB, "cuda")
    rates = {name: value for _ in session.checks for name, value in session.step().metrics.items()}
    assert session.effective["errors"] == {}
    assert rates["cuda_matmul_fp16_tflops"] > rates["cuda_matmul_fp32_tflops"] > 1
    assert rates["cuda_autograd_steps_per_s"] > 10
