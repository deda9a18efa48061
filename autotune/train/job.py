"""One job of a training as its supervisor sees it."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from autotune.device.host import process_identity
from autotune.device.live_gpu import memory_of
from autotune.errors import FileError
from autotune.executors.process import WorkerProcess
from autotune.meters.host import pss_bytes
from autotune.records import Job, JobResult
from autotune.train.events import Event, last_event, last_worker
from autotune.train.silence import Patience, Silence
from autotune.train.status import JobSnapshot
from autotune.worker.checkpoint import load_training, newest_checkpoint
from autotune.worker.metrics import UNTIMED

JobStatus = Literal["waiting", "running", "done", "stopped", "crashed"]

_RECENT_S = 30.0
_ITERATIONS_LEFT = 2.0  # the one that runs, with room for one that is slower than the last
_ENDINGS = {"finished", "stopped", "crashed", "saved", "migrated"}


class JobRun:
    """A job's counts and, while it runs, its worker.

    Attributes:
        job: what is trained.
        folder: ``checkpoints/``, ``metrics.csv``, ``log``.
        status: see `JobStatus`.
        detail: why it stopped or crashed.
        untimed_steps: of `env_steps`, what a program did before it was started.
        worker: its process, None when it does not run.
        final: the worker's last message, ``done`` or ``error``.
        recalled_steps: env steps of the last checkpoint that earlier events tell of, None when they tell of none.
        predecessor: boot id, pid and start ticks of the worker that trained it last; empty when unknown.
        framework_bytes: the framework's own peak of device memory.
        vram_bytes: device memory of its processes, or that peak where the device does not tell.
        ram_bytes: memory of its processes.
        silence: of its worker.
        iteration_s: how long its iterations take at present, 0.0 before the first.
        stop_s: seconds that its program, told to stop, may take to save and end.
        stop_by_s: when its worker, told to stop, is late (`time.monotonic`); None while it is not told.
    """

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder = job, folder
        self.status: JobStatus = "waiting"
        self.detail = ""
        self.env_steps = self.untimed_steps = 0
        self.episodes = 0
        self.seconds = 0.0
        self.mean_return: float | None = None
        self.best_return: float | None = None
        self.framework_bytes: int | None = None
        self.vram_bytes: int | None = None
        self.ram_bytes: int | None = None
        self.worker: WorkerProcess | None = None
        self.final: Mapping[str, Any] | None = None
        self.silence = Silence()
        self.iteration_s = self.stop_s = self._stop_within_s = 0.0
        self.stop_by_s: float | None = None
        self.recalled_steps: int | None = None
        self.predecessor: tuple[Any, ...] = ()
        self._saved_steps: int | None = None
        self._recent: deque[tuple[float, int, int]] = deque()

    def recall(self, events: Sequence[Event]) -> None:
        """Take up what the events say of this job; a budget raised since makes a finished job go on."""
        self.predecessor = last_worker(events, self.job.id)
        if kept := last_event(events, {"saved", "migrated", "resumed"}, self.job.id):
            self.recalled_steps = int(kept["total_env_steps"])
        last = last_event(events, _ENDINGS, self.job.id)
        if last is None:
            return
        self.take_counts(last)
        ended = last["kind"] in ("finished", "migrated")
        if ended and (last.get("reason") == "finished" or self.fraction >= 1):
            self.status = "done"

    def saved_meta(self) -> Mapping[str, Any] | None:
        """What its newest good checkpoint says of its session; None without one."""
        with contextlib.suppress(FileError):  # all are damaged: the worker will say so
            path = newest_checkpoint(self.folder / "checkpoints", set_aside=False)
            return None if path is None else load_training(path).meta["session"]
        return None

    def start(self, worker: WorkerProcess) -> None:
        """A worker trains it from now on."""
        self.worker, self.final, self.status, self.detail = worker, None, "running", ""
        self.silence = Silence()
        self.iteration_s = self.stop_s = 0.0
        self.stop_by_s = self._saved_steps = None
        self._recent.clear()

    def process(self) -> dict[str, Any]:
        """What tells its worker from any other process, beside this boot."""
        pid = self.worker.pid if self.worker else -1
        identity = process_identity(pid)
        return {"pid": pid, "start_ticks": identity.start_ticks if identity else None}

    def stop(self, grace_s: float, *, at_once: bool = False) -> None:
        """Tell its worker to save and end, within `grace_s` beside what its iteration or its program takes.

        Args:
            grace_s: for saving.
            at_once: whatever they take.
        """
        self._stop_within_s = grace_s + (0.0 if at_once else self.stop_s + _ITERATIONS_LEFT * self.iteration_s)
        self.stop_by_s = time.monotonic() + self._stop_within_s
        if self.worker:
            self.worker.send("stop")

    def late_detail(self) -> str:
        """What its end by force, after `stop`, has cost."""
        detail = f"killed, since it did not save within {self._stop_within_s:.3g} s"
        if self._saved_steps is not None and self.env_steps > self._saved_steps:
            detail += f": {self.env_steps - self._saved_steps:,} env steps after its last checkpoint are lost"
        return detail

    def hang_detail(self, patience: Patience, *, retried: bool = True) -> str:
        """What to say when its worker hangs; empty while it does not, or is ending anyway.

        Args:
            patience: with it.
            retried: whether the same command goes on with the job, which is then said.
        """
        if self.stop_by_s is not None or self.final is not None or not (hang := self.silence.hang(patience)):
            return ""
        saved = self.recalled_steps if self._saved_steps is None else self._saved_steps
        on = "begins anew, since nothing was saved" if saved is None else f"goes on at env step {saved:,}"
        way_on = f"; the same command {on}" if retried else ""
        return f"its process or its environment hangs: {hang}, and was killed{way_on}"

    def end(self, status: JobStatus, detail: str = "") -> None:
        """Its worker has gone."""
        self.worker, self.status, self.detail = None, status, detail
        self._recent.clear()

    def take_counts(self, facts: Mapping[str, Any]) -> None:
        """Take totals from a message or event that carries them."""
        if "total_env_steps" not in facts:
            return
        self.env_steps = int(facts["total_env_steps"])
        self.untimed_steps = int(facts.get(UNTIMED, 0))
        self.episodes = int(facts["total_episodes"])
        self.seconds = float(facts["total_seconds"])
        self.mean_return, self.best_return = facts.get("mean_return"), facts.get("best_return")

    def take_saved(self, message: Mapping[str, Any]) -> None:
        """Take a ``saved`` or ``resumed`` message."""
        self.take_counts(message)
        self._saved_steps = self.env_steps

    def take_step(self, message: Mapping[str, Any]) -> None:
        """Take a ``step`` message."""
        self.take_counts(message)
        if message.get("peak_memory_bytes") is not None:
            self.framework_bytes = int(message["peak_memory_bytes"])
        t = float(message["t"])
        self.iteration_s = (t - float(message["started"])) / max(1, int(message["iterations"]))
        self.silence.end(self.iteration_s)
        self._recent.append((t, self.env_steps, self.episodes))
        while len(self._recent) > 2 and self._recent[0][0] < t - _RECENT_S:
            self._recent.popleft()

    def read_memory(self, on_device: Mapping[int, int | None]) -> None:
        """Read what its processes take now; `on_device` is what each of the device's processes takes there."""
        pids = self.worker.descendants() if self.worker else []
        sizes = [size for pid in pids if (size := pss_bytes(pid)) is not None]
        self.ram_bytes = sum(sizes) if sizes else None
        used = memory_of(pids, on_device)
        self.vram_bytes = used if used is not None else self.framework_bytes

    def counts(self) -> dict[str, Any]:
        """Totals, as events carry them."""
        return {
            **({UNTIMED: self.untimed_steps} if self.untimed_steps else {}),
            "total_env_steps": self.env_steps,
            "total_episodes": self.episodes,
            "total_seconds": round(self.seconds, 3),
            "mean_return": self.mean_return,
            "best_return": self.best_return,
        }

    @property
    def fraction(self) -> float:
        """Of the budget, up to 1."""
        done = {"steps": self.env_steps, "episodes": self.episodes, "hours": self.seconds / 3600}
        return min(1.0, done[self.job.budget.unit] / self.job.budget.amount)

    @property
    def sps(self) -> float | None:
        """Env steps per second over the last half minute, None when it does not run or says nothing."""
        return self._rate(1)

    @property
    def eta_s(self) -> float | None:
        """Seconds to the end of the budget at the present rate, None when that is unknown."""
        budget, left = self.job.budget, 1.0 - self.fraction
        if self.status != "running" or self.silence.stale:
            return None
        if budget.unit == "hours":
            return left * budget.amount * 3600
        rate = self._rate(1 if budget.unit == "steps" else 2)
        return left * budget.amount / rate if rate else None

    def _rate(self, column: int) -> float | None:
        if len(self._recent) < 2 or self.silence.stale:
            return None
        first, last = self._recent[0], self._recent[-1]
        return (last[column] - first[column]) / (last[0] - first[0]) if last[0] > first[0] else None

    def snapshot(self) -> JobSnapshot:
        """Now."""
        return JobSnapshot(
            id=self.job.id,
            env=self.job.env,
            status=self.status,
            env_steps=self.env_steps,
            episodes=self.episodes,
            seconds=self.seconds,
            fraction=self.fraction,
            sps=self.sps,
            mean_return=self.mean_return,
            best_return=self.best_return,
            vram_bytes=self.vram_bytes if self.worker else None,
            ram_bytes=self.ram_bytes if self.worker else None,
            eta_s=self.eta_s,
            detail=self.detail,
        )

    def result(self) -> JobResult:
        """How it ended."""
        return JobResult(
            id=self.job.id,
            status=self.status,
            env_steps=self.env_steps,
            episodes=self.episodes,
            seconds=self.seconds,
            sps=(self.env_steps - self.untimed_steps) / self.seconds if self.seconds > 0 else None,
            mean_return=self.mean_return,
            best_return=self.best_return,
            detail=self.detail,
        )
