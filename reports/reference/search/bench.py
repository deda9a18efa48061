"""How well the search finds the best point of recorded surfaces, against what a user would otherwise run.

    python reports/reference/search/bench.py --seeds 10 [--methods autotune,tpe] [--surfaces a.csv,b.csv]

Methods: a sampler's name is that sampler inside our plan (baseline, rule of thumb, memory rule, finals);
``bare-<name>`` is the sampler alone from the baseline on; ``bare-tpe-constrained`` and
``bare-gp-constrained`` see the failures as violated constraints. Rows go to ``results.csv``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import optuna
import pandas as pd

from autotune.executors.replay import ReplayExecutor, surface_recipe
from autotune.probe.run import run_probe
from autotune.records import ProbeResult
from autotune.runs import Run, create_run
from autotune.search import confirm, samplers
from autotune.search.memory import MemoryLimits
from autotune.search.propose import Problem
from autotune.search.sampler import FixedSampler, HistorySampler, SnappedSampler
from autotune.search.space import space_of
from autotune.search.study import run_study
from autotune.search.trials import RESULT, constraints, to_json, worst_value

HERE = Path(__file__).parent
BUDGET_S = 1800.0


def scored(results: list[ProbeResult], executor: ReplayExecutor, spent_s: float) -> dict[str, object]:
    """Regret of the recommendation after every probe, and what a search costs."""
    true = {row.point: row.sps or 0.0 for row in executor.surface.rows}
    best = max(true.values())
    space = space_of(surface_recipe(Path(executor.surface.source)))
    clock_s, regret, history, first, tested = 0.0, 1.0, [], None, None
    within_s: float | None = None
    for result in results:
        history.append(result)
        clock_s += result.cost_s
        found = confirm.winner(space, history)
        if found is not None:
            regret = 1 - true[executor.row(found[0].point).point] / best
        within_s = None if regret > 0.05 else (clock_s if within_s is None else within_s)
        if regret <= 0.03 and first is None:
            first = len({r.requested for r in history})
    tested = len({r.requested for r in results})
    failures = {status: sum(r.status == status for r in results) for status in ("oom", "crashed", "host_lost")}
    return {
        "regret": regret,
        "within_s": within_s,
        "tested": tested / len(true),
        "tested_first": None if first is None else first / len(true),
        "probes": len(results),
        "spent_s": spent_s,
        **failures,
    }


def planned(name: str, path: Path, seed: int, run: Run) -> dict[str, object]:
    """A sampler within our plan."""
    executor = ReplayExecutor(path, seed)
    found = run_study(
        surface_recipe(path), executor, run, budget_s=BUDGET_S, sampler=name, seed=seed,
        study=optuna.create_study(direction="maximize"),
    )  # fmt: skip
    return scored([r.result for r in found.trials if r.counts], executor, found.spent_s)


def bare(name: str, path: Path, seed: int, run: Run) -> dict[str, object]:
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
    return scored(results, executor, min(executor.clock_s(), BUDGET_S))


def one(task: tuple[str, Path, int]) -> dict[str, object]:
    method, path, seed = task
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        run = create_run(Path(folder), "bench")
        score = bare(method[5:], path, seed, run) if method.startswith("bare-") else planned(method, path, seed, run)
    took_s = round(time.monotonic() - started_s, 2)
    return {"method": method, "surface": path.stem, "seed": seed, **score, "took_s": took_s}


def table(rows: pd.DataFrame, reference: str = "autotune") -> str:
    """Methods in rows, the paired difference to ours with its bootstrap interval in the last column."""
    random = np.random.default_rng(0)
    lines = []
    ours = rows[rows.method == reference].set_index(["surface", "seed"]).regret
    for method, part in rows.groupby("method", sort=False):
        regret = 100 * part.regret
        late = part.within_s.astype(float).fillna(np.inf)
        both = part.set_index(["surface", "seed"]).regret
        shared = both.index.intersection(ours.index)
        gap = 100 * (both[shared] - ours[shared]).to_numpy()
        means = random.choice(gap, (4000, len(gap))).mean(axis=1) if len(gap) else np.array([np.nan])
        lines.append({
            "method": method, "searches": len(part), "regret %": regret.mean(), "median": regret.median(),
            "p90": regret.quantile(0.9), "within 5 %": f"{100 * (regret <= 5).mean():.0f} %",
            "to 5 % (s)": late.median(), "OOM": part.oom.mean(), "crashed": part.crashed.mean(),
            "host lost": part.host_lost.mean(), "tested %": 100 * part.tested.mean(),
            "tested at 97 %": 100 * part.tested_first.astype(float).mean(), "probes": part.probes.mean(),
            "worse than ours by": "" if method == reference
            else f"{gap.mean():.1f} [{np.quantile(means, 0.025):.1f}, {np.quantile(means, 0.975):.1f}]",
        })  # fmt: skip
    return str(pd.DataFrame(lines).to_markdown(index=False, floatfmt=".2f"))


def tasks(arguments: argparse.Namespace) -> Iterator[tuple[str, Path, int]]:
    folder = HERE.parent / "surfaces"
    paths = [Path(p) for p in arguments.surfaces.split(",")] if arguments.surfaces else sorted(folder.glob("*.csv"))
    for method in arguments.methods.split(","):
        for path in paths:
            for seed in range(arguments.first, arguments.first + arguments.seeds):
                yield method, path, seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--methods", default="autotune,random,grid,hillclimb,tpe,bare-random,bare-tpe,bare-hillclimb")
    parser.add_argument("--surfaces", default="")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--output", type=Path, default=HERE / "results.csv")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        frame = pd.DataFrame(pool.imap(one, list(tasks(arguments)), chunksize=2))
    frame.round(4).to_csv(arguments.output, index=False)
    print(table(frame), "\n")
    print(
        frame.pivot_table(index="surface", columns="method", values="regret", sort=False)
        .mul(100)
        .round(2)
        .to_markdown()
    )


if __name__ == "__main__":
    main()
