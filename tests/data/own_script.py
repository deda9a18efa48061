"""A training script as a user has one: numpy only, vectorised cart-poles, a linear policy by REINFORCE.

It tells its progress by `autotune.tick`, by a counter, by a rate or in a table, and fails on request.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time

import numpy as np


def cartpole_step(states: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Barto, Sutton and Anderson (1983), Euler steps of 0.02 s; (num_envs, 4) in and out, and who fell."""
    x, x_dot, theta, theta_dot = states.T
    force = np.where(actions == 1, 10.0, -10.0)
    temp = (force + 0.05 * theta_dot**2 * np.sin(theta)) / 1.1
    angular = (9.8 * np.sin(theta) - np.cos(theta) * temp) / (0.5 * (4 / 3 - 0.1 * np.cos(theta) ** 2 / 1.1))
    linear = temp - 0.05 * angular * np.cos(theta) / 1.1
    states = np.stack([x + 0.02 * x_dot, x_dot + 0.02 * linear, theta + 0.02 * theta_dot, theta_dot + 0.02 * angular])
    return states.T, (np.abs(states[0]) > 2.4) | (np.abs(states[2]) > 0.2095)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--minibatch-size", type=int, default=64)
    parser.add_argument("--rollout", type=int, default=32)
    parser.add_argument("--total-steps", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", choices=["tick", "counter", "rate", "none"], default="tick")
    parser.add_argument("--fail-above", type=int, default=10**9, help="num_envs above which memory runs out")
    parser.add_argument("--fail-with", choices=["oom", "crash", "hang", "kill"], default="oom")
    parser.add_argument("--child", action="store_true", help="start a helper process that never ends")
    parser.add_argument("--deaf", action="store_true", help="ignore SIGTERM")
    options = parser.parse_args()
    if options.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.child:
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        print(f"helper {helper.pid}")
    random = np.random.default_rng(options.seed)
    states = random.uniform(-0.05, 0.05, (options.num_envs, 4))
    weights, total, started_s = np.zeros(4), 0, time.monotonic()
    while total < options.total_steps:
        seen, signs, fallen = [], [], 0
        for _ in range(options.rollout):
            chance = 1 / (1 + np.exp(-states @ weights))
            actions = (random.random(options.num_envs) < chance).astype(int)
            seen.append(states)
            signs.append(actions - chance)
            states, done = cartpole_step(states, actions)
            fallen += int(done.sum())
            states = np.where(done[:, None], random.uniform(-0.05, 0.05, states.shape), states)
        inputs, errors = np.concatenate(seen), np.concatenate(signs)
        for begin in range(0, len(inputs), options.minibatch_size):
            part = slice(begin, begin + options.minibatch_size)
            weights += 0.05 * errors[part] @ inputs[part] / options.minibatch_size / (1 + fallen)
        steps = options.rollout * options.num_envs
        total += steps
        if options.num_envs > options.fail_above:
            fail(options.fail_with)
        report(options.report, steps, total, started_s)


def report(how: str, steps: int, total: int, started_s: float) -> None:
    if how == "tick":
        import autotune

        autotune.tick(steps)
    elif how == "counter":
        print(f"iteration done, steps: {total:,}", flush=True)
    elif how == "rate":
        print(f"speed {total / (time.monotonic() - started_s):.1f} steps/s", flush=True)


def fail(how: str) -> None:
    if how == "oom":
        raise MemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
    if how == "crash":
        raise RuntimeError("the loss is NaN")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(3600)


if __name__ == "__main__":
    main()
