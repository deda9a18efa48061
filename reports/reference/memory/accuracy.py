"""How well the memory rule predicts what a probe will take, on recorded data.

    python reports/reference/memory/accuracy.py [--seeds 5] [--out results.md]

Every history is what a search (or the recording of a grid) saw, in order. At each probe, the fit and the
bound of all probes before it are compared with what it then took: the future is never shown. A failed probe's
peak is not what it needed, so it is neither shown nor predicted. Recorded probes that are no surface lie in
`probes.csv`, a source for each machine and recipe, in the order in which they ran.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import optuna
import pandas as pd

from autotune.executors.replay import ReplayExecutor, surface_recipe
from autotune.executors.surface import load_surface
from autotune.records import KNOBS, Point, ProbeResult
from autotune.runs import create_run
from autotune.search import memory
from autotune.search.space import counts
from autotune.search.study import run_study
from autotune.workloads.learning import Rollout

HERE = Path(__file__).parent
SURFACES = HERE.parent / "surfaces"
BUDGET_S = 1800.0
UNDER = 0.08
ROLLOUTS = {"breakout": 128, "cartpole": 128, "atari": 128}
"""A minibatch is never larger than the rollout; surfaces do not say how long theirs is."""


INTRODUCTION = """# The memory rule against recorded probes

Each probe's peak (all processes, per process) is predicted from the probes before it and compared with what it
then took. *Fit*: the law with the least squared relative error. *Bound*: the most that any law in agreement
with the observations allows, which is what decides whether a point may be run; it is to be above the truth, by little.

*synthetic*: searches of made-up surfaces, whose memory follows a law like the fitted one and has no noise; they show
that the search varies enough for the law to be found, and no more. *surface*: searches of recorded surfaces.
*probes*: real probes on a machine with 2 cores, in the order in which they ran (`probes.csv`); two launches of the same
settings differ by several percent there, which no law can predict. The Breakout surface and the older probes are of a
meter that read the sizes of a point's processes at different moments, up to 20 % apart for two of CartPole's; the
CartPole surface and those probes named so are of the one that reads them together. The first predictions of a history
rest on one to three probes: they are extrapolations, and the bound is wide on purpose.

Device memory was recorded by one short search only: four predictions on an H200, each from one to four probes, off by
a third in the median, with a bound that was never too low. CUDA graphs and the libraries' work space make it grow by
steps there (a second acting lane, a larger minibatch), which five probes do not show.
"""


def searched(path: Path, seed: int) -> list[ProbeResult]:
    """What a search of half an hour saw of a surface."""
    with tempfile.TemporaryDirectory() as folder:
        found = run_study(
            surface_recipe(path), ReplayExecutor(path, seed), create_run(Path(folder), "run"), budget_s=BUDGET_S,
            seed=seed, study=optuna.create_study(direction="maximize"),
        )  # fmt: skip
    return [trial.result for trial in found.trials if trial.counts]


def recorded(path: Path) -> dict[str, list[ProbeResult]]:
    """The histories in a file of probes, by source."""
    histories: dict[str, list[ProbeResult]] = {}
    with path.open() as lines:
        for row in csv.DictReader(lines):
            point = Point.from_knobs({name: int(row[name]) for name in KNOBS})
            peaks = {name: int(row[name]) if row[name] else None for name in memory.PEAKS.values()}
            result = ProbeResult(requested=point, status="ok", grade="quick", sps=1.0, **peaks)
            histories.setdefault(row["source"], []).append(result)
    return histories


def predictions(history: Sequence[ProbeResult], resource: memory.Resource, rollout: int | None) -> Iterator[dict]:
    """Fit and bound of each probe from those before it, against what it took."""
    seen = memory.observed(history, resource)
    rows = counts([point for point, _ in seen], None if rollout is None else Rollout(steps=rollout))
    each = np.array([taken for _, taken in seen])
    known = [list(row) for row in rows]
    for now in range(1, len(seen)):
        before, taken = slice(0, now), each[now]
        law = memory.fit(rows[before], each[before])
        fitted = float((memory.features(rows[now : now + 1]) @ law)[0])
        bound = float(memory.most(resource, rows[now : now + 1], rows[before], each[before])[0])
        yield {
            "resource": resource,
            "probe": now,
            "fit_error": abs(fitted / taken - 1),
            "bound_over": bound / taken - 1,
            "under": taken / bound - 1 > UNDER,
            "new": known[now] not in known[:now],
        }


def histories(seeds: int) -> Iterator[tuple[str, str, int | None, list[ProbeResult]]]:
    """(source, kind, rollout, history) of all that is recorded."""
    for path in sorted(SURFACES.glob("*.csv")):
        synthetic = load_surface(path).header.synthetic == "true"
        rollout = next((value for name, value in ROLLOUTS.items() if path.name.startswith(name)), None)
        for seed in range(seeds):
            yield path.stem, "synthetic" if synthetic else "surface", rollout, searched(path, seed)
    for source, history in recorded(HERE / "probes.csv").items():
        rollout = next((value for name, value in ROLLOUTS.items() if source.startswith(name)), None)
        yield source, "probes", rollout, history


def measure(seeds: int) -> pd.DataFrame:
    """A row for each prediction."""
    rows = []
    for source, kind, rollout, history in histories(seeds):
        for resource in memory.PEAKS:
            for row in predictions(history, resource, rollout):
                rows.append({"source": source, "kind": kind, **row})
    return pd.DataFrame(rows)


def percent(value: float) -> str:
    """``4.5%``, nothing for NaN."""
    return "" if np.isnan(value) else f"{value:.1%}"


def summary(rows: pd.DataFrame, by: list[str]) -> str:
    """A Markdown table: errors of the fit, of the bound, and how often the bound was too low."""
    lines = []
    for names, part in rows.groupby(by, sort=False):
        lines.append(
            dict(zip(by, names, strict=True))
            | {
                "predictions": len(part),
                "of new points": int(part.new.sum()),
                "fit, median error": percent(part.fit_error.median()),
                "fit, p90": percent(part.fit_error.quantile(0.9)),
                "fit from the 5th probe on, median": percent(part[part.probe >= 4].fit_error.median()),
                "bound above, median": f"{part.bound_over.median():+.1%}",
                "bound more than 8 % too low": f"{part.under.mean():.2%} ({part.under.sum()})",
            }
        )
    return pd.DataFrame(lines).to_markdown(index=False)


def main() -> None:
    """Predict everything recorded and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="Searches of each surface.")
    parser.add_argument("--out", type=Path, default=HERE / "results.md")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    rows = measure(arguments.seeds)
    text = f"{INTRODUCTION}\n## By resource\n\n{summary(rows, ['resource', 'kind'])}\n\n"
    text += f"## By source\n\n{summary(rows, ['source', 'resource'])}\n"
    arguments.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
