"""Whether the settings still teach: what changes for the learner, and what a training did."""

from __future__ import annotations

from autotune.manifest_schema import LearningSection
from autotune.report.facts import Facts
from autotune.report.learning import checked, learning_of, loud_change
from autotune.report.wording import UNKNOWN, percent, signed_percent, table, text, took
from autotune.search.learning import COMPARE, sentences
from autotune.units import format_count, format_duration
from autotune.worker.totals import RETURNS_KEPT
from autotune.workloads.learning import UNTOLD

_LEFT_SHOWN = 10


def render(facts: Facts) -> str:
    """The learner's diet at each point, the training measured against the prediction, and what is left of it."""
    parts = (_learning(facts), _training(facts), _spent(facts), _unfinished(facts))
    return "\n\n".join(part for part in parts if part)


def _learning(facts: Facts) -> str:
    known = [(each, change) for each in facts.measured if (change := learning_of(each, facts.hyperparameters))]
    warning, role = loud_change(facts), facts.tuned.role if facts.tuned else ""
    evidence = checked(facts)
    found = f"{text(' '.join(sentences(evidence)), 2000)}\n\n{_pilots(evidence)}" if evidence else ""
    if not known:
        untold = f"**The {role} point has {warning} than the baseline**; {UNTOLD}. Learning was not checked. {COMPARE}"
        return found or (untold if warning else "")
    rows = [
        ["samples per update (num_envs x rollout)", *(format_count(each.samples_per_update) for _, each in known)],
        ["optimizer steps per 1,000 env steps", *(format_count(each.updates_per_step * 1000) for _, each in known)],
    ]
    fed = table(["each job", *(each.role for each, _ in known)], rows)
    if found:
        return f"{found}\n\n{fed}"
    verdict = (
        f"**The {role} point has {warning} than the baseline.** Faster steps may teach less: learning was not "
        "checked here. Compare a short training at both settings before a long one (`autotune search --guard` does)."
        if warning
        else "Learning was not checked here: probes measure speed, and equally many steps can teach more or less."
    )
    return f"{verdict}\n\n{fed}"


def _pilots(learning: LearningSection) -> str:
    """What the pilots returned, and what was compared."""
    sides = (("tuned", learning.tuned_returns), ("baseline", learning.baseline_returns))
    rows = [
        [
            role,
            _reach(side.final, side.final_low, side.final_high),
            _reach(side.area, side.area_low, side.area_high),
            ", ".join(format_count(value) for value in side.by_seed),
        ]
        for role, side in sides
        if side
    ]
    note = (
        "Pilots trained the first job's environment with equal env steps and seeds. The return is the mean of the last "
        "100 games, over the last fifth of the env steps (what the verdict is about) and over all of them; intervals "
        "are t intervals over the seeds (90 %, so that either end errs in 5 %)."
    )
    return f"{table(['pilots', 'return at the end', 'over all steps', 'at the end, by seed'], rows)}\n\n{note}"


def _reach(value: float | None, low: float | None, high: float | None) -> str:
    ends = "" if low is None or high is None else f" ({format_count(low)} to {format_count(high)})"
    return f"{format_count(value)}{ends}"


def _training(facts: Facts) -> str:
    training = facts.training
    if training is None or not training.jobs:
        return ""
    predicted = facts.tuned.job_sps.value if facts.tuned and facts.tuned.job_sps else None
    columns = {
        "job": [text(job.id) for job in training.jobs],
        "env steps": [format_count(job.env_steps) for job in training.jobs],
        "episodes": [format_count(job.episodes) for job in training.jobs],
        "time": [format_duration(job.seconds) for job in training.jobs],
        "SPS": [format_count(job.sps) for job in training.jobs],
    }
    if predicted:
        against = [signed_percent(job.sps / predicted - 1) if job.sps else UNKNOWN for job in training.jobs]
        columns["against prediction"] = against
    columns[f"mean return (last {RETURNS_KEPT})"] = [format_count(job.mean_return) for job in training.jobs]
    columns["crashes"] = [str(job.crashes) for job in training.jobs]
    shown = table(list(columns), [list(row) for row in zip(*columns.values(), strict=True)])
    note = (
        "Against prediction: the job's speed over its whole training, warm-up and saving included, beside the "
        "measured speed of one job."
    )
    if training.steps_down:
        note += " It stepped down meanwhile, so that a part of it ran at a lighter point than the prediction's."
    return f"{shown}\n\n{note}" if predicted else shown


def _spent(facts: Facts) -> str:
    """What the training took so far, of the machine and of the money."""
    spent_s = facts.training.machine_s if facts.training else 0.0
    if not spent_s:
        return ""
    down_s = facts.training.down_s if facts.training else 0.0
    down = f"; the machine was down for {took(facts, down_s)} more" if down_s else ""
    return f"In all the training had the machine for {took(facts, spent_s)}, each start to its last event{down}."


def _unfinished(facts: Facts) -> str:
    """The jobs that are not done: how far they are, and why they ended."""
    left = facts.training.unfinished if facts.training else ()
    if not left:
        return ""
    lines = [
        f"- {text(job.id)}: {job.status} at {percent(job.fraction)} of its budget{_why(job.detail)}"
        for job in sorted(left, key=lambda job: job.status != "crashed")[:_LEFT_SHOWN]
    ]
    more = [f"- and {len(left) - _LEFT_SHOWN} more"] if len(left) > _LEFT_SHOWN else []
    return "**Not done:**\n\n" + "\n".join([*lines, *more])


def _why(detail: str) -> str:
    return f": {text(detail)}" if detail else ""
