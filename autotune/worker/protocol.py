"""What a parent and its worker process say to each other.

The parent starts ``python -P -m autotune.worker`` in its own process group with one JSON task on
a private pipe, and the worker answers with one JSON object a line on another; standard output
and error go to the log. Times are `time.monotonic` seconds, the same clock in both.

Messages of the worker (key ``type``):

* ``ready``: session open. ``open_s``, ``effective``, ``threads``, ``stop_s`` (what a program may take to save and end).
* ``step``: an iteration (or slice, or several short ones: ``iterations``) ended. ``t`` (its end), ``started``, and of
  `Work` the counts, ``seconds`` and ``metrics``; of a probe also ``lengths``, ``parts`` and ``settled``, and once a
  second ``peak_memory_bytes``.
* ``saved``: a checkpoint is on the disk. ``path``, ``env_steps``, ``seconds``.
* ``resumed``: training goes on from a checkpoint. ``path`` and the totals below.
* ``warning``: ``detail``, a sentence for the user (a damaged checkpoint that was set aside).
* ``error``: the last message of a failed worker. ``kind`` (``oom``, ``misuse``, ``silent``: nothing counted steps,
  ``refused``: a program ended before its first step, ``crashed``) and ``detail``; the log has the traceback.
* ``done``: the last message of a finished one. ``effective``, ``peak_memory_bytes``, and ``reason``; of a training
  ``budget``, ``finished`` (by itself), ``early`` (by itself, far from its budget: a failure) or ``stopped``.

A training worker's ``step`` sums up the iterations since the one before (about two a second):
``iterations``, ``iteration`` (number of the last since launch), ``metrics`` of the last, and, as do
``resumed``, ``saved`` and ``done``, the job's totals over all its launches: ``total_env_steps``,
``total_episodes``, ``total_seconds``, ``mean_return`` (last 100 games), ``best_return``.

Commands of the parent, one word a line: ``go`` (leave the barrier), ``stop`` (finish the current
iteration, save when training, end).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from autotune.records import Job, MeasurePlan, Point

Mode = Literal["check", "ceilings", "measure", "steps", "train"]


@dataclass(frozen=True, kw_only=True)
class TrainPlan:
    """How a worker trains one job.

    Attributes:
        folder: the job's folder: ``checkpoints/``, ``metrics.csv``.
        checkpoint_interval_s: seconds between checkpoints.
        keep: newest checkpoints that are kept, beside the best.
        saved_env_steps: of the last checkpoint that the training's events tell of, None when they tell of none.
        predecessor: boot id, pid and start ticks of the worker that trained the job last; empty when unknown.
        retried: whether the same command goes on with the job after a failure, which then says from where.
    """

    folder: str
    checkpoint_interval_s: float = 60.0
    keep: int = 3
    saved_env_steps: int | None = None
    predecessor: tuple[Any, ...] = ()
    retried: bool = True


@dataclass(frozen=True, kw_only=True)
class WorkerTask:
    """The first line a worker reads.

    Attributes:
        mode: ``check`` (validate jobs against what is installed), ``ceilings`` (what the parts can do
            alone), ``measure`` (step until told to
            stop), ``steps`` (do `steps` steps, then end), ``train`` (the job to its budget).
        threads: this process's share of cores, whole and at least 1.
        device: ``auto``, ``cuda``, ``cuda:0``, ``mps``, ``cpu``.
        memory_fraction: share of device memory this process may take, None for no limit.
        ram_bytes: of host memory that it may count on, None for all that is free.
        jobs: for ``check``: all of them; otherwise one.
        states: for ``check``: by job, the `meta` of the `SessionState` that it is to go on from.
        end_by_s: for ``measure``: when the parent gives up (`time.monotonic`); None where steps were heard before.
        checkpoint: for ``measure``: a file with the state to begin with, None for a fresh one.
    """

    mode: Mode
    workload: str
    hyperparameters: Mapping[str, Any]
    point: Point
    jobs: tuple[Job, ...]
    device: str = "auto"
    threads: int = 1
    memory_fraction: float | None = None
    ram_bytes: int | None = None
    plan: MeasurePlan = field(default_factory=MeasurePlan)
    end_by_s: float | None = None
    steps: int = 0
    train: TrainPlan | None = None
    states: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    checkpoint: str | None = None
