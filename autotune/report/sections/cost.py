"""Hours and dollars: the whole, each job, and against the references."""

from __future__ import annotations

from autotune.availability import effective_cost_usd
from autotune.records import Budget
from autotune.report.facts import Facts
from autotune.report.left import Left
from autotune.report.measured import Measured
from autotune.report.projection import HOUR_S, Projection, Quantity
from autotune.report.wording import (
    MORE_GAMES,
    UNKNOWN,
    code,
    games,
    hours,
    launched,
    money,
    percent,
    plan_dollars,
    plan_hours,
    plus_minus,
    table,
    text,
    took,
)
from autotune.search.result import ENDINGS
from autotune.train.trained import where
from autotune.units import counted, format_count, format_duration, format_usd

_DOWNTIMES = (0.01, 0.05, 0.17)
_FROM_CHECKPOINT = "; `--from-checkpoint RUN` measures where a training stands"
_WHERE_TRAINED = {
    "replay": "",
    "command": "; a search with the program's own option to resume in the command measures where a training stands",
}
"""Workloads that `--from-checkpoint` is refused for, and what there is instead."""


def render(facts: Facts) -> str:
    """Totals at each measured point, every job, what the figures rest on, and what a training has left of it."""
    plans = [(each, plan) for each in facts.measured if (plan := facts.projection(each))]
    parts = [_totals(facts, plans), _jobs(plans), _notes(facts, plans)] if plans else []
    parts.append(_left(facts))
    return "\n\n".join(part for part in parts if part)


def _totals(facts: Facts, plans: list[tuple[Measured, Projection]]) -> str:
    headers = ["", "settings", "SPS (95 %)", "measured by", "SPS of each job", "time for all jobs", "cost"]
    rows = [
        [
            measured.role,
            code(measured.point.label()),
            plus_minus(measured.sps),
            launched(measured),
            format_count(measured.job_sps.value if measured.job_sps else None),
            plan_hours(plan),
            plan_dollars(plan) if facts.price else "needs `--price`",
        ]
        for measured, plan in plans
    ]
    return table(headers, rows, numbers_from=2)


def _jobs(plans: list[tuple[Measured, Projection]]) -> str:
    roles = [measured.role for measured, _ in plans]
    tuned = plans[-1][1]
    priced = tuned.usd is not None
    rows = []
    for index, job in enumerate(tuned.jobs):
        cells = [hours(plan.jobs[index].hours, interval=False) for _, plan in plans[:-1]]
        cells.append(hours(job.hours))
        cells += [money(job.usd) if job.usd is not None else UNKNOWN] if priced else []
        rows.append([text(job.id), _budget(job.budget), format_count(job.steps), *cells])
    total = [plan_hours(plan, interval=False) for _, plan in plans[:-1]] + [plan_hours(tuned)]
    rows.append(["**all**", "", "", *total, *([plan_dollars(tuned)] if priced else [])])
    share = [f"cost, {roles[-1]}"] if priced else []
    return table(["job", "budget", "env steps", *(f"time, {role}" for role in roles), *share], rows)


def _left(facts: Facts) -> str:
    """What a training has left of each job, and at which speeds."""
    plan = facts.plan_left
    if plan is None or facts.left is None:
        return ""
    jobs = {each.job.id: each for each in facts.left.jobs}
    priced = plan.price_usd_per_hour is not None
    rows = []
    for job in plan.jobs:
        known = facts.left.speed(jobs[job.id], facts.speed_before)
        amount = format_duration(job.budget.amount * HOUR_S) if job.budget.unit == "hours" else _budget(job.budget)
        row = [text(job.id), percent(jobs[job.id].fraction), amount]
        row += [format_count(known[0].value if known else None), hours(job.hours)]
        rows.append(row + ([UNKNOWN if job.usd is None else money(job.usd)] if priced else []))
    rows.append(["**all**", "", "", "", plan_hours(plan), *([plan_dollars(plan)] if priced else [])])
    saved = not facts.left.runs and not facts.left.own_checkpoints
    headers = ["job", "saved" if saved else "done", "left of its budget", "SPS", "time left"]
    headers += ["cost left"] if priced else []
    stands = "counted from the last checkpoints" if saved else "counted from what its jobs have done"
    if facts.left.own_checkpoints and not facts.left.runs:
        stands += ", if the program goes on from there (one that begins anew has all of it left)"
    return f"**Left to train**, {stands}:\n\n{table(headers, rows)}\n\n{_left_at(facts.left, facts.speed_before)}"


def _left_at(left: Left, before: Quantity | None) -> str:
    """Of what the speeds in the table are."""
    known = {found[1] for each in left.unfinished if (found := left.speed(each, before))}
    words = {
        "own": "a job's own in training, at the settings at which it goes on",
        "others": "of a job that has not trained there for a minute, that of the others",
        "before": "where less than a minute of training was seen, the one measured before",
    }
    said = "; ".join(words[source] for source in words if source in known)
    return f"SPS: {said}." if said else "SPS are not known: nothing was measured, and nothing was seen in training."


