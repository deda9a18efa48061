"""The meters: what they read of a made-up GPU and of real processes, and readings in short."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import fake_nvml
import numpy as np
import pytest
from fake_host import host, write_tree
from fake_nvml import GIB, FakeNvml

from autotune import registry
from autotune.codec import to_json
from autotune.device.inspect import inspect_device
from autotune.device.live_gpu import LiveGpu
from autotune.executors.ending import side_by_side, start_meters, stop_all
from autotune.machine import DeviceInfo, GpuInfo
from autotune.meters import summary
from autotune.meters.base import SampledMeter
from autotune.meters.health import HealthMeter
from autotune.meters.host import HostMeter, Resident, pss_bytes, resident
from autotune.meters.power import PowerMeter
from autotune.meters.vram import VramMeter
from autotune.records import Reading
from autotune.store import canonical_json


def device(nvml: FakeNvml) -> DeviceInfo:
    return inspect_device(pynvml=nvml, run=lambda _: None, host=host(), environment={}, apple_gpu=False)


CPU = device(FakeNvml(init_error=fake_nvml.LIBRARY_NOT_FOUND))


def last(readings: tuple[Reading, ...]) -> dict[str, float | None]:
    return {reading.name: reading.value for reading in readings}


@pytest.mark.parametrize("name", ["vram", "power", "health", "host"])
def test_every_meter_gives_ordered_readings_without_a_gpu(name: str) -> None:
    meter = registry.load("meter", name)(CPU, lambda: [], 0.01)
    meter.start()
    readings = meter.stop()
    assert readings
    times = [reading.t_s for reading in readings]
    assert times == sorted(times)
    if name != "host":
        assert {reading.value for reading in readings} == {None}, "never 0 for what cannot be told"


def test_vram_of_the_device_the_processes_and_above_the_start() -> None:
    gpu = fake_nvml.t4(used_gib=1, processes={1: GIB})
    nvml = FakeNvml(gpu)
    meter = VramMeter(device(nvml), lambda: [10, 11, 12], 10.0, pynvml=nvml)
    meter.start()
    assert last(meter.take()) == {
        "vram_device_used_bytes": GIB,
        "vram_process_bytes": None,
        "vram_delta_bytes": 0,
        "neighbour_bytes_1": GIB,
    }
    gpu.used_gib = 4
    gpu.processes = {1: GIB, 10: GIB, 11: 2 * GIB}
    assert last(meter.stop()) == {
        "vram_device_used_bytes": 4 * GIB,
        "vram_process_bytes": 3 * GIB,
        "vram_delta_bytes": 3 * GIB,
        "neighbour_bytes_1": GIB,
    }
    assert nvml.opened == 0


def test_neighbours_that_come_and_go() -> None:
    gpu = fake_nvml.t4(processes={1: GIB, 2: None})
    nvml = FakeNvml(gpu)
    pids = [10]
    meter = VramMeter(device(nvml), lambda: pids, 10.0, pynvml=nvml)
    meter.start()
    assert neighbours_in(meter.take()) == {"neighbour_bytes_1": GIB, "neighbour_bytes_2": None}
    gpu.processes = {1: GIB, 3: GIB, 10: GIB}
    pids.clear()  # ours has ended, and its memory is still listed
    assert neighbours_in(meter.stop()) == {"neighbour_bytes_1": GIB, "neighbour_bytes_3": GIB}


def test_in_a_container_our_own_processes_are_no_neighbours() -> None:
    """NVML lists the host's process numbers there."""
    gpu = fake_nvml.t4(processes={1: GIB})
    nvml = FakeNvml(gpu)
    meter = VramMeter(device(nvml), lambda: [10], 10.0, pynvml=nvml)
    meter.start()
    meter.take()
    gpu.processes = {1: GIB, 54321: 2 * GIB}
    assert neighbours_in(meter.stop()) == {"neighbour_bytes_1": GIB}


