"""What the trainer's parts can do alone on this machine, at one point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from autotune.workloads.atari.lanes import lane_columns
from autotune.workloads.atari.rollout import Samples

if TYPE_CHECKING:
    from autotune.workloads.atari.session import PPOSession

_LEARN_ROWS = 4096
_CALLS = 8
"""Vector steps of a lane between two looks at the clock: lanes wait for each other there, and do not in training."""


def rate_per_s(work: Callable[[], int], synchronize: Callable[[], None], seconds: float) -> float:
    """Units per second of a repeated piece of work; its first, warming call is left out."""
    work()
    synchronize()
    start, units = perf_counter(), 0
    while not units or perf_counter() - start < seconds:
        units += work()
        synchronize()
    return units / (perf_counter() - start)


def _scattered(samples: Samples, batch_size: int) -> Samples:
    """Some of the rows, at least `_LEARN_ROWS` or a minibatch, from all over the rollout."""
    count = min(len(samples.rows), max(batch_size, _LEARN_ROWS // batch_size * batch_size))
    order = torch.randperm(len(samples.rows), generator=torch.Generator().manual_seed(0))[:count]
    return replace(samples, rows=samples.rows[order.to(samples.rows.device)])


def measure_ceilings(session: PPOSession, seconds: float) -> dict[str, float]:
    """Env steps per second of stepping, inference and learning alone, `seconds` each.

    Stepping uses random actions; inference and learning use the observations that it left. Minibatches are
    drawn from the memory of a whole rollout, which no cache holds, as in training. The session has learnt from
    them afterwards: throw it away.
    """
    session.step(session.settings.rollout)  # fills the shortest slice of the buffers
    parts, learner, buffer = session.environment.parts, session._learner, session._buffers[0]
    generators = [np.random.default_rng(lane) for lane in range(len(parts))]
    steps = session._slice_steps(session.settings.rollout)
    lanes = session._collector.lanes
    columns = [buffer.columns(which) for which in lane_columns(buffer.actions.shape[1], lanes.count)]
    buffer.repeat(steps)
    samples = buffer.samples(session.settings.rollout, session.settings.gamma, session.settings.gae_lambda)
    samples = _scattered(samples, session._point.batch_size)

    def step(lane: int) -> int:
        environment, rng = parts[lane], generators[lane]
        before = environment.executed_steps
        for _ in range(_CALLS):
            environment.step(rng.integers(0, environment.spec.actions, environment.num_envs).astype(np.int32))
        return environment.executed_steps - before

    def infer(lane: int) -> int:
        with torch.no_grad(), learner.autocast():
            for _ in range(_CALLS):
                learner.act(columns[lane].observations(0), lane)[0].cpu()
        return _CALLS * parts[lane].num_envs

    def learn() -> int:
        learner.update(samples, session._point.batch_size, 0.0)
        return len(samples.rows)

    together = {
        "env": lambda: sum(lanes.run(step)),
        "infer": lambda: sum(lanes.run(infer)),
        "learn": learn,
    }
    return {name: rate_per_s(work, session.synchronize, seconds) for name, work in together.items()}
