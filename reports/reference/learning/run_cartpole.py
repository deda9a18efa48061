"""CartPole-v1 with the cartpole recipe's hyperparameters at several num_envs, five seeds each.

    AUTOTUNE_THREADS=1 nice -n 5 python reports/reference/learning/run_cartpole.py

The same command resumes: one JSON line per finished run in cartpole.jsonl, then the table cartpole.md.
Passes when the mean return of the last 100 games is >= 475 within 300,000 steps in >= 4 of 5 seeds.
"""

import argparse
import collections
import json
import statistics
import time
import tomllib
from pathlib import Path

from autotune.records import Budget, Job, Point
from autotune.workloads.atari import AtariWorkload

HERE = Path(__file__).parent
STEPS = 300_000
TARGET = 475.0


def run_one(hyperparameters, num_envs, batch_size, seed):
    job = Job(id="cartpole", env="CartPole-v1", seed=seed, budget=Budget(unit="steps", amount=STEPS))
    session = AtariWorkload(hyperparameters).open(Point(num_envs=num_envs, batch_size=batch_size), job, "cpu")
    recent = collections.deque(maxlen=100)
    reached, best, games, started = None, 0.0, 0, time.monotonic()
    while session.env_steps < STEPS:
        for value in session.step().returns:
            recent.append(value)
            games += 1
            if len(recent) == 100:
                best = max(best, statistics.fmean(recent))
                reached = session.env_steps if reached is None and best >= TARGET else reached
    session.close()
    return {
        "num_envs": num_envs,
        "batch_size": batch_size,
        "seed": seed,
        "env_steps": session.env_steps,
        "elapsed_steps": session.environment.elapsed_steps,
        "games": games,
        "steps_to_475": reached,
        "best_mean_return_100": round(best, 1),
        "final_mean_return_100": round(statistics.fmean(recent), 1),
        "seconds": round(time.monotonic() - started, 1),
    }


def table(rows):
    lines = [
        "# CartPole-v1 with `probes/cartpole.toml`, 300,000 steps, five seeds",
        "",
        "Mean return of the last 100 games; passed: >= 475 within 300,000 steps. CPU, float32, one thread per run.",
        "",
        "| num_envs | batch_size | passed | steps to 475 by seed | best by seed | at 300,000 by seed |",
        "|---|---|---|---|---|---|",
    ]
    for num_envs in sorted({row["num_envs"] for row in rows}):
        mine = sorted((row for row in rows if row["num_envs"] == num_envs), key=lambda row: row["seed"])
        passed = sum(row["steps_to_475"] is not None for row in mine)
        columns = [
            ", ".join("never" if row[key] is None else f"{row[key]:,}" for row in mine)
            for key in ("steps_to_475", "best_mean_return_100", "final_mean_return_100")
        ]
        cells = [num_envs, mine[0]["batch_size"], f"{passed} of {len(mine)}", *columns]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-envs", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, default=HERE / "cartpole.jsonl")
    options = parser.parse_args()
    recipe = tomllib.loads((HERE.parents[2] / "probes" / "cartpole.toml").read_text())
    log = options.out
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    done = {(row["num_envs"], row["seed"]) for row in rows}
    for seed in options.seeds:
        for num_envs in options.num_envs:
            if (num_envs, seed) in done:
                continue
            rows.append(run_one(recipe["hyperparameters"], num_envs, options.batch_size, seed))
            with log.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(json.dumps(rows[-1]), flush=True)
    log.with_suffix(".md").write_text(table(rows))


if __name__ == "__main__":
    main()