def test_the_display_server_of_wsl_is_no_neighbour() -> None:
    """WSL tells of no process's memory, and lists its display server beside what computes."""
    gpu = fake_nvml.t4(drawing={20: None, 21: GIB, 22: None}, processes={22: None})
    nvml, pids = FakeNvml(gpu), [10]
    meter = VramMeter(device(nvml), lambda: pids, 10.0, pynvml=nvml)
    meter.start()
    assert neighbours_in(meter.take()) == {"neighbour_bytes_21": GIB, "neighbour_bytes_22": None}
    gpu.processes = {10: None}
    gpu.drawing = {20: None}
    found = meter.stop()
    assert neighbours_in(found) == {} and last(found)["vram_process_bytes"] is None


def test_an_mps_server_is_no_neighbour() -> None:
    nvml = FakeNvml(fake_nvml.t4(processes={1: GIB}))
    nvml.names[1] = b"/usr/bin/nvidia-cuda-mps-server"
    meter = VramMeter(device(nvml), lambda: [], 10.0, pynvml=nvml)
    meter.start()
    assert neighbours_in(meter.stop()) == {}


def test_clients_of_mps_count_where_only_its_own_list_has_them() -> None:
    nvml = FakeNvml(fake_nvml.t4(processes={1: GIB}, mps_clients={10: GIB, 11: 2 * GIB}))
    nvml.names[1] = b"/usr/bin/nvidia-cuda-mps-server"
    meter = VramMeter(device(nvml), lambda: [10, 11], 10.0, pynvml=nvml)
    meter.start()
    assert last(meter.stop())["vram_process_bytes"] == 3 * GIB
    old = FakeNvml(fake_nvml.t4(processes={10: GIB}), absent=("nvmlDeviceGetMPSComputeRunningProcesses",))
    assert LiveGpu(device(old).gpus[0], old).processes() == {10: GIB}


def neighbours_in(readings: tuple[Reading, ...]) -> dict[str, float | None]:
    return {name: value for name, value in last(readings).items() if name.startswith("neighbour")}


def test_errors_of_the_gpu_since_the_start() -> None:
    gpu = fake_nvml.h200(ecc_errors=4, xids=[79])  # this one happened before
    nvml = FakeNvml(gpu)
    meter = HealthMeter(device(nvml), lambda: [], 10.0, pynvml=nvml)
    meter.start()
    assert last(meter.take()) == {
        "xids": 0,
        "ecc_uncorrected": 4,
        "vram_total_bytes": 141 * GIB,
        "mig_enabled": 0,
    }
    gpu.xids, gpu.ecc_errors, gpu.vram_gib, gpu.mig = [31, 43, 31], 5, 70, True
    assert last(meter.stop()) == {
        "xids": 3,
        "xid_31": 2,
        "xid_43": 1,
        "ecc_uncorrected": 5,
        "vram_total_bytes": 70 * GIB,
        "mig_enabled": 1,
    }
    assert (nvml.opened, nvml.event_sets) == (0, 0)


@pytest.mark.parametrize(
    "nvml",
    [
        FakeNvml(fake_nvml.t4(), refused={"nvmlDeviceRegisterEvents": fake_nvml.NO_PERMISSION}),
        FakeNvml(fake_nvml.t4(), absent=("nvmlDeviceRegisterEvents",)),
        FakeNvml(fake_nvml.t4(), absent=("nvmlEventSetCreate",)),
    ],
)
def test_errors_that_are_not_told_are_unknown(nvml: FakeNvml) -> None:
    meter = HealthMeter(device(nvml), lambda: [], 10.0, pynvml=nvml)
    meter.start()
    assert last(meter.stop())["xids"] is None
    assert (nvml.opened, nvml.event_sets) == (0, 0)


def test_a_gpu_lost_during_a_probe_tells_no_more_errors() -> None:
    gpu = fake_nvml.t4(xids=[])
    nvml = FakeNvml(gpu)
    meter = HealthMeter(device(nvml), lambda: [], 10.0, pynvml=nvml)
    meter.start()
    gpu.lost = True
    assert last(meter.stop())["xids"] is None


def test_the_error_with_which_a_gpu_is_lost_is_told() -> None:
    gpu = fake_nvml.t4()
    nvml = FakeNvml(gpu)
    meter = HealthMeter(device(nvml), lambda: [], 10.0, pynvml=nvml)
    meter.start()
    gpu.xids, gpu.lost = [79], True
    assert last(meter.stop())["xid_79"] == 1


