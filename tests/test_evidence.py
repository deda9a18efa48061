"""What a probe has seen becomes its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fake_nvml
import pytest
from fake_host import GIB, host
from fake_nvml import FakeNvml

from autotune.codec import from_json, to_json
from autotune.device.inspect import inspect_device
from autotune.errors import UsageError
from autotune.executors.cgroup import MemoryGroup
from autotune.executors.evidence import Evidence, conclude, save_samples
from autotune.executors.window import Step
from autotune.probe.bottleneck import limited_by
from autotune.records import (
    ENDED_EARLY,
    PAUSED,
    REFUSED,
    Budget,
    Job,
    Limits,
    MeasurePlan,
    Point,
    ProbeRequest,
    ProbeResult,
    Reading,
    Work,
)
from autotune.store import read_lines
from autotune.worker.measure import step_message
from autotune.workloads.protocol import LAST_LINES

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


def result_of(seen: dict[str, Sequence[float | None]], request: ProbeRequest = REQUEST, **state: Any) -> ProbeResult:
    readings = [Reading(t_s=15.0 * i, name=n, value=v) for n, values in seen.items() for i, v in enumerate(values)]
    evidence = Evidence(**{"workers": [], "steps": [STEPS], "started_s": -10.0, "opened": [STEPS]} | state)
    return conclude(request, evidence, readings, DEVICE)


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


def test_the_figures_are_those_of_the_windows() -> None:
    ready = {n: {"threads": 2 + n, "effective": {"num_envs": 8 + n}} for n in (1, 0)}
    own = [replace(step, reset_rows=25, seconds={"env": 0.4}) for step in STEPS]
    later = [replace(step, t=step.t + 5, started=step.started + 5) for step in own]
    seen = {
        "ready": ready,
        "ready_s": -2.0,
        "steps": [[replace(STEPS[0], started=-6.0)], STEPS],
        "opened": [own, later],
    }
    result = result_of({}, **seen)
    assert (result.startup_s, result.first_iteration_s, result.window_s, result.iterations) == (8, 6, 35, 60)
    assert (result.sps, result.job_sps, result.reset_fraction) == (200, (100, 100), 25 / 125)
    assert result.phase_seconds == pytest.approx({"env": 0.004})
    assert (result.framework_peak_bytes, result.flags) == (None, ("one launch",))
    assert result.sps_low is not None and result.sps_high is not None and result.sps_low < 200 < result.sps_high
    assert result.effective == {"concurrency": 2, "threads": 2, "ram_limit": "watch", "num_envs": 8}
    assert result_of({}, request=replace(REQUEST, workload="command"), **seen).reset_fraction is None
    single = result_of({}, opened=[STEPS[:2]])
    assert (single.sps, single.sps_low, single.sps_high) == (100, None, None), "one iteration has no interval"
    slices = [replace(step, parts=4, minibatches=1) for step in STEPS]
    assert result_of({}, opened=[slices]).flags == ("one launch", "extrapolated")


def test_a_failure_carries_its_marks_and_the_log_of_the_process_that_failed() -> None:
    workers = [SimpleNamespace(log_tail=lambda: "first"), SimpleNamespace(log_tail=lambda: "second")]
    seen: dict[str, Any] = {"status": "crashed", "opened": None, "workers": workers}
    early = seen | {"refused": True, "ended_early": True}
    assert result_of({}, **early).flags == (REFUSED, ENDED_EARLY)
    assert result_of({}, **early, steps=[[], []]).flags == (REFUSED,), "nothing says that it ever ran"
    again = replace(REQUEST, ran_before=True)
    assert result_of({}, again, **early, steps=[[], []]).flags == (REFUSED, ENDED_EARLY)
    assert result_of({}, again, **seen, paused=True).flags == (PAUSED,)
    assert [result_of({}, **seen, culprit=each).log_tail for each in (None, 1)] == ["first", "second"]


@pytest.mark.parametrize(
    ("kind", "ready", "own", "verdict"),
    [
        ("oom", True, STEPS, ("oom", False, False)),
        ("refused", False, [], ("crashed", True, False)),
        ("crashed", True, STEPS, ("crashed", False, False)),
        ("silent", True, STEPS, ("timeout", False, False)),
        ("misuse", True, STEPS, ("crashed", True, False)),
        ("misuse", True, [], ("crashed", True, True)),
        ("misuse", False, STEPS, None),
    ],
)
@pytest.mark.parametrize("heard", [False, True])
def test_what_a_process_says_of_its_failure_is_judged_by_what_was_heard(
    kind: str, ready: bool, own: list[Step], verdict: tuple[str, bool, bool] | None, heard: bool
) -> None:
    """Nothing heard, in this probe or before it: the pattern may be wrong, which is no matter of the settings."""
    state = Evidence(workers=[], steps=[own, []], started_s=0.0, ready={0: {}} if ready else {})
    message = {"type": "error", "kind": kind, "detail": f"why. {LAST_LINES}printed"}
    request = replace(REQUEST, steps_heard=heard)
    if verdict is None or (kind in ("silent", "misuse") and not (heard or own)):
        with pytest.raises(UsageError, match="why"):
            state.take(request, 0, message)
        return
    state.take(request, 0, message)
    assert (state.status, state.refused, state.ended_early) == verdict
    assert state.detail.endswith(f"{LAST_LINES}printed")
    assert state.detail.startswith("why" if not state.ended_early else "the program ended well and without a step")


@pytest.mark.parametrize(("count", "status"), [(13, "ok"), (12, "crashed")])
def test_a_program_may_end_when_a_quarter_of_its_window_is_measured(count: int, status: str) -> None:
    """10 s are discarded, and of the window of 8 s two are enough."""
    state = Evidence(workers=[], steps=[[]], started_s=0.0)
    for step in STEPS[:count]:
        peak = {"peak_memory_bytes": 7 if step.t == 3 else 5}
        state.take(REQUEST, 0, {"type": "step", "t": step.t, "started": step.started, "env_steps": 1} | peak)
    state.take(REQUEST, 0, {"type": "done", "reason": "stopped"})
    assert (state.status, state.opened, state.peaks) == ("ok", None, {0: 7})
    state.take(REQUEST, 0, {"type": "done", "reason": "finished"})
    assert (state.status, state.refused, state.ended_early) == (status, status != "ok", status != "ok")
    assert (state.opened is not None) == (status == "ok")


@pytest.mark.parametrize(("paused_s", "paused"), [(0.0, False), (10.0, False), (11.0, True)])
def test_time_that_nobody_could_listen_is_told(paused_s: float, paused: bool) -> None:
    state = Evidence(workers=[], steps=[], started_s=0.0)
    state.expire("no window", -10.0, paused_s)
    assert (state.status, state.paused, "stood still for 11 s" in state.detail) == ("timeout", paused, paused)
    state.fail("crashed", "later")
    assert state.detail != "later", "the first counts"


@pytest.mark.parametrize(("refuses", "limit"), [(None, "cgroup"), (1, "watch")])
def test_a_limit_on_memory_holds_where_every_process_is_under_it(
    monkeypatch: pytest.MonkeyPatch, refuses: int | None, limit: str
) -> None:
    offered: list[int] = []
    monkeypatch.setattr("autotune.executors.evidence.offer_as_victim", offered.append)
    workers: Any = [SimpleNamespace(pid=pid) for pid in (1, 2)]
    group: Any = SimpleNamespace(add=lambda pid: pid != refuses)
    state = Evidence(workers=workers, steps=[], started_s=0.0)
    state.confine(None)
    assert state.ram_limit == "watch"
    state.confine(group)
    assert (state.ram_limit, offered) == (limit, [1, 2, 1, 2])


def test_a_process_that_made_no_step_in_its_window_was_not_measured() -> None:
    idle = [STEPS[0], *(replace(step, env_steps=0) for step in STEPS[1:])]
    state = Evidence(workers=[], steps=[], started_s=0.0, opened=[STEPS, [*idle, STEPS[-1]]])
    state.blame_idle()
    assert state.status == "ok"
    state.opened = [STEPS, idle]
    state.blame_idle()
    assert (state.status, state.culprit) == ("crashed", 1)


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


MORE_CORES = ": 8 CPU cores feed 6,100 SPS; a faster GPU buys nothing, more cores do"
BETTER_GPU = ": a faster GPU or a lower precision helps, more cores do not"


@pytest.mark.parametrize(
    ("phases", "cores", "gpu", "sentence", "advice"),
    [
        (
            (7, 3), 6.8, 0.89,
            "env stepping takes 70% of the time (6.8 of 8 CPU cores busy, saturated; GPU 89% utilised)", MORE_CORES,
        ),
        ((7, 3), 6.7, 0.9, "env stepping takes 70% of the time (6.7 of 8 CPU cores busy; GPU 90% utilised)", ""),
        ((7, 3), None, None, "env stepping takes 70% of the time", MORE_CORES),
        ((4, 6), None, 0.9, "learning takes 60% of the time (GPU 90% utilised)", BETTER_GPU),
        ((4, 6), None, 0.89, "learning takes 60% of the time (GPU 89% utilised)", ""),
        ((45, 30, 25), None, None, "env stepping takes 45% of the time", ""),
        ((0, 5), None, None, "learning takes 100% of the time", ""),
        ((0, 0), 8.0, 1.0, "", ""),
    ],
)  # fmt: skip
def test_what_limits_a_point_follows_its_phases_cores_and_gpu(
    phases: tuple[float, ...], cores: float | None, gpu: float | None, sentence: str, advice: str
) -> None:
    result = ProbeResult(
        requested=REQUEST.point, status="ok", grade="final", sps=6100.0, cpu_cores=cores, gpu_utilisation=gpu,
        phase_seconds={name: 1e-6 * share for name, share in zip(("env", "learn", "infer"), phases, strict=False)},
    )  # fmt: skip
    assert limited_by(result, DEVICE) == sentence + advice
    assert limited_by(result, replace(DEVICE, kind="cpu")) == sentence, "there is no other GPU to advise"
    assert limited_by(replace(result, sps=None), DEVICE) == ""
