"""Is the bundled trainer as fast as the machine allows? Against its own parts, and Stable-Baselines3 on EnvPool.

    python reports/reference/trainer/run.py --rounds 3      # on a quiet machine; writes results.md

Every round measures every point of both trainers and the parts of ours (bare stepping, inference, learner, under the
same threads), in turns, since a shared host drifts within minutes; the table has medians over the rounds. The serial
bound is 1 / (1/env + 1/infer + 1/learn): what a loop that does one thing at a time can reach at most. Rows stand in
rows.jsonl as they are measured; a second call goes on where it was stopped.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from tabulate import tabulate

from autotune.device.inspect import inspect_device
from autotune.executors.isolated import IsolatedExecutor
from autotune.probe.recipe import load_recipe, restrict_games
from autotune.probe.run import run_probe
from autotune.records import MeasurePlan, Point
from autotune.runs import create_run

HERE = Path(__file__).parent
PLAN = MeasurePlan(discard_s=10.0, window_s=20.0, window_iterations=3, long_iteration_s=30.0)
SB3_POINTS = "8/256,16/256,16/512,32/1024"
OUR_POINTS = "8/256,16/256,32/256,64/256,128/256"


def points(text: str) -> list[tuple[int, int]]:
    """``8/256,16/512`` as (num_envs, batch_size)."""
    return [(int(part.split("/")[0]), int(part.split("/")[1])) for part in text.split(",") if part]


def ours(num_envs: int, batch_size: int) -> dict[str, float]:
    """SPS of a probe, and the rates of its parts measured right after it."""
    recipe = replace(restrict_games(load_recipe("atari"), ["Breakout"]), quick=PLAN)
    executor, point = IsolatedExecutor(inspect_device("cpu")), Point(num_envs=num_envs, batch_size=batch_size)
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(Path(folder), "probe")
        result = run_probe(recipe, point, executor, grade="quick", run=run, label="probe", device=executor.device)
    assert result.sps is not None, result.detail
    parts = executor.ceilings(recipe, point, timeout_s=120.0)
    bound = 1 / sum(1 / rate for rate in parts.values())
    return {"sps": result.sps, **parts, "bound": bound, "share": result.sps / bound}


def sb3(num_envs: int, batch_size: int) -> dict[str, float]:
    """SPS of Stable-Baselines3 over the same discard and window."""
    command = [sys.executable, str(HERE / "sb3_envpool.py"), "--num-envs", str(num_envs)]
    command += ["--batch-size", str(batch_size), "--seconds", str(PLAN.discard_s + PLAN.window_s + 4 * num_envs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        rows = []
        assert child.stdout is not None
        for line in child.stdout:
            rows.append(json.loads(line))
            kept = [row for row in rows[1:] if row["t"] >= rows[1]["t"] + PLAN.discard_s]
            if len(kept) > PLAN.window_iterations and kept[-1]["t"] - kept[0]["t"] >= PLAN.window_s:
                child.kill()
                break
    return {"sps": (kept[-1]["env_steps"] - kept[0]["env_steps"]) / (kept[-1]["t"] - kept[0]["t"])}


TRAINERS = {"autotune": ours, "Stable-Baselines3": sb3}


def main() -> None:
    """Measure in turns and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours", default=OUR_POINTS)
    parser.add_argument("--sb3", default=SB3_POINTS)
    options = parser.parse_args()
    file = HERE / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    wanted = [("autotune", *p) for p in points(options.ours)] + [("Stable-Baselines3", *p) for p in points(options.sb3)]
    for number in range(options.rounds):
        for trainer, num_envs, batch_size in wanted:
            key = {"round": number, "trainer": trainer, "num_envs": num_envs, "batch_size": batch_size}
            if any(key.items() <= row.items() for row in rows):
                continue
            rows.append(key | TRAINERS[trainer](num_envs, batch_size))
            print(rows[-1], flush=True)
            with file.open("a") as output:
                output.write(json.dumps(rows[-1]) + "\n")
    (HERE / "results.md").write_text(text(rows))


def text(rows: list[dict]) -> str:
    """The page: a line per trainer and point, and the ratio of the best points."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["trainer"], row["num_envs"], row["batch_size"]), []).append(row)

    def median(own: list[dict], name: str) -> float | None:
        return statistics.median(row[name] for row in own) if name in own[0] else None

    names = ("sps", "env", "infer", "learn", "bound")
    lines = [
        [*key, *(f"{m:,.0f}" if (m := median(own, name)) else "" for name in names),
         f"{m:.1%}" if (m := median(own, "share")) else "", len(own)]
        for key, own in groups.items()
    ]  # fmt: skip
    headers = ["trainer", "num_envs", "batch_size", "SPS", *names[1:4], "serial bound", "share of it", "rounds"]
    best = {
        trainer: max((median(own, "sps"), key[1:]) for key, own in groups.items() if key[0] == trainer)
        for trainer in TRAINERS
        if any(key[0] == trainer for key in groups)
    }
    found = "".join(f"- {name}: {sps:,.0f} SPS at {p[0]}/{p[1]}\n" for name, (sps, p) in best.items())
    if len(best) == len(TRAINERS):
        found += f"\nRatio of the best points: **{best['autotune'][0] / best['Stable-Baselines3'][0]:.2f}**\n"
    intro = (__doc__ or "").replace("    python", "\n    python")
    where = inspect_device("cpu").fingerprint
    table = tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)
    return f"# The trainer's speed\n\n{intro.strip()}\n\nBreakout, {where}.\n\n{table}\n\nBest points:\n\n{found}"


if __name__ == "__main__":
    main()
