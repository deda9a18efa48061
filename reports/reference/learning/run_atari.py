r"""Train an Atari game with the atari recipe's hyperparameters and keep the learning curve.

    python reports/reference/learning/run_atari.py --game Breakout --steps 1000000 --seed 1
    python reports/reference/learning/run_atari.py --game Breakout --steps 1000000 --seed 1 --precision fp32
    python reports/reference/learning/run_atari.py --game Pong --target 18 --num-envs 64 --batch-size 256 \
        --set learning_rate=5e-4 --set clip=0.2 --set rollout=32
    python reports/reference/learning/run_atari.py --game Breakout --compare         # the plot and its table

The same command resumes, after Ctrl-C too: checkpoints lie in --scratch, the curve in <game>-<precision>-<seed>.csv
in --curves, beside this file unless given (env steps, training seconds, games ended so far, mean true return of the
last 100 games). With --target it ends when that mean is reached. --compare draws every curve of the game, and says by
how much the returns over the last fifth of the steps differ between the first precision and each other one, with
Student's 95 % interval over seeds.
"""

import argparse
import csv
import json
import math
import signal
import statistics
import time
import tomllib
from pathlib import Path

import pandas as pd
from scipy.special import stdtrit

from autotune.records import Budget, Job, Point
from autotune.units import counted
from autotune.worker.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from autotune.workloads.atari import AtariWorkload
from autotune.workloads.protocol import SessionState

HERE = Path(__file__).parent
FIELDS = ("env_steps", "elapsed_steps", "train_seconds", "games", "mean_return_100", "sps", "entropy", "approx_kl")


def hyperparameters(recipe):
    """Those of a recipe that is shipped."""
    return tomllib.loads((HERE.parents[2] / "probes" / f"{recipe}.toml").read_text())["hyperparameters"]


def setting(text):
    """``clip=0.2`` as a name and a JSON value."""
    name, _, value = text.partition("=")
    return name, json.loads(value)


def save(session, extra, folder):
    """A checkpoint with the curve so far."""
    state = session.state()
    state = SessionState(arrays=state.arrays, meta={**state.meta, "curve": extra})
    save_checkpoint(folder, state, env_steps=session.env_steps, keep=2)


def train(options, curve_path):
    """Train to the end, the target or a signal; adds to the curve."""
    session = AtariWorkload({**hyperparameters("atari"), **dict(options.set)}).open(
        Point(num_envs=options.num_envs, batch_size=options.batch_size, extra=(("precision", options.precision),)),
        Job(
            id=options.game.lower(),
            env=f"{options.game}-v5",
            seed=options.seed,
            budget=Budget(unit="steps", amount=options.steps),
        ),
        options.device,
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
        iteration, signals = 0, []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: signals.append(1))

        def over():
            return session.env_steps >= options.steps or reached(totals["recent"], options.target) or signals

        while not over():
            started, counted = time.monotonic(), session.environment.elapsed_steps
            work = session.step()
            took = time.monotonic() - started
            totals["seconds"] += took
            totals["games"] += work.episodes
            totals["elapsed"] += session.environment.elapsed_steps - counted
            totals["recent"] = [*totals["recent"], *work.returns][-100:]
            iteration += 1
            if iteration % 5 and not over():
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


def reached(recent, target):
    """Whether the mean of 100 games is what was asked for."""
    return target is not None and len(recent) == 100 and statistics.fmean(recent) >= target


def curves(game):
    """The curves of a game by precision and seed."""
    found = {}
    for file in sorted(HERE.glob(f"{game.lower()}-*-*.csv")):
        _, precision, seed = file.stem.split("-")
        found.setdefault(precision, {})[int(seed)] = pd.read_csv(file)
    return found


def final_return(curve, share=0.2):
    """Mean of the curve over the last fifth of its steps."""
    return float(curve[curve.env_steps >= (1 - share) * curve.env_steps.max()].mean_return_100.mean())


def compare(game):
    """Plot and table of every curve of a game."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = curves(game)
    figure, axes = plt.subplots(figsize=(7, 4))
    for color, (precision, seeds) in enumerate(found.items()):
        for number, curve in enumerate(seeds.values()):
            label = f"{precision}, {counted(len(seeds), 'seed')}" if number == 0 else None
            axes.plot(curve.env_steps, curve.mean_return_100, color=f"C{color}", alpha=0.8, label=label)
    axes.set(xlabel="env steps (agent decisions)", ylabel="mean true return, last 100 games", title=f"{game}-v5, PPO")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(HERE / f"{game.lower()}-precisions.png", dpi=110)
    finals = {precision: [final_return(curve) for curve in seeds.values()] for precision, seeds in found.items()}
    first, *others = finals
    print({precision: [round(value, 2) for value in values] for precision, values in finals.items()})
    for other in others:
        a, b = finals[first], finals[other]
        error = math.sqrt(statistics.variance(a) / len(a) + statistics.variance(b) / len(b))
        half = float(stdtrit(len(a) + len(b) - 2, 0.975)) * error
        gap = statistics.fmean(b) - statistics.fmean(a)
        print(f"{other} minus {first}: {gap:+.2f} [{gap - half:+.2f}, {gap + half:+.2f}]")


def main():
    """Train, or compare what was trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="Breakout")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--target", type=float, help="end when the mean return of 100 games reaches it")
    parser.add_argument("--num-envs", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", type=setting, action="append", default=[], help="a hyperparameter, such as clip=0.2")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/autotune-learning"))
    parser.add_argument("--curves", type=Path, default=HERE, help="folder of the curve")
    parser.add_argument("--compare", action="store_true")
    options = parser.parse_args()
    if options.compare:
        compare(options.game)
        return
    name = f"{options.game.lower()}-{options.precision}-{options.seed}"
    options.scratch /= name
    train(options, options.curves / f"{name}.csv")


if __name__ == "__main__":
    main()
