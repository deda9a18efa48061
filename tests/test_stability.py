"""The stability verdict case by case, on made-up readings and steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import fake_nvml
import numpy as np
import pytest
from fake_host import GIB, host
from fake_nvml import FakeNvml

from autotune.device.inspect import inspect_device
from autotune.device.xids import XIDS, describe_xid
from autotune.executors.leak import hours_to
from autotune.executors.stability import Seen, confirmed_drift, judge, neighbours, slows
from autotune.executors.window import Step
from autotune.machine import DeviceInfo, GpuProcess
from autotune.records import Limits, Point, ProbeResult, Reading
from autotune.stats import Trace

MIB = 2**20
POINT = Point(num_envs=8, batch_size=64)
STEADY = [Step(t=float(t), started=t - 1.0, env_steps=100) for t in range(31)]


def device(gpu: fake_nvml.FakeGpu | None = None, **machine: Any) -> DeviceInfo:
    nvml = FakeNvml(gpu or fake_nvml.a100_80())
    return inspect_device(pynvml=nvml, run=lambda _: None, host=host(**machine), environment={}, apple_gpu=False)


def readings_of(name: str, values: Iterable[float | None], period_s: float = 0.5) -> tuple[Reading, ...]:
    return tuple(Reading(t_s=period_s * i, name=name, value=value) for i, value in enumerate(values))


def verdict(
    readings: Sequence[Reading] = (),
    opened: Sequence[Sequence[Step]] = (STEADY,),
    machine: DeviceInfo | None = None,
    **figures: Any,
) -> ProbeResult:
    result = ProbeResult(**{"requested": POINT, "status": "ok", "grade": "final", "sps": 100.0} | figures)
    return judge(Seen(result=result, readings=readings, device=machine or device(), limits=Limits(), opened=opened))


def test_nothing_known_objects_to_nothing() -> None:
    names = ("throttle_thermal", "xids", "ecc_uncorrected", "vram_total_bytes", "mig_enabled", "ram_pss_bytes")
    silent = [reading for name in names for reading in readings_of(name, [None, None])]
    for readings in ((), silent):
        result = verdict(readings)
        assert (result.status, result.detail, result.flags, result.neighbours) == ("ok", "", (), ())


@pytest.mark.parametrize(("braking", "status"), [(0, "ok"), (5, "ok"), (6, "unstable"), (100, "unstable")])
@pytest.mark.parametrize("name", ["throttle_thermal", "throttle_power_brake"])
def test_brakes_in_over_5_percent_of_samples(name: str, braking: int, status: str) -> None:
    result = verdict(readings_of(name, [1.0] * braking + [0.0] * (100 - braking)))
    assert result.status == status
    assert result.detail == ("" if status == "ok" else f"{name} in {braking}% of samples")


@pytest.mark.parametrize(
    ("figures", "detail"),
    [
        ({"vram_peak_bytes": 71 * GIB}, ""),
        ({"vram_peak_bytes": 73 * GIB}, "VRAM peak at 91% of the device"),
        ({"ram_peak_bytes": 57 * GIB}, ""),
        ({"ram_peak_bytes": 60 * GIB}, "RAM peak at 94% of the host's limit"),
        (
            {"vram_peak_bytes": 80 * GIB, "ram_peak_bytes": 64 * GIB},
            "VRAM peak at 100% of the device; RAM peak at 100% of the host's limit",
        ),
    ],
)
def test_headroom_below_10_percent(figures: dict[str, int], detail: str) -> None:
    result = verdict(**figures)
    assert (result.detail, result.status) == (detail, "unstable" if detail else "ok")


@pytest.mark.parametrize(("used", "detail"), [(71, ""), (76, "VRAM peak at 95% of the device, all programs together")])
def test_a_neighbours_memory_leaves_no_headroom_either(used: int, detail: str) -> None:
    readings = readings_of("vram_device_used_bytes", [4.0 * GIB, None, used * GIB])
    assert verdict(readings, vram_peak_bytes=60 * GIB).detail == detail
    assert verdict(readings).detail == detail


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (13, "XID 13 (application): graphics engine exception"),
        (31, "XID 31 (application): GPU memory page fault"),
        (48, "XID 48 (hardware): double-bit memory error"),
        (63, "reset the GPU when it is idle"),
        (79, "XID 79 (hardware): the GPU has fallen off the bus; restart the machine"),
        (94, "contained to one program"),
        (95, "uncontained memory error"),
        (119, "(GSP) did not answer"),
        (9999, "XID 9999: see https://docs.nvidia.com/deploy/xid-errors/"),
    ],
)
def test_an_xid_names_itself_and_what_to_do(number: int, words: str) -> None:
    result = verdict(readings_of("xids", [0, 1]) + readings_of(f"xid_{number}", [1]))
    assert result.status == "unstable"
    assert words in result.detail


def test_an_xid_explains_a_crash_and_may_be_a_neighbours() -> None:
    xids = readings_of("xid_43", [1.0]) + readings_of("xid_13", [1.0])
    crash = verdict(xids, (), status="crashed", detail="process ended with signal 6", sps=None)
    assert crash.status == "crashed"
    assert crash.detail.splitlines() == [f"{describe_xid(13)}; {describe_xid(43)}", "process ended with signal 6"]
    shared = verdict(xids + readings_of("neighbour_bytes_7", [GIB]))
    assert shared.detail.endswith("(a neighbour's, perhaps)")


def test_every_xid_says_whose_fault_it_is() -> None:
    application = {number for number, xid in XIDS.items() if xid.cause == "application"}
    assert application >= {13, 31, 43, 45}
    assert not application & {48, 63, 64, 74, 79, 94, 95, 119}
    assert all(xid.meaning and xid.action for xid in XIDS.values())


@pytest.mark.parametrize(
    ("name", "values", "detail"),
    [
        ("ecc_uncorrected", [3, 3], ""),
        ("ecc_uncorrected", [3, 5], "2 uncorrected memory errors (ECC) of the GPU during the probe: measure again"),
        ("vram_total_bytes", [80 * GIB, 80 * GIB], ""),
        ("vram_total_bytes", [80 * GIB, 40 * GIB], "the device's memory changed from 80.0 GiB to 40.0 GiB"),
        ("mig_enabled", [0, 1], "MIG was switched during the probe: measure again"),
        ("mig_enabled", [None, 1], ""),
    ],
)
def test_a_device_that_changed_cannot_be_trusted(name: str, values: list[float], detail: str) -> None:
    result = verdict(readings_of(name, values))
    assert result.status == ("unstable" if detail else "ok")
    assert detail in result.detail


def steps_with_retries(counts: Sequence[float]) -> list[Step]:
    return [replace(step, metrics={"alloc_retries": count}) for step, count in zip(STEADY, counts, strict=False)]


@pytest.mark.parametrize(
    ("counts", "status"),
    [
        ([0, 0, 0, 0, 0], "ok"),
        ([2, 2, 2, 2, 2], "ok"),  # before the window
        ([0, 1, 1, 2, 2], "ok"),
        ([0, 1, 2, 2, 2], "unstable"),
        ([4, 4, 4, 5, 9], "unstable"),
    ],
)
def test_allocator_retries_in_two_successive_iterations(counts: list[float], status: str) -> None:
    result = verdict(opened=[STEADY, steps_with_retries(counts)])
    assert result.status == status
    assert ("try again in two successive iterations" in result.detail) == (status == "unstable")


def rates(*values: float, noise: float = 0.0, seed: int = 0) -> Trace:
    """Iterations of 100 steps at these rates, with relative noise."""
    noisy = np.array(values) * (1 + noise * np.random.default_rng(seed).standard_normal(len(values)))
    return Trace(seconds=tuple(float(each) for each in 100 / noisy), steps=(100.0,) * len(values))


@pytest.mark.parametrize(
    ("trace", "expected"),
    [
        (rates(*[100] * 20, noise=0.01), False),
        (rates(*[100] * 10, *[96] * 10, noise=0.002), False),  # 4 %
        (rates(*[100] * 10, *[92] * 10, noise=0.01), True),
        (rates(*[100] * 10, *[92] * 10, noise=0.3), False),  # within its noise
        (rates(*[92] * 10, *[100] * 10, noise=0.01), False),  # faster
        (rates(100, 50), False),  # no interval from one iteration each
    ],
)
def test_slowing_is_over_5_percent_and_beyond_the_noise(trace: Trace, expected: bool) -> None:
    assert slows([trace]) is expected


def test_slowing_is_of_all_processes_together_and_of_final_windows() -> None:
    slow, steady = rates(*[100] * 10, *[88] * 10, noise=0.005), rates(*[300] * 20, noise=0.005)
    assert slows([slow])
    assert not slows([slow, steady])  # 3 % of the sum
    steps = [Step(t=float(t), started=t, env_steps=100 if t < 16 else 80) for t in range(31)]
    assert verdict(opened=[steps]).flags == ("slowing",)
    assert verdict(opened=[steps]).ok  # decided by two launches
    assert verdict(opened=[steps], grade="quick").flags == ()


def test_drift_is_confirmed_by_a_second_launch() -> None:
    slow = ProbeResult(requested=POINT, status="ok", grade="final", flags=("one launch", "slowing"))
    steady, quick = replace(slow, flags=("one launch",)), replace(slow, grade="quick")
    assert not confirmed_drift([slow, steady, quick])
    assert confirmed_drift([slow, steady, slow])


def test_neighbours_are_named_with_their_peak() -> None:
    gpu = fake_nvml.a100_80(used_gib=3, processes={4: 5 * MIB, 7: 2 * GIB})
    readings = (
        *readings_of("neighbour_bytes_7", [2 * GIB, 3 * GIB, GIB]),
        *readings_of("neighbour_bytes_4", [5 * MIB] * 3),  # no compute context is as small
        *readings_of("neighbour_bytes_9", [None]),
    )
    found = neighbours(readings, device(gpu))
    assert found == (
        GpuProcess(pid=7, used_bytes=3 * GIB, name="python7"),
        GpuProcess(pid=9, used_bytes=None, name=None),  # came during the probe
    )
    result = verdict(readings, machine=device(gpu))
    assert (result.status, result.flags, result.neighbours) == ("ok", ("shared",), found)
    failed = verdict(readings, (), machine=device(gpu), status="oom", detail="out of memory", sps=None)
    assert (failed.status, failed.flags) == ("oom", ("shared",))


@pytest.mark.parametrize(("cores", "flags"), [(None, ()), (0.7, ()), (0.9, ("shared cpu",))])
def test_a_busy_host_is_said(cores: float | None, flags: tuple[str, ...]) -> None:
    assert verdict(others_cpu_cores=cores).flags == flags  # of 8 cores


T_S = np.arange(0, 30.5, 0.5)
LEAK_BYTES_PER_S = 1e6


def noise(rng: np.random.Generator, deviation: float, correlation: float) -> np.ndarray:
    """First-order autoregressive."""
    values = rng.normal(0, deviation, len(T_S))
    for i in range(1, len(T_S)):
        values[i] = correlation * values[i - 1] + np.sqrt(1 - correlation**2) * values[i]
    return values


def innocent(rng: np.random.Generator) -> np.ndarray:
    """Memory that does not leak: noise, jumps, a heap's steps, garbage collection, a fill that ends, settling."""
    size = MIB * np.exp(rng.uniform(np.log(4), np.log(512)))
    shape = rng.choice(["flat", "jumps", "steps", "collected", "filled", "settling"])
    values = noise(rng, MIB * rng.choice([0.1, 0.5, 1, 3, 10]), rng.uniform(0, 0.95))
    if shape == "jumps":
        values += sum(size * rng.choice([-1, 1]) * (rng.uniform(0, 30) < T_S) for _ in range(rng.integers(1, 4)))
    elif shape == "steps":  # of one size, as launches of Breakout show; in their first half minute
        values += size / 4 * sum((rng.uniform(0, 30) < T_S).astype(float) for _ in range(rng.integers(3, 7)))
    elif shape == "collected":
        values += size * ((T_S / rng.uniform(1, 20) + rng.uniform()) % 1)
    elif shape == "filled":
        values += size * np.minimum(1, T_S / rng.uniform(6, 24))
    elif shape == "settling":
        values += 4 * size * (1 - np.exp(-(T_S + 20) / np.exp(rng.uniform(np.log(2), np.log(30)))))
    return values


