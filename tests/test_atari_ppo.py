"""PPO's arithmetic against independent float64 references."""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from autotune.workloads.atari import ppo  # noqa: E402


def random_rows(seed, steps=40, envs=7):
    """Rewards, values and flags as EnvPool gives them: a reset row follows every end, also across the start."""
    rng = np.random.default_rng(seed)
    terminated = np.zeros((steps, envs), bool)
    truncated = np.zeros((steps, envs), bool)
    valid = np.ones((steps, envs), bool)
    previous = rng.random(envs) < 0.3
    for t in range(steps):
        valid[t] = ~previous
        terminated[t] = (rng.random(envs) < 0.12) & valid[t]
        truncated[t] = (rng.random(envs) < 0.12) & valid[t]
        previous = terminated[t] | truncated[t]
    rewards = np.where(valid, rng.normal(size=(steps, envs)), 0)
    return rewards, rng.normal(size=(steps + 1, envs)), terminated, truncated, valid


def advantages_by_episode(rewards, values, terminated, truncated, valid, gamma, gae_lambda):
    """Each episode cut out and summed by the definition: A_t = sum_k (gamma lambda)^k delta_t+k, in float64."""
    steps, envs = rewards.shape
    expected = np.zeros((steps, envs))
    for env in range(envs):
        for t in range(steps):
            if not valid[t, env]:
                continue
            weight = 1.0
            for k in range(t, steps):
                following = 0.0 if terminated[k, env] else values[k + 1, env]
                expected[t, env] += weight * (rewards[k, env] + gamma * following - values[k, env])
                weight *= gamma * gae_lambda
                if terminated[k, env] or truncated[k, env]:
                    break
    return expected


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_advantages_equal_a_sum_over_each_episode(seed, gamma, gae_lambda, dtype, tolerance):
    rewards, values, terminated, truncated, valid = random_rows(seed)
    expected = advantages_by_episode(rewards, values, terminated, truncated, valid, gamma, gae_lambda)
    assert (~valid).any()
    assert truncated.any()
    result = ppo.generalised_advantages(
        torch.tensor(rewards, dtype=dtype),
        torch.tensor(values, dtype=dtype),
        torch.tensor(terminated),
        torch.tensor(terminated | truncated),
        torch.tensor(valid),
        gamma=gamma,
        gae_lambda=gae_lambda,
    ).numpy()
    np.testing.assert_allclose(result, expected, rtol=tolerance, atol=tolerance * 10)
    assert (result[~valid] == 0).all()


def test_both_flags_at_once_count_as_terminated():
    one = torch.tensor([[True]])
    result = ppo.generalised_advantages(
        torch.tensor([[2.0]]), torch.tensor([[0.5], [100.0]]), one, one, one, gamma=0.9, gae_lambda=0.9
    )
    assert result.item() == pytest.approx(1.5)


def random_batch(seed, batch=64, actions=5):
    rng = np.random.default_rng(seed)
    return {
        "logits": rng.normal(size=(batch, actions)),
        "values": rng.normal(size=batch),
        "actions": rng.integers(0, actions, batch),
        "old_log_probs": -np.abs(rng.normal(1.5, 0.3, batch)),
        "old_values": rng.normal(size=batch),
        "advantages": rng.normal(size=batch),
        "returns": rng.normal(size=batch),
    }


