"""The first lines: what to run, how long, what it costs, what is saved, how sure."""

from __future__ import annotations

from autotune.report.facts import Facts
from autotune.report.learning import checked, learning_of, loud_change
from autotune.report.measured import Measured
from autotune.report.projection import HOUR_S, SAME
from autotune.report.wording import (
    MORE_GAMES,
    UNKNOWN,
    about,
    against,
    code,
    games,
    money,
    plan_dollars,
    plan_hours,
    speed,
    text,
)
from autotune.search.learning import remedy, sentences
from autotune.search.result import FORBIDS, contention, outran, what_slowing_means
from autotune.stats import failure_rate_bound_per_hour
from autotune.units import counted, format_count, format_duration, format_usd, how_often, typed

_MADE_UP = "a recorded surface plans no training, these jobs are made up"


def render(facts: Facts) -> str:
    """The answer for the one who pays."""
    if facts.tuned is None or facts.tuned.sps is None:
        return _nothing_tuned(facts)
    lines = [*_what(facts, facts.tuned), *_projected(facts, facts.tuned), *_trained(facts), *_sooner(facts)]
    lines += [*_saved(facts), *_sure(facts, facts.tuned), _next(facts)]
    return "\n".join(f"- {line}" for line in lines)


def _nothing_tuned(facts: Facts) -> str:
    if facts.edited:
        point = code(facts.manifest.point.record().label()) if facts.manifest else UNKNOWN
        none = (
            f"**No measurement of {point}**: the manifest's settings were not measured in this run, so there is "
            f"no projection. `autotune probe` measures them, `autotune search` finds better ones."
        )
        return "\n".join(f"- {line}" for line in [none, *_trained(facts), _next(facts)])
    if len(facts.trials):
        return _nothing_stable(facts)
    if facts.training:
        begun = "**A training without probes of its own**: what it did stands below; nothing here was tuned."
        lines = [begun, *_trained(facts), *([_next(facts)] if facts.manifest else [])]
        return "\n".join(f"- {line}" for line in lines)
    if facts.state.get("training") == "rolled back":
        return f"- **Rolled back:** what was trained here lies in {code(facts.run.path / 'rolled-back')}."
    begun = "- **Nothing was measured yet** in this run"
    return f"{begun}.\n- {_meanwhile(facts)}" if facts.active else f"{begun}: `autotune search --budget 30m` fills it."


def _nothing_stable(facts: Facts) -> str:
    counts = facts.trials["status"].value_counts()
    shown = ", ".join(f"{count} {str(status).replace('_', ' ')}" for status, count in counts.items())
    below = "" if set(counts.index) == {"ok"} else ": see what failed below"
    line = f"- **No stable point** among {counted(len(facts.trials), 'probe')} ({shown}){below}."
    if facts.slowing:
        points = ", ".join(code(point.label()) for point in facts.slowing)
        line += f"\n- **Slowing down:** {points} ran, but {what_slowing_means(code('[final] window_s'))}"
    return "\n".join([line, *_in_vain(facts)])


def _in_vain(facts: Facts) -> list[str]:
    """What a search without a result cost, and what to do next."""
    if facts.state.get("command") != "search":
        return []
    lines = []
    if facts.spent_s:
        at = "; what an hour costs is given with `--price`"
        if facts.price:
            usd = facts.spent_s / HOUR_S * facts.price.usd_per_hour
            at = f", {money(usd)} at {format_usd(facts.price.usd_per_hour)} per hour ({text(facts.price.note)})"
        lines.append(f"- **What the search cost:** {format_duration(facts.spent_s)}{at}.")
    if facts.active:
        return [*lines, f"- {_meanwhile(facts)}"]
    if not facts.state.get("finished"):
        return [*lines, "- **Next:** the same `autotune search` command goes on."]
    if facts.slowing:
        return lines
    known = "`autotune search --baseline KNOB=VALUE,...` with what you know to run"
    return [*lines, f"- **Next:** {known}: {FORBIDS}."]


def _what(facts: Facts, tuned: Measured) -> list[str]:
    device = f" on {text(facts.device.name)}" if facts.device else ""
    count = facts.points_measured
    which = f"the best of the {count} points measured" if count > 1 else "the only point measured"
    return [f"**What to run:** {code(tuned.point.label())}, {which}{device}."]


