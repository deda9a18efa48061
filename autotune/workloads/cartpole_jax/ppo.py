"""PPO as pure functions in JAX: networks, GAE, loss, Adam, one update.

Shapes: T vector steps, N environments, D observation size, A actions, B samples of a minibatch.
All functions compute in float32 unless they are given float64.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from autotune.workloads.cartpole_jax import Settings

ADAM_EPSILON = 1e-5
ADAM_DECAYS = (0.9, 0.999)

Params = dict[str, list[dict[str, jax.Array]]]
Metrics = dict[str, jax.Array]


class Learner(NamedTuple):
    """What learning changes: `params`, Adam's first and second moments (like `params`), optimizer `updates`."""

    params: Params
    mean: Params
    square: Params
    updates: jax.Array


class Rollout(NamedTuple):
    """What the environments did, and `last_obs` (N, D), the observation after the last row.

    ``obs`` (T, N, D) is what the policy saw; all others are (T, N). Where an environment ended at
    row t, ``obs[t + 1]`` is its true final observation (EnvPool resets one row later), so that
    ``values[t + 1]`` is the value to bootstrap a truncation from. ``valid`` is False for rows that
    EnvPool spent on an automatic reset.
    """

    obs: jax.Array
    actions: jax.Array
    log_probs: jax.Array
    values: jax.Array
    rewards: jax.Array
    terminated: jax.Array
    truncated: jax.Array
    valid: jax.Array
    last_obs: jax.Array


class Samples(NamedTuple):
    """Rows to learn from: ``obs`` (B, D), all others (B,)."""

    obs: jax.Array
    actions: jax.Array
    log_probs: jax.Array
    advantages: jax.Array
    targets: jax.Array


