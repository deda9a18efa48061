"""Stable-Baselines3's PPO on EnvPool, doing the same work as the bundled trainer: one JSON line per iteration.

    python reports/reference/trainer/sb3_envpool.py --num-envs 8 --batch-size 256 --seconds 60

Each line has `t` (monotonic seconds) and `env_steps` (decisions executed, cumulative). The environment is Breakout as
the bundled trainer plays it; the network is Stable-Baselines3's Nature CNN; hyperparameters are the recipe's.
"""

import argparse
import json
import os
import sys
import time
from typing import Any

import envpool
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv


class EnvPoolVecEnv(VecEnv):
    """EnvPool behind Stable-Baselines3's interface: finished environments are reset at once."""

    def __init__(self, game: str, num_envs: int, threads: int, seed: int) -> None:
        self._pool = envpool.make(
            game, env_type="gymnasium", num_envs=num_envs, num_threads=threads, seed=seed,
            episodic_life=True, reward_clip=True,
        )  # fmt: skip
        self._actions = np.zeros(num_envs, np.int32)
        super().__init__(num_envs, self._pool.observation_space, self._pool.action_space)

    def reset(self) -> np.ndarray:
        """The first observations of all."""
        return self._pool.reset()[0]

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions."""
        self._actions = actions.astype(np.int32)

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Step with them."""
        observations, rewards, terminated, truncated, _ = self._pool.step(self._actions)
        dones = terminated | truncated
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        ended = np.flatnonzero(dones)
        if len(ended):
            for index in ended:
                infos[index] = {"terminal_observation": observations[index].copy()}
                infos[index]["TimeLimit.truncated"] = bool(truncated[index] and not terminated[index])
            observations[ended] = self._pool.reset(ended)[0]
        return observations, rewards, dones, infos

    def close(self) -> None:
        """End the environments."""
        self._pool.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """None has any."""
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Not to be had."""
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Not to be had."""
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """None is."""
        return [False] * self.num_envs


class Reporter(BaseCallback):
    """A line at the start of every iteration; ends the training when the time is over."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._until_s = time.monotonic() + seconds

    def _on_rollout_start(self) -> None:
        sys.stdout.write(json.dumps({"t": time.monotonic(), "env_steps": self.num_timesteps}) + "\n")
        sys.stdout.flush()

    def _on_step(self) -> bool:
        return time.monotonic() < self._until_s


def main() -> None:
    """Train for the seconds asked for; prints a JSON line a rollout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--game", default="Breakout-v5")
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    environment = EnvPoolVecEnv(options.game, options.num_envs, min(options.num_envs, threads), options.seed)
    model = PPO(
        "CnnPolicy", environment, n_steps=128, batch_size=options.batch_size, n_epochs=4, learning_rate=2.5e-4,
        clip_range=0.1, clip_range_vf=0.1, ent_coef=0.01, vf_coef=0.5, max_grad_norm=0.5, gamma=0.99, gae_lambda=0.95,
        seed=options.seed, device="cpu",
    )  # fmt: skip
    model.learn(10**9, callback=Reporter(options.seconds))


if __name__ == "__main__":
    main()
