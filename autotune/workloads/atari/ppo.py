"""PPO's arithmetic as pure functions: advantages, loss, minibatches, schedule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from autotune.errors import WorkerError


class LossTerms(NamedTuple):
    """Scalars of one minibatch; only `total` carries gradients that are used."""

    total: Tensor
    policy: Tensor
    value: Tensor
    entropy: Tensor
    approx_kl: Tensor
    clip_fraction: Tensor


def generalised_advantages(
    rewards: Tensor,
    values: Tensor,
    terminated: Tensor,
    done: Tensor,
    valid: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimation (arXiv:1506.02438, eq. 16) over rows with automatic resets.

    ``delta_t = r_t + gamma V(s_t+1) [not terminated] - V(s_t)`` and
    ``A_t = delta_t + gamma lambda A_t+1 [not done]``. EnvPool returns the true final observation on the row
    that ends an episode, so ``values[t + 1]`` is the value to bootstrap a truncated episode from.

    Args:
        rewards: (steps, envs).
        values: (steps + 1, envs), the last row of the observation after the last step.
        terminated: (steps, envs) bool, the episode ended for good.
        done: (steps, envs) bool, terminated or truncated.
        valid: (steps, envs) bool, false on reset rows.
        gamma: discount.
        gae_lambda: decay.

    Returns:
        (steps, envs), zero on reset rows.
    """
    delta = (rewards + gamma * values[1:] * ~terminated - values[:-1]) * valid
    carry = (valid & ~done).to(delta.dtype) * (gamma * gae_lambda)
    advantages = torch.empty_like(delta)
    following = torch.zeros_like(delta[0])
    for t in range(delta.shape[0] - 1, -1, -1):
        following = torch.addcmul(delta[t], carry[t], following, out=advantages[t])
    return advantages


def normalised(advantages: Tensor) -> Tensor:
    """Zero mean and unit standard deviation (population); all zero for a single sample."""
    return (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)


def ppo_loss(
    logits: Tensor,
    values: Tensor,
    actions: Tensor,
    old_log_probs: Tensor,
    old_values: Tensor,
    advantages: Tensor,
    returns: Tensor,
    *,
    clip: float,
    value_clip: bool,
    value_coefficient: float,
    entropy_coefficient: float,
) -> LossTerms:
    """Clipped surrogate loss (arXiv:1707.06347, eq. 7 and 9) with clipped value loss and entropy bonus.

    ``total = policy + value_coefficient * value - entropy_coefficient * entropy``, with ``value`` half the mean
    squared error; `approx_kl` is the estimator mean((ratio - 1) - log ratio).

    Args:
        logits: (batch, actions).
        values: (batch,).
        actions: (batch,) int64.
        old_log_probs: (batch,) of the policy that acted.
        old_values: (batch,) predicted then.
        advantages: (batch,).
        returns: (batch,) targets of the value.
        clip: range of ratio and value change.
        value_clip: whether the value change is clipped.
        value_coefficient: weight.
        entropy_coefficient: weight.
    """
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    log_ratio = log_probs.gather(-1, actions.unsqueeze(-1)).squeeze(-1) - old_log_probs
    ratio = log_ratio.exp()
    policy = -torch.min(advantages * ratio, advantages * ratio.clamp(1 - clip, 1 + clip)).mean()
    error = (values - returns).square()
    if value_clip:
        clipped = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.max(error, (clipped - returns).square())
    value = 0.5 * error.mean()
    total = policy + value_coefficient * value - entropy_coefficient * entropy
    with torch.no_grad():
        approx_kl = (ratio - 1 - log_ratio).mean()
        clip_fraction = ((ratio - 1).abs() > clip).float().mean()
    return LossTerms(total, policy, value, entropy, approx_kl, clip_fraction)


def minibatches(rows: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Every row exactly once, in random order, `batch_size` at a time; the last one is smaller.

    Args:
        rows: (samples,) indices of valid rows, on the generator's device.
        batch_size: samples per minibatch, >= 1.
        generator: source of the order.
    """
    order = torch.randperm(len(rows), generator=generator, device=rows.device)
    for start in range(0, len(rows), batch_size):
        yield rows[order[start : start + batch_size]]


def annealed(learning_rate: float, env_steps: int, horizon_steps: int, floor: float) -> float:
    """Linear fall from `learning_rate` to `floor` times it at `horizon_steps`, held from there on."""
    return learning_rate * max(floor, 1 - env_steps / horizon_steps)


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns): 1 is perfect, 0 no better than the mean; nan if returns do not vary."""
    if not len(returns):
        return returns.new_tensor(math.nan)
    return 1 - (returns - values).var(correction=0) / returns.var(correction=0)


def refuse_nonfinite(terms: np.ndarray[Any, Any], first_update: int) -> None:
    """Check the loss terms of some updates.

    Args:
        terms: (updates, terms), in the order of `LossTerms`.
        first_update: number of the first one.

    Raises:
        WorkerError: a term is NaN or infinite; names it and the update.
    """
    finite = np.isfinite(terms)
    if finite.all():
        return
    row = int(np.argmin(finite.all(axis=1)))
    named = [f"{LossTerms._fields[i]} ({terms[row, i]})" for i in np.flatnonzero(~finite[row])]
    raise WorkerError(
        f"the loss is not finite at update {first_update + row}: {', '.join(named)}; "
        "lower learning_rate, or use precision = 'fp32' if it is lower"
    )
