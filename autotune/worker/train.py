"""The training loop of a worker: resume, step, report, save, until the budget is met or told to stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autotune.errors import AutotuneError, WorkerError
from autotune.records import Work
from autotune.store import make_folder, set_aside
from autotune.worker.checkpoint import FORMAT, refuse_nonfinite, restore_session, save_checkpoint
from autotune.worker.lock import lock_job
from autotune.worker.measure import effective_of, peak_of
from autotune.worker.metrics import UNTIMED, MetricsFile, read_metrics, set_aside_damaged, untimed_steps
from autotune.worker.protocol import TrainPlan, WorkerTask
from autotune.worker.resume import announce_fallback, check_origin, find_checkpoint
from autotune.worker.totals import MEAN_RETURN, RETURNS_KEPT, Onset, Progress, Totals
from autotune.workloads.protocol import Finished, Session, SessionState

_MESSAGE_PERIOD_S = 0.5
_ROW_GROWTH = 1 / 200
"""A row of `metrics.csv` whenever the env steps have grown by so much: the same rows at any speed of the machine."""
_NEARLY = 0.9
"""A program that ends by itself after such a share of its budget has done it: it may count whole batches."""
_EARLY_REMEDY = "The same command runs it again; if it was to do no more, lower the job's budget in the manifest."

Send = Callable[[dict[str, Any]], None]


def train(session: Session, task: WorkerTask, send: Send, should_stop: Callable[[], bool]) -> None:
    """Train the task's job in its folder, from its newest checkpoint, to its budget or until told to stop.

    The session's exceptions pass through; what was saved before stays.

    Raises:
        BusyError: another worker still writes in the job's folder.
        FileError: the folder cannot be written, or all its checkpoints are damaged.
        UsageError: the checkpoint belongs to another architecture or environment.
        WorkerError: the task has no training plan.
    """
    if task.train is None:
        raise WorkerError("a task of mode train needs a TrainPlan")
    folder = make_folder(Path(task.train.folder))
    with lock_job(folder, task.train.predecessor):
        training = _Training(session, task, task.train, send, should_stop)
        try:
            training.run()
        except WorkerError as error:
            way_on = training.way_on() if task.train.retried else ""
            error.args = ("; ".join(filter(None, (str(error), way_on))),)
            raise


class _Training:
    """The state of one call of `train`."""

    def __init__(
        self, session: Session, task: WorkerTask, plan: TrainPlan, send: Send, should_stop: Callable[[], bool]
    ) -> None:
        self._session, self._task, self._plan, self._send = session, task, plan, send
        self._should_stop = should_stop
        self._orphaned = False
        self._folder = Path(plan.folder)
        self._job = task.jobs[0]
        self._message, self._row, self._row_span_s = Totals(), Totals(), 0.0
        self._before: list[dict[str, str]] = []
        self._earlier = Progress()
        self._kept_steps: int | None = None  # of the newest checkpoint
        self._onset: Onset | None = None
        self._untimed_steps = 0
        self._progress = self._resume()
        kept_steps = max(self._progress.env_steps, self._earlier.env_steps)
        self._metrics = MetricsFile(self._folder / "metrics.csv", env_steps=kept_steps)
        if self._row.env_steps and self._metrics.last_env_steps == self._progress.env_steps:
            self._row, self._row_span_s = Totals(), 0.0  # a stop right after the save wrote it
        self._learning: Mapping[str, float] = {}
        self._iterations = 0
        self._saved_steps = self._progress.env_steps
        self._now_s = self._saved_s = self._told_s = time.monotonic()

    def run(self) -> None:
        """Train until the budget is used up, or until told to stop."""
        reason = "budget"
        while not self._progress.meets(self._job.budget):
            if self._should_stop() or self._orphaned:
                reason = "stopped"
                break
            try:
                work = self._session.step()
            except Finished:
                reason = "finished"
                break
            self._session.synchronize()
            if not work.env_steps and self._should_stop():  # it was interrupted
                continue
            self._count(work)
            if self._iterations == 1 or self._now_s - self._told_s >= _MESSAGE_PERIOD_S:
                self._tell_step()
            row_from = self._progress.env_steps - self._row.env_steps
            if self._row.env_steps > row_from * _ROW_GROWTH:
                self._write_row()
            if self._now_s - self._saved_s >= self._plan.checkpoint_interval_s:
                self._save()
        self._flush()
        self._end(*self._let_finish(reason))

    def way_on(self) -> str:
        """What the same command goes on from after a failure; empty for a program that keeps its own checkpoints."""
        if self._kept_steps is not None:
            return f"the last good checkpoint is of env step {self._kept_steps:,}, and the same command goes on from it"
        return "" if hasattr(self._session, "finish") else "nothing was saved before, and the same command begins anew"

    def _let_finish(self, reason: str) -> tuple[str, str]:
        """Where the session is a program that ends by itself, let it do so; how it ended, and what is to be said."""
        if reason == "finished":
            return self._judge_end()
        interrupted = reason == "stopped"
        if reason == "budget" and (finish := getattr(self._session, "finish", None)) and (detail := finish()):
            self._tell("warning", detail=detail)
            reason = "stopped" if self._should_stop() else reason
        if stop := getattr(self._session, "stop", None):
            if detail := stop():
                self._tell("warning", detail=detail)
            if interrupted and self._came_to_its_end():
                reason = "finished"
        return reason, ""

    def _came_to_its_end(self) -> bool:
        """Whether the program met its budget and ended well while it was stopped; what it told is counted."""
        ended = False
        try:
            while (work := self._session.step()).env_steps:
                self._count(work)
        except Finished:
            ended = self._progress.meets(self._job.budget)
        except AutotuneError:  # ended by a signal, or without a step
            pass
        self._flush()
        return ended

    def _judge_end(self) -> tuple[str, str]:
        """Whether a program that ended by itself has done its budget, restarts included, and what is to be said."""
        budget = self._job.budget
        done, earlier = self._progress.amount(budget), self._earlier.amount(budget)
        if done >= budget.amount:
            return "finished", ""
        detail = "the program ended by itself, with exit code 0, after "
        detail += f"{done:,.12g} of {budget.amount:,.12g} {budget.unit} ({done / budget.amount:.0%} of its budget)"
        if earlier:
            detail += f"; when it was started before, it did {earlier:,.12g}"
        if not self._before and done + earlier < _NEARLY * budget.amount:
            return "early", f"{detail}. {_EARLY_REMEDY}"
        self._tell("warning", detail=detail)
        return "finished", ""

    def _resume(self) -> Progress:
        set_aside_damaged(self._folder / "metrics.csv", self._warn)
        path = find_checkpoint(self._job, self._plan, self._warn)
        if path is None:
            if resume := getattr(self._session, "resume", None):
                self._before = read_metrics(self._folder / "metrics.csv")
                if self._before:
                    self._earlier = Progress.from_row(self._before[-1])
                    self._untimed_steps = untimed_steps(self._before[-1])
                    resume()
                else:
                    self._onset = Onset()
            elif (self._folder / "metrics.csv").exists():
                self._set_curve_aside("training starts from the beginning")
            return Progress()
        meta = restore_session(self._session, path)
        check_origin(meta, self._job, path, self._warn)
        progress = Progress.from_meta(meta["progress"])
        announce_fallback(self._plan, progress.env_steps, self._warn)
        self._kept_steps = progress.env_steps
        if row := meta.get("row"):
            self._row, self._row_span_s = Totals(**row["totals"]), float(row["span_s"])
        self._tell("resumed", path=str(path), **self._counts(progress))
        return progress

    def _set_curve_aside(self, start: str) -> None:
        kept = set_aside(self._folder / "metrics.csv", ".before-restart")
        self._warn(f"no checkpoint in {self._folder}: {start}; its old curve is {kept}")

    def _count(self, work: Work) -> None:
        now_s = time.monotonic()
        self._progress.add(work)
        self._progress.seconds += now_s - self._now_s
        self._row_span_s += now_s - self._now_s
        self._now_s = now_s
        self._iterations += 1
        before, self._before = self._before, []
        if before:
            self._set_curve_aside("the program keeps its own, and what it tells counts from here")
            self._metrics = MetricsFile(self._folder / "metrics.csv", env_steps=0)
        if len(before) > 1 and 2 * self._progress.env_steps >= int(before[-1]["env_steps"]):
            # a program that resumed by itself: its first total holds what it did before
            self._earlier = Progress()
            done = [row for row in before if int(row["env_steps"]) <= self._progress.env_steps]
            self._progress.seconds += float(done[-1]["seconds"]) if done else 0.0
            self._row_span_s, self._told_s = 0.0, now_s
            return
        if before:
            self._untimed_steps = 0
        self._message.add(work)
        self._row.add(work)
        self._look_at_onset()
        self._learning = {name: float(value) for name, value in work.metrics.items() if math.isfinite(value)}

    def _look_at_onset(self) -> None:
        if self._onset is None or not (steps := self._onset.untimed(self._progress.env_steps, self._progress.seconds)):
            return
        self._untimed_steps = steps
        self._warn(
            f"the program told {steps:,} steps at once, far more than it does since. If it went on from a checkpoint "
            "of its own, such as one that a probe left, they count towards the budget all the same: remove it and "
            "start anew (--new) for a whole training. The SPS leave them out"
        )

    def _counts(self, progress: Progress) -> dict[str, Any]:
        untimed = {UNTIMED: self._untimed_steps} if self._untimed_steps else {}
        return {
            **untimed,
            "total_env_steps": progress.env_steps,
            "total_episodes": progress.episodes,
            "total_seconds": progress.seconds,
            "mean_return": progress.mean_return,
            "best_return": progress.best_return,
        }

    def _tell(self, kind: str, **facts: Any) -> None:
        try:
            self._send({"type": kind, **facts})
        except BrokenPipeError:  # the parent is gone: save and end
            self._orphaned = True

    def _warn(self, text: str) -> None:
        self._tell("warning", detail=text)

    def _tell_step(self) -> None:
        self._tell(
            "step",
            t=self._now_s,
            started=self._told_s,
            iteration=self._iterations,
            peak_memory_bytes=peak_of(self._session),
            metrics=dict(self._learning),
            **vars(self._message),
            **self._counts(self._progress),
        )
        self._message, self._told_s = Totals(), self._now_s

    def _write_row(self) -> None:
        progress, row, span_s = self._progress, self._row, self._row_span_s
        unsure = self._onset is not None and row.iterations == self._iterations  # the first row
        self._metrics.append(
            {
                "seconds": round(progress.seconds, 3),
                "env_steps": progress.env_steps,
                "episodes": progress.episodes,
                "sps": round(row.env_steps / span_s, 2) if span_s > 0 and not unsure else None,
                MEAN_RETURN: progress.mean_return,
                "best_return": progress.best_return,
                **self._learning,
                **{f"{phase}_s": round(seconds, 4) for phase, seconds in row.seconds.items()},
                "iterations": row.iterations,
                "reset_rows": row.reset_rows,
                **({UNTIMED: self._untimed_steps} if self._untimed_steps else {}),
            }
        )
        self._row, self._row_span_s = Totals(), 0.0

    def _save(self) -> None:
        """Write a checkpoint; a program that keeps its own (an empty state) has none here.

        The row that is being counted is part of it, and the rows before it are on the disk first: whatever
        happens, a resumed `metrics.csv` has neither duplicates nor holes. The next one is an interval after the end
        of this one, so that a slow disk leaves time to train.
        """
        began_s = self._saved_s = time.monotonic()
        state, progress = self._session.state(), self._progress
        if not state.arrays and not state.meta:
            return
        refuse_nonfinite(state)
        self._metrics.sync()
        meta = {
            "format": FORMAT,
            "session": state.meta,
            "progress": progress.to_meta(),
            "point": self._task.point.knobs(),
            "row": {"totals": self._row.to_meta(), "span_s": self._row_span_s},
            "job": self._job.id,
            "env": self._job.env,
            "seed": self._job.seed,
        }
        path = save_checkpoint(
            self._folder / "checkpoints",
            SessionState(arrays=state.arrays, meta=meta),
            env_steps=progress.env_steps,
            keep=self._plan.keep,
            score=progress.mean_return if len(progress.returns) == RETURNS_KEPT else None,
            warn=self._warn,
        )
        self._saved_steps = self._kept_steps = progress.env_steps
        self._saved_s = time.monotonic()
        took_s = self._saved_s - began_s
        self._tell("saved", path=str(path), env_steps=progress.env_steps, seconds=took_s, **self._counts(progress))

    def _flush(self) -> None:
        if self._row.iterations:
            self._write_row()
        if self._progress.env_steps > self._saved_steps:
            self._save()
        if self._message.iterations:
            self._tell_step()

    def _end(self, reason: str, detail: str) -> None:
        if self._before:  # the program, started again, told nothing
            self._progress = self._earlier
        peak, effective = peak_of(self._session), effective_of(self._session)
        facts = {"reason": reason, "detail": detail, "effective": effective, "peak_memory_bytes": peak}
        self._tell("done", **facts, **self._counts(self._progress))
