"""Collecting rollouts: acting in every lane's environments, and keeping what they answer."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch

from autotune.workloads.atari.environment import EnvironmentGroup
from autotune.workloads.atari.lanes import Lanes, lane_columns
from autotune.workloads.atari.learner import Learner
from autotune.workloads.atari.rollout import RolloutBuffer


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """What was collected.

    Attributes:
        buffer: that holds it.
        steps: vector steps in it.
        seconds: by phase (``env``, ``infer``, ``transfer``), the mean of the lanes.
    """

    buffer: RolloutBuffer
    steps: int
    seconds: dict[str, float]


class Collector:
    """Fills rollouts, every lane its own environments; on request in a thread beside the learner.

    Attributes:
        environment: replaced when games start anew.
        lanes: the threads that act.
    """

    def __init__(self, environment: EnvironmentGroup, learner: Learner, lanes: Lanes, device: torch.device) -> None:
        self.environment = environment
        self.lanes = lanes
        self._learner = learner
        self._device = device
        self._columns = lane_columns(environment.num_envs, lanes.count)
        self._thread: ThreadPoolExecutor | None = None
        self._stream: torch.cuda.Stream | None = None
        self._coming: Future[Rollout] | None = None

    def collect(self, buffer: RolloutBuffer, steps: int, stream: torch.cuda.Stream | None = None) -> Rollout:
        """Act for `steps` vector steps from where the environments are, in this stream of a device if given."""
        found = self.lanes.run(
            lambda lane: self._collect_lane(buffer.columns(self._columns[lane]), lane, steps, stream)
        )
        seconds = {phase: sum(each[phase] for each in found) / len(found) for phase in found[0]}
        return Rollout(buffer=buffer, steps=steps, seconds=seconds)

    def begin(self, buffer: RolloutBuffer, steps: int) -> None:
        """Start to `collect` in a thread of its own, on a device in a stream of its own."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "collect", torch.set_num_threads, (self.lanes.threads,))
            if self._device.type == "cuda":
                self._stream = torch.cuda.Stream(self._device, priority=-1)  # type: ignore[no-untyped-call]
        if self._stream is not None:  # the policy that the learner last gave is in place before it is used
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._coming = self._thread.submit(self.collect, buffer, steps, self._stream)

    def take(self) -> Rollout | None:
        """Wait for what was begun; None when nothing was."""
        coming, self._coming = self._coming, None
        if coming is None:
            return None
        rollout = coming.result()
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        return rollout

    def close(self) -> None:
        """End the threads; safe to call twice."""
        if self._thread is not None:
            self._thread.shutdown()
        self.lanes.close()

    def _collect_lane(
        self, buffer: RolloutBuffer, lane: int, steps: int, stream: torch.cuda.Stream | None
    ) -> dict[str, float]:
        learner, environment = self._learner, self.environment.parts[lane]
        clock = perf_counter
        acted = stepped = written = 0.0  # each the sum of what the clock said then: the phases are their differences
        with torch.no_grad(), learner.autocast(), torch.cuda.stream(stream) if stream else contextlib.nullcontext():
            began = now = clock()
            buffer.write_observations(0, environment.observations)
            for step in range(steps):
                actions, buffer.log_probs[step], buffer.values[step] = learner.act(buffer.observations(step), lane)
                buffer.actions[step] = actions
                chosen = actions.cpu().numpy().astype(np.int32)
                acted += clock()
                rows = environment.step(chosen)
                stepped += clock()
                buffer.write_rows(step, rows)
                buffer.write_observations(step + 1, rows.observations)
                written += (now := clock())
            buffer.values[steps] = learner.values(buffer.observations(steps))
            infer = acted - (began + written - now) + (clock() - now)
        return {"env": stepped - acted, "infer": infer, "transfer": written - stepped}
