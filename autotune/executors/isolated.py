"""Probes in fresh child processes: launch, barrier, discard, window, readings, and a clean device after."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from autotune import registry
from autotune.device.host import ram_available_bytes
from autotune.device.inspect import child_environment
from autotune.device.live_gpu import lost_words
from autotune.device.mps import shared_device, sharing_in_effect
from autotune.errors import DeviceError, UsageError, WorkerError
from autotune.executors import evidence, window
from autotune.executors.cgroup import memory_limit
from autotune.executors.ending import END_S, start_meters, stop_all, wait_clean
from autotune.executors.evidence import Evidence
from autotune.executors.listening import Listening
from autotune.executors.process import Message, WorkerProcess, receive_all
from autotune.executors.window import Step
from autotune.machine import DeviceInfo
from autotune.meters.base import GpuMeter
from autotune.meters.protocol import Meter
from autotune.meters.summary import first
from autotune.records import Job, Point, ProbeRequest, ProbeResult, Recipe, Status
from autotune.worker.checkpoint import load_training
from autotune.worker.protocol import Mode, WorkerTask
from autotune.workloads.command_child import describe_exit

_POLL_S = 0.25  # messages are read in batches: waking for each would take time from what is measured
_WATCH_S = 0.5
_TYPICAL_START_S = 6.0
_START_PER_CHECK = 3.0
"""Opening a session imports more than the check of its jobs, whose time is known first."""


def boot_clock_s() -> float:
    """Seconds since boot, suspended time included where the system can tell (CLOCK_BOOTTIME)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