def _projected(facts: Facts, tuned: Measured) -> list[str]:
    plan = facts.projection(tuned)
    if plan is None:
        return ["**How long, what it costs:** unknown, this run names no jobs."]
    if plan.hours is None:
        waiting = ", ".join(text(job) for job in plan.unknown[:5])
        why = f"too few episodes ended while measuring to turn them into steps; {MORE_GAMES}"
        return [f"**How long, what it costs:** unknown for {waiting}: {why}. Per hour: {_per_hour(facts, tuned)}."]
    together = f", {plan.slots} at a time" if plan.slots > 1 else ""
    count = len(plan.jobs)
    jobs = f"{count} jobs{together}" if count > 1 else "the one job"
    open_end = " (how fast those left at its end are was not measured)" if plan.open_end else ""
    example = facts.recipe is not None and facts.recipe.workload == "replay"
    how, made_up = (", as an example", f"; {_MADE_UP}") if example else ("", "")
    hours = f"{about(plan, plan_hours(plan))} for {jobs}{open_end}{_episodes(facts)}"
    lines = [f"**How long{how}:** {hours}{made_up}."]
    if facts.price and plan.usd:
        at = f"at {format_usd(facts.price.usd_per_hour)} per hour ({text(facts.price.note)})"
        lines.append(f"**What it costs:** {about(plan, plan_dollars(plan))} {at}.")
    else:
        lines.append(
            "**What it costs:** no price is known for this machine; give what an hour of it costs with `--price`, "
            "such as `autotune report --price 2.0`."
        )
    return lines


def _trained(facts: Facts) -> list[str]:
    """What a training took so far, and what is left of it."""
    left, plan = facts.left, facts.plan_left
    if left is None:
        return []
    usd = f", {money(facts.trained_s / HOUR_S * facts.price.usd_per_hour)}" if facts.price else ""
    took = f"{format_duration(facts.trained_s)} of the machine{usd}"
    if not left.unfinished:
        return [f"**What the training took:** {took}, from the first start to the last end, pauses left out."]
    done, jobs = len(left.jobs) - len(left.unfinished), "job" if len(left.jobs) == 1 else "jobs"
    new = sum(not each.begun for each in left.unfinished)
    lines = [f"**Trained so far:** {took}; {done} of {len(left.jobs)} {jobs} done, {new} not begun."]
    if plan is None:
        return [*lines, "**Left to train:** nothing of the budgets, the jobs only have to end."]
    if plan.hours is None:
        return [*lines, "**Left to train:** of an unknown length; see below."]
    cost = f", {about(plan, plan_dollars(plan))}" if facts.price else ""
    return [*lines, f"**Left to train:** {about(plan, plan_hours(plan))}{cost}; see below at which speeds."]


def _sooner(facts: Facts) -> list[str]:
    """What ends the jobs before the recommended point does, for that one makes the most steps in all, not the first."""
    other, plan = facts.soonest, facts.projection(facts.tuned)
    sooner = facts.projection(other)
    if other is None or plan is None or sooner is None:
        return []
    usd = f" and {plan_dollars(sooner)}" if facts.price else ""
    unsure = ", by how fast those left at its end are, which was not measured" if plan.open_end else ""
    lengths = [job.hours.value for job in plan.jobs if job.hours]
    order = "" if lengths[0] >= max(lengths) * (1 - SAME) else "put the longest job first, or "
    return [
        f"**These jobs {'may ' if plan.open_end else ''}end sooner at {code(other.point.label())}:** in "
        f"{plan_hours(sooner)}{usd}; the point above takes {plan_hours(plan, interval=not plan.open_end)}{unsure}. "
        "It makes the most steps per second with all places taken, and these jobs leave some empty. What to do: "
        f"{order}search again with `concurrency = [{other.point.concurrency}]` under `[knobs]` in the recipe."
    ]


def _episodes(facts: Facts) -> str:
    return f", {games(facts)}" if facts.counts_games else ""


def _per_hour(facts: Facts, tuned: Measured) -> str:
    steps = format_count(tuned.sps.value * HOUR_S) if tuned.sps else UNKNOWN
    return f"{steps} env steps" + (f" for {format_usd(facts.price.usd_per_hour)}" if facts.price else "")