def hours(values: np.ndarray, limit_bytes: float) -> float | None:
    return hours_to(limit_bytes, list(zip(T_S, values, strict=True)))


def test_at_most_1_percent_of_innocent_windows_is_taken_for_a_leak() -> None:
    """On a 24 GiB host, at a third to two thirds of it; measured: 4 of 1,000."""
    limit, alarms = 0.9 * 24 * GIB, 0
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        alarms += hours(rng.uniform(8, 16) * GIB + innocent(rng), limit) is not None
    assert alarms <= 10


@pytest.mark.parametrize(("total", "used"), [(24 * GIB, 6 * GIB), (80 * GIB, 24 * GIB)])
@pytest.mark.parametrize(("deviation_mib", "share"), [(0.5, 1.0), (1.0, 0.95), (2.0, 0.8)])
def test_a_leak_of_1_mb_per_second_is_found(total: int, used: int, deviation_mib: float, share: float) -> None:
    """On a 24 GiB host and an 80 GB GPU; measured: 100, 99 and 83 of 100 at 0.5, 1 and 2 MiB of noise."""
    found = [
        hours(used + LEAK_BYTES_PER_S * T_S + noise(np.random.default_rng(seed), deviation_mib * MIB, 0.5), 0.9 * total)
        for seed in range(100)
    ]
    told = [each for each in found if each is not None]
    assert len(told) >= share * len(found)
    assert np.median(told) == pytest.approx((0.9 * total - used) / LEAK_BYTES_PER_S / 3600, rel=0.1)


