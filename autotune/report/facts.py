"""What a run's folder says, gathered once: the report's sections read this and nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from autotune.machine import DeviceInfo
from autotune.manifest import load_manifest
from autotune.manifest_schema import Manifest
from autotune.probe.recipe import load_recipe, rule_of_thumb
from autotune.records import Job, Point, ProbeResult, Recipe
from autotune.report.left import Left, read_left
from autotune.report.measured import Measured, measure_role
from autotune.report.projection import Projection, Quantity, Savings, project, savings
from autotune.report.rows import COLUMNS, finite, trials_frame
from autotune.report.training import Training, load_training
from autotune.runs import Run, all_runs, is_held, load_device
from autotune.search.confirm import slowing_points, stable_points, winner
from autotune.search.episodes import GameLength, game_lengths, steps_of, with_stand_ins
from autotune.search.outcome import found_in, sooner_than
from autotune.search.result import StudyResult
from autotune.search.space import space_of
from autotune.search.trials import TrialRecord, comparable_history, load_trials, refuse_lost_study
from autotune.train.events import read_events
from autotune.train.migration import successor
from autotune.train.sessions import sessions_of
from autotune.worker.checkpoint import trained_env_steps


@dataclass(frozen=True, kw_only=True)
class Price:
    """US dollars per hour of the whole machine, and where the figure comes from."""

    usd_per_hour: float
    note: str


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Everything a report says, from one run.

    Attributes:
        run: the folder.
        state: ``run.json``.
        active: whether a process works in it now.
        trials: a row per trial, see `COLUMNS`.
        device: None when the run holds no ``device.json``.
        recipe: None for a run that only trains.
        jobs: of the manifest, else of the recipe.
        hyperparameters: likewise.
        tuned: the manifest's point, else the best measured; None without a measurement.
        points_measured: different points that were stable each time they were measured.
        slowing: points that ran each time, and slowed down within the window in two launches or more.
        tied: points whose ratio to the tuned one has an interval that includes 1.
        soonest: the point that ends the jobs before the tuned one does (`search.outcome.sooner_than`).
        refused: points that were not run because the memory rule predicts a failure.
        edited: the manifest's point was never measured here (edited by hand, or from elsewhere).
        spent_s: search seconds.
        guard_s: in which its guard's pilots had the machine.
        budget_s: what the search was given.
        game_lengths: by environment of the jobs, empty where too few games ended.
        trained_env_steps: by job, of the policy that its probes began with; empty when all were untrained.
        search: what it found as a whole; None for other runs, and where nothing was stable.
        successor: the run that goes on with this one's training; None where there is none.
        left: how far the training is; None where there is none, or its events do not tell.
        price: None when not known.
    """

    run: Run
    state: Mapping[str, Any]
    trials: pd.DataFrame
    active: bool = False
    device: DeviceInfo | None = None
    recipe: Recipe | None = None
    manifest: Manifest | None = None
    jobs: tuple[Job, ...] = ()
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    tuned: Measured | None = None
    baseline: Measured | None = None
    rule_of_thumb: Measured | None = None
    points_measured: int = 0
    slowing: tuple[Point, ...] = ()
    tied: tuple[Point, ...] = ()
    soonest: Measured | None = None
    refused: int = 0
    edited: bool = False
    spent_s: float | None = None
    guard_s: float = 0.0
    budget_s: float | None = None
    game_lengths: Mapping[str, GameLength] = field(default_factory=dict)
    trained_env_steps: Mapping[str, int] = field(default_factory=dict)
    search: StudyResult | None = None
    training: Training | None = None
    successor: Run | None = None
    left: Left | None = None
    price: Price | None = None

    @property
    def measured(self) -> tuple[Measured, ...]:
        """Baseline, rule of thumb and tuned, those there are."""
        return tuple(each for each in (self.baseline, self.rule_of_thumb, self.tuned) if each)

    @property
    def trial_rows(self) -> list[dict[str, Any]]:
        """The trials as dictionaries by `COLUMNS`."""
        return [dict(zip(COLUMNS, row, strict=True)) for row in self.trials.to_numpy()]

    @property
    def counts_games(self) -> bool:
        """Whether a job's budget is in episodes: then hours are no surer than the length of a game."""
        return any(job.budget.unit == "episodes" for job in self.jobs)

    @property
    def length_error_fraction(self) -> float:
        """The largest error of the length of a game that a job counts; infinite where one was not measured."""
        counted = (self.game_lengths.get(job.env) for job in self.jobs if job.budget.unit == "episodes")
        return max((length.error_fraction if length else math.inf for length in counted), default=0.0)

    def saved(self, reference: Measured | None) -> Savings | None:
        """What the tuned point saves against another, None when either length is not known.

        Games are as long at both, so that the error of their length is no part of the comparison, only of the amounts.
        """
        before, after = (self.projection(each, exact_games=True) for each in (reference, self.tuned))
        found = savings(before, after) if before and after else None
        return found.less_sure(self.length_error_fraction) if found else None

    def projection(self, measured: Measured | None, *, exact_games: bool = False) -> Projection | None:
        """Hours and cost of all jobs at a measured point, None when it failed or there are no jobs.

        Args:
            measured: the point.
            exact_games: leave the error of the length of a game out, to compare points.
        """
        if measured is None or measured.job_sps is None or not self.jobs:
            return None
        return project(
            self.jobs,
            measured.job_sps,
            measured.point.concurrency,
            price_usd_per_hour=self.price.usd_per_hour if self.price else None,
            steps_per_episode=self._game_steps(exact=exact_games),
            fewer=measured.fewer,
        )

    @property
    def speed_before(self) -> Quantity | None:
        """Env steps per second of one job, known before the training at the point at which it goes on."""
        if self.left is None or self.manifest is None:
            return None
        point = self.left.point
        if self.tuned and self.tuned.point == point:
            return self.tuned.job_sps
        told = self.manifest.predicted()
        if told and told.point.record() == point:
            return Quantity(value=told.sps, low=told.sps_low, high=told.sps_high).scaled(1 / point.concurrency)
        rungs = (rung.goodput_sps for rung in self.manifest.ladder if rung.point.record() == point)
        sps = next(rungs, None)
        return Quantity(value=sps / point.concurrency) if sps else None

    @property
    def trained_s(self) -> float:
        """Seconds for which the training had the machine, until now where it runs."""
        return (self.training.machine_s if self.training else 0.0) + (self.left.unwritten_s if self.left else 0.0)

    @property
    def plan_left(self) -> Projection | None:
        """Hours and cost of what a training has left, None when it has nothing."""
        if self.left is None:
            return None
        return self.left.plan(
            self.speed_before,
            steps_per_episode=self._game_steps(exact=False),
            fewer=self.tuned.fewer if self.tuned and self.tuned.point == self.left.point else {},
            price_usd_per_hour=self.price.usd_per_hour if self.price else None,
        )

    def _game_steps(self, *, exact: bool) -> dict[str, Quantity]:
        return {env: _steps(each, exact=exact) for env, each in self.game_lengths.items()}