def _saved(facts: Facts) -> list[str]:
    references = [each for each in (facts.baseline, facts.rule_of_thumb) if each]
    if not references:
        return ["**What it saves:** unknown, neither a baseline nor the rule of thumb was measured."]
    return [
        f"**Saved against the {each.role}** ({code(each.point.label())}): {against(facts, each)}."
        for each in references
    ]


def _sure(facts: Facts, tuned: Measured) -> list[str]:
    each = ""
    if tuned.point.concurrency > 1 and tuned.job_sps:
        each = f", which is {format_count(tuned.job_sps.value)} SPS for each of {tuned.point.concurrency} jobs at once"
    lines = [f"**How sure:** {speed(tuned)}{each}.{_ties(facts)}"]
    if not tuned.firm:
        lines.append("**Not firm:** one launch or quick windows rank points, they do not promise; search longer.")
    if facts.search and (early := outran(facts.search)):
        lines.append(f"**Not all was measured:** {early}.")
    baseline = facts.baseline.result if facts.baseline and facts.baseline.point != tuned.point else None
    if busy := contention({f"the {tuned.role} point": tuned.result, "the baseline": baseline}):
        lines.append(f"**Not alone:** {busy}.")
    observed_hours = tuned.observed_s / HOUR_S
    if tuned.failures == 0 and observed_hours > 0:
        bound = format_count(failure_rate_bound_per_hour(0, observed_hours))
        seen = format_duration(tuned.observed_s)
        lines.append(f"**Stability:** no failure in {seen}, so at most {bound} failures per hour (95 %).")
    elif tuned.failures:
        lines.append(f"**Stability:** {tuned.failures} of its launches failed; see below.")
    if facts.training and facts.training.crashes:
        lines.append(f"**Crashed in training:** {how_often(facts.training.crashes)}; see below.")
    if facts.training and facts.training.hosts_lost:
        lines.append(f"**The machine went down in training:** {how_often(facts.training.hosts_lost)}; see below.")
    warning, evidence = loud_change(facts), checked(facts)
    if evidence:
        verdict, _, figures = sentences(evidence)[0].partition(": ")
        lines.append(f"**{text(verdict)}:** {text(figures, 1000)}")
    elif warning:
        lines.append(f"**Learning not checked, and it may change:** {warning} than the baseline; see below.")
    elif learning_of(tuned, facts.hyperparameters):
        lines.append("**Learning not checked:** these figures are speed; see below how the settings feed the learner.")
    return lines


def _ties(facts: Facts) -> str:
    if not facts.tied:
        return ""
    first, more = code(facts.tied[0].label()), len(facts.tied) - 1
    others = f" and {more} more" if more else ""
    return f" Tied with {first}{others}."


def _meanwhile(facts: Facts) -> str:
    """Of a run in which a process works now."""
    return f"**Next:** it still runs, and this report is as of now: {code(f'autotune status {typed(facts.run.path)}')}"


def _next(facts: Facts) -> str:
    train = code(f"autotune train {typed(facts.run.manifest_file)}")
    if facts.active:
        return _meanwhile(facts)
    if facts.successor:
        report = code(f"autotune report {typed(facts.successor.path)}")
        return f"**Next:** run {text(facts.successor.name)} goes on with this training: {report}"
    if facts.training and facts.training.events and (last := facts.training.events[-1]).get("kind") == "ended":
        if (state := last.get("state")) != "done":
            why = "in which jobs crashed" if state == "crashed" else "which was stopped"
            return f"**Next:** {train} goes on with the training, {why}; what it did stands below."
        return "**Next:** the training ended; what it did stands below."
    if facts.recipe and facts.recipe.workload == "replay":
        return "**Next:** a replay trains nothing; `autotune search --budget 30m` on the machine emits a manifest."
    unfinished = facts.state.get("command") == "search" and not facts.state.get("finished")
    if facts.manifest is None and unfinished:
        return "**Next:** the same `autotune search` command goes on, and emits a manifest to train from."
    if facts.manifest is None:
        return "**Next:** `autotune search --budget 30m` emits a manifest to train from."
    if (learning := checked(facts)) is not None and learning.status == "failed":
        return f"**Next:** {text(remedy(learning))}. In spite of the guard: {train}"
    if not unfinished:
        return f"**Next:** {train}"
    guard = facts.guard_s and facts.state.get("ended") != "stopped"
    what = "whose guard was stopped: the same command goes on with it"
    return f"**Next:** {train}, or the search again, {what if guard else 'which was stopped: the same command goes on'}"
