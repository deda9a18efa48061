"""Record launches of one point, each in fresh processes with the final plan: the raw traces behind coverage.md.

    python reports/reference/measuring/record.py busywork --launches 60 --parallel 4
    python reports/reference/measuring/record.py breakout --machine epyc --launches 20

Launches of one file are compared with each other, so that each machine has its own. Resumable: launches that stand in
traces/<name>[-<machine>].csv are not repeated. Busywork sleeps, so several may run side by side; Breakout needs the
machine to itself.
"""

import argparse
import csv
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from autotune.device.inspect import inspect_device
from autotune.executors.isolated import IsolatedExecutor
from autotune.probe.recipe import load_recipe, restrict_games
from autotune.probe.run import run_probe
from autotune.records import FINAL_PLAN, MeasurePlan, Point, Recipe
from autotune.runs import Run
from autotune.store import read_lines

TRACES = Path(__file__).parent / "traces"
COLUMNS = ["launch", "started_s", "ended_s", "env_steps"]
# Iterations of about 0.4 s: 4 % AR(1) noise with correlation 0.6, 1 % between launches, a slow start.
NOISY = {
    "rollout": 32,
    "env_s": 0.0,
    "step_overhead_s": 0.0125,
    "noise_fraction": 0.04,
    "noise_correlation": 0.6,
    "launch_noise_fraction": 0.01,
    "warmup_iterations": 8,
    "warmup_slowdown": 1.5,
}


def subject(name: str) -> tuple[Recipe, Point, MeasurePlan]:
    """Recipe, point and plan of a recording; the window is as long as the peers' rules need, 60 s."""
    plan = replace(FINAL_PLAN, window_s=60.0)
    if name == "busywork":
        return replace(load_recipe("busywork"), hyperparameters=NOISY), Point(num_envs=16, batch_size=64), plan
    recipe = restrict_games(load_recipe("atari"), ["Breakout"])
    return recipe, Point(num_envs=8, batch_size=256), plan


def main() -> None:
    """Record until there are enough launches."""
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=["busywork", "breakout"])
    parser.add_argument("--machine", help="part of the file's name")
    parser.add_argument("--launches", type=int, required=True)
    parser.add_argument("--parallel", type=int, default=1)
    options = parser.parse_args()
    recipe, point, plan = subject(options.name)
    executor = IsolatedExecutor(inspect_device("cpu"))
    executor.check(recipe, [point])
    file, lock = TRACES / f"{'-'.join(filter(None, [options.name, options.machine]))}.csv", threading.Lock()
    TRACES.mkdir(exist_ok=True)
    if not file.exists():
        file.write_text(",".join(COLUMNS) + "\n")
    with file.open() as rows:
        done = {int(row["launch"]) for row in csv.DictReader(rows)}

    def record(launch: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(Path(folder))
            # Busywork's noise follows from the seed: every launch has its own.
            jobs = (replace(recipe.jobs[0], seed=launch),)
            result = run_probe(
                replace(recipe, final=plan, jobs=jobs), point, executor, grade="final", run=run, label="launch"
            )
            steps = [row for row in read_lines(run.path / "samples" / "launch.jsonl") if "env_steps" in row]
        if not result.ok:
            raise SystemExit(f"launch {launch}: {result.status} {result.detail}")
        origin = steps[0]["started"]
        with lock, file.open("a", newline="") as output:
            writer = csv.writer(output)
            for step in steps:
                writer.writerow(
                    [launch, f"{step['started'] - origin:.4f}", f"{step['t'] - origin:.4f}", step["env_steps"]]
                )
        print(f"launch {launch}: {result.sps:.1f} SPS [{result.sps_low:.1f}, {result.sps_high:.1f}]", flush=True)

    with ThreadPoolExecutor(options.parallel) as pool:
        list(pool.map(record, [n for n in range(options.launches) if n not in done]))


if __name__ == "__main__":
    main()