def test_vram_of_processes_is_unknown_when_one_of_them_is() -> None:
    nvml = FakeNvml(fake_nvml.t4(processes={10: GIB, 11: None}))
    meter = VramMeter(device(nvml), lambda: [10, 11], 10.0, pynvml=nvml)
    meter.start()
    assert last(meter.stop())["vram_process_bytes"] is None


def test_vram_of_a_mig_instance() -> None:
    gpu = fake_nvml.a100_80_mig()
    gpu.used_gib, gpu.parts[0].used_gib = 50, 7
    nvml = FakeNvml(gpu)
    meter = VramMeter(device(nvml), lambda: [], 10.0, pynvml=nvml)
    meter.start()
    assert last(meter.stop())["vram_device_used_bytes"] == 7 * GIB


def test_memory_is_counted_in_one_way_throughout() -> None:
    """Refused once, it was asked in the older form, which counts what the driver reserves: 0.5 GiB more as the peak."""
    nvml = FakeNvml(fake_nvml.t4(used_gib=2))
    meter = VramMeter(device(nvml), lambda: [], 10.0, pynvml=nvml)
    meter.start()
    ask = nvml.nvmlDeviceGetMemoryInfo

    def busy(handle: Any, *version: int) -> Any:
        if version:
            raise fake_nvml.FakeError(fake_nvml.TIMEOUT)
        return ask(handle)

    nvml.nvmlDeviceGetMemoryInfo = busy  # type: ignore[method-assign]
    meter.take()
    assert last(meter.stop())["vram_device_used_bytes"] is None


def test_memory_of_the_board_is_not_that_of_an_instance() -> None:
    gpu = fake_nvml.a100_80_mig(processes={10: GIB})
    gpu.used_gib = 50
    nvml = FakeNvml(gpu, refused={"nvmlDeviceGetHandleByUUID": fake_nvml.NOT_FOUND})
    meter = VramMeter(device(nvml), lambda: [10], 10.0, pynvml=nvml)
    meter.start()
    assert set(last(meter.stop()).values()) == {None}


def test_power_and_its_company() -> None:
    nvml = FakeNvml(fake_nvml.h200(power_draw_w=412.5, energy_j=9e6, throttle_bits=0x40 | 0x4, utilisation=97))
    meter = PowerMeter(device(nvml), lambda: [], 10.0, pynvml=nvml)
    meter.start()
    assert last(meter.stop()) == {
        "power_w": 412.5,
        "energy_j": 9e6,
        "sm_clock_mhz": 1200,
        "temperature_c": 40,
        "gpu_utilisation": 0.97,
        "throttle_thermal": 1.0,
        "throttle_power_brake": 0.0,
    }


def test_what_a_gpu_does_not_tell_is_none() -> None:
    nvml = FakeNvml(fake_nvml.a100_80_mig(energy_j=None, power_draw_w=None))
    meter = PowerMeter(device(nvml), lambda: [], 10.0, pynvml=nvml)
    meter.start()
    values = last(meter.stop())
    assert [values[name] for name in ("gpu_utilisation", "energy_j", "power_w")] == [None, None, None]
    assert values["throttle_thermal"] == 0.0


@pytest.mark.parametrize("fault", ["lost", "denied"])
def test_a_gpu_that_cannot_be_opened_leaves_nvml_as_it_was(fault: str) -> None:
    """Each meter of each probe left NVML initialised once more."""
    nvml = FakeNvml(fake_nvml.t4(**{fault: True}))
    gpu = LiveGpu(GpuInfo(index=0, name="Tesla T4"), nvml)
    assert gpu.used_bytes() is None and gpu.lost == (fault == "lost")
    gpu.close()
    assert nvml.opened == 0


def test_a_gpu_that_gets_lost_silences_and_does_not_raise() -> None:
    gpu = fake_nvml.t4()
    nvml = FakeNvml(gpu)
    meters: list[SampledMeter] = [
        VramMeter(device(nvml), lambda: [1], 10.0, pynvml=nvml),
        PowerMeter(device(nvml), lambda: [1], 10.0, pynvml=nvml),
    ]
    for meter in meters:
        meter.start()
    gpu.lost = True
    for meter in meters:
        meter.take()
        assert set(last(meter.stop()).values()) == {None}