def _steps(length: GameLength, *, exact: bool) -> Quantity:
    error = 0.0 if exact else length.error_fraction
    return Quantity(value=length.steps, low=length.steps, high=length.steps).less_sure(error)


def gather(run: Run, price: Price | None = None) -> Facts:
    """Read a run's folder: a search, a probe, a training, or any mixture.

    Raises:
        FileError: a file of the run is damaged, or its study is gone.
        ManifestError: its manifest or recipe is.
    """
    state, records = run.state(), load_trials(run)
    recipe = load_recipe(str(run.recipe_file)) if run.recipe_file.exists() else None
    manifest = load_manifest(run.manifest_file) if run.manifest_file.exists() else None
    device = load_device(run)
    training = load_training(run)
    if training is None:
        refuse_lost_study(run, finite(state.get("spent_s")) or 0.0)
    history = comparable_history(records)
    given = price.usd_per_hour if price else None
    found = found_in(state, records, recipe, device, given) if recipe and device else None
    best = _best(found, recipe, history)
    chosen = manifest.point.record() if manifest else best[0] if best else None
    tuned = measure_role("tuned" if manifest else "best measured", chosen, history)
    thumb = rule_of_thumb(recipe, device.host) if recipe and device else None
    jobs = manifest.job_records() if manifest else recipe.jobs if recipe else ()
    lengths = episode_lengths(jobs, recipe.jobs if recipe else jobs, history, training)
    sooner = sooner_than(tuned.point, jobs, steps_of(lengths), history) if tuned and tuned.sps else None
    return Facts(
        run=run,
        state=state,
        active=is_held(run.path),
        trials=trials_frame([record for record in records if record.stage != "refused"]),
        device=device,
        recipe=recipe,
        manifest=manifest,
        jobs=jobs,
        hyperparameters=manifest.workload.hyperparameters if manifest else recipe.hyperparameters if recipe else {},
        tuned=tuned,
        points_measured=len(stable_points(history)),
        slowing=slowing_points(history),
        tied=best[1] if best and best[0] == chosen else (),
        soonest=measure_role("soonest", sooner[0], history) if sooner else None,
        baseline=measure_role(
            "baseline", staged_point("baseline", records) or (recipe.baseline if recipe else None), history
        ),
        rule_of_thumb=measure_role("rule of thumb", staged_point("rule of thumb", records) or thumb, history),
        refused=sum(record.stage == "refused" for record in records),
        edited=manifest is not None and bool(records) and tuned is None,
        spent_s=finite(state.get("spent_s")),
        guard_s=sum(each.seconds for arm in all_runs(run.guard_folder) for each in sessions_of(read_events(arm))),
        budget_s=finite(state.get("budget_s")),
        game_lengths=lengths,
        trained_env_steps=trained_env_steps(begun) if isinstance(begun := state.get("checkpoints"), dict) else {},
        search=found,
        training=training,
        successor=(following := successor(run)),
        left=read_left(run, manifest, training) if manifest and training and not following else None,
        price=price or given_price(manifest, state),
    )


