"""How well the search finds the best point of recorded surfaces, against what a user would otherwise run.

    python reports/reference/search/bench.py --seeds 50 [--methods autotune,tpe] [--surfaces a.csv,b.csv]

Methods: a sampler's name is that sampler inside our plan (baseline, rule of thumb, memory rule, finals);
``bare-<name>`` is the sampler alone from the baseline on; ``bare-tpe-constrained`` and
``bare-gp-constrained`` see the failures as violated constraints. Each search adds a row to ``results.csv`` when
it ends; what is there already is not run again, so a stopped bench goes on. The tables go to ``results.md``.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import optuna.samplers._gp.sampler
import pandas as pd

from autotune.codec import to_json
from autotune.executors.replay import ReplayExecutor, load_surface, surface_recipe
from autotune.probe.run import run_probe
from autotune.records import ProbeResult
from autotune.runs import Run, create_run
from autotune.search import confirm, samplers
from autotune.search.memory import MemoryLimits
from autotune.search.propose import Problem
from autotune.search.sampler import RESULT, FixedSampler, HistorySampler, SnappedSampler
from autotune.search.space import space_of
from autotune.search.study import run_study
from autotune.search.trials import constraints, worst_value

HERE = Path(__file__).parent
OURS = "autotune"
SAMPLERS = ("random", "grid", "hillclimb", "tpe", "gp")
METHODS = (OURS, *SAMPLERS, *(f"bare-{name}" for name in SAMPLERS), "bare-tpe-constrained", "bare-gp-constrained")
BUDGET_S = 1800.0
COLUMNS = (
    "method", "surface", "points", "seed", "regret", "within_s", "tested", "tested_first", "probes", "spent_s",
    "oom", "crashed", "host_lost", "took_s",
)  # fmt: skip
Task = tuple[str, Path, int]


def scored(results: list[ProbeResult], executor: ReplayExecutor) -> dict[str, Any]:
    """Regret of the recommendation after every probe, and what a search costs."""
    true = {row.point: row.sps or 0.0 for row in executor.surface.rows}
    best = max(true.values())
    space = space_of(surface_recipe(Path(executor.surface.source)))
    clock_s, regret, history, first = 0.0, 1.0, [], None
    within_s: float | None = None
    for result in results:
        history.append(result)
        clock_s += result.cost_s
        found = confirm.winner(space, history)
        if found is not None:
            regret = 1 - true[executor.surface.row(found[0].point).point] / best
        within_s = None if regret > 0.05 else (clock_s if within_s is None else within_s)
        if regret <= 0.03 and first is None:
            first = len({r.requested for r in history})
    failures = {status: sum(r.status == status for r in results) for status in ("oom", "crashed", "host_lost")}
    return {
        "points": len(true),
        "regret": regret,
        "within_s": within_s,
        "tested": len({r.requested for r in results}) / len(true),
        "tested_first": None if first is None else first / len(true),
        "probes": len(results),
        "spent_s": clock_s,
        **failures,
    }


def planned(name: str, path: Path, seed: int, run: Run) -> tuple[list[ProbeResult], ReplayExecutor]:
    """A sampler within our plan."""
    executor = ReplayExecutor(path, seed)
    found = run_study(
        surface_recipe(path), executor, run, budget_s=BUDGET_S, sampler=name, seed=seed,
        study=optuna.create_study(direction="maximize"),
    )  # fmt: skip
    return [r.result for r in found.trials if r.counts], executor


def bare(name: str, path: Path, seed: int, run: Run) -> tuple[list[ProbeResult], ReplayExecutor]:
    """A sampler alone: the baseline, then whatever it asks for, until the budget is spent."""
    constrained, name = name.endswith("-constrained"), name.removesuffix("-constrained")
    recipe, executor = surface_recipe(path), ReplayExecutor(path, seed)
    space = space_of(recipe)
    sampler: optuna.samplers.BaseSampler
    if constrained or name in ("tpe", "gp", "random"):
        sampler = SnappedSampler(getattr(samplers, name), space, seed)
    else:
        sampler = samplers.make(name, Problem(space=space, limits=MemoryLimits()), seed)
    study = optuna.create_study(direction="maximize", sampler=FixedSampler(recipe.baseline))
    results: list[ProbeResult] = []
    while executor.clock_s() < BUDGET_S - 40:
        if isinstance(sampler, HistorySampler) and results and sampler.upcoming(study) is None:
            break
        trial = study.ask(space.distributions([recipe.baseline]))
        study.sampler = sampler
        point = space.nearest(trial.params)
        result = run_probe(recipe, point, executor, grade="quick", run=run, label=str(trial.number))
        if executor.clock_s() > BUDGET_S:
            break
        results.append(result)
        trial.set_user_attr(RESULT, to_json(result))
        if constrained:
            for key, value in constraints(result).items():
                trial.set_constraint(key, value)
        study.tell(trial, result.sps or (worst_value(study) if constrained else 0.0))
    return results, executor


class _PlainTorch:
    """torch, but for the mode that keeps tensors on the CPU, where they are anyway."""

    def __getattr__(self, name: str) -> Any:
        import torch

        return getattr(torch, name)

    def device(self, _name: str) -> contextlib.AbstractContextManager[None]:
        """Nothing is entered."""
        return contextlib.nullcontext()


def one(task: Task) -> dict[str, Any]:
    """One search and its score."""
    method, path, seed = task
    warnings.simplefilter("ignore")
    optuna.samplers._gp.sampler.torch = _PlainTorch()  # the same searches, in two thirds of the time
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        run = create_run(Path(folder), "bench")
        results, executor = (
            bare(method[5:], path, seed, run) if method.startswith("bare-") else planned(method, path, seed, run)
        )
    took_s = round(time.monotonic() - started_s, 2)
    return {"method": method, "surface": path.stem, "seed": seed, **scored(results, executor), "took_s": took_s}


def method_table(rows: pd.DataFrame, reference: str = OURS) -> str:
    """Methods in rows, the paired difference to ours with its bootstrap interval in the last column but one."""
    lines = []
    ours = rows[rows.method == reference].set_index(["surface", "seed"]).regret
    for method, part in rows.groupby("method", sort=False):
        regret, late = 100 * part.regret, part.within_s.astype(float).fillna(np.inf)
        lines.append({
            "method": method, "searches": len(part), "regret %": regret.mean(), "median": regret.median(),
            "p90": regret.quantile(0.9), "within 5 %": f"{100 * (regret <= 5).mean():.0f} %",
            "to 5 % (min)": late.median() / 60, "OOM": part.oom.mean(), "crashed": part.crashed.mean(),
            "host lost": part.host_lost.mean(), "probes": part.probes.mean(),
            "worse than ours by": "" if method == reference else paired(part, ours),
            "seconds a search": part.took_s.mean(),
        })  # fmt: skip
    return str(pd.DataFrame(lines).to_markdown(index=False, floatfmt=".2f"))


def paired(part: pd.DataFrame, ours: pd.Series) -> str:
    """Mean difference of the regret on the same surfaces and seeds, percentage points, 95 % bootstrap interval."""
    theirs = part.set_index(["surface", "seed"]).regret
    shared = theirs.index.intersection(ours.index)
    if not len(shared):
        return "no pairs"
    gap = 100 * (theirs[shared] - ours[shared]).to_numpy()
    means = np.random.default_rng(0).choice(gap, (4000, len(gap))).mean(axis=1)
    return f"{gap.mean():.1f} [{np.quantile(means, 0.025):.1f}, {np.quantile(means, 0.975):.1f}]"


def share_table(rows: pd.DataFrame) -> str:
    """Share of a surface that ours had tested when its recommendation first reached 97 % of the best."""
    ours = rows[rows.method == OURS]
    size = pd.cut(ours.points, [0, 120, 499, 10**9], labels=["120 points or fewer", "to 499", "500 or more"])
    lines = [
        {
            "surfaces of": name, "searches": len(part),
            "reached 97 %": f"{100 * part.tested_first.notna().mean():.0f} %",
            "tested by then, mean %": 100 * part.tested_first.mean(),
            "p90 %": 100 * part.tested_first.quantile(0.9), "tested in all, mean %": 100 * part.tested.mean(),
        }
        for name, part in ours.groupby(size, observed=True)
    ]  # fmt: skip
    return str(pd.DataFrame(lines).to_markdown(index=False, floatfmt=".1f"))


def surface_table(rows: pd.DataFrame) -> str:
    """Mean regret in percent by surface and method."""
    table = rows.pivot_table(index=["surface", "points"], columns="method", values="regret", sort=False)
    return str(table.mul(100).round(2).reset_index().to_markdown(index=False))


def tables(rows: pd.DataFrame) -> str:
    """Everything that the rows show, as Markdown."""
    return "\n\n".join([method_table(rows), share_table(rows), surface_table(rows)]) + "\n"


def tasks(arguments: argparse.Namespace) -> Iterator[Task]:
    """Every search that was asked for, the seeds in the outermost loop: a stopped bench covers all surfaces."""
    folder = HERE.parent / "surfaces"
    paths = [Path(p) for p in arguments.surfaces.split(",")] if arguments.surfaces else sorted(folder.glob("*.csv"))
    for path in paths:
        load_surface(path)
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        for method in arguments.methods.split(","):
            for path in paths:
                yield method, path, seed


def read_rows(file: Path) -> pd.DataFrame:
    """The rows so far."""
    return pd.read_csv(file) if file.exists() else pd.DataFrame(columns=list(COLUMNS))


def run_missing(wanted: list[Task], file: Path, processes: int) -> None:
    """Run what is not in the file yet; each search adds its row when it ends."""
    known = set(read_rows(file)[["method", "surface", "seed"]].itertuples(index=False, name=None))
    missing = [task for task in wanted if (task[0], task[1].stem, task[2]) not in known]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        for number, row in enumerate(pool.imap_unordered(one, missing), start=1):
            frame = pd.DataFrame([row], columns=list(COLUMNS)).round(4)
            frame.to_csv(file, mode="a", header=not file.exists(), index=False)
            sys.stderr.write(
                f"[{number}/{len(missing)}] {row['method']} {row['surface']} seed {row['seed']}: "
                f"regret {100 * row['regret']:.2f} %, {row['probes']} probes, {row['took_s']} s\n"
            )


def main() -> None:
    """Run what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--surfaces", default="", help="files with commas between them; all recorded ones without")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "results.csv")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    wanted = list(tasks(arguments))
    run_missing(wanted, arguments.output, arguments.processes)
    keys = {(method, path.stem, seed) for method, path, seed in wanted}
    rows = read_rows(arguments.output)
    asked = [key in keys for key in rows[["method", "surface", "seed"]].itertuples(index=False, name=None)]
    order = {method: place for place, method in enumerate(arguments.methods.split(","))}
    shown = rows[asked].sort_values(
        ["method", "surface", "seed"], key=lambda c: c.map(order) if c.name == "method" else c
    )
    arguments.output.with_suffix(".md").write_text(tables(shown), encoding="utf-8")
    print(tables(shown))


if __name__ == "__main__":
    main()