def threads_each(device: DeviceInfo, concurrency: int) -> int:
    """A process's share of the allowed cores: whole, at least 1.

    A share is a number of threads, not a set of cores. Two Breakout and Pong trainings on 2 cores, each bound to
    one of them, made 1.03x [0.94, 1.12] of the steps that unbound ones made (7 interleaved pairs): no difference
    that could be shown, and bound processes cannot use a core that another one leaves idle.
    """
    return max(1, int(device.host.cpu_cores_allowed // concurrency))


def share_of(device: DeviceInfo, concurrency: int, *, vram_fraction: float, ram_fraction: float) -> dict[str, Any]:
    """What a `WorkerTask` says of a process's share of the machine, where so many may use these fractions of it."""
    return {
        "device": device.kind,
        "threads": threads_each(device, concurrency),
        "memory_fraction": vram_fraction / concurrency if device.kind == "cuda" else None,
        "ram_bytes": int(ram_fraction * device.host.ram_limit_bytes / concurrency),
    }


def _no_answer(worker: WorkerProcess) -> str:
    if worker.starved:
        return "was killed by the kernel, which had no memory left: it gave no answer"
    return f"ended with {describe_exit(worker.returncode or 0)} and no answer"


def _lost(meters: Sequence[Meter]) -> bool:
    """Whether the device has fallen away."""
    return any(isinstance(meter, GpuMeter) and meter.gpu is not None and meter.gpu.lost for meter in meters)


class IsolatedExecutor:
    """Runs every probe in fresh processes on this machine.

    Attributes:
        lost: why nothing more can be measured on the device; empty while it answers.
    """

    name = "isolated"
    simulated = False

    def __init__(self, device: DeviceInfo, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Measure on `device`; a probe during which `should_stop` turns true raises KeyboardInterrupt."""
        self.device = device
        self.lost = ""
        self._should_stop = should_stop
        self._start_s = _TYPICAL_START_S

    def clock_s(self) -> float:
        """CLOCK_BOOTTIME."""
        return boot_clock_s()

    def predict_cost_s(self, request: ProbeRequest) -> float | None:
        """Start, discard and window of a probe with short iterations."""
        plan = request.plan
        return self._start_s * (1 + request.point.concurrency / 4) + plan.discard_s + plan.window_s

    def check(self, recipe: Recipe, points: Sequence[Point] = ()) -> None:
        """Refuse a recipe whose workload, hyperparameters, points or jobs cannot run here."""
        workload = registry.make("workload", recipe.workload, recipe.hyperparameters)
        with registry.blamed("workload", recipe.workload, "check a point"):
            for point in points or (recipe.baseline,):
                workload.check(point, recipe.jobs)
        started_s = time.monotonic()
        states = {job: load_training(Path(file)).meta["session"] for job, file in recipe.checkpoints.items()}
        self.ask("check", recipe.workload, recipe.hyperparameters, recipe.jobs, recipe.baseline, states=states)
        self._start_s = _START_PER_CHECK * (time.monotonic() - started_s)

    def ceilings(self, recipe: Recipe, point: Point, timeout_s: float) -> dict[str, float]:
        """Env steps per second of the workload's parts alone, empty where it cannot tell in time."""
        jobs = recipe.jobs[:1]
        try:
            answer = self.ask("ceilings", recipe.workload, recipe.hyperparameters, jobs, point, timeout_s=timeout_s)
        except (UsageError, WorkerError):  # a point that cannot run has no ceilings; its probe will say why
            return {}
        return dict(answer[-1]["ceilings"])

    def ask(
        self,
        mode: Mode,
        workload: str,
        hyperparameters: Mapping[str, Any],
        jobs: tuple[Job, ...],
        point: Point,
        *,
        steps: int = 0,
        timeout_s: float = 120.0,
        states: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> list[Message]:
        """Run one worker in mode ``check``, ``ceilings`` or ``steps`` to its end and return its messages.

        Raises:
            UsageError: the workload refuses a value.
            WorkerError: the worker failed or did not end in time; the message ends with its log's last lines.
            KeyboardInterrupt: `should_stop` turned true.
        """
        task = WorkerTask(
            mode=mode,
            workload=workload,
            hyperparameters=hyperparameters,
            point=point,
            jobs=jobs,
            device=self.device.kind,
            threads=threads_each(self.device, 1),
            steps=steps,
            states=states or {},
        )
        messages, deadline_s = list[Message](), time.monotonic() + timeout_s
        with tempfile.TemporaryDirectory(prefix="autotune-") as folder:
            worker = WorkerProcess(task, Path(folder) / "log", environment=child_environment(self.device))
            try:
                while not worker.ended and time.monotonic() < deadline_s:
                    messages += worker.receive(_POLL_S)
                    if self._should_stop():
                        raise KeyboardInterrupt
            finally:
                in_time = worker.ended
                answered = bool(messages) and messages[-1].get("type") in ("done", "error")
                worker.kill(grace_s=0.0 if answered else 2.0)  # an exit code is all that the others tell
            log_tail = worker.log_tail()
        last = messages[-1] if messages else {}
        if last.get("type") == "error":
            raise (UsageError if last["kind"] == "misuse" else WorkerError)(last["detail"])
        if last.get("type") != "done":
            why = _no_answer(worker) if in_time else f"did not answer within {timeout_s:.0f} s"
            raise WorkerError(f"the {workload} worker {why}. The last lines of its log:\n{log_tail or '(empty)'}")
        return messages

    def run(self, request: ProbeRequest) -> ProbeResult:
        """Measure one point; failures are values, and every process is gone on return.

        Raises:
            UsageError: the workload refuses a value.
            KeyboardInterrupt: `should_stop` turned true, or the GPU was lost, which says nothing about the point.
        """
        workers: list[WorkerProcess] = []
        meters: list[Meter] = [
            registry.make("meter", name, self.device, lambda: [pid for w in workers for pid in w.descendants()])
            for name in registry.names("meter")
        ]
        try:
            result = self._run(request, workers, meters)
        except UsageError as error:  # of a framework that finds no device, perhaps
            self._stop_if_lost(meters, str(error))
            raise
        if not result.ok:
            self._stop_if_lost(meters, result.detail)
        return result

    def _stop_if_lost(self, meters: Sequence[Meter], detail: str) -> None:
        if _lost(meters):
            self.lost = lost_words(self.device, detail.partition("\n")[0])
            raise KeyboardInterrupt(self.lost)

    def _run(self, request: ProbeRequest, workers: list[WorkerProcess], meters: Sequence[Meter]) -> ProbeResult:
        started_s = time.monotonic()
        start_meters(meters)
        steps: list[list[Step]] = [[] for _ in request.jobs]
        state = Evidence(workers=workers, steps=steps, started_s=started_s)
        ram_bytes = int(request.limits.ram_fraction * self.device.host.ram_limit_bytes)
        with contextlib.ExitStack() as sharing, memory_limit(ram_bytes) as group:  # both end after the workers
            try:
                environment = sharing.enter_context(shared_device(self.device, request.point))
                self._launch(request, workers, environment)
                state.confine(group)
                self._measure(request, state, meters)
                state.blame_idle()
            except (WorkerError, DeviceError) as error:
                state.fail("crashed", str(error))
            finally:
                end_by_s = time.monotonic() + END_S
                readings = stop_all(meters, workers, grace_s=END_S if request.workload == "command" else 0.0)
                state.blame_limit(group)
        wait_clean(self.device.gpu, first(readings, "vram_device_used_bytes"), end_by_s - time.monotonic())
        if request.samples_path:
            evidence.save_samples(Path(request.samples_path), state, readings)
        result = evidence.conclude(request, state, readings, self.device)
        effective = {**result.effective, **sharing_in_effect(request.point)} if result.effective else {}
        return replace(result, cost_s=time.monotonic() - started_s, effective=effective)

    def _launch(self, request: ProbeRequest, workers: list[WorkerProcess], environment: Mapping[str, str]) -> None:
        plan, limits = request.plan, request.limits
        share = share_of(
            self.device,
            request.point.concurrency,
            vram_fraction=limits.vram_fraction,
            ram_fraction=limits.ram_fraction,
        )
        for index, job in enumerate(request.jobs):
            task = WorkerTask(
                mode="measure",
                workload=request.workload,
                hyperparameters=request.hyperparameters,
                point=request.point,
                jobs=(job,),
                plan=plan,
                end_by_s=None if request.steps_heard else time.monotonic() + plan.timeout_s,
                checkpoint=request.checkpoints.get(job.id),
                **share,
            )
            log = Path(request.log_folder) / f"{request.label}-{index}.log"
            workers.append(WorkerProcess(task, log, environment=environment))

    def _measure(self, request: ProbeRequest, state: Evidence, meters: Sequence[Meter]) -> None:
        """Drive the workers until the windows are complete or something fails."""
        plan, index = request.plan, {id(worker): i for i, worker in enumerate(state.workers)}
        start_by_s, watched_s = state.started_s + min(plan.start_timeout_s, plan.timeout_s), 0.0
        end_by_s, listening = state.started_s + plan.timeout_s, Listening()
        while state.status == "ok" and state.opened is None:
            if state.ready_s is not None:
                time.sleep(_POLL_S)
            for worker, message in receive_all(state.workers, _POLL_S if state.ready_s is None else 0.0):
                state.take(request, index[id(worker)], message)
            if self._should_stop():
                raise KeyboardInterrupt
            listening.look()
            now_s = time.monotonic()
            if state.ready_s is None and len(state.ready) == len(state.workers):
                state.ready_s = now_s
                for worker in state.workers:
                    worker.send("go")
            if state.opened is None and state.ready_s and now_s > state.ready_s + plan.discard_s + plan.window_s:
                state.opened = window.windows(state.steps, plan)  # there is none before
            if state.status != "ok" or state.opened is not None:
                return
            if state.ready_s is None and now_s > start_by_s:
                state.expire(f"not ready after {now_s - state.started_s:.0f} s", start_by_s - now_s, listening.paused_s)
            elif now_s > end_by_s:
                detail = window.incomplete(state.steps, plan, state.started_s, now_s)
                state.expire(detail, end_by_s - now_s, listening.paused_s)
            elif now_s > watched_s + _WATCH_S:
                watched_s = now_s
                self._watch(request, state, meters)

    def _watch(self, request: ProbeRequest, state: Evidence, meters: Sequence[Meter]) -> None:
        """Notice a worker that died silently, a lost device, and memory running out before the kernel has to."""
        if _lost(meters):  # its processes may hang for as long as they are let
            state.fail("crashed", "NVML says that it is lost")
        for index, worker in enumerate(state.workers):
            if worker.ended and not worker.alive and state.status == "ok":
                code = worker.returncode or 0
                starved = worker.starved or (code == -9 and self._ram_free() < 0.1)
                status: Status = "oom" if starved else "crashed"
                state.fail(status, f"process ended with {describe_exit(code)}", index)
        if state.status == "ok" and self._ram_free() < 0.5 * (1 - request.limits.ram_fraction):
            state.fail("oom", f"host memory ran short: {self._ram_free():.0%} of RAM left")

    def _ram_free(self) -> float:
        """Share of the host's allowed memory that can still be taken."""
        return ram_available_bytes() / self.device.host.ram_limit_bytes