@pytest.mark.parametrize(
    ("values", "limit"),
    [
        (GIB + LEAK_BYTES_PER_S * T_S, 200 * GIB),  # not within 24 hours
        (GIB + 1e5 * T_S, 2 * GIB),  # 3 MB in a window: an allocator's own
        (GIB - LEAK_BYTES_PER_S * T_S, 2 * GIB),
    ],
)
def test_growth_that_is_no_leak(values: np.ndarray, limit: int) -> None:
    assert hours(values, limit) is None


def test_a_heap_that_grows_by_steps_is_no_leak_and_what_leaks_with_each_long_iteration_is_one() -> None:
    jumps = [5.0, 12.0, 19.0, 26.0]
    assert hours(GIB + 17 * MIB * sum((jump < T_S).astype(float) for jump in jumps), 24 * GIB) is None
    seconds = np.arange(0, 90, 0.5)
    leaking = list(zip(seconds, GIB + 17 * MIB * (seconds // 15), strict=True))
    assert hours_to(24 * GIB, leaking) is None
    assert hours_to(24 * GIB, leaking, iteration_s=15.0) == pytest.approx(23 * GIB / (17 * MIB / 15) / 3600, rel=0.1)


def test_too_few_readings_tell_nothing() -> None:
    growing = [(1e6 + t / 2, GIB + 1e7 * t) for t in range(60)]
    assert hours_to(2 * GIB, growing) is not None
    assert hours_to(GIB, growing) == 0.0
    assert hours_to(2 * GIB, growing[:40]) is None  # 20 s
    assert hours_to(2 * GIB, growing[::6]) is None  # 10 readings
    assert hours_to(2 * GIB, []) is None


@pytest.mark.parametrize(("name", "place"), [("vram_process_bytes", "VRAM"), ("ram_pss_bytes", "RAM")])
def test_a_leak_makes_a_final_window_unstable(name: str, place: str) -> None:
    growing = readings_of(name, 30 * GIB + 4 * LEAK_BYTES_PER_S * T_S)
    result = verdict(growing)
    assert result.status == "unstable"
    assert f"{place} of the processes grows: at its limit after about" in result.detail
    assert verdict(growing, grade="quick").ok
