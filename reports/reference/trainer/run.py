"""Is the bundled trainer as fast as the machine allows? Against its own parts, and Stable-Baselines3 on EnvPool.

    make bench-trainer                # on a quiet machine, about 10 minutes a round; writes results.md

Every round measures every point of every trainer and the parts of ours (bare stepping, inference, learner, under the
same threads), in turns, since a shared host drifts within minutes; the table has medians over the rounds. The serial
bound is 1 / (1/env + 1/infer + 1/learn): what a loop that does one thing at a time can reach at most; the share is
the median over the rounds, each with the parts measured right after it. Rows stand in rows.jsonl as they are
measured, with the machine they are of; a second call there goes on where it was stopped.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tabulate import tabulate

from autotune.device.inspect import inspect_device
from autotune.executors.environment import kept_memory
from autotune.executors.isolated import IsolatedExecutor
from autotune.probe.recipe import load_recipe, restrict_games
from autotune.probe.run import run_probe
from autotune.records import MeasurePlan, Point
from autotune.runs import create_run
from autotune.workloads.protocol import OPENMP

HERE = Path(__file__).parent
PLAN = MeasurePlan(discard_s=10.0, window_s=20.0, window_iterations=3, long_iteration_s=30.0)
OURS, SB3, TUNED_SB3 = "autotune", "Stable-Baselines3", "Stable-Baselines3 with our OpenMP and malloc variables"
ONE, TWO = "autotune, one job of one thread", "autotune, two jobs of one thread each"
POINTS = {
    OURS: "8/256,16/256,16/512,32/512,64/1024,128/1024,256/1024",
    SB3: "8/256,16/256,16/512,32/1024",
    TUNED_SB3: "8/256",
    ONE: "8/256",
    TWO: "8/256",
}
GAME = "Breakout"


def points(text: str) -> list[tuple[int, int]]:
    """``8/256,16/512`` as (num_envs, batch_size)."""
    return [(int(part.split("/")[0]), int(part.split("/")[1])) for part in text.split(",") if part]


def ours(num_envs: int, batch_size: int, *, jobs: int = 1, cores: float | None = None) -> dict[str, float]:
    """SPS of a probe, its memory, and the rates of its parts measured right after it (one job only)."""
    recipe = restrict_games(load_recipe("atari"), [GAME])
    recipe = replace(recipe, quick=PLAN, jobs=tuple(replace(recipe.jobs[0], id=f"{n}", seed=n) for n in range(jobs)))
    device = inspect_device("cpu")
    if cores is not None:
        device = replace(device, host=replace(device.host, cpu_cores_allowed=cores))
    executor = IsolatedExecutor(device)
    point = Point(num_envs=num_envs, batch_size=batch_size, concurrency=jobs)
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(Path(folder), "probe")
        result = run_probe(recipe, point, executor, grade="quick", run=run, label="probe")
    assert result.sps is not None, result.detail
    row = {"sps": result.sps, "ram_mib": (result.ram_peak_bytes or 0) / 2**20, "start_s": result.startup_s or 0.0}
    if jobs > 1:
        return row
    parts = executor.ceilings(recipe, point, timeout_s=180.0)
    bound = 1 / sum(1 / rate for rate in parts.values())
    return {**row, **parts, "bound": bound, "share": result.sps / bound}


def sb3(num_envs: int, batch_size: int, *, python: str, variables: dict[str, str] | None = None) -> dict[str, float]:
    """SPS of Stable-Baselines3 over the same discard and window."""
    settings = [f"{name}={value}" for name, value in (variables or {}).items()]
    command = ["env", *settings, python, str(HERE / "sb3_envpool.py"), "--num-envs", str(num_envs)]
    command += ["--batch-size", str(batch_size), "--seconds", str(PLAN.discard_s + PLAN.window_s + 4 * num_envs)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        rows, kept = [], []
        assert child.stdout is not None
        for line in child.stdout:
            rows.append(json.loads(line))
            kept = [row for row in rows[1:] if row["t"] >= rows[1]["t"] + PLAN.discard_s]
            if len(kept) > PLAN.window_iterations and kept[-1]["t"] - kept[0]["t"] >= PLAN.window_s:
                child.kill()
                break
    return {"sps": (kept[-1]["env_steps"] - kept[0]["env_steps"]) / (kept[-1]["t"] - kept[0]["t"])}


def trainers(python: str) -> dict[str, Callable[[int, int], dict[str, float]]]:
    """What is measured, by name."""
    return {
        OURS: ours,
        SB3: lambda *point: sb3(*point, python=python),
        TUNED_SB3: lambda *point: sb3(*point, python=python, variables=OPENMP | kept_memory()),
        ONE: lambda *point: ours(*point, cores=1.0),
        TWO: lambda *point: ours(*point, jobs=2),
    }


def main() -> None:
    """Measure in turns and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sb3-python", default=sys.executable, help="of an environment with Stable-Baselines3")
    parser.add_argument("--machine", default=inspect_device("cpu").fingerprint, help="rows of one are of one machine")
    options = parser.parse_args()
    file = HERE / "rows.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    measure = trainers(options.sb3_python)
    wanted = [(name, *point) for name, text in POINTS.items() for point in points(text)]
    for number in range(options.rounds):
        for trainer, num_envs, batch_size in wanted:
            what = {"trainer": trainer, "num_envs": num_envs, "batch_size": batch_size}
            key = {"machine": options.machine, "round": number, **what}
            if any(key.items() <= row.items() for row in rows):
                continue
            rows.append(key | measure[trainer](num_envs, batch_size))
            print(rows[-1], flush=True)
            with file.open("a") as output:
                output.write(json.dumps(rows[-1]) + "\n")
    (HERE / "results.md").write_text(page(rows))


