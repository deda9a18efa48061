"""Trials on the disk: an Optuna study in SQLite, a trial per probe, its measurement in user attributes."""

from __future__ import annotations

import os
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from autotune.codec import from_json, to_json
from autotune.errors import FileError
from autotune.records import KNOBS, RESTARTED, Point, ProbeResult
from autotune.runs import Run
from autotune.search.epochs import comparable
from autotune.search.sampler import EPOCH, IGNORED, RESULT, STAGE
from autotune.units import format_duration

SHOWN = ("status", "sps", "detail")
"""Of a result, what stands beside it in attributes of their own, for tables of other programs (optuna-dashboard)."""
_BUSY_S = 30.0
"""For how long another program that writes the study is waited for."""


@dataclass(frozen=True, kw_only=True)
class TrialRecord:
    """One trial of a run.

    Attributes:
        number: Optuna's.
        stage: ``baseline``, ``rule of thumb``, ``try``, ``sentinel``, ``spread``, ``model``, ``neighbours``,
            ``refused``, ``knobs``, ``final``, ``soak``; of a probe or record ``grid``.
        result: what was measured.
        started: boot id, process id and time, recorded before the probe began.
        epoch: of the machine, see `autotune.search.epochs`.
    """

    number: int
    stage: str
    result: ProbeResult
    started: Mapping[str, Any] = field(default_factory=dict)
    epoch: int = 0

    @property
    def counts(self) -> bool:
        """Whether the result says something about its point."""
        return IGNORED not in self.result.flags


class _DamagedTrialError(Exception):
    """What the study says of a trial cannot be read; the cause says why."""


@contextmanager
def storage_errors(run: Run) -> Iterator[None]:
    """Turn a database failure into a message.

    Raises:
        FileError: the study cannot be read or written.
    """
    try:
        yield
    except (StorageInternalError, sqlalchemy.exc.DatabaseError, _DamagedTrialError) as error:
        cause = error.__cause__ or error
        reason = str(getattr(cause, "orig", None) or cause).partition("\n")[0] or "no reason given"
        if isinstance(error, _DamagedTrialError):
            reason = f"a trial in it is damaged ({type(cause).__name__}: {reason})"
        raise FileError(
            f"cannot use {run.study_file}: {reason}. Check that the folder is writable and has free space; "
            "a damaged study is left alone with --new."
        ) from error


def open_study(run: Run, sampler: BaseSampler | None = None) -> optuna.Study:
    """The run's study, created when missing; every commit is on the disk when it returns.

    Raises:
        FileError: it cannot be read or written.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def connect() -> sqlite3.Connection:
        """By the path as it is: in a URL, a question mark, a percent sign or a brace in it would name another file."""
        return sqlite3.connect(run.study_file, timeout=_BUSY_S, check_same_thread=False)

    with storage_errors(run):
        try:
            storage = RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connect})
        except RuntimeError as error:
            raise _other_version(run, error) from error
        sqlalchemy.event.listen(storage.engine, "connect", _synchronous)
        storage.engine.dispose()
        there = [study.study_name for study in storage.get_all_studies()]
        if there:  # nothing is written: it may be read where it cannot be
            return optuna.load_study(study_name=there[0], storage=storage, sampler=sampler)
        return optuna.create_study(
            study_name=run.name, storage=storage, direction="maximize", load_if_exists=True, sampler=sampler
        )


def _other_version(run: Run, error: RuntimeError) -> FileError:
    """What Optuna says of tables that another version of it has made."""
    advice = str(error).replace("`$ ", "`").replace("$STORAGE_URL", f"sqlite:///{run.study_file}")
    return FileError(f"cannot use {run.study_file}: {advice} Or leave it alone, and search anew with --new.")


def describe_study(study: optuna.Study, metric: str, **facts: str) -> None:
    """Say in the study itself what its values are and what was searched, for programs that show it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if study.metric_names != [metric]:
            study.set_metric_names([metric])
    known = study.user_attrs
    for name, fact in facts.items():
        if known.get(name) != fact:
            study.set_user_attr(name, fact)


def _shown(result: ProbeResult) -> dict[str, Any]:
    """Attributes of a trial that tables show; those that are not known are left out."""
    return {name: value for name in SHOWN if (value := getattr(result, name)) not in (None, "")}


