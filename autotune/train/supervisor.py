"""Trains a manifest's jobs, `concurrency` at a time, each in a process of its own, until their budgets are met."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from autotune.codec import to_json
from autotune.device.live_gpu import PatientGpu, lost_words
from autotune.errors import FileError, WorkerError
from autotune.executors.listening import Listening
from autotune.executors.process import Message, WorkerProcess, receive_all
from autotune.machine import DeviceInfo
from autotune.manifest import Manifest, manifest_hash
from autotune.records import MeasurePlan, TrainResult
from autotune.runs import Run
from autotune.store import write_json
from autotune.train.events import EventLog, opened_otherwise, read_events
from autotune.train.job import JobRun
from autotune.train.ladder import Step, at_rung
from autotune.train.launch import End, check_jobs, how_ended, refuse_other_workload, training_task, tuned_elsewhere
from autotune.train.silence import Patience
from autotune.train.status import Snapshot, State, StatusFile, stamp
from autotune.train.throughput import SharedThroughput

STOP_GRACE_S = 20.0
_NOTICED_S = 3.0
_POLL_S = 0.25
_VIEW_PERIOD_S = 0.5
_STATUS_PERIOD_S = 2.0
_EXIT_S = 10.0
_ABANDON_S = 5.0


class Supervisor:
    """The state of one call of `supervise`."""

    def __init__(
        self,
        manifest: Manifest,
        run: Run,
        device: DeviceInfo,
        warn: Callable[[str], None],
        plan: MeasurePlan,
        stop_grace_s: float,
        *,
        step: Step,
        shared: tuple[Mapping[str, str], Mapping[str, str]],
        only: frozenset[str] | None = None,
        patience: Patience | None = None,
        retried: bool = True,
    ) -> None:
        """See `supervise`; `shared` is the environment of its workers, and how they share the device if they do."""
        self._step = step
        self._content, self._manifest = manifest_hash(manifest), at_rung(manifest, step.rung)
        self._run, self._device, self._warn = run, device, warn
        self._stop_grace_s = stop_grace_s
        self._environment, self._sharing = shared
        self._started_s = time.monotonic()
        self._point = step.rung.point
        self._events = EventLog(run)
        self._jobs = [JobRun(job, run.jobs_folder / job.id) for job in manifest.job_records()]
        self._only, self._retried = only, retried
        at_once = self._point.concurrency if only is None else min(self._point.concurrency, len(only))
        self._throughput = SharedThroughput(at_once, plan)
        all_at_once = at_once == self._point.concurrency
        self._predicted_sps = step.rung.predicted_sps if all_at_once else None
        self._gpu = PatientGpu(device.gpu) if device.gpu else None
        self._patience = patience or Patience()
        self._listening = Listening()
        self._status, self._stopping = StatusFile(run, warn), False
        self._notice_s: float | None = None
        self._refused_at: int | None = None  # so many ran when the system refused another
        self._viewed_s = self._written_s = -_STATUS_PERIOD_S

    def run(self, on_event: Callable[[Snapshot], None], should_stop: Callable[[], bool]) -> TrainResult:
        """Train to the end, or until told to stop."""
        try:
            self._open(should_stop)
        except KeyboardInterrupt:
            if not should_stop():
                raise
            return self._result()
        try:
            self._train(on_event, should_stop)
        except BaseException:
            self._abandon()
            raise
        return self._close_run(on_event)

    def _train(self, on_event: Callable[[Snapshot], None], should_stop: Callable[[], bool]) -> None:
        self._show(on_event)
        while self._active() or self._goes_on():
            if not self._stopping and (should_stop() or self._say_lost()):
                self._stop()
            if not self._stopping:
                self._fill()
            self._listen()
            self._notice_stop()
            self._show(on_event)

    def _abandon(self) -> None:
        """After an interrupt or an error: what runs has a moment to save, and the run says that it stopped."""
        self._stopping = True
        for job in self._active():
            job.stop(_ABANDON_S, at_once=True)
        with contextlib.suppress(FileError):  # a full disk may be the reason
            while self._active():
                self._listen()
            self._close_run(lambda _: None)

    def close(self) -> None:
        """Leave no process behind, whatever happened."""
        for job in self._active():
            if job.worker:
                job.worker.kill(grace_s=0.0)
        if self._gpu:
            self._gpu.close()

    def _listen(self) -> None:
        """Take what workers say, waiting a little for it, and end those that have gone or are late."""
        workers = {id(job.worker): job for job in self._active()}
        messages = receive_all([job.worker for job in self._active() if job.worker], _POLL_S)
        listened_s = self._listening.look()
        for job in self._active():
            job.silence.wait(listened_s)
        for worker, message in messages:
            self._take(workers[id(worker)], message)
        self._reap()

    def _active(self) -> list[JobRun]:
        return [job for job in self._jobs if job.worker is not None]

    def _waiting(self) -> list[JobRun]:
        waiting = [job for job in self._jobs if job.status == "waiting"]
        return [job for job in waiting if self._only is None or job.job.id in self._only]

    def _goes_on(self) -> bool:
        """Whether jobs run or wait, and nothing has told them to stop."""
        return not self._stopping and bool(self._active() or self._waiting())

    def _open(self, should_stop: Callable[[], bool]) -> None:
        """Take up the run: what was done, what changed, whether the jobs can run here.

        Raises:
            KeyboardInterrupt: `should_stop` turned true meanwhile.
        """
        before = read_events(self._run)
        refuse_other_workload(self._manifest, self._run, before)
        for job in self._jobs:
            job.recall(before)
        if elsewhere := tuned_elsewhere(self._manifest, self._device):
            self._warn(elsewhere)
        facts: dict[str, Any] = {"point": self._point.knobs(), "device": self._device.fingerprint, **self._sharing}
        facts["workload"] = self._manifest.workload.name
        edited = opened_otherwise(before, self._content)
        checked = self._jobs if edited else self._waiting()
        if checked:  # done jobs, too: of another game now they would not be
            states = {job.job.id: meta for job in checked if edited and (meta := job.saved_meta()) is not None}
            check_jobs(self._manifest, self._device, [job.job for job in checked], states, should_stop)
        if edited:
            self._events.record("edited", manifest=self._content, point_before=edited.get("point"), **facts)
            self._warn(f"the manifest was edited: training goes on at {self._point.label()}")
            if gone := sorted({event["job"] for event in before if event["job"]} - {job.job.id for job in self._jobs}):
                folder = self._run.jobs_folder
                self._warn(f"the manifest has no job {', '.join(gone)} any more: what it trained stays in {folder}")
        if self._step.stepped:
            self._events.record("stepped", point=self._point.knobs(), detail=self._step.why)
        if self._step.why:
            self._warn(self._step.why)
        self._events.record("opened", manifest=self._content, **facts)
        self._run.update(training="running")
        if not self._run.device_file.exists():
            write_json(self._run.device_file, to_json(self._device))

    def _fill(self) -> None:
        """Start what waits, while there is room: a folder that is none is its job's affair alone.

        Where the system refuses another process beside those that run, what waits does so until one has ended.

        Raises:
            WorkerError: the system refuses the only process.
        """
        if self._refused_at is not None and len(self._active()) >= self._refused_at:
            return
        self._refused_at = None
        for job in self._waiting()[: self._point.concurrency - len(self._active())]:
            task = training_task(self._manifest, self._device, job, retried=self._retried)
            try:
                worker = WorkerProcess(task, job.folder / "log", environment=self._environment)
            except FileError as error:
                self._end(job, End.crashed(str(error), error="folder"))
                continue
            except WorkerError as error:
                self._refused_at = len(self._active())
                if not self._refused_at:
                    raise
                self._warn(f"{job.job.id} waits until another job has ended: {error}")
                return
            job.start(worker)
            self._events.record("started", job=job.job.id, **job.process(), **job.counts())

    def _stop(self) -> None:
        self._stopping = True
        for job in self._active():
            job.stop(self._stop_grace_s)
        self._notice_s = time.monotonic() + _NOTICED_S

    def _say_lost(self) -> bool:
        """Whether the GPU has fallen away, which it says: what runs fails or hangs there, and what waits would."""
        if self._gpu is None or not self._gpu.lost:
            return False
        self._warn(f"{lost_words(self._device)}, then the same command goes on from the last checkpoints")
        return True

    def _notice_stop(self) -> None:
        """Tell, once, that stopping takes a while."""
        now_s = time.monotonic()
        if self._notice_s is None or now_s < self._notice_s or not self._active():
            return
        self._notice_s = None
        left_s = max((job.stop_by_s or now_s) - now_s for job in self._active())
        self._warn(
            f"stopping: what runs has {left_s:.0f} s more to come to an end and save. A second interrupt ends it now, "
            "and what came after the last checkpoints is lost."
        )

    def _take(self, job: JobRun, message: Message) -> None:
        kind = message.get("type")
        job.silence.end()
        if kind == "step":
            job.take_step(message)
            self._throughput.add(job.job.id, message)
        elif kind == "ready":
            job.stop_s = float(message["stop_s"])
            self._events.record("ready", job=job.job.id, effective=message["effective"], threads=message["threads"])
        elif kind == "resumed":
            job.take_saved(message)
            self._events.record("resumed", job=job.job.id, path=message["path"], **job.counts())
        elif kind == "saved":
            job.take_saved(message)
            self._events.record(
                "saved", job=job.job.id, path=message["path"], cost_s=round(message["seconds"], 4), **job.counts()
            )
        elif kind == "warning":
            self._events.record("warning", job=job.job.id, detail=message["detail"])
            self._warn(f"{job.job.id}: {message['detail']}")
        elif kind in ("done", "error"):
            job.take_counts(message)
            job.final = {**message, "by_s": time.monotonic() + _EXIT_S}

    def _reap(self) -> None:
        """End jobs whose worker has gone, said it is done, hangs, or did not stop in time."""
        now_s, watched = time.monotonic(), self._manifest.workload.name != "command"  # which has its hang_timeout_s
        for job in self._active():
            worker = job.worker
            if worker is None:
                continue
            late = job.stop_by_s is not None and now_s > job.stop_by_s
            said = job.final is not None and now_s > job.final["by_s"]
            hang = job.hang_detail(self._patience, retried=self._retried) if watched else ""
            if not (worker.ended or not worker.alive or late or said or hang):
                continue
            for message in worker.receive(0.0):
                self._take(job, message)
            self._throughput.leave(job.job.id)
            worker.kill(grace_s=0.0 if late or hang else 2.0)
            self._conclude(job, worker, late=late, hang=hang)

    def _conclude(self, job: JobRun, worker: WorkerProcess, *, late: bool, hang: str = "") -> None:
        end = how_ended(job, worker, late=late, hang=hang, stopping=self._stopping)
        if end.status == "crashed" and self._gpu and self._gpu.gone():  # no fault of the job's
            end = End(status="stopped", detail=f"the GPU was lost: {end.detail}")
        self._end(job, end)

    def _end(self, job: JobRun, end: End) -> None:
        job.end(end.status, end.detail)
        if end.status == "done":
            self._events.record("finished", job=job.job.id, **end.facts, **job.counts())
            return
        self._events.record(end.status, job=job.job.id, detail=end.detail, **end.facts, **job.counts())
        if end.status == "crashed":
            others = ", the rest goes on" if self._goes_on() else ""
            log = f"\n(log: {end.log})" if end.log else ""
            self._warn(f"{job.job.id} crashed{others}: {end.detail}{log}")
        elif end.told:
            self._warn(f"{job.job.id} {end.told}")

    def _show(self, on_event: Callable[[Snapshot], None], *, state: State = "running") -> None:
        now_s = time.monotonic()
        if state == "running" and now_s - self._viewed_s < _VIEW_PERIOD_S:
            return
        write = state != "running" or now_s - self._written_s >= _STATUS_PERIOD_S
        if write:
            self._read_memory()
        snapshot = self._snapshot(state)
        if write:
            self._status.write(snapshot)
            self._written_s = now_s
        self._viewed_s = now_s
        on_event(snapshot)

    def _read_memory(self) -> None:
        listed = self._gpu.processes() if self._gpu else {}
        for job in self._active():
            job.read_memory(listed)

    def _snapshot(self, state: State) -> Snapshot:
        rates = [job.sps for job in self._jobs if job.sps is not None]
        return Snapshot(
            run=self._run.name,
            state=state,
            jobs=tuple(job.snapshot() for job in self._jobs),
            point=self._point.label(),
            sps=sum(rates) if rates else None,
            measured_sps=self._throughput.sps(),
            predicted_sps=self._predicted_sps,
            elapsed_s=time.monotonic() - self._started_s,
            **stamp(),
        )

    def _close_run(self, on_event: Callable[[Snapshot], None]) -> TrainResult:
        statuses = {job.status for job in self._jobs}
        stopped = self._stopping or "crashed" not in statuses
        state: State = "done" if statuses == {"done"} else "stopped" if stopped else "crashed"
        result = self._result()
        self._events.record("ended", state=state, sps=result.sps, seconds=round(result.seconds, 3))
        self._show(on_event, state=state)
        facts: dict[str, Any] = {"training": state}
        if self._run.state().get("command") == "train":
            facts["finished"] = state == "done"
        self._run.update(**facts)
        return result

    def _result(self) -> TrainResult:
        return TrainResult(
            run=self._run.name,
            jobs=tuple(job.result() for job in self._jobs),
            sps=self._throughput.sps(),
            predicted_sps=self._predicted_sps,
            seconds=time.monotonic() - self._started_s,
        )