def _best(
    found: StudyResult | None, recipe: Recipe | None, history: Sequence[ProbeResult]
) -> tuple[Point, tuple[Point, ...]] | None:
    """The best point and those tied with it: what the search says, else the fastest of the probes."""
    if found is not None:
        return found.point, found.tied
    best = winner(space_of(recipe), history) if recipe else None
    return (best[0].point, tuple(entry.point for entry in best[1])) if best else None


def given_price(manifest: Manifest | None, state: Mapping[str, Any]) -> Price | None:
    """The price that the search was given: its manifest has it, else (a replay emits none) the facts of the run."""
    predicted = manifest.prediction.price_usd_per_hour if manifest and manifest.prediction else None
    given = predicted or finite(state.get("price_usd_per_hour"))
    return Price(usd_per_hour=given, note="given to the search") if given else None


def staged_point(stage: str, records: Sequence[TrialRecord]) -> Point | None:
    """The point that the newest trial of a stage asked for."""
    return next((r.result.requested for r in reversed(records) if r.stage == stage), None)


def episode_lengths(
    jobs: Sequence[Job], probed: Sequence[Job], history: Sequence[ProbeResult], training: Training | None
) -> dict[str, GameLength]:
    """Env steps of a game by environment of the jobs: in training, else in the probes, which ran the jobs `probed`."""
    known = {env: length for env, length in game_lengths(probed, history).items() if length.measured}
    return with_stand_ins(jobs, known | (training.game_lengths(jobs) if training else {}))
