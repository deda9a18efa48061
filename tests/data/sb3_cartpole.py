"""A third-party trainer, unchanged: Stable-Baselines3's PPO on CartPole-v1."""

from __future__ import annotations

import argparse

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--minibatch-size", type=int, default=256)
    parser.add_argument("--total-timesteps", type=int, default=100_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    envs = make_vec_env("CartPole-v1", n_envs=options.num_envs, seed=options.seed)
    model = PPO(
        "MlpPolicy",
        envs,
        n_steps=32,
        batch_size=options.minibatch_size,
        n_epochs=4,
        seed=options.seed,
        device="cpu",
        verbose=1,
    )
    model.learn(options.total_timesteps)


if __name__ == "__main__":
    main()
