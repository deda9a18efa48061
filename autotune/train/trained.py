"""Probes that begin where a training stands: an untrained policy can make another speed than a trained one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from autotune.errors import UsageError
from autotune.records import Recipe
from autotune.runs import Run
from autotune.train.events import read_events
from autotune.train.migration_plan import manifest_of, meta_of, newest_saved, refuse_other_game, refuse_other_workload
from autotune.worker.checkpoint import trained_env_steps

_NAMED = 6


def where(env_steps: Mapping[str, int]) -> str:
    """Where jobs stand, in words: each by name, or their range when they are many."""
    if len(env_steps) > _NAMED:
        return f"{len(env_steps)} jobs at {min(env_steps.values()):,} to {max(env_steps.values()):,} env steps"
    return ", ".join(f"{job} at {count:,} env steps" for job, count in env_steps.items())


def begin_trained(recipe: Recipe, source: Run, say: Callable[[str], None]) -> Recipe:
    """The recipe, its probes beginning with the newest checkpoint of each job in a run's training.

    Args:
        recipe: its jobs are those of the run by id; one that the run has not trained begins untrained.
        source: only read.
        say: takes sentences for the user.

    Raises:
        FileError: a job's checkpoints are all damaged or gone.
        UsageError: the run has trained none of the jobs, or something else.
    """
    if recipe.workload == "command":
        raise UsageError(
            "--from-checkpoint is for autotune's own workloads: a program of your own keeps its own checkpoints. Give "
            "it its option to resume, in the command"
        )
    if not source.train_folder.is_dir():
        raise UsageError(f"run {source.path} has not trained: leave --from-checkpoint out, or name one that has")
    old = manifest_of(source)
    refuse_other_workload(source, old, recipe.workload, f"recipe {recipe.name!r} is of")
    games, events = {job.id: job.env for job in old.jobs}, read_events(source)
    found = dict[str, str]()
    for job in recipe.jobs:  # one that its manifest dropped, too
        if job.id in games:
            refuse_other_game(source, job.id, games[job.id], job.env, f"recipe {recipe.name!r}")
        if path := newest_saved(source, job.id, events, say):
            meta_of(source, path, job.id, job.env, f"recipe {recipe.name!r}")
            found[job.id] = str(path.resolve())
    if not found:
        raise UsageError(
            f"run {source.path} has no checkpoint of the jobs {', '.join(job.id for job in recipe.jobs)}: its jobs are "
            f"{', '.join(games)}; leave --from-checkpoint out"
        )
    say(f"probes begin where run {source.path} stands: {where(trained_env_steps(found))}")
    if fresh := [job.id for job in recipe.jobs if job.id not in found]:
        say(f"warning: not trained there, so measured untrained: {', '.join(fresh)}")
    return replace(recipe, checkpoints=found)
