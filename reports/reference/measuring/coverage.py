"""How honest is an interval? Ours and those of peers' stopping rules, on the same recorded launches.

    python reports/reference/measuring/coverage.py        # writes coverage.md from traces/*.csv

A launch's interval covers when it holds the pooled rate of the other launches (their steady part: total steps over
total seconds after the first 20 s). One launch alone assumes a spread of 1.5 % from launch to launch; "spread known"
takes the spread that the other launches show, as a search does with its repeats. Peers' rules are written anew from
their documentation, not copied.
"""

import csv
import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tabulate import tabulate

from autotune.executors.window import Step, trace, windows
from autotune.records import FINAL_PLAN, MeasurePlan
from autotune.stats import LAUNCH_FRACTION, Trace, estimate, launch_spread, total_rate

HERE = Path(__file__).parent
STEADY_S = 20.0


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a rule says of a launch: steps per second with an interval (None where it gives none), and when."""

    rate: float
    low: float | None
    high: float | None
    at_s: float


def load(path: Path) -> list[list[Step]]:
    """The iterations of every launch."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    launches = itertools.groupby(sorted(rows, key=lambda row: int(row["launch"])), key=lambda row: row["launch"])
    return [
        [Step(t=float(r["ended_s"]), started=float(r["started_s"]), env_steps=int(r["env_steps"])) for r in group]
        for _, group in launches
    ]


def ours(plan: MeasurePlan) -> Callable[[list[Step]], Answer]:
    """The plan's fixed discard and window, batch means."""

    def rule(steps: list[Step]) -> Answer:
        for count in range(1, len(steps) + 1):
            opened = windows([steps[:count]], plan)
            if opened is not None:
                figures = estimate([trace(opened[0])])
                return Answer(rate=figures.rate, low=figures.low, high=figures.high, at_s=steps[count - 1].t)
        raise ValueError("the recording is shorter than the plan")

    return rule


def rates_each(steps: list[Step], seconds: float) -> Iterator[tuple[float, float]]:
    """(end, rate) of consecutive windows of at least `seconds`, from iteration end to iteration end."""
    begin, done = steps[0].t, 0
    for step in steps[1:]:
        done += step.env_steps
        if step.t - begin >= seconds:
            yield step.t, done / (step.t - begin)
            begin, done = step.t, 0


def three_windows(steps: list[Step]) -> Answer:
    """Three consecutive 5 s windows within 10 % of each other, ten at most; their spread as the interval."""
    seen = list(itertools.islice(rates_each(steps, 5.0), 10))
    for end in range(3, len(seen) + 1):
        last = [rate for _, rate in seen[end - 3 : end]]
        if max(last) <= 1.1 * min(last):
            break
    mean = statistics.fmean(last)
    half = (max(last) - min(last)) / 2
    return Answer(rate=mean, low=mean - half, high=mean + half, at_s=seen[end - 1][0])


def _independent(steps: list[Step], count: int) -> Answer:
    """Mean of `count` iterations after the first with the interval of independent samples."""
    part = steps[1 : 1 + count]
    seconds = [after.t - before.t for before, after in itertools.pairwise(steps[: 1 + count])]
    rate = total_rate(Trace(seconds=tuple(seconds), steps=tuple(float(step.env_steps) for step in part)))
    error = 1.96 * statistics.stdev(seconds) / statistics.fmean(seconds) / count**0.5
    return Answer(rate=rate, low=rate * (1 - error), high=rate * (1 + error), at_s=part[-1].t)


def low_noise(steps: list[Step]) -> Answer:
    """Stop when the relative standard error is below 0.5 %, or after 15 s."""
    count = 2
    while count < len(steps) - 1:
        answer = _independent(steps, count)
        if (answer.high - answer.rate) / answer.rate / 1.96 < 0.005 or answer.at_s - steps[0].t > 15.0:
            break
        count += 1
    return answer