def burn(seconds: float) -> subprocess.Popen[bytes]:
    code = (
        "import time; block = bytearray(50_000_000)\n"
        f"while time.process_time() < {seconds}: pass\n"
        "print('x', flush=True); input()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def test_host_readings_of_real_processes() -> None:
    children = [burn(0.2), burn(0.1)]
    pids = [child.pid for child in children]
    meter = HostMeter(CPU, lambda: pids, 0.01)
    meter.start()
    first = last(meter.take())
    assert first["processes"] == 2
    assert 0.25 <= (first["cpu_seconds"] or 0) < 20
    assert 100e6 < (first["ram_pss_bytes"] or 0) < 300e6
    children[0].communicate(b"\n")
    del pids[0]
    after = last(meter.stop())
    assert after["processes"] == 1
    assert (after["cpu_seconds"] or 0) >= (first["cpu_seconds"] or 0), "an ended process keeps what it used"
    children[1].communicate(b"\n")
    assert pss_bytes(children[1].pid) is None


def test_what_others_compute_is_what_neither_the_probe_nor_this_process_does(tmp_path: Path) -> None:
    ticks = os.sysconf("SC_CLK_TCK")
    cores = "".join(f"cpu{n} {900 * ticks} {60 * ticks} {30 * ticks} 77 88 0 0 {10 * ticks} 5 5\n" for n in range(64))
    root = write_tree(tmp_path, {"proc/stat": f"cpu  1 2 3\n{cores}"})
    seen = HostMeter(CPU, lambda: [], root=root).read()["others_cpu_seconds"]
    everybody = 1000.0 * len(os.sched_getaffinity(0))  # idle, disk and guest time left out
    assert everybody - time.process_time() <= (seen or 0) < everybody
    assert HostMeter(CPU, lambda: [], root=tmp_path / "no-proc").read()["others_cpu_seconds"] is None


def test_pss_shares_what_is_shared_and_falls_back(tmp_path: Path) -> None:
    root = write_tree(tmp_path, {"proc/5/smaps_rollup": "55-7f [rollup]\nRss: 900 kB\nPss:   300 kB\nPss_Anon: 1 kB\n"})
    assert pss_bytes(5, root) == 300 * 1024
    child = burn(0.0)
    resident = pss_bytes(child.pid, tmp_path / "no-proc")
    child.communicate(b"\n")
    assert resident is not None
    assert resident > 50e6


def test_what_a_process_took_between_readings_counts_in_its_peak(tmp_path: Path) -> None:
    status = "VmPeak: 9999 kB\nVmHWM:\t  700 kB\nVmRSS:\t  400 kB\n"
    root = write_tree(tmp_path, {"proc/5/smaps_rollup": "Pss:   300 kB\n", "proc/5/status": status})
    found = HostMeter(CPU, lambda: [5], 0.5, root=root).read()
    assert (found["ram_pss_bytes"], found["ram_peak_bytes"]) == (300 * 1024, 600 * 1024)
    assert resident(6, root) == Resident(private_bytes=0, file_bytes=0, spike_bytes=0)


def status(private_kib: int, file_kib: int) -> str:
    """A ``/proc/PID/status`` of a process that shares as much memory as it maps of files, a half each."""
    shared = f"RssFile:\t {file_kib // 2} kB\nRssShmem:\t {file_kib - file_kib // 2} kB\n"
    return f"VmRSS:\t {private_kib + file_kib} kB\nRssAnon:\t {private_kib} kB\n{shared}"


def test_slow_counting_of_pages_is_done_seldom_and_growth_seen_in_between(tmp_path: Path) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 0.01  # every look at the clock takes 10 ms, so counting seems to take 10 ms
        return now[0]

    root = write_tree(tmp_path, {"proc/5/smaps_rollup": "Pss:   300 kB\n", "proc/5/status": status(400, 100)})
    pids = [5]
    meter = HostMeter(CPU, lambda: pids, 0.5, root=root, clock=clock)
    assert meter.read()["ram_pss_bytes"] == 300 * 1024
    write_tree(root, {"proc/5/smaps_rollup": "Pss:   5000 kB\n", "proc/5/status": status(500, 200)})
    assert meter.read()["ram_pss_bytes"] == (300 + 100) * 1024
    now[0] += 10.0  # 10 ms / 0.1 %
    assert meter.read()["ram_pss_bytes"] == 5000 * 1024
    pids.clear()
    assert meter.read()["ram_pss_bytes"] is None


def test_sizes_of_processes_that_share_are_read_at_one_time(tmp_path: Path) -> None:
    now, mib = [0.0], 2**20

    def clock() -> float:
        now[0] += 0.001
        return now[0]

    def process(pid: int, pss_mib: int, private_mib: int, file_mib: int) -> None:
        files = {"smaps_rollup": f"Pss: {pss_mib * 1024} kB\n", "status": status(private_mib * 1024, file_mib * 1024)}
        write_tree(tmp_path, {f"proc/{pid}/{name}": text for name, text in files.items()})

    pids = [5]
    meter = HostMeter(CPU, lambda: pids, 0.5, root=tmp_path, clock=clock)

    def read() -> float:
        now[0] += 0.5
        return (meter.read()["ram_pss_bytes"] or 0) / mib

    process(5, 300, 100, 200)
    assert read() == 300
    process(5, 200, 100, 200)  # another process maps the same 200 MiB
    process(6, 200, 100, 200)
    pids.append(6)
    assert read() == 400
    for pid in pids:
        process(pid, 250, 100, 300)  # both map another 100 MiB that they share
    assert read() == 500
    for pid in pids:
        process(pid, 251, 101, 301)  # little more
    assert read() == 502
    now[0] += 60.0
    assert read() == 502
    for pid in pids:
        process(pid, 280, 120, 320)  # long after they started: 0.1 % of the time, so not yet
    assert read() == 540
    now[0] += 2.0
    assert read() == 560


class Slow(SampledMeter):
    release = threading.Event()
    closed = False

    def read(self) -> dict[str, float | None]:
        self.release.wait()
        return {"x": 1.0}

    def close(self) -> None:
        self.closed = True


def test_a_hung_reading_delays_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autotune.meters.base._PATIENCE_S", 0.05)
    monkeypatch.setattr("autotune.meters.base._STOP_PATIENCE_S", 0.05)
    meter = Slow(CPU, lambda: [])
    meter.start()
    assert meter.stop() == ()
    meter.release.set()


class Deaf(Slow):
    """Hangs in every call, whatever is asked."""

    def start(self) -> None:
        self.release.wait()

    def stop(self) -> tuple[Reading, ...]:
        self.release.wait()
        return ()


def test_hung_meters_hold_nobody_up_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three that hang and one that works: its readings arrive, and the time is that of one timeout."""
    for name in ("_START_METERS_S", "_STOP_METERS_S"):
        monkeypatch.setattr(f"autotune.executors.ending.{name}", 0.2)
    working = HostMeter(CPU, lambda: [], 10.0)
    hung = [Deaf(CPU, lambda: []) for _ in range(3)]
    start_meters([*hung, working])
    assert {reading.name for reading in stop_all([*hung, working], [], 0.0)} >= {"ram_pss_bytes", "processes"}
    Deaf.release.set()


def test_side_by_side_keeps_the_order_and_leaves_out_the_late() -> None:
    late = threading.Event()
    begin_s = time.monotonic()
    assert side_by_side([lambda: 1, late.wait, lambda: 3], 0.2) == [1, None, 3]
    assert time.monotonic() - begin_s >= 0.2
    late.set()
    assert side_by_side([], 1.0) == []


def test_take_hands_over_once_and_stop_the_rest() -> None:
    class Counting(SampledMeter):
        count = 0.0

        def read(self) -> dict[str, float | None]:
            self.count += 1
            return {"x": self.count}

    meter = Counting(CPU, lambda: [], 0.005)
    meter.start()
    seen: list[Any] = list(meter.take())
    while len(seen) < 3:
        time.sleep(0.005)
        seen += meter.take()
    seen += meter.stop()
    assert [reading.value for reading in seen] == [float(n) for n in range(1, len(seen) + 1)]


READINGS = tuple(
    Reading(t_s=t, name=name, value=value)
    for t, name, value in [
        (0.0, "power_w", 100.0),
        (0.0, "energy_j", 50.0),
        (1.0, "power_w", None),
        (2.0, "power_w", 300.0),
        (2.0, "energy_j", 450.0),
        (3.0, "power_w", 800.0),
        (3.0, "energy_j", 1250.0),
    ]
)


def test_summaries() -> None:
    assert summary.peak(READINGS, "power_w") == 800.0
    assert summary.mean(READINGS, "power_w", 0.0, 2.0) == 200.0
    assert summary.rate(READINGS, "energy_j") == 400.0
    assert summary.energy_j(READINGS, 0.0, 2.0) == 400.0
    assert summary.energy_j([r for r in READINGS if r.name == "power_w"], 0.0, 2.0) == 400.0


def test_summaries_of_nothing_are_unknown() -> None:
    assert summary.peak((), "power_w") is None
    assert summary.mean(READINGS, "power_w", 1.0, 1.5) is None
    assert summary.rate(READINGS, "energy_j", 2.0, 2.5) is None
    at_once = [Reading(t_s=1.0, name="energy_j", value=value) for value in (5.0, 6.0)]
    assert summary.rate(at_once, "energy_j") is None, "no time between them"
    assert summary.energy_j((), 0.0, 1.0) is None


@pytest.mark.gpu
def test_real_gpu_readings() -> None:
    info = inspect_device("cuda")
    meters: list[SampledMeter] = [kind(info, lambda: [], 0.1) for kind in (VramMeter, PowerMeter, HealthMeter)]
    for meter in meters:
        meter.start()
    time.sleep(0.5)
    vram, power, health = (meter.stop() for meter in meters)
    assert summary.peak(health, "xids") in (None, 0)
    assert summary.last(health, "vram_total_bytes") == info.vram_total_bytes
    used = summary.peak(vram, "vram_device_used_bytes")
    assert used is not None
    assert used >= 0
    assert 0 <= (summary.mean(power, "gpu_utilisation") or 0) <= 1
    assert (summary.mean(power, "temperature_c") or 0) > 10


def test_readings_are_plain_numbers_whatever_a_meter_gives() -> None:
    """They go into a file as JSON: NaN, or a number of numpy's, ended the command after the probe was measured."""

    class Loose(SampledMeter):
        def read(self) -> dict[str, float | None]:
            return {
                "nan": math.nan,
                "endless": math.inf,
                "single": np.float32(0.5),
                "count": 3,
                "unknown": None,
                "word": "fast",
            }

    meter = Loose(CPU, lambda: [], 10.0)
    meter.start()
    readings = stop_all([meter], [], grace_s=0.0)
    assert last(readings) == {"nan": None, "endless": None, "single": 0.5, "count": 3, "unknown": None, "word": None}
    canonical_json([to_json(reading) for reading in readings])


@pytest.mark.parametrize("given", [None, 7, "no readings", [1, None], object()])
def test_what_is_no_reading_is_left_out(given: object) -> None:
    """A meter that stopped with something else ended the command in a traceback."""

    class Odd(SampledMeter):
        def read(self) -> dict[str, float | None]:
            return {}

        def stop(self) -> Any:
            return given

    assert stop_all([Odd(CPU, lambda: [])], [], grace_s=0.0) == ()


@pytest.mark.parametrize("where", ["open", "read"])
def test_a_meter_that_fails_holds_nobody_up(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An installed one that is broken took five seconds of every probe, and then its thread printed a traceback."""

    class Broken(SampledMeter):
        def read(self) -> dict[str, float | None]:
            return {"value": 1.0}

    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    setattr(Broken, where, fail)
    meter, begin_s = Broken(CPU, lambda: [], 0.1), time.monotonic()
    meter.start()
    assert meter.stop() == ()
    assert time.monotonic() - begin_s < 2.5
    assert capsys.readouterr().err == "meter Broken fell silent: RuntimeError: broken\n"


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_meter_of_its_own_kind_that_fails_falls_silent_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """The contract asks for `start` and `stop` only: what they raised was printed as a traceback of our thread."""

    class Fan:
        def __init__(self, *_: Any) -> None: ...

        def start(self) -> None:
            raise ValueError("no fan")

        def stop(self) -> tuple[Reading, ...]:
            raise OSError("it fell off")

    fan = Fan()
    start_meters([fan])
    assert stop_all([fan], [], grace_s=0.0) == ()
    said = capsys.readouterr().err
    assert said == "meter Fan fell silent: ValueError: no fan\nmeter Fan fell silent: OSError: it fell off\n"