def new_learner(key: jax.Array, obs_size: int, actions: int, hidden: tuple[int, ...]) -> Learner:
    """Fresh networks: orthogonal weights of gain sqrt 2, 0.01 for the policy's last layer, 1 for the value's.

    Source: Andrychowicz et al. 2021, "What Matters In On-Policy Reinforcement Learning?" (gains);
    Saxe et al. 2014 (orthogonal initialisation).
    """
    actor_key, critic_key = jax.random.split(key)
    params = {
        "actor": _new_layers(actor_key, (obs_size, *hidden, actions), last_gain=0.01),
        "critic": _new_layers(critic_key, (obs_size, *hidden, 1), last_gain=1.0),
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Learner(params=params, mean=zeros, square=zeros, updates=jnp.zeros((), jnp.int32))


def _new_layers(key: jax.Array, widths: tuple[int, ...], last_gain: float) -> list[dict[str, jax.Array]]:
    gains = [2**0.5] * (len(widths) - 2) + [last_gain]
    keys = jax.random.split(key, len(gains))
    return [
        {"weight": jax.nn.initializers.orthogonal(gain)(k, (inputs, outputs)), "bias": jnp.zeros(outputs)}
        for k, gain, inputs, outputs in zip(keys, gains, widths, widths[1:], strict=False)
    ]


def _forward(layers: list[dict[str, jax.Array]], inputs: jax.Array) -> jax.Array:
    """A tanh network: (..., D) -> (..., outputs)."""
    for layer in layers[:-1]:
        inputs = jnp.tanh(inputs @ layer["weight"] + layer["bias"])
    return inputs @ layers[-1]["weight"] + layers[-1]["bias"]


def policy_and_value(params: Params, obs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of the actions (..., A) and values (...) of observations (..., D)."""
    return jax.nn.log_softmax(_forward(params["actor"], obs)), _forward(params["critic"], obs)[..., 0]


@jax.jit
def act(params: Params, obs: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Sample actions for observations (N, D): actions, log-probabilities and values (N,), and the next key."""
    key, sample_key = jax.random.split(key)
    log_probs, values = policy_and_value(params, obs)
    actions = jax.random.categorical(sample_key, log_probs)
    return actions, jnp.take_along_axis(log_probs, actions[:, None], axis=1)[:, 0], values, key


def advantages_of(rollout: Rollout, last_value: jax.Array, gamma: float, gae_lambda: float) -> jax.Array:
    """Generalised advantage estimates (T, N); zero at rows that are not valid.

    delta_t = r_t + gamma V(s_t+1) (1 - terminated_t) - V(s_t);
    A_t = delta_t + gamma lambda A_t+1 (1 - done_t), done = terminated or truncated.
    Source: Schulman et al. 2016, "High-Dimensional Continuous Control Using GAE", equation 16.

    Args:
        rollout: see `Rollout`.
        last_value: value of `Rollout.last_obs` (N,).
        gamma: discount.
        gae_lambda: lambda.
    """
    next_values = jnp.concatenate([rollout.values[1:], last_value[None]])
    deltas = rollout.rewards + gamma * next_values * ~rollout.terminated - rollout.values
    carries = gamma * gae_lambda * ~(rollout.terminated | rollout.truncated)

    def back(following: jax.Array, row: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        delta, carry, valid = row
        advantage = jnp.where(valid, delta + carry * following, 0.0)
        return advantage, advantage

    rows = (deltas, carries, rollout.valid)
    return jax.lax.scan(back, jnp.zeros_like(last_value), rows, reverse=True)[1]


def weighted_mean(values: jax.Array, weights: jax.Array) -> jax.Array:
    """Mean of values (B,) with weights (B,) of 0 or 1; zero when all weights are zero."""
    return jnp.sum(values * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def loss_of(params: Params, samples: Samples, weights: jax.Array, settings: Settings) -> tuple[jax.Array, Metrics]:
    """The clipped PPO objective with value loss and entropy bonus, over samples of weight 1.

    Source: Schulman et al. 2017, "Proximal Policy Optimization Algorithms", equations 7 and 9;
    ``approx_kl`` is mean(ratio - 1 - log ratio), Schulman 2020, "Approximating KL Divergence".

    Args:
        params: of both networks.
        samples: B rows; advantages are used as they are.
        weights: (B,), 0 leaves a row out.
        settings: clip and coefficients.
    """
    log_probs, values = policy_and_value(params, samples.obs)
    log_ratio = jnp.take_along_axis(log_probs, samples.actions[:, None], axis=1)[:, 0] - samples.log_probs
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - settings.clip, 1 + settings.clip)
    gain = weighted_mean(jnp.minimum(ratio * samples.advantages, clipped * samples.advantages), weights)
    value_loss = 0.5 * weighted_mean((values - samples.targets) ** 2, weights)
    entropy = weighted_mean(-jnp.sum(jnp.exp(log_probs) * log_probs, axis=1), weights)
    loss = -gain + settings.value_coefficient * value_loss - settings.entropy_coefficient * entropy
    return loss, {
        "loss": loss,
        "policy_loss": -gain,
        "value_loss": value_loss,
        "entropy": entropy,
        "approx_kl": weighted_mean(ratio - 1 - log_ratio, weights),
    }


def clip_by_global_norm(gradients: Params, max_norm: float) -> Params:
    """Scale all gradients by min(1, max_norm / their joint Euclidean norm) (Pascanu et al. 2013)."""
    norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradients)))
    scale = jnp.minimum(1.0, max_norm / jnp.maximum(norm, 1e-12))
    scaled: Params = jax.tree.map(lambda leaf: leaf * scale, gradients)
    return scaled


