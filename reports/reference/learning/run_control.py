"""Classic control with the cartpole recipe's hyperparameters at several num_envs, five seeds each.

    AUTOTUNE_THREADS=1 nice -n 5 python reports/reference/learning/run_control.py cartpole
    AUTOTUNE_THREADS=1 nice -n 5 python reports/reference/learning/run_control.py acrobot

The same command resumes: one JSON line per finished run in <task>.jsonl, then the table <task>.md.
A run passes when the mean return of the last 100 games reaches the target, Gymnasium's own for CartPole-v1 (475) and
Acrobot-v1 (-100), within the steps.
"""

import argparse
import collections
import json
import math
import statistics
import time
import tomllib
from pathlib import Path

from autotune.records import Budget, Job, Point
from autotune.workloads.atari import AtariWorkload

HERE = Path(__file__).parent
TASKS = {"cartpole": ("CartPole-v1", 300_000, 475.0), "acrobot": ("Acrobot-v1", 300_000, -100.0)}


def run_one(task, hyperparameters, num_envs, batch_size, seed):
    """One training: its row."""
    env, steps, target = TASKS[task]
    job = Job(id=task, env=env, seed=seed, budget=Budget(unit="steps", amount=steps))
    session = AtariWorkload(hyperparameters).open(Point(num_envs=num_envs, batch_size=batch_size), job, "cpu")
    recent = collections.deque(maxlen=100)
    reached, best, games, started = None, -math.inf, 0, time.monotonic()
    while session.env_steps < steps:
        for value in session.step().returns:
            recent.append(value)
            games += 1
            if len(recent) == 100:
                best = max(best, statistics.fmean(recent))
                reached = session.env_steps if reached is None and best >= target else reached
    session.close()
    return {
        "num_envs": num_envs,
        "batch_size": batch_size,
        "seed": seed,
        "env_steps": session.env_steps,
        "elapsed_steps": session.environment.elapsed_steps,
        "games": games,
        "steps_to_target": reached,
        "best_mean_return_100": round(best, 1),
        "final_mean_return_100": round(statistics.fmean(recent), 1),
        "seconds": round(time.monotonic() - started, 1),
    }


def table(task, rows):
    """The page of all rows."""
    env, steps, target = TASKS[task]
    lines = [
        f"# {env} with the hyperparameters of `probes/cartpole.toml`, {steps:,} steps, five seeds",
        "",
        f"Mean return of the last 100 games; passed: >= {target:g} within the steps. CPU, float32, one thread per run.",
        "",
        f"| num_envs | batch_size | passed | steps to {target:g} by seed | best by seed | at {steps:,} by seed |",
        "|---|---|---|---|---|---|",
    ]
    for num_envs in sorted({row["num_envs"] for row in rows}):
        mine = sorted((row for row in rows if row["num_envs"] == num_envs), key=lambda row: row["seed"])
        passed = sum(row["steps_to_target"] is not None for row in mine)
        columns = [
            ", ".join("never" if row[key] is None else f"{row[key]:,}" for row in mine)
            for key in ("steps_to_target", "best_mean_return_100", "final_mean_return_100")
        ]
        cells = [num_envs, mine[0]["batch_size"], f"{passed} of {len(mine)}", *columns]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main():
    """Train what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=sorted(TASKS))
    parser.add_argument("--num-envs", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    options = parser.parse_args()
    recipe = tomllib.loads((HERE.parents[2] / "probes" / "cartpole.toml").read_text())
    log = HERE / f"{options.task}.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(row["num_envs"], row["seed"]) for row in rows}
    for seed in options.seeds:
        for num_envs in options.num_envs:
            if (num_envs, seed) in done:
                continue
            rows.append(run_one(options.task, recipe["hyperparameters"], num_envs, options.batch_size, seed))
            with log.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    log.with_suffix(".md").write_text(table(options.task, rows))


if __name__ == "__main__":
    main()