def _budget(budget: Budget) -> str:
    amount = f"{budget.amount:g}" if budget.unit == "hours" else f"{budget.amount:,.0f}"
    return f"{amount} {budget.unit.removesuffix('s') if amount == '1' else budget.unit}"


def _notes(facts: Facts, plans: list[tuple[Measured, Projection]]) -> str:
    measured, plan = plans[-1]
    notes = []
    if plan.slots > 1:
        each = format_count(measured.job_sps.value if measured.job_sps else None)
        notes.append(f"{plan.slots} jobs run at once, each at {each} SPS.")
    notes += [_tail(each.role, each.point.concurrency, own) for each, own in plans if own.tail]
    notes += _episode_notes(facts)
    if any(job.budget.unit == "hours" for job in facts.jobs):
        notes.append("A job with a budget in hours takes those hours at any settings: faster ones give it more steps.")
    notes.append(_policies(facts))
    if measured.result.startup_s:
        note = f"Every job also takes {format_duration(measured.result.startup_s)} to start, which is not counted"
        first_s = measured.result.first_iteration_s
        notes.append(note + (f"; its first iteration took {format_duration(first_s)}." if first_s else "."))
    notes += [*_search_notes(facts), *_price_notes(facts, measured, plan)]
    return "\n".join(f"- {note}" for note in notes)


def _tail(role: str, places: int, plan: Projection) -> str:
    """What the hours of a plan assume of the jobs that are left while fewer run than may."""
    begin = f"The {role} point runs up to {counted(places, 'job')} at once; when fewer are left they would run faster"
    if not plan.open_end or not plan.least or not plan.hours:
        return f"{begin}, which is counted by what was measured with fewer."
    least, most = (hours(each, interval=False) for each in (plan.least, plan.hours))
    return (
        f"{begin}, which was not measured: {most} if each keeps its speed, {least} if those left share the whole. "
        "Savings are the least that these leave."
    )


def _policies(facts: Facts) -> str:
    """What the speeds were measured with."""
    if not facts.trained_env_steps:
        workload = facts.recipe.workload if facts.recipe else ""
        return (
            "Speeds were measured on the first jobs at their beginning and taken for every job: another environment or "
            f"a trained policy can be slower or faster{_WHERE_TRAINED.get(workload, _FROM_CHECKPOINT)}."
        )
    stand = text(where(facts.trained_env_steps))
    return (
        f"Speeds were measured with policies that had been trained ({stand}), on the first jobs, and taken for every "
        "job: another environment, or a policy that has learnt more, can be slower or faster. Hours are those of whole "
        "jobs, what was trained before included."
    )


def _episode_notes(facts: Facts) -> list[str]:
    if not facts.counts_games:
        return []
    if not facts.game_lengths:
        return [f"Too few episodes ended while measuring, so such budgets have no known length; {MORE_GAMES}."]
    own = ", ".join(
        f"{text(job.id)} {'its own' if facts.game_lengths[job.env].measured else 'that of the others'}"
        for job in facts.jobs
        if job.budget.unit == "episodes"
    )
    return [
        f"Episodes (whole games) are turned into steps {games(facts)}. It changes while a policy learns, "
        f"which no interval holds. The length taken for each job: {own}."
    ]


def _search_notes(facts: Facts) -> list[str]:
    """What finding the point cost, when that is earned back, and why no more was spent."""
    if not facts.spent_s:
        return []
    told = facts.search is not None and "ended" in facts.state
    why = f" (it ended because {ENDINGS[facts.search.ended]})" if facts.search and told else ""
    guard = f", and the pilots of its guard {took(facts, facts.guard_s)}" if facts.guard_s else ""
    return [f"The search itself took {took(facts, facts.spent_s)}{why}{guard}, left out above.{_earned(facts)}"]


def _earned(facts: Facts) -> str:
    """After how much training at the tuned point the search and its guard are repaid, against the baseline.

    In each second there, the baseline would have needed ``before / after`` seconds, so that t seconds save
    ``t * (before / after - 1)``.
    """
    saved, after = facts.saved(facts.baseline), facts.projection(facts.tuned)
    if saved is None or saved.tied or saved.hours.value <= 0 or not after or not after.hours or not facts.spent_s:
        return ""
    repaid_s = (facts.spent_s + facts.guard_s) * after.hours.value / saved.hours.value
    if repaid_s > after.hours.value * HOUR_S:
        return " **These jobs are too short to earn it back**; further ones at the same settings will."
    return f" Against the baseline it is earned back after {format_duration(repaid_s)} of training."


def _price_notes(facts: Facts, measured: Measured, plan: Projection) -> list[str]:
    if facts.price is None or plan.usd is None:
        return []
    price = facts.price.usd_per_hour
    notes = [f"{format_usd(price)} per hour of the whole machine: {text(facts.price.note)}."]
    at = ", ".join(f"{money(effective_cost_usd(plan.usd.value, u))} at {percent(u)}" for u in _DOWNTIMES)
    other = "" if measured is facts.tuned else f", at the {measured.role}"
    notes.append(f"If the machine is down for a share of the time, the jobs cost {at}{other}.")
    return notes
