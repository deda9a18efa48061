"""The rollout's memory, allocated once: what happened in each row of each environment."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autotune.workloads.atari import ppo
from autotune.workloads.atari.environment import EnvironmentSpec, Rows

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """A rollout, flattened to (steps * envs, ...), on the learner's device.

    Attributes:
        observations: uint8 images as stored (channels last if so set) or float32 vectors.
        channels_last: whether images are stored (height, width, channels).
        rows: (valid,) int64, the rows to learn from; reset rows are left out.
        actions: int64.
        log_probs: of the policy that acted.
        values: predicted then.
        advantages: by `ppo.generalised_advantages`.
        returns: advantages + values.
    """

    observations: Tensor
    channels_last: bool
    rows: Tensor
    actions: Tensor
    log_probs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def minibatch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Observations as the network takes them, actions, log probabilities, values and returns of some rows."""
        observations = _channels_first(self.observations.index_select(0, rows), self.channels_last)
        return observations, self.actions[rows], self.log_probs[rows], self.values[rows], self.returns[rows]


def bytes_per_env(rollout: int, spec: EnvironmentSpec) -> int:
    """What a rollout takes for each environment: observations, the columns of a step, and what is learnt from them."""
    observation = math.prod(spec.shape) * (1 if spec.kind == "image" else 4)
    columns = 8 + 4 + 4 + 4 + 3  # action, log probability, value, reward, three flags
    learning = 8 + 8 + 4 + 4 + 4  # rows and their order, rewards, advantages, returns
    return (rollout + 1) * observation + rollout * (columns + learning)


class RolloutBuffer:
    """Arrays of (rollout, num_envs): observations once, as uint8; rewards and flags stay on the host."""

    def __init__(
        self, rollout: int, num_envs: int, spec: EnvironmentSpec, channels_last: bool, device: torch.device
    ) -> None:
        self.channels_last = channels_last
        self.device = device
        dtype = torch.uint8 if spec.kind == "image" else torch.float32
        shape = (*spec.shape[1:], spec.shape[0]) if channels_last else spec.shape
        self._observations = torch.zeros((rollout + 1, num_envs, *shape), dtype=dtype, device=device)
        self.actions = torch.zeros((rollout, num_envs), dtype=torch.int64, device=device)
        self.log_probs = torch.zeros((rollout, num_envs), device=device)
        self.values = torch.zeros((rollout + 1, num_envs), device=device)
        self._rewards = np.zeros((rollout, num_envs), np.float32)
        self._terminated = np.zeros((rollout, num_envs), bool)
        self._done = np.zeros((rollout, num_envs), bool)
        self._valid = np.zeros((rollout, num_envs), bool)
        pinned = device.type == "cuda"
        self._staged = torch.zeros((num_envs, *spec.shape), dtype=dtype, pin_memory=True) if pinned else None

    def columns(self, which: slice) -> RolloutBuffer:
        """The part of this memory that belongs to some of the environments; what is written there is written here."""
        if which == slice(0, self.actions.shape[1]):
            return self
        part = copy.copy(self)
        part._observations = self._observations[:, which]
        part.actions, part.log_probs, part.values = (t[:, which] for t in (self.actions, self.log_probs, self.values))
        part._rewards, part._terminated, part._done, part._valid = (array[:, which] for array in self._host())
        part._staged = None if self._staged is None else self._staged[which]
        return part

    def observations(self, step: int) -> Tensor:
        """What the policy sees at a step: (num_envs, *shape)."""
        return _channels_first(self._observations[step], self.channels_last)

    def write_observations(self, step: int, observations: Array) -> None:
        """Keep the observations (num_envs, *shape) that precede `step`, on the device."""
        source = torch.from_numpy(observations)
        if self._staged is not None:
            source = self._staged.copy_(source).to(self.device, non_blocking=True)
        target = self.observations(step)
        target.copy_(source)

    def write_rows(self, step: int, rows: Rows) -> None:
        """Keep what the environment answered at `step`."""
        self._rewards[step] = rows.rewards
        self._terminated[step] = rows.terminated
        self._done[step] = rows.done
        self._valid[step] = rows.valid

    @property
    def nbytes(self) -> int:
        """Bytes that it holds, on the device and on the host."""
        columns: list[Any] = [self._observations, self.actions, self.log_probs, self.values, *self._host()]
        return sum(int(column.nbytes) for column in columns)

    def repeat(self, steps: int) -> None:
        """Fill the whole rollout with copies of its first `steps` steps."""
        rollout = len(self.actions)
        columns: list[Any] = [self._observations, self.actions, self.log_probs, self.values, *self._host()]
        for start in range(steps, rollout, steps):
            stop = min(start + steps, rollout)
            for column in columns:
                column[start:stop] = column[: stop - start]

    def _host(self) -> tuple[Array, Array, Array, Array]:
        return self._rewards, self._terminated, self._done, self._valid

    def samples(self, steps: int, gamma: float, gae_lambda: float) -> Samples:
        """The first `steps` steps with advantages and returns, ready to learn from."""
        rewards, terminated, done, valid = (torch.from_numpy(array[:steps]).to(self.device) for array in self._host())
        values = self.values[: steps + 1]
        advantages = ppo.generalised_advantages(
            rewards, values, terminated, done, valid, gamma=gamma, gae_lambda=gae_lambda
        )
        return Samples(
            observations=self._observations[:steps].flatten(0, 1),
            channels_last=self.channels_last,
            rows=torch.from_numpy(np.flatnonzero(self._valid[:steps])).to(self.device),
            actions=self.actions[:steps].flatten(),
            log_probs=self.log_probs[:steps].flatten(),
            values=values[:-1].flatten(),
            advantages=advantages.flatten(),
            returns=(advantages + values[:-1]).flatten(),
        )


def _channels_first(images: Tensor, channels_last: bool) -> Tensor:
    """View (..., height, width, channels) as (..., channels, height, width)."""
    return images.movedim(-1, -3) if channels_last else images
