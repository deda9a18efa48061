"""CartPole-v1 in JAX with the cartpole-jax recipe's hyperparameters at several points, five seeds each.

    AUTOTUNE_THREADS=1 nice -n 10 python reports/reference/learning/run_cartpole_jax.py

The same command resumes: one JSON line per finished run in cartpole-jax.jsonl, then the table cartpole-jax.md.
The recipe's ranges are the points at which all seeds pass: a mean return of the last 100 games of 475 within
300,000 steps.
"""

import collections
import json
import statistics
from pathlib import Path

from autotune.probe.recipe import load_recipe
from autotune.records import Budget, Job, Point
from autotune.workloads.cartpole_jax import CartpoleJaxWorkload

HERE = Path(__file__).parent
LOG = HERE / "cartpole-jax.jsonl"
STEPS, TARGET = 300_000, 475.0
POINTS = [(4, 64), (16, 64), (64, 256), (128, 512), (256, 1024), (256, 4096), (512, 2048)]


def run_one(hyperparameters, num_envs, batch_size, seed):
    """One training: its row."""
    job = Job(id="cartpole", env="CartPole-v1", seed=seed, budget=Budget(unit="steps", amount=STEPS))
    session = CartpoleJaxWorkload(hyperparameters).open(Point(num_envs=num_envs, batch_size=batch_size), job, "cpu")
    recent, env_steps, best, reached = collections.deque(maxlen=100), 0, 0.0, None
    while env_steps < STEPS:
        work = session.step()
        env_steps += work.env_steps
        recent.extend(work.returns)
        if len(recent) == 100:
            best = max(best, statistics.fmean(recent))
            reached = env_steps if reached is None and best >= TARGET else reached
    session.close()
    return {
        "num_envs": num_envs,
        "batch_size": batch_size,
        "seed": seed,
        "env_steps": env_steps,
        "steps_to_475": reached,
        "best_mean_return_100": round(best, 1),
        "final_mean_return_100": round(statistics.fmean(recent), 1),
    }


def table(rows):
    """The page of all rows."""
    lines = [
        "# CartPole-v1 with `probes/cartpole-jax.toml`, 300,000 steps",
        "",
        "Mean return of the last 100 games; passed: 475 reached within 300,000 steps. JAX on the CPU, float32.",
        "",
        "| num_envs | batch_size | passed | steps to 475 by seed | best by seed | at 300,000 by seed |",
        "|---|---|---|---|---|---|",
    ]
    for point in POINTS:
        mine = sorted((r for r in rows if (r["num_envs"], r["batch_size"]) == point), key=lambda row: row["seed"])
        passed = sum(row["steps_to_475"] is not None for row in mine)
        columns = [
            ", ".join("never" if row[key] is None else f"{row[key]:,}" for row in mine)
            for key in ("steps_to_475", "best_mean_return_100", "final_mean_return_100")
        ]
        lines.append(f"| {' | '.join(map(str, [*point, f'{passed} of {len(mine)}', *columns]))} |")
    return "\n".join(lines) + "\n"


def main():
    """Train what is missing and write the page."""
    hyperparameters = load_recipe("cartpole-jax").hyperparameters
    rows = [json.loads(line) for line in LOG.read_text().splitlines()] if LOG.exists() else []
    done = {(row["num_envs"], row["batch_size"], row["seed"]) for row in rows}
    for seed in (1, 2, 3, 4, 5):
        for point in POINTS:
            if (*point, seed) not in done:
                rows.append(run_one(hyperparameters, *point, seed))
                with LOG.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    LOG.with_suffix(".md").write_text(table(rows))


if __name__ == "__main__":
    main()