def adam(learner: Learner, gradients: Params, learning_rate: jax.Array | float) -> Learner:
    """One step of Adam with bias correction; epsilon 1e-5 as is usual in PPO.

    Source: Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1.
    """
    first, second = ADAM_DECAYS
    updates = learner.updates + 1
    mean = jax.tree.map(lambda m, g: first * m + (1 - first) * g, learner.mean, gradients)
    square = jax.tree.map(lambda v, g: second * v + (1 - second) * g**2, learner.square, gradients)
    mean_scale, square_scale = 1 / (1 - first**updates), 1 / (1 - second**updates)

    def moved(p: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
        return p - learning_rate * m * mean_scale / (jnp.sqrt(v * square_scale) + ADAM_EPSILON)

    return Learner(params=jax.tree.map(moved, learner.params, mean, square), mean=mean, square=square, updates=updates)


def samples_of(rollout: Rollout, params: Params, settings: Settings) -> Samples:
    """All T x N rows flat, advantages normalised over the valid ones (not by minibatch, which may be small)."""
    last_value = policy_and_value(params, rollout.last_obs)[1]
    advantages = advantages_of(rollout, last_value, settings.gamma, settings.gae_lambda)
    targets = (advantages + rollout.values).reshape(-1)
    weights, flat = rollout.valid.reshape(-1).astype(advantages.dtype), advantages.reshape(-1)
    centred = flat - weighted_mean(flat, weights)
    deviation = jnp.sqrt(weighted_mean(centred**2, weights))
    return Samples(
        obs=rollout.obs.reshape(-1, rollout.obs.shape[-1]),
        actions=rollout.actions.reshape(-1),
        log_probs=rollout.log_probs.reshape(-1),
        advantages=centred / (deviation + 1e-8),
        targets=targets,
    )


def minibatch_rows(key: jax.Array, valid: jax.Array, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """A random order of the valid rows, cut into minibatches: row numbers and weights (M, batch_size).

    Valid rows come first, so that every minibatch is full but the last one with samples; rows of
    weight 0 fill the rest (shapes are fixed for the compiler).
    """
    total = valid.size
    count = -(-total // batch_size)
    order = jnp.argsort(jax.random.uniform(key, (total,)) + ~valid)
    rows = jnp.pad(order, (0, count * batch_size - total))
    weights = jnp.arange(count * batch_size) < jnp.sum(valid)
    return rows.reshape(count, batch_size), weights.reshape(count, batch_size).astype(jnp.float32)


@partial(jax.jit, static_argnames=("settings", "batch_size"))
def update(
    learner: Learner, rollout: Rollout, key: jax.Array, learning_rate: jax.Array, *, settings: Settings, batch_size: int
) -> tuple[Learner, Metrics]:
    """`Settings.epochs` passes over a rollout in minibatches of `batch_size` samples.

    Metrics are means over the minibatches, and ``nonfinite_update``: the number, from 1, of the first
    optimizer step here with a metric that is not finite; 0 when all are.
    """
    samples = samples_of(rollout, learner.params, settings)
    valid = rollout.valid.reshape(-1)

    def step(learner: Learner, batch: tuple[jax.Array, jax.Array]) -> tuple[Learner, Any]:
        rows, weights = batch
        chosen = jax.tree.map(lambda leaf: leaf[rows], samples)
        gradients, metrics = jax.grad(loss_of, has_aux=True)(learner.params, chosen, weights, settings)
        moved = adam(learner, clip_by_global_norm(gradients, settings.max_grad_norm), learning_rate)
        share = jnp.sum(weights)
        # A minibatch of filling alone must not move anything (Adam's momentum would).
        kept = jax.tree.map(lambda new, old: jnp.where(share > 0, new, old), moved, learner)
        return kept, (share, metrics)

    def epoch(learner: Learner, key: jax.Array) -> tuple[Learner, Any]:
        return jax.lax.scan(step, learner, minibatch_rows(key, valid, batch_size))

    learner, (shares, metrics) = jax.lax.scan(epoch, learner, jax.random.split(key, settings.epochs))
    means = jax.tree.map(lambda values: jnp.sum(values * shares) / jnp.maximum(jnp.sum(shares), 1.0), metrics)
    taken = shares.reshape(-1) > 0
    bad = taken & ~jnp.isfinite(jnp.stack(list(metrics.values()))).all(axis=0).reshape(-1)
    return learner, means | {"nonfinite_update": jnp.where(bad.any(), jnp.cumsum(taken)[jnp.argmax(bad)], 0)}