def loss_by_loop(d, clip, value_clip, value_coefficient, entropy_coefficient):
    """Loss terms and the gradients of the total by hand, sample by sample, in float64."""
    batch, actions = d["logits"].shape
    policy = value = entropy = kl = clipped_count = 0.0
    grad_logits, grad_values = np.zeros((batch, actions)), np.zeros(batch)
    for i in range(batch):
        logits = d["logits"][i]
        p = np.exp(logits - logits.max())
        p /= p.sum()
        log_p = np.log(p)
        taken = d["actions"][i]
        log_ratio = log_p[taken] - d["old_log_probs"][i]
        ratio = math.exp(log_ratio)
        a = d["advantages"][i]
        bounded = min(max(ratio, 1 - clip), 1 + clip)
        policy -= min(ratio * a, bounded * a) / batch
        one_hot = np.eye(actions)[taken]
        if ratio * a <= bounded * a:
            grad_logits[i] -= a * ratio * (one_hot - p) / batch
        h = -(p * log_p).sum()
        entropy += h / batch
        grad_logits[i] -= entropy_coefficient * (-p * (log_p + h)) / batch
        kl += (ratio - 1 - log_ratio) / batch
        clipped_count += (abs(ratio - 1) > clip) / batch
        v, old, target = d["values"][i], d["old_values"][i], d["returns"][i]
        near = old + min(max(v - old, -clip), clip)
        plain, bound = (v - target) ** 2, (near - target) ** 2
        if value_clip and bound > plain:
            value += 0.5 * bound / batch
            slope = (near - target) if abs(v - old) < clip else 0.0
        else:
            value += 0.5 * plain / batch
            slope = v - target
        grad_values[i] = value_coefficient * slope / batch
    total = policy + value_coefficient * value - entropy_coefficient * entropy
    return (total, policy, value, entropy, kl, clipped_count), grad_logits, grad_values


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("value_clip", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_loss_and_gradients_equal_the_hand_computed(seed, value_clip, dtype, tolerance):
    d = random_batch(seed)
    weights = {"clip": 0.2, "value_clip": value_clip, "value_coefficient": 0.7, "entropy_coefficient": 0.03}
    terms, grad_logits, grad_values = loss_by_loop(d, *weights.values())
    tensors = {k: torch.tensor(v, dtype=torch.int64 if k == "actions" else dtype) for k, v in d.items()}
    tensors["logits"].requires_grad_()
    tensors["values"].requires_grad_()
    result = ppo.ppo_loss(**tensors, **weights)
    result.total.backward()
    assert [term.item() for term in result] == pytest.approx(terms, rel=tolerance, abs=tolerance)
    np.testing.assert_allclose(tensors["logits"].grad.numpy(), grad_logits, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(tensors["values"].grad.numpy(), grad_values, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 32, 99, 100, 5000])
def test_minibatches_visit_every_row_once_and_only_the_last_is_smaller(batch_size):
    rows = torch.arange(0, 300, 3)
    generator = torch.Generator().manual_seed(1)
    epochs = [list(ppo.minibatches(rows, batch_size, generator)) for _ in range(2)]
    for batches in epochs:
        assert sorted(torch.cat(batches).tolist()) == rows.tolist()
        assert len(batches) == math.ceil(100 / batch_size)
        assert {len(batch) for batch in batches[:-1]} <= {batch_size}
        assert len(batches[-1]) == (100 % batch_size or batch_size if batch_size < 100 else 100)
    if batch_size < 100:
        assert [b.tolist() for b in epochs[0]] != [b.tolist() for b in epochs[1]]


def test_normalised_has_zero_mean_unit_deviation_and_survives_one_sample():
    result = ppo.normalised(torch.tensor([1.0, 2.0, 3.0, 10.0]))
    assert result.mean().item() == pytest.approx(0, abs=1e-6)
    assert result.square().mean().item() == pytest.approx(1, abs=1e-5)
    assert ppo.normalised(torch.tensor([5.0])).tolist() == [0.0]


def test_learning_rate_falls_linearly_to_its_floor():
    assert [ppo.annealed(2.0, steps, 100, 0.1) for steps in (0, 25, 90, 100, 1000)] == pytest.approx(
        [2.0, 1.5, 0.2, 0.2, 0.2]
    )


def test_explained_variance_is_one_for_perfect_values_and_zero_for_constant_ones():
    returns = torch.tensor([1.0, 2.0, 4.0])
    assert ppo.explained_variance(returns, returns).item() == pytest.approx(1)
    assert ppo.explained_variance(torch.full((3,), 7.0), returns).item() == pytest.approx(0)
