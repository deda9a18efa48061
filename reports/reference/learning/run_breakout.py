"""Train Breakout with the atari recipe's hyperparameters and keep the learning curve.

    AUTOTUNE_THREADS=1 nice -n 5 python reports/reference/learning/run_breakout.py --steps 500000

The same command resumes: checkpoints lie in --scratch, the curve in breakout<suffix>.csv beside this file
(env steps, training seconds, games ended so far, mean true return of the last 100 games).
"""

import argparse
import csv
import json
import statistics
import time
import tomllib
from pathlib import Path

from autotune.records import Budget, Job, Point
from autotune.worker.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from autotune.workloads.atari import AtariWorkload
from autotune.workloads.protocol import SessionState

HERE = Path(__file__).parent
FIELDS = ("env_steps", "elapsed_steps", "train_seconds", "games", "mean_return_100", "sps", "entropy", "approx_kl")


def hyperparameters(recipe):
    return tomllib.loads((HERE.parents[2] / "probes" / f"{recipe}.toml").read_text())["hyperparameters"]


def save(session, extra, folder):
    state = session.state()
    state = SessionState(arrays=state.arrays, meta={**state.meta, "curve": extra})
    save_checkpoint(folder, state, env_steps=session.env_steps, keep=2)


def train(options, curve_path):
    session = AtariWorkload(hyperparameters("atari")).open(
        Point(num_envs=options.num_envs, batch_size=options.batch_size, extra=(("precision", options.precision),)),
        Job(id="breakout", env="Breakout-v5", seed=options.seed, budget=Budget(unit="steps", amount=options.steps)),
        "auto",
    )
    print(json.dumps(dict(session.effective)), flush=True)
    totals = {"seconds": 0.0, "games": 0, "elapsed": 0, "recent": []}
    options.scratch.mkdir(parents=True, exist_ok=True)
    if newest := newest_checkpoint(options.scratch):
        state = load_checkpoint(newest)
        session.restore(state)
        totals = dict(state.meta["curve"])
    kept = []
    if curve_path.exists() and session.env_steps:
        with curve_path.open(newline="") as file:
            kept = [row for row in csv.DictReader(file) if int(row["env_steps"]) <= session.env_steps]
    with curve_path.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(kept)
        iteration = 0
        while session.env_steps < options.steps:
            started, counted = time.monotonic(), session.environment.elapsed_steps
            work = session.step()
            took = time.monotonic() - started
            totals["seconds"] += took
            totals["games"] += work.episodes
            totals["elapsed"] += session.environment.elapsed_steps - counted
            totals["recent"] = [*totals["recent"], *work.returns][-100:]
            iteration += 1
            if iteration % 5 and session.env_steps < options.steps:
                continue
            row = {
                "env_steps": session.env_steps,
                "elapsed_steps": totals["elapsed"],
                "train_seconds": round(totals["seconds"], 1),
                "games": totals["games"],
                "mean_return_100": round(statistics.fmean(totals["recent"]), 3) if totals["recent"] else "",
                "sps": round(work.env_steps / took, 1),
                "entropy": round(work.metrics["entropy"], 4),
                "approx_kl": round(work.metrics["approx_kl"], 5),
            }
            writer.writerow(row)
            file.flush()
            print(json.dumps(row), flush=True)
            if iteration % 25 == 0:
                save(session, totals, options.scratch)
    save(session, totals, options.scratch)
    session.close()


def draw(curve_path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import pandas as pd

    curve = pd.read_csv(curve_path)
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(curve["env_steps"], curve["mean_return_100"])
    axes.set(xlabel="env steps (agent decisions)", ylabel="mean true return, last 100 games")
    axes.set_title("Breakout-v5, PPO on CPU")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(curve_path.with_suffix(".png"), dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500_000)
    parser.add_argument("--num-envs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--suffix", default="")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/autotune-breakout"))
    options = parser.parse_args()
    curve_path = HERE / f"breakout{options.suffix}.csv"
    train(options, curve_path)
    draw(curve_path)


if __name__ == "__main__":
    main()
