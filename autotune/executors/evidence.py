"""From what a probe has seen to its result: rates and readings in short; the verdict is `stability`'s."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from autotune.codec import to_json
from autotune.errors import UsageError
from autotune.executors import window
from autotune.executors.cgroup import MemoryGroup, offer_as_victim
from autotune.executors.process import Message, WorkerProcess
from autotune.executors.stability import Seen, judge, neighbours
from autotune.executors.window import Step
from autotune.machine import DeviceInfo
from autotune.meters.summary import energy_j, first, mean, peak, rate
from autotune.records import ENDED_EARLY, PAUSED, REFUSED, ProbeRequest, ProbeResult, Reading, Status
from autotune.stats import NOISE_WINDOW_S, estimate, game_steps, pooled_game_steps, summed_batch_rates, window_noise
from autotune.store import canonical_json, durable_write, make_folder
from autotune.workloads.protocol import LAST_LINES

_ENDED_SHARE_MIN = 0.25
"""A program may end when so much of its window is measured."""
_MORE_STEPS = "while it is tuned let it do more steps (its own total), beyond a minute's work at its fastest"
_NOTHING_LEFT = (
    "the program ended well and without a step, though it told some before: one that goes on from a checkpoint of its "
    "own may have had nothing left to do. While it is tuned let it begin anew each time, or do more steps. "
)


@dataclass
class Evidence:
    """What a running probe has seen so far.

    Attributes:
        workers: its processes.
        steps: reported by each.
        started_s: `time.monotonic` at its start.
        ready: the ``ready`` message of each process that is.
        ready_s: when all were.
        peaks: the framework's own peak of device memory, by process.
        opened: the windows, once complete.
        status: ``ok`` until something fails.
        culprit: index of the process that failed, None when it was not one of them.
        refused: whether it was a program that may not take these settings.
        ended_early: whether it was one that ended well, too soon to be measured.
        paused: whether its time ran out while this process itself stood still.
        ram_limit: what keeps the processes from taking all memory: a ``cgroup``, or this process's ``watch``.
    """

    workers: list[WorkerProcess]
    steps: list[list[Step]]
    started_s: float
    ready: dict[int, Message] = field(default_factory=dict)
    ready_s: float | None = None
    peaks: dict[int, int] = field(default_factory=dict)
    opened: list[Sequence[Step]] | None = None
    status: Status = "ok"
    detail: str = ""
    culprit: int | None = None
    refused: bool = False
    ended_early: bool = False
    paused: bool = False
    ram_limit: Literal["cgroup", "watch"] = "watch"

    def take(self, request: ProbeRequest, index: int, message: Message) -> None:
        """Take what a process says.

        Raises:
            UsageError: that the workload refuses a value.
        """
        kind = message.get("type")
        if message.get("peak_memory_bytes") is not None:
            self.peaks[index] = max(self.peaks.get(index, 0), int(message["peak_memory_bytes"]))
        if kind == "ready":
            self.ready[index] = message
        elif kind == "step":
            self.steps[index].append(Step.from_message(message))
        elif kind == "error":
            self._take_error(index, message, heard=request.steps_heard or any(self.steps))
        elif kind == "done" and message.get("reason") == "finished":
            plan = replace(request.plan, window_s=_ENDED_SHARE_MIN * request.plan.window_s)
            self.opened = window.windows(self.steps, plan)
            if self.opened is None:
                detail = f"{message.get('detail') or 'the program ended'}, too early to be measured: {_MORE_STEPS}"
                self.fail("crashed", detail, index, refused=True, ended_early=True)

    def _take_error(self, index: int, message: Message, *, heard: bool) -> None:
        """Take why a process failed; `heard` is whether any of the run has told steps: then its pattern is right."""
        error, detail = message.get("kind"), str(message["detail"])
        if error == "silent" and heard:
            self.fail("timeout", detail, index)
            return
        if error == "silent" or (error == "misuse" and not (heard and index in self.ready)):
            raise UsageError(detail)
        _, printed, lines = detail.partition(LAST_LINES)
        nothing_left = error == "misuse" and bool(printed) and not self.steps[index]
        if nothing_left:  # of what it was told to correct only the lines are kept
            detail = _NOTHING_LEFT + LAST_LINES + lines
        refused = error in ("refused", "misuse")
        self.fail("oom" if error == "oom" else "crashed", detail, index, refused=refused, ended_early=nothing_left)

    def fail(
        self,
        status: Status,
        detail: str,
        culprit: int | None = None,
        *,
        refused: bool = False,
        ended_early: bool = False,
    ) -> None:
        """Record a failure; of several the first counts, but for memory."""
        if self.status == "ok" or status == "oom":
            self.status, self.detail, self.culprit = status, detail, culprit
            self.refused, self.ended_early = refused, ended_early

    def expire(self, detail: str, left_s: float, paused_s: float) -> None:
        """Record that its time has run out, `left_s` (below 0) ago; for `paused_s` of it nobody was there to listen."""
        self.paused = left_s + paused_s > 0
        self.fail("timeout", f"{detail}; this command stood still for {paused_s:.0f} s" if self.paused else detail)

    def confine(self, group: MemoryGroup | None) -> None:
        """Put the workers under a memory limit, and in front of everybody else when the kernel must kill."""
        for worker in self.workers:
            offer_as_victim(worker.pid)
        if group is not None and all([group.add(worker.pid) for worker in self.workers]):
            self.ram_limit = "cgroup"

    def blame_limit(self, group: MemoryGroup | None) -> None:
        """Name the memory limit as the reason of a crash that it caused, or of a wait for what it killed."""
        if self.status in ("crashed", "timeout") and group is not None and group.oom_kills():
            self.fail("oom", f"the limit on host memory was exceeded: {self.detail}", self.culprit)

    def blame_idle(self) -> None:
        """A process that made no env step in its window was not measured."""
        for index, steps in enumerate(self.opened or ()):
            if not any(step.env_steps for step in steps[1:]):
                self.fail("crashed", "the workload reported no env step in the measured window", index)


def conclude(request: ProbeRequest, state: Evidence, readings: Sequence[Reading], device: DeviceInfo) -> ProbeResult:
    """The result of a probe that has ended, well or not."""
    culprit = state.culprit if state.culprit is not None else 0
    first_steps = [next((s for s in steps), None) for steps in state.steps]
    begun = request.ran_before or any(state.steps)
    flags = {REFUSED: state.refused, ENDED_EARLY: state.ended_early and begun, PAUSED: state.paused}
    result = ProbeResult(
        requested=request.point,
        status=state.status,
        grade=request.grade,
        detail=state.detail,
        effective=_effective(state),
        startup_s=state.ready_s - state.started_s if state.ready_s else None,
        first_iteration_s=max((s.t - s.started for s in first_steps if s), default=None),
        vram_peak_bytes=_whole(_vram_peak(readings, alone=not neighbours(readings, device))),
        framework_peak_bytes=sum(state.peaks.values()) if state.peaks else None,
        vram_process_bytes=_whole(peak(readings, "vram_process_bytes")),
        vram_device_delta_bytes=_whole(peak(readings, "vram_delta_bytes")),
        vram_idle_bytes=_whole(first(readings, "vram_device_used_bytes")),
        ram_peak_bytes=_whole(peak(readings, "ram_peak_bytes")),
        shm_peak_bytes=_shm_peak(readings),
        processes_peak=_whole(peak(readings, "processes")),
        threads_peak=_whole(peak(readings, "threads")),
        flags=tuple(flag for flag, holds in flags.items() if holds),
        log_tail="" if state.status == "ok" or not state.workers else state.workers[culprit].log_tail(),
    )
    opened = state.opened if state.opened and state.status == "ok" else ()
    if opened:
        result = _games(_measured(result, opened, readings), state.steps)
        if request.workload == "command":  # its resets are its own affair
            result = replace(result, reset_fraction=None)
    return judge(Seen(result=result, readings=readings, device=device, limits=request.limits, opened=opened))


def _effective(state: Evidence) -> dict[str, Any]:
    reported = [state.ready[i] for i in sorted(state.ready)]
    if not reported:
        return {}
    ours = {"concurrency": len(reported), "threads": reported[0]["threads"], "ram_limit": state.ram_limit}
    return dict(reported[0]["effective"]) | ours


def _measured(result: ProbeResult, opened: Sequence[Sequence[Step]], readings: Sequence[Reading]) -> ProbeResult:
    traces = [window.trace(steps) for steps in opened]
    figures = estimate(traces)
    begin_s, end_s = min(steps[0].t for steps in opened), max(steps[-1].t for steps in opened)
    sums = window.totals(opened)
    rows = sums["env_steps"] + sums["reset_rows"]
    sliced = any(window.sliced(steps) for steps in opened)
    bounded = math.isfinite(figures.high)  # a window of one iteration has no interval
    others_cores = rate(readings, "others_cpu_seconds", begin_s, end_s)
    return replace(
        result,
        sps=figures.rate,
        sps_low=figures.low if bounded else None,
        sps_high=figures.high if bounded else None,
        job_sps=figures.per_process,
        noise_fraction=window_noise(traces, NOISE_WINDOW_S),
        batch_sps=tuple(summed_batch_rates(traces)[0].tolist()),
        window_s=end_s - begin_s,
        iterations=sums["iterations"],
        phase_seconds=window.phase_seconds(opened),
        reset_fraction=sums["reset_rows"] / rows if rows else None,
        cpu_cores=rate(readings, "cpu_seconds", begin_s, end_s),
        others_cpu_cores=None if others_cores is None else max(0.0, others_cores),
        gpu_utilisation=mean(readings, "gpu_utilisation", begin_s, end_s),
        power_w=mean(readings, "power_w", begin_s, end_s),
        energy_j=energy_j(readings, begin_s, end_s),
        flags=("one launch", *(("extrapolated",) if sliced else ())),
    )


def _games(result: ProbeResult, steps: Sequence[Sequence[Step]]) -> ProbeResult:
    """With what the games say that were played since the processes' start, what the window discards included."""
    told, asked = result.effective.get("num_envs"), result.requested.num_envs
    envs = told if isinstance(told, int) else asked
    lengths = [[length for step in own for length in step.lengths] for own in steps]
    found = tuple(
        game_steps(sum(step.env_steps for step in own), ended, envs) for own, ended in zip(steps, lengths, strict=True)
    )
    games = tuple(len(ended) for ended in lengths)
    return replace(result, games=games, game_steps=found, episode_steps=pooled_game_steps(games, found))


def _vram_peak(readings: Sequence[Reading], alone: bool) -> float | None:
    """The larger of what the processes hold and what the device gained; beside neighbours the former, if known."""
    own, gained = peak(readings, "vram_process_bytes"), peak(readings, "vram_delta_bytes")
    known = [own] if own is not None and not alone else [own, gained]
    return max((value for value in known if value is not None), default=None)


def _shm_peak(readings: Sequence[Reading]) -> int | None:
    before, most = first(readings, "shm_used_bytes"), peak(readings, "shm_used_bytes")
    return None if before is None or most is None else int(most - before)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def save_samples(path: Path, state: Evidence, readings: Sequence[Reading]) -> None:
    """Write the raw windows and readings, one JSON line each.

    Raises:
        FileError: the folder is read-only or full.
    """
    rows = [{"process": index, **to_json(step)} for index, steps in enumerate(state.steps) for step in steps]
    rows += [to_json(reading) for reading in readings]
    make_folder(path.parent)
    durable_write(path, "".join(canonical_json(row, indent=None) + "\n" for row in rows))