def _synchronous(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=FULL")


def load_trials(run: Run) -> tuple[TrialRecord, ...]:
    """Every finished trial of a run, in order; none when it has no study.

    Raises:
        FileError: the study cannot be read.
    """
    if not _has_study(run):
        return ()
    with storage_errors(run):
        return records_of(open_study(run, RandomSampler()))


def _has_study(run: Run) -> bool:
    return run.study_file.exists() and run.study_file.stat().st_size > 0


def refuse_lost_study(run: Run, spent_s: float) -> None:
    """Refuse to begin anew where seconds were spent on a study that is gone.

    Raises:
        FileError: it is.
    """
    if spent_s and not _has_study(run):
        gone = "empty" if run.study_file.exists() else "missing"
        raise FileError(
            f"{run.study_file} is {gone}, and {format_duration(spent_s)} were spent on it: restore it, or search anew "
            "with --new"
        )


def records_of(study: optuna.Study) -> tuple[TrialRecord, ...]:
    """Every finished trial of a study that carries a measurement, in order; within `storage_errors`."""
    try:
        trials = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return tuple(_record(trial) for trial in trials if RESULT in trial.user_attrs)
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:  # of a flipped bit
        raise _DamagedTrialError from error


def _record(trial: FrozenTrial) -> TrialRecord:
    return TrialRecord(
        number=trial.number,
        stage=str(trial.user_attrs.get(STAGE, "")),
        result=from_json(ProbeResult, trial.user_attrs[RESULT]),
        started=trial.user_attrs.get("started", {}),
        epoch=int(trial.user_attrs.get(EPOCH, 0)),
    )


def comparable_history(records: Sequence[TrialRecord]) -> list[ProbeResult]:
    """What the trials of a run say of its machine as it was last, in order (`autotune.search.epochs`)."""
    kept = [record for record in records if record.counts]
    return comparable([record.result for record in kept], [record.epoch for record in kept])


def add_probe_trial(run: Run, stage: str, result: ProbeResult) -> None:
    """Add a finished measurement to the run's study.

    Raises:
        FileError: it cannot be written.
    """
    with storage_errors(run):
        study = open_study(run, RandomSampler())
        describe_study(study, "env steps per second")
        knobs = {name: getattr(result.requested, name) for name in KNOBS}
        wide: dict[str, BaseDistribution] = {
            name: IntDistribution(1, max(value, 2**16), log=True) for name, value in knobs.items()
        }
        study.add_trial(
            create_trial(
                params=knobs,
                distributions=wide,
                value=float(result.sps or 0.0),
                user_attrs=_shown(result)
                | {STAGE: stage, "requested": to_json(result.requested), RESULT: to_json(result)},
                constraints=constraints(result),
            )
        )


def constraints(result: ProbeResult) -> dict[str, float]:
    """What Optuna's constrained samplers see: not above zero is stable."""
    return {"stable": -1.0 if result.ok else 1.0}


def start(trial: Trial, stage: str, point: Point, boot_id: str, clock_s: float, predicted_s: float) -> None:
    """Record durably that a probe is about to run."""
    trial.set_user_attr(STAGE, stage)
    trial.set_user_attr("requested", to_json(point))
    started = {"boot_id": boot_id, "pid": os.getpid(), "time": datetime.now(UTC).isoformat()}
    trial.set_user_attr("started", started | {"clock_s": clock_s, "predicted_s": predicted_s})


def finish(study: optuna.Study, trial: Trial, result: ProbeResult, value: float, epoch: int = 0) -> None:
    """Tell a measurement, durably; a failure is complete with a violated constraint.

    Once its result stands there, `close_lost` can do the rest.
    """
    for name, shown in _shown(result).items():
        trial.set_user_attr(name, shown)
    trial.set_user_attr(EPOCH, epoch)
    trial.set_user_attr(RESULT, to_json(result))
    for name, violation in constraints(result).items():
        if name not in trial.constraints:
            trial.set_constraint(name, violation)
    study.tell(trial, value)


def worst_value(study: optuna.Study) -> float:
    """The lowest value of a stable trial, what a failure is told as; 0 when there is none."""
    done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    stable = [t.value for t in done if t.value is not None and all(v <= 0 for v in t.constraints.values())]
    return min(stable, default=0.0)


def close_lost(
    study: optuna.Study, boot_id: str, clock_s: float, value_of: Callable[[ProbeResult], float | None]
) -> float:
    """Close trials that were running when an earlier process or the machine died.

    ``host_lost`` when the machine was started anew since, else ``crashed``: then the search died, which
    says little about the point, and it may be tried once more. One that was measured, but not told, is told.

    Args:
        study: of the search.
        boot_id: of this boot.
        clock_s: now.
        value_of: a result as the study takes it, None for a failure.

    Returns:
        Seconds that the lost probes are charged: what they were predicted to take, no more than passed.
    """
    charged_s = 0.0
    lost_before = _lost_since_they_ran(records_of(study))
    for frozen in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        trial = Trial(study, frozen._trial_id)
        started = frozen.user_attrs.get("started")
        if started is None:
            trial.set_user_attr(STAGE, "lost")
            study.tell(trial, state=TrialState.FAIL)
            continue
        if RESULT in frozen.user_attrs:
            whole = _record(frozen)
            finish(study, trial, whole.result, value_of(whole.result) or worst_value(study), whole.epoch)
            charged_s += whole.result.cost_s
            continue
        result, same_boot = _lost(frozen, boot_id, clock_s), started["boot_id"] == boot_id
        if same_boot and result.requested not in lost_before:
            result = replace(result, flags=(IGNORED,))
        finish(study, trial, result, worst_value(study))
        charged_s += result.cost_s
    return charged_s


def _lost_since_they_ran(records: Sequence[TrialRecord]) -> set[Point]:
    """Points of which a search's end took the last probe: one that ran since is not to blame for it."""
    lost: set[Point] = set()
    for record in records:
        if record.result.ok:
            lost.discard(record.result.requested)
        elif record.result.status == "crashed" and not record.counts:
            lost.add(record.result.requested)
    return lost


def _lost(frozen: FrozenTrial, boot_id: str, clock_s: float) -> ProbeResult:
    """What is known of a probe that never ended."""
    started = frozen.user_attrs["started"]
    same_boot = started["boot_id"] == boot_id
    passed_s = max(0.0, clock_s - started["clock_s"]) if same_boot else started["predicted_s"]
    return ProbeResult(
        requested=Point.from_knobs(frozen.user_attrs["requested"]),
        status="crashed" if same_boot else "host_lost",
        grade="quick",
        detail="the search ended while this ran" if same_boot else RESTARTED,
        cost_s=min(started["predicted_s"], passed_s),
    )
