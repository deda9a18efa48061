"""A/A: do two searches on one machine recommend points of the same speed?

Two searches that differ in their seed only; then both recommendations are measured again in turns (A, B, B, A, ...),
each in fresh processes with the final plan, and compared as pairs: a shared host drifts by several per cent within
minutes. Every search counts, whatever it recommends.

    python reports/reference/repeatability/run.py --budget-minutes 10 --pairs 4     # on a quiet machine

Writes results.md; `--folder` keeps the runs, and a second call goes on where it was stopped.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

from scipy.special import stdtrit
from tabulate import tabulate

from autotune.device.inspect import inspect_device
from autotune.executors.isolated import IsolatedExecutor
from autotune.probe.recipe import load_recipe, restrict_games
from autotune.probe.run import run_probe
from autotune.records import Point
from autotune.runs import Run, create_run
from autotune.search.study import run_study

HERE = Path(__file__).parent


def searched(folder: Path, seed: int, budget_s: float) -> tuple[Point, float, int]:
    """Point, SPS and number of trials that the search with this seed recommends (kept in `folder`)."""
    kept = folder / f"search-{seed}.json"
    if not kept.exists():
        recipe, executor = subject()
        executor.check(recipe)
        run = Run(folder / f"search-{seed}")
        run = run if run.path.exists() else create_run(folder, f"search-{seed}", finished=False)
        found = run_study(recipe, executor, run, budget_s=budget_s, seed=seed)
        kept.write_text(json.dumps([found.point.knobs(), found.result.sps, len(found.trials)]))
    knobs, sps, trials = json.loads(kept.read_text())
    return Point.from_knobs(knobs), sps, trials


def subject():
    """What is searched, and with what."""
    return restrict_games(load_recipe("atari"), ["Breakout"]), IsolatedExecutor(inspect_device("cpu"))


def remeasured(folder: Path, points: list[Point], pairs: int) -> list[list[float]]:
    """SPS of both points in every pair, the order turned about from pair to pair (kept in `folder`)."""
    kept = folder / "pairs.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    recipe, executor = subject()
    run = Run(folder / "pairs")
    run = run if run.path.exists() else create_run(folder, "pairs")
    while len(rows) < pairs:
        order = (0, 1) if len(rows) % 2 == 0 else (1, 0)
        row = [0.0, 0.0]
        for index in order:
            result = run_probe(recipe, points[index], executor, grade="final", run=run, label=f"{len(rows)}-{index}")
            assert result.sps is not None, result.detail
            row[index] = result.sps
        rows.append(row)
        kept.write_text(json.dumps(rows))
        print(row, flush=True)
    return rows


def main() -> None:
    """Search twice, measure in turns, write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget-minutes", type=float, default=10.0)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=Path("runs/repeatability"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    found = [searched(options.folder, seed, 60 * options.budget_minutes) for seed in (1, 2)]
    print(found, flush=True)
    rows = remeasured(options.folder, [point for point, _, _ in found], options.pairs)
    logs = [math.log(a / b) for a, b in rows]
    half = float(stdtrit(len(logs) - 1, 0.975)) * statistics.stdev(logs) / len(logs) ** 0.5
    ratio, low, high = (math.exp(statistics.fmean(logs) + sign * half) for sign in (0, -1, 1))
    searches = [
        [name, point.label(), f"{sps:.1f}", trials, f"{statistics.fmean(row[i] for row in rows):.1f}"]
        for i, (name, (point, sps, trials)) in enumerate(zip("AB", found, strict=True))
    ]
    headers = ["search", "recommends", "SPS it states", "trials", f"SPS re-measured ({len(rows)} launches)"]
    table = tabulate(searches, headers, tablefmt="pipe", disable_numparse=True)
    pairs = tabulate([[f"{a:.1f}", f"{b:.1f}", f"{a / b:.3f}"] for a, b in rows], ["A", "B", "A / B"], tablefmt="pipe")
    text = (
        f"# Two searches, one machine\n\n{(__doc__ or '').split('    python')[0].strip()}\n\n"
        f"Breakout, {options.budget_minutes:g} minutes a search, {subject()[1].device.fingerprint}.\n\n{table}\n\n"
        f"A / B = {ratio:.3f} [{low:.3f}, {high:.3f}] (geometric mean of the pairs, 95 % interval); "
        f"median of the pairs {statistics.median(a / b for a, b in rows):.3f}.\n\n{pairs}\n"
    )
    (HERE / "results.md").write_text(text)


if __name__ == "__main__":
    main()
