"""Whether the settings still teach: what changes for the learner, and what a training did."""

from __future__ import annotations

from autotune.report.facts import Facts
from autotune.report.learning import learning_of, loud_change
from autotune.report.training import RETURN_WINDOW
from autotune.report.wording import UNKNOWN, counts, signed_percent, table, text
from autotune.units import format_count, format_duration


def render(facts: Facts) -> str:
    """The learner's diet at each point, then the training measured against the prediction."""
    return "\n\n".join(part for part in (_learning(facts), _training(facts)) if part)


def _learning(facts: Facts) -> str:
    known = [(each, change) for each in facts.measured if (change := learning_of(each, facts.hyperparameters))]
    if not known:
        return ""
    rows = [
        ["samples per update (num_envs x rollout)", *(format_count(each.samples_per_update) for _, each in known)],
        ["optimizer steps per 1,000 env steps", *(format_count(each.updates_per_step * 1000) for _, each in known)],
    ]
    warning = loud_change(facts)
    verdict = (
        f"**The tuned point has {warning} than the baseline.** Faster steps may teach less: learning was not "
        "checked here. Compare a short training at both settings before a long one."
        if warning
        else "Learning was not checked here: probes measure speed, and equally many steps can teach more or less."
    )
    return f"{verdict}\n\n{table(['each job', *(each.role for each, _ in known)], rows)}"


def _training(facts: Facts) -> str:
    training = facts.training
    if training is None or not training.jobs:
        return ""
    predicted = facts.tuned.job_sps.value if facts.tuned and facts.tuned.job_sps else None
    rows = []
    for job in training.jobs:
        against = signed_percent(job.sps / predicted - 1) if job.sps and predicted else UNKNOWN
        seconds = format_duration(job.seconds)
        cells = [format_count(job.env_steps), format_count(job.episodes), seconds, counts(job.sps)]
        rows.append([text(job.id), *cells, against, format_count(job.mean_return), str(job.crashes)])
    headers = [
        "job",
        "env steps",
        "episodes",
        "time",
        "SPS",
        "against prediction",
        f"mean return (last {RETURN_WINDOW})",
        "crashes",
    ]
    note = (
        "Against prediction: the job's speed over its whole training, warm-up and saving included, beside the "
        "measured speed of one job."
    )
    return f"{table(headers, rows)}\n\n{note}" if predicted else table(headers, rows)
