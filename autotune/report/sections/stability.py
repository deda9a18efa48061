"""How far failures can be excluded, what headroom is left, and what a failure rate would cost."""

from __future__ import annotations

from autotune.availability import (
    CHECKPOINT_S,
    RESTART_S,
    availability,
    best_checkpoint_interval_s,
    effective_cost_usd,
)
from autotune.report.facts import Facts
from autotune.report.measured import Measured
from autotune.report.projection import HOUR_S
from autotune.report.training import Training
from autotune.report.wording import money, percent, text
from autotune.stats import failure_rate_bound_per_hour, failure_rate_mean_per_hour
from autotune.train.sessions import checkpoint_seconds
from autotune.units import counted, format_bytes, format_count, format_duration, how_often

_USEFUL_AVAILABILITY = 0.5


def render(facts: Facts) -> str:
    """Failures at the tuned point and in training, their bounds, and the memory left."""
    lines = _training(facts)
    if tuned := facts.tuned:
        lines = [*_failures(facts, tuned), *lines, *_drift(facts), *_headroom(facts, tuned)]
    return "\n".join(f"- {line}" for line in lines)


def _failures(facts: Facts, tuned: Measured) -> list[str]:
    observed_h = tuned.observed_s / HOUR_S
    if observed_h <= 0:
        return ["The tuned point was not observed for any length of time: nothing is known of its stability."]
    bound = failure_rate_bound_per_hour(tuned.failures, observed_h)
    seen = format_duration(tuned.observed_s)
    if tuned.failures:
        mean = format_count(failure_rate_mean_per_hour(tuned.failures, observed_h))
        count = counted(tuned.failures, "failure").capitalize()
        first = f"{count} in {seen} of running: about {mean} per hour, at most {format_count(bound)} (95 %)."
    else:
        first = f"No failure in {seen} of running, so at most {format_count(bound)} failures per hour (95 %)."
    return [first, _survival(facts, tuned, HOUR_S / bound)]


def _survival(facts: Facts, tuned: Measured, mean_failure_s: float) -> str:
    interval_s = best_checkpoint_interval_s(mean_failure_s, CHECKPOINT_S)
    kept = availability(mean_failure_s, RESTART_S, CHECKPOINT_S, interval_s) if interval_s > 0 else 0.0
    if kept < _USEFUL_AVAILABILITY:
        return (
            "That is too short an observation to bound what failures could cost; a longer `--budget` watches the "
            "point for longer, and training goes on counting."
        )
    sentence = (
        f"Failing as often as that, {percent(kept)} of the time would still be kept work, with a checkpoint every "
        f"{format_duration(interval_s)} (assuming {CHECKPOINT_S:g} s a checkpoint and {RESTART_S:g} s a restart)"
    )
    plan = facts.projection(tuned)
    if plan is None or plan.usd is None:
        return sentence + "."
    return f"{sentence}, and the jobs would cost {money(effective_cost_usd(plan.usd.value, 1 - kept))}."


def _training(facts: Facts) -> list[str]:
    training = facts.training
    if training is None:
        return []
    stepped = (f"Stepped down: {text(why, 1000)}." for why in training.steps_down)
    return [*_crashes(training), *_hosts_lost(facts, training), *stepped]


def _crashes(training: Training) -> list[str]:
    if training.job_seconds <= 0:
        return []
    count = training.crashes
    bound = format_count(failure_rate_bound_per_hour(count, training.job_seconds / HOUR_S))
    crashes = counted(count, "crash", "crashes") if count else "no crash"
    seen = format_duration(training.job_seconds)
    return [f"In training: {crashes} in {seen} summed over the jobs, so at most {bound} per hour of one job (95 %)."]


def _hosts_lost(facts: Facts, training: Training) -> list[str]:
    """What the machine's going down cost, and how often to save against it."""
    lost = training.hosts_lost
    if not lost or not training.machine_s:
        return []
    hours = training.machine_s / HOUR_S
    rate, down = failure_rate_mean_per_hour(lost, hours), training.down_s / (training.machine_s + training.down_s)
    told = (
        f"The machine went down {how_often(lost)} in {format_duration(training.machine_s)} of training: about "
        f"{format_count(rate)} times per hour, at most {format_count(failure_rate_bound_per_hour(lost, hours))} "
        f"(95 %). Until training went on {format_duration(training.down_s)} passed, {percent(down)} of all the time"
    )
    plan = facts.projection(facts.tuned) if facts.tuned else None
    if plan and plan.usd and down < 1:
        told += f": losing as much, the jobs cost {money(effective_cost_usd(plan.usd.value, down))}"
    best_s = best_checkpoint_interval_s(HOUR_S / rate, checkpoint_seconds(training.sessions))
    return [f"{told}. What failures cost is least with a checkpoint every {format_duration(best_s)}{_interval(facts)}."]


def _interval(facts: Facts) -> str:
    if facts.manifest is None:
        return ""
    return f" (now {format_duration(facts.manifest.stability.checkpoint_interval_s)}: `checkpoint_interval_s`)"


def _drift(facts: Facts) -> list[str]:
    """Whether the machine stayed what it was."""
    if facts.search is None or facts.search.epochs < 2:
        return []
    changes = facts.search.epochs - 1
    return [
        f"The machine's own speed changed {how_often(changes)} during the search; figures are put on its last footing."
    ]


def _headroom(facts: Facts, tuned: Measured) -> list[str]:
    device = facts.device
    limits = [
        ("VRAM", tuned.result.vram_peak_bytes, device.vram_total_bytes if device else None),
        ("RAM", tuned.result.ram_peak_bytes, device.host.ram_limit_bytes if device else None),
        ("/dev/shm", tuned.result.shm_peak_bytes or None, device.host.shm_total_bytes if device else None),
    ]
    lines = []
    for name, peak, limit in limits:
        if peak is None:
            continue
        of = f" of {format_bytes(limit)} ({percent(peak / limit)})" if limit else ""
        lines.append(f"{name} peak {format_bytes(peak)}{of}{_vram_parts(tuned) if name == 'VRAM' else ''}.")
    if tuned.result.threads_peak is not None and tuned.result.processes_peak is not None:
        limit = device.host.pids_limit if device else None
        of = f" of {limit:,} allowed" if limit else ""
        processes = counted(tuned.result.processes_peak, "process", "processes")
        lines.append(f"At most {processes} with {tuned.result.threads_peak:,} threads{of}.")
    return lines


def _vram_parts(tuned: Measured) -> str:
    """The peaks that different observers saw, side by side."""
    result = tuned.result
    seen = {
        "the framework's own count": result.framework_peak_bytes,
        "the driver's by process": result.vram_process_bytes,
        "the device's growth": result.vram_device_delta_bytes,
    }
    parts = [f"{name} {format_bytes(peak)}" for name, peak in seen.items() if peak is not None]
    return f"; {', '.join(parts)}" if parts else ""