def one_warm_up(steps: list[Step]) -> Answer:
    """One iteration thrown away, then at least ten and three seconds."""
    count = next(n for n in range(10, len(steps)) if steps[n].t - steps[0].t >= 3.0)
    return _independent(steps, count)


def third_to_fifth(steps: list[Step]) -> Answer:
    """Iterations 3 to 5, no interval."""
    rate = sum(step.env_steps for step in steps[2:5]) / (steps[4].t - steps[1].t)
    return Answer(rate=rate, low=None, high=None, at_s=steps[4].t)


def with_known_spread(answers: list[Answer]) -> list[Answer]:
    """The same answers, the launch-to-launch spread in each interval taken from the other launches."""
    errors = [(a.high - a.low) / 2 / a.rate / 1.96 for a in answers]
    windows_only = [max(1e-6, error**2 - LAUNCH_FRACTION**2) ** 0.5 for error in errors]
    found = []
    for own, answer in enumerate(answers):
        others = [(a.rate, windows_only[i]) for i, a in enumerate(answers) if i != own]
        half = 1.96 * answer.rate * (windows_only[own] ** 2 + launch_spread([others]) ** 2) ** 0.5
        found.append(replace(answer, low=answer.rate - half, high=answer.rate + half))
    return found


FINAL_RULE = "ours, final (20 s discarded, 30 s)"
RULES: dict[str, Callable[[list[Step]], Answer]] = {
    FINAL_RULE: ours(FINAL_PLAN),
    "ours, quick (10 s discarded, 8 s)": ours(MeasurePlan()),
    "three 5 s windows within 10 %": three_windows,
    "stop at 0.5 % noise, 15 s at most": low_noise,
    "one warm-up, 10 iterations and 3 s": one_warm_up,
    "iterations 3 to 5": third_to_fifth,
}


def steady(steps: list[Step]) -> tuple[float, float]:
    """Env steps and seconds after the first 20 s."""
    kept = [step for step in steps if step.started >= steps[0].t + STEADY_S]
    return sum(step.env_steps for step in kept), kept[-1].t - kept[0].started


def table(launches: list[list[Step]]) -> str:
    """A row per rule: bias, error, half-width, coverage, seconds."""
    parts = [steady(steps) for steps in launches]
    truths = []
    for own in range(len(launches)):
        others = [part for index, part in enumerate(parts) if index != own]
        truths.append(sum(steps for steps, _ in others) / sum(seconds for _, seconds in others))
    rows = []
    answered = {name: [rule(steps) for steps in launches] for name, rule in RULES.items()}
    known_spread = with_known_spread(answered[FINAL_RULE])
    for name, answers in {"ours, final, spread known": known_spread, **answered}.items():
        errors = [a.rate / truth - 1 for a, truth in zip(answers, truths, strict=True)]
        known = [(a, truth) for a, truth in zip(answers, truths, strict=True) if a.low is not None]
        covered = sum(a.low <= truth <= a.high for a, truth in known)
        halves = [(a.high - a.low) / 2 / a.rate for a, _ in known]
        rows.append(
            [
                name,
                f"{100 * statistics.fmean(errors):+.2f} %",
                f"{100 * statistics.fmean(e * e for e in errors) ** 0.5:.2f} %",
                f"{100 * statistics.median(halves):.2f} %" if halves else "none",
                f"{covered} of {len(known)}" if known else "none",
                f"{statistics.fmean(a.at_s for a in answers):.0f}",
            ]
        )
    headers = ["rule", "bias", "rms error", "half-width (median)", "95 % interval covers", "seconds"]
    return tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)


def main() -> None:
    """Write coverage.md."""
    parts = ["# Coverage of a window's 95 % interval, on recorded launches", (__doc__ or "").split("\n\n")[-1]]
    for path in sorted((HERE / "traces").glob("*.csv")):
        launches = load(path)
        period_s = statistics.median(step.t - step.started for steps in launches for step in steps)
        parts.append(f"## {path.stem}: {len(launches)} launches, iterations of {period_s:.2f} s\n\n{table(launches)}")
    (HERE / "coverage.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