def median(rows: list[dict], name: str) -> float | None:
    """Over the rounds; None where the trainer has no such figure."""
    return statistics.median(row[name] for row in rows) if name in rows[0] else None


def page(rows: list[dict]) -> str:
    """Every machine's table."""
    intro = (__doc__ or "").replace("    make", "\n    make").strip()
    machines: dict[str, list[dict]] = {}
    for row in rows:
        machines.setdefault(row["machine"], []).append(row)
    return f"# The trainer's speed\n\n{intro}\n" + "".join(section(*each) for each in machines.items())


def section(machine: str, rows: list[dict]) -> str:
    """A line per trainer and point, and the ratios that matter."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["trainer"], row["num_envs"], row["batch_size"]), []).append(row)
    names = ("sps", "env", "infer", "learn", "bound")
    lines = [
        [*key, *(f"{m:,.0f}" if (m := median(own, name)) else "" for name in names),
         f"{m:.1%}" if (m := median(own, "share")) else "",
         f"{m:,.0f} MiB" if (m := median(own, "ram_mib")) else "", len(own)]
        for key, own in groups.items()
    ]  # fmt: skip
    headers = ["trainer", "num_envs", "batch_size", "SPS", *names[1:4], "serial bound", "share of it", "RAM", "rounds"]
    table = tabulate(lines, headers, tablefmt="pipe", disable_numparse=True)
    return f"\n## {GAME}, {machine}\n\n{table}\n\n{findings(groups)}"


def findings(groups: dict[tuple, list[dict]]) -> str:
    """The ratios: against the best of Stable-Baselines3, and two jobs against one."""
    best = {
        trainer: max((median(own, "sps") or 0.0, key[1:]) for key, own in groups.items() if key[0] == trainer)
        for trainer in POINTS
        if any(key[0] == trainer for key in groups)
    }
    found = "".join(f"- {name}: {sps:,.0f} SPS at {p[0]}/{p[1]}\n" for name, (sps, p) in best.items())
    for above, below, words in (
        (OURS, SB3, "Best point against the best of Stable-Baselines3"),
        (TWO, ONE, "Two jobs against one job of one thread"),
    ):
        if above in best and below in best:
            found += f"\n{words}: **{best[above][0] / best[below][0]:.2f}**\n"
    return f"Best points:\n\n{found}"


if __name__ == "__main__":
    main()
