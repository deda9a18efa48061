"""How near the trainer comes to EnvPool's own rate on a GPU's host, and what its learner takes of the GPU.

    python reports/reference/trainer/gpu.py                      # about 8 minutes on a GPU; writes gpu.md
    python reports/reference/trainer/gpu.py --device cpu --points 8/256 --jobs 1 --out /tmp/cpu.md    # a trial run

Each point is probed with `overlap` (learning from one rollout while the next one is collected), with and without
`cuda_graphs` (acting and minibatches launched as a whole); the first one also without `overlap`, and with several
processes. A point's parts are measured beforehand without `overlap`, so that `env` is EnvPool's rate on all cores of
the process. The learner's TFLOP/s are its rate alone times the multiplications of the Nature CNN
(forward once, backward twice that), beside what the doctor measures for a plain product of matrices in that precision.
"""

import argparse
import tempfile
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from run import GAME, points
from tabulate import tabulate

from autotune.device.inspect import inspect_device
from autotune.executors.checks import run_checks
from autotune.executors.isolated import IsolatedExecutor
from autotune.probe.recipe import load_recipe, restrict_games
from autotune.probe.run import run_probe
from autotune.records import MeasurePlan, Point, ProbeResult, Recipe
from autotune.runs import create_run
from autotune.workloads.atari.model import CONVOLUTIONS

HERE = Path(__file__).parent
ACTIONS = 4  # of Breakout
PLAN = MeasurePlan(discard_s=5.0, window_s=12.0, window_iterations=3, long_iteration_s=30.0)
WAYS = tuple({"overlap": overlap, "cuda_graphs": graphs} for overlap in (True, False) for graphs in (True, False))
"""The first point has them all, the others the two with `overlap`."""


def training_flop() -> float:
    """Floating-point operations of one forward and backward pass over one sample of 4 x 84 x 84 pixels."""
    channels, side, products = 4, 84, 0
    for out, kernel, stride in CONVOLUTIONS:
        side = (side - kernel) // stride + 1
        products += prod((side, side, out, kernel, kernel, channels))
        channels = out
    products += side * side * channels * 512 + 512 * (ACTIONS + 1)
    return 3 * 2 * products


def recipe_of(jobs: int, way: dict[str, bool]) -> Recipe:
    """Breakout, `jobs` times."""
    recipe = restrict_games(load_recipe("atari"), [GAME])
    each = tuple(replace(recipe.jobs[0], id=f"{n}", seed=n) for n in range(jobs))
    return replace(recipe, quick=PLAN, jobs=each, hyperparameters={**recipe.hyperparameters, **way})


def probe(executor: IsolatedExecutor, point: Point, way: dict[str, bool]) -> ProbeResult:
    """One window of a point."""
    with tempfile.TemporaryDirectory() as folder:
        run = create_run(Path(folder), "probe")
        recipe = recipe_of(point.concurrency, way)
        return run_probe(recipe, point, executor, grade="quick", run=run, label="probe", device=executor.device)


def lines(executor: IsolatedExecutor, wanted: list[Point], epochs: int) -> list[list[Any]]:
    """A line a point and way: its SPS, the share of EnvPool's rate, and the learner's arithmetic."""
    found, known = [], {}
    for point in wanted:
        alone = replace(point, concurrency=1)
        if alone not in known:
            known[alone] = executor.ceilings(recipe_of(1, WAYS[-2]), alone, timeout_s=180.0)
        parts = known[alone]
        for way in WAYS if point == wanted[0] else WAYS[:2]:
            result = probe(executor, point, way)
            env, learn = parts.get("env"), parts.get("learn")
            row = [point.num_envs, point.batch_size, point.concurrency, *("yes" if on else "no" for on in way.values())]
            row += [result.sps or result.status, env, parts.get("infer"), learn]
            row += [result.sps / env if result.sps and env else None]
            row += [learn * epochs * training_flop() / 1e12 if learn else None]
            row += [result.effective.get("precision"), (result.vram_peak_bytes or 0) / 2**20]
            found.append([*row, (result.ram_peak_bytes or 0) / 2**20, dict(result.phase_seconds)])
            print(*found[-1], flush=True)
    return found


def page(device: str, rows: list[list[Any]], rates: dict[str, float]) -> str:
    """The table, the doctor's rates beside it."""
    headers = ["num_envs", "batch_size", "processes", "overlap", "cuda_graphs"]
    headers += ["SPS", "env alone", "infer alone", "learn alone"]
    headers += ["SPS / env alone", "learner TFLOP/s", "precision", "VRAM MiB", "RAM MiB", "µs a step"]
    formats = ["d", "d", "d", "", "", ",.0f", ",.0f", ",.0f", ",.0f", ".1%", ".2f", "", ",.0f", ",.0f", ""]
    texts = [
        ["" if value is None else format(value, style if isinstance(value, (int, float)) else "")
         for value, style in zip(row, formats, strict=True)]
        for row in [[*row[:-1], ", ".join(f"{k} {1e6 * v:.0f}" for k, v in row[-1].items())] for row in rows]
    ]  # fmt: skip
    table = tabulate(texts, headers, tablefmt="pipe", disable_numparse=True)
    products = "".join(f"- {name}: {rate:.2f}\n" for name, rate in sorted(rates.items()) if "matmul" in name)
    intro = (__doc__ or "").replace("    python", "\n    python", 1).strip()
    return f"# The trainer on a GPU\n\n{intro}\n\n{GAME}, {device}.\n\n{table}\n\nThe doctor's rates:\n\n{products}"


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="auto")
    parser.add_argument("--points", default="256/2048,64/1024,512/4096,1024/8192")
    parser.add_argument("--jobs", default="1,2,4", help="processes at the first point; the others have one")
    parser.add_argument("--out", type=Path, default=HERE / "gpu.md")
    options = parser.parse_args()
    device = inspect_device(options.device)
    executor = IsolatedExecutor(device)
    first, *others = (Point(num_envs=n, batch_size=b) for n, b in points(options.points))
    wanted = [replace(first, concurrency=int(jobs)) for jobs in options.jobs.split(",")] + others
    rows = lines(executor, wanted, int(str(load_recipe("atari").hyperparameters["epochs"])))
    options.out.write_text(page(device.fingerprint, rows, run_checks(device)[0]))


if __name__ == "__main__":
    main()
