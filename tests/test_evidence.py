"""What a probe has seen becomes its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_nvml
import pytest
from fake_host import GIB, host
from fake_nvml import FakeNvml

from autotune.codec import from_json, to_json
from autotune.device.inspect import inspect_device
from autotune.executors.cgroup import MemoryGroup
from autotune.executors.evidence import Evidence, conclude, save_samples
from autotune.executors.window import Step
from autotune.records import Budget, Job, Limits, MeasurePlan, Point, ProbeRequest, ProbeResult, Reading, Work
from autotune.store import read_lines
from autotune.worker.measure import step_message

MIB = 2**20
STEPS = [Step(t=float(t), started=t - 1.0, env_steps=100) for t in range(31)]
REQUEST = ProbeRequest(
    workload="busywork",
    hyperparameters={},
    point=Point(num_envs=8, batch_size=64),
    jobs=(Job(id="a", env="busy", seed=1, budget=Budget(unit="steps", amount=1)),),
    grade="final",
    plan=MeasurePlan(),
    limits=Limits(),
    log_folder="",
)
SEEN: dict[str, Sequence[float | None]] = {
    "vram_device_used_bytes": [2 * GIB, 7 * GIB, 6 * GIB],
    "vram_process_bytes": [None, 4 * GIB, 3 * GIB],
    "vram_delta_bytes": [0, 5 * GIB, 4 * GIB],
    "ram_pss_bytes": [None, 3 * GIB - 7, 2 * GIB],
    "ram_peak_bytes": [None, 3 * GIB, 2 * GIB],
    "shm_used_bytes": [100 * MIB, 350 * MIB, 100 * MIB],
    "processes": [0, 5, 4],
    "threads": [0, 40, 44],
    "cpu_seconds": [0, 60, 90],
    "others_cpu_seconds": [1000, 1003, 1006],
}
DEVICE = inspect_device(
    pynvml=FakeNvml(fake_nvml.a100_80()), run=lambda _: None, host=host(), environment={}, apple_gpu=False
)


def result_of(seen: dict[str, Sequence[float | None]], **state: Any) -> ProbeResult:
    readings = [Reading(t_s=15.0 * i, name=n, value=v) for n, values in seen.items() for i, v in enumerate(values)]
    evidence = Evidence(**{"workers": [], "steps": [STEPS], "started_s": -10.0, "opened": [STEPS]} | state)
    return conclude(REQUEST, evidence, readings, DEVICE)


def test_peaks_stand_side_by_side() -> None:
    result = result_of(SEEN, peaks={0: GIB, 1: 2 * GIB})
    assert result.ok, result.detail
    assert (result.framework_peak_bytes, result.vram_process_bytes) == (3 * GIB, 4 * GIB)
    assert (result.vram_idle_bytes, result.vram_device_delta_bytes, result.vram_peak_bytes) == (
        2 * GIB,
        5 * GIB,
        5 * GIB,
    )
    assert (result.ram_peak_bytes, result.shm_peak_bytes) == (3 * GIB, 250 * MIB)
    assert (result.processes_peak, result.threads_peak) == (5, 44)
    assert (result.cpu_cores, result.others_cpu_cores) == (3.0, 0.2)
    assert result.flags == ("one launch",)


def test_a_neighbours_growth_is_not_charged_to_the_probe() -> None:
    beside = result_of(SEEN | {"neighbour_bytes_7": [2 * GIB, 3 * GIB, 3 * GIB]})
    assert (beside.vram_peak_bytes, beside.vram_device_delta_bytes) == (4 * GIB, 5 * GIB)
    assert beside.flags == ("one launch", "shared")
    unattributed = result_of(SEEN | {"vram_process_bytes": [None] * 3, "neighbour_bytes_7": [2 * GIB] * 3})
    assert unattributed.vram_peak_bytes == 5 * GIB  # all there is to go by


def test_what_nobody_told_is_unknown() -> None:
    result = result_of({name: [None] * 3 for name in SEEN})
    assert result.ok and result.sps == 100.0
    assert {
        getattr(result, name)
        for name in (
            *("vram_peak_bytes", "vram_process_bytes", "vram_device_delta_bytes", "vram_idle_bytes", "ram_peak_bytes"),
            *("shm_peak_bytes", "processes_peak", "threads_peak", "cpu_cores", "others_cpu_cores"),
        )
    } == {None}


def test_a_failure_has_no_rate_even_with_its_window_complete() -> None:
    result = result_of(SEEN, status="crashed", detail="process ended with signal 11")
    assert (result.status, result.sps, result.vram_peak_bytes) == ("crashed", None, 5 * GIB)


@pytest.mark.parametrize(("kills", "status"), [(0, "crashed"), (1, "oom")])
def test_a_crash_by_the_limit_on_memory_is_oom(tmp_path: Path, kills: int, status: str) -> None:
    (tmp_path / "memory.events").write_text(f"oom_kill {kills}\n")
    state = Evidence(workers=[], steps=[], started_s=0.0)
    state.fail("crashed", "process ended with signal 9")
    state.blame_limit(MemoryGroup(folder=tmp_path, version=2))
    assert state.status == status
    assert state.detail.endswith("process ended with signal 9")
    state.blame_limit(None)
    assert state.status == status


def test_a_program_that_waits_for_what_the_limit_on_memory_killed_is_oom(tmp_path: Path) -> None:
    """Its environments were killed, and it hung: a timeout may have other causes, and forbids less."""
    (tmp_path / "memory.events").write_text("oom_kill 1\n")
    state = Evidence(workers=[], steps=[], started_s=0.0)
    state.expire("no complete window after 300 s", -1.0, 0.0)
    state.blame_limit(MemoryGroup(folder=tmp_path, version=2))
    assert (state.status, state.detail) == (
        "oom",
        "the limit on host memory was exceeded: no complete window after 300 s",
    )


def test_steps_carry_what_the_session_counts() -> None:
    work = Work(env_steps=1, metrics={"alloc_retries": 2.0})
    assert Step.from_message(step_message([work], 1.0, 0.0)).metrics == {"alloc_retries": 2.0}


def test_a_metric_that_is_not_finite_is_left_out_of_the_samples(tmp_path: Path) -> None:
    work = Work(env_steps=1, metrics={"loss": float("nan"), "entropy": float("inf"), "retries": 2.0})
    seen = Evidence(workers=[], steps=[[Step.from_message(step_message([work], 1.0, 0.0))]], started_s=0.0)
    save_samples(tmp_path / "samples.jsonl", seen, ())
    assert read_lines(tmp_path / "samples.jsonl")[0]["metrics"] == {"retries": 2.0}


def test_games_are_counted_from_the_start_by_process() -> None:
    """8 environments: 62 games of 50 steps end in 31 iterations of 100 steps; a second process sees too few."""
    own = [replace(step, lengths=(50, 50)) for step in STEPS]
    result = result_of(SEEN, steps=[own, STEPS], opened=[own[10:], STEPS[10:]])
    assert result.games == (62, 0)
    assert result.game_steps == (pytest.approx(3100 / (62 + 8 / 2)), None)
    assert result.episode_steps == result.game_steps[0]
    assert from_json(ProbeResult, to_json(result)).game_steps == result.game_steps
