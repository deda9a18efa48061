"""What the command line shows: tables and JSON objects for stdout."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from tabulate import tabulate

from autotune.codec import to_json
from autotune.errors import AutotuneError
from autotune.executors.stability import MARKS
from autotune.export.rows import FIGURES, probe_row, trial_rows
from autotune.guard.status import PilotsStatus, pilots_status
from autotune.manifest_schema import LearningSection
from autotune.probe.recipe import load_recipe
from autotune.records import Job, ProbeResult, TrainResult
from autotune.runs import Run, is_held, load_device, running_runs
from autotune.search.learning import sentences
from autotune.search.outcome import found_in
from autotune.search.result import StudyResult, contention, economy, failures, outran, sentence
from autotune.search.trials import TrialRecord, load_trials
from autotune.train.migration import successor
from autotune.train.status import JobSnapshot, read_snapshot, status_file
from autotune.units import brief, counted, format_bytes, format_count, format_duration, shortened, typed

_CELL_MAX = 80
_DETAIL_MAX = 240
_NAMES_MAX = 10


def describe(result: ProbeResult) -> str:
    """One line for a measured or failed point: ``num_envs=8 ...: 412 SPS +- 3 %``."""
    if result.sps is None or result.status != "ok":
        return f"{result.requested.label()}: {result.status} ({brief(result.detail)})"
    return f"{result.requested.label()}: {format_sps(result)}"


def format_sps(result: ProbeResult) -> str:
    """``412 SPS +- 3 %``, with what the figure rests on."""
    half = _half_width(result)
    return f"{format_count(result.sps)} SPS{'' if half is None else f' ± {half:.1%}'}"


def _half_width(result: ProbeResult) -> float | None:
    if not result.sps or result.sps_high is None:
        return None
    return (result.sps_high - result.sps) / result.sps


def probe_table(results: Sequence[ProbeResult]) -> str:
    """A table of probes for people; columns that no probe has anything to say in are left out."""
    rows = [_cells(result) for result in results]
    always = {"status", "SPS", "95 %", "VRAM", "RAM"}
    knobs = [name for result in results for name in result.requested.knobs()]
    names = dict.fromkeys([*knobs, *(name for row in rows for name in row)])
    shown = [name for name in names if name in always or any(row.get(name, "") != "" for row in rows)]
    return tabulate([[row.get(name, "") for name in shown] for row in rows], headers=shown, disable_numparse=True)


def probe_text(results: Sequence[ProbeResult], jobs: Sequence[Job]) -> str:
    """What a probe says at its end: the table, what its marks mean, and which environments it leaves out."""
    seen = {flag for result in results for flag in result.flags}
    marks = [f"{mark}: {meaning}" for mark, meaning in MARKS.items() if mark in seen]
    return "\n".join(line for line in (probe_table(results), *marks, _unmeasured(results, jobs)) if line)


def _unmeasured(results: Sequence[ProbeResult], jobs: Sequence[Job]) -> str:
    """A sentence on the jobs' environments that no probe ran; empty where each was run."""
    ran = list(dict.fromkeys(env for result in results for env in result.envs))
    left_out = [env for env in dict.fromkeys(job.env for job in jobs) if env not in ran]
    if not ran or not left_out:
        return ""
    count = max(len(result.envs) for result in results)
    runs = f"concurrency {count} runs {'the first job' if count == 1 else f'the first {count} jobs'} only"
    more = f" and {len(left_out) - _NAMES_MAX} more" if len(left_out) > _NAMES_MAX else ""
    return f"measured with {', '.join(ran)}, not with {', '.join(left_out[:_NAMES_MAX])}{more}: {runs}"


def _cells(result: ProbeResult) -> dict[str, Any]:
    """A probe by column; the three VRAM columns are what different observers saw of its peak."""
    half, reason = _half_width(result), result.limited_by or shortened(brief(result.detail), _CELL_MAX)
    marks = [flag for flag in result.flags if "launch" not in flag]
    return {
        **result.requested.knobs(),
        "status": result.status,
        "SPS": "" if result.sps is None else format_count(result.sps),
        "95 %": "" if half is None else f"± {half:.1%}",
        "VRAM": _size(result.vram_peak_bytes) or "unknown",
        "framework": _size(result.framework_peak_bytes),
        "by process": _size(result.vram_process_bytes),
        "device delta": _size(result.vram_device_delta_bytes),
        "RAM": _size(result.ram_peak_bytes) or "unknown",
        "shm": _size(result.shm_peak_bytes or None),
        "threads": "" if result.threads_peak is None else f"{result.threads_peak:,}",
        "cores": "" if result.cpu_cores is None else f"{result.cpu_cores:.1f}",
        "start + first iteration": _start(result),
        "marks": ", ".join(marks),
        "limited by": reason,
    }


def _size(count_bytes: int | None) -> str:
    return "" if count_bytes is None else format_bytes(count_bytes)


def _start(result: ProbeResult) -> str:
    """``3.1 + 0.8 s``: launch to ready, and the first iteration (compiling included)."""
    seconds = [f"{each:.1f}" for each in (result.startup_s, result.first_iteration_s) if each is not None]
    return f"{' + '.join(seconds)} s" if seconds else ""


def search_json(found: StudyResult, run: Run, learning: LearningSection) -> dict[str, Any]:
    """The JSON object of a search: the point, its figures, trials and counts, what is known of learning."""
    price = found.price_usd_per_hour
    named = {"baseline": found.baseline, "rule_of_thumb": found.rule_of_thumb}
    return {
        "run": str(run.path),
        "point": found.point.knobs(),
        **probe_row(found.result, price),
        **{name: result and probe_row(result, price) for name, result in named.items()},
        "trials": trial_rows(found.trials, price),
        **found.counts,
        "tied": [point.knobs() for point in found.tied],
        "knobs": to_json(found.knobs),
        "sharing": found.sharing and to_json(found.sharing),
        "spent_s": found.spent_s,
        "budget_s": found.budget_s,
        "interrupted": found.interrupted,
        "ended": found.ended,
        "skipped": [{**point.knobs(), "predicted_s": predicted_s} for point, predicted_s in found.skipped],
        "observed_s": found.observed_s,
        "training_s": found.training_s,
        "baseline_training_s": found.baseline_training_s,
        "rule_of_thumb_training_s": found.rule_of_thumb_training_s,
        "launch_fraction": found.launch_fraction,
        "epochs": found.epochs,
        "learning": learning.model_dump(mode="json"),
        "summary": sentence(found),
        "economy": economy(found),
    }


def nothing_json(run: Run, price: float | None, reason: str) -> dict[str, Any]:
    """The JSON object of a search that found no stable point, or was stopped before it had one."""
    state, trials = run.state(), load_trials(run)
    return {
        "run": str(run.path),
        "point": None,
        **dict.fromkeys(FIGURES),
        "trials": trial_rows(trials, price),
        **failures(trials),
        "spent_s": state.get("spent_s"),
        "budget_s": state.get("budget_s"),
        "interrupted": state.get("ended") == "stopped",
        "ended": state.get("ended"),
        "summary": reason,
    }


def search_text(found: StudyResult, run: Run, learning: LearningSection) -> str:
    """What a search says at its end."""
    price = "" if found.price_usd_per_hour is None else f" --price {found.price_usd_per_hour:g}"
    baseline = None if found.baseline and found.baseline.requested == found.point else found.baseline
    busy = contention({"the baseline": baseline, "this point": found.result})
    lines = [sentence(found), economy(found), *(said for said in (outran(found), busy) if said)]
    lines += [each.sentence for each in found.knobs]
    if found.sharing:
        lines.append(found.sharing.sentence)
    lines += sentences(learning)
    if found.interrupted:
        lines.append("stopped early; the same command goes on")
    if run.manifest_file.exists():
        lines.append(f"train with it:   autotune train {typed(run.manifest_file)}")
    lines.append(f"time and cost:   autotune report {typed(run.path)}{price}")
    return "\n".join(lines)


def job_note(job: JobSnapshot) -> str:
    """A job in a few words: ``running, 412 SPS, return 3.1, 2h 10m left``."""
    parts = [job.status]
    if job.status == "running":
        parts.append(f"{job.env_steps:,} steps")
    if job.sps is not None:
        parts.append(f"{format_count(job.sps)} SPS")
    if job.mean_return is not None:
        parts.append(f"return {job.mean_return:.1f}")
    if job.vram_bytes is not None:
        parts.append(format_bytes(job.vram_bytes))
    if job.eta_s is not None and job.status == "running":
        parts.append(f"{format_duration(job.eta_s)} left")
    return ", ".join(parts)


def train_text(result: TrainResult, run: Run) -> str:
    """What a training says at its end: every job, and measured against predicted."""
    rows = [
        [
            job.id,
            job.status,
            f"{job.env_steps:,}",
            f"{job.episodes:,}",
            format_duration(job.seconds),
            format_count(job.sps),
            "" if job.mean_return is None else f"{job.mean_return:.1f}",
            shortened(brief(job.detail), _CELL_MAX),
        ]
        for job in result.jobs
    ]
    headers = ["job", "status", "env steps", "games", "trained", "SPS", "return (100)", "detail"]
    return f"{tabulate(rows, headers=headers, disable_numparse=True)}\n{_compared(result)}\nfolder {run.train_folder}"


def _compared(result: TrainResult) -> str:
    if result.sps is None:
        return "no rate of all jobs at once: too short after warm-up, or fewer ran than the point has places"
    if result.predicted_sps is None:
        return f"measured {format_count(result.sps)} SPS over all jobs at once; the manifest predicts none"
    return _against_prediction(result.sps, result.predicted_sps)


def _against_prediction(measured_sps: float, predicted_sps: float) -> str:
    difference = f"({measured_sps / predicted_sps - 1:+.1%})"
    measured = f"measured {format_count(measured_sps)} SPS over all jobs at once"
    return f"{measured}, predicted {format_count(predicted_sps)} {difference}"


def status_text(run: Run) -> str:
    """What a run is doing, or how it ended."""
    state = run.state()
    lines = [f"{state.get('command', 'run')} {run.name}, created {state.get('created', 'unknown')[:16]} UTC"]
    if run.study_file.exists():
        pilots = pilots_status(run)
        lines += [_search_status(run, state, pilots), *_guard_status(run, state, pilots)]
    if state.get("training") == "rolled back":
        lines.append(f"training: rolled back; what was trained lies in {run.path / 'rolled-back'}")
    if status_file(run).exists():
        snapshot = read_snapshot(run)
        lines += [f"training: {snapshot.state} at {snapshot.point}", _jobs_table(snapshot.jobs)]
        if snapshot.measured_sps is not None and snapshot.predicted_sps:
            lines.append(_against_prediction(snapshot.measured_sps, snapshot.predicted_sps))
    if following := successor(run):
        lines.append(f"run {following.path} goes on with this training")
    if others := _also_running(run):
        lines.append(f"also running: {', '.join(others)}")
    return "\n".join(lines)


def _also_running(run: Run) -> list[str]:
    """Names of the other runs beside this one that a process holds."""
    return [other.name for other in running_runs(run.path.parent) if other.name != run.name]


def _jobs_table(jobs: Sequence[JobSnapshot]) -> str:
    headers = ["job", "status", "env steps", "games", "done", "SPS", "return (100)", "VRAM", "left", "detail"]
    rows = [
        [
            job.id,
            job.status,
            f"{job.env_steps:,}",
            f"{job.episodes:,}",
            f"{job.fraction:.0%}",
            "" if job.sps is None else format_count(job.sps),
            "" if job.mean_return is None else f"{job.mean_return:.1f}",
            format_bytes(job.vram_bytes) if job.vram_bytes is not None else "unknown",
            "" if job.eta_s is None else format_duration(job.eta_s),
            shortened(brief(job.detail), _DETAIL_MAX),
        ]
        for job in jobs
    ]
    shown = len(headers) - (not any(job.detail for job in jobs))
    return tabulate([row[:shown] for row in rows], headers[:shown], disable_numparse=True)


def _guard_status(run: Run, state: dict[str, Any], pilots: PilotsStatus | None) -> list[str]:
    """How far the pilots of a search's guard are; of one that came to its end the manifest and the report tell."""
    if pilots is None or (not pilots.running and (state.get("guarded") or is_held(run.path))):
        return []
    how = "pilots train" if pilots.running else "unfinished, the search with --guard resumes it"
    return [f"guard: {how}, {pilots.done} of {pilots.total} pilots done", _jobs_table(pilots.jobs)]


def _search_status(run: Run, state: dict[str, Any], pilots: PilotsStatus | None) -> str:
    records = load_trials(run)
    trials = [trial for trial in records if trial.counts]
    stable = [trial.result for trial in trials if trial.result.ok]
    best = max(stable, key=lambda result: result.sps or 0.0, default=None)
    spent = f" in {format_duration(state['spent_s'])}" if "spent_s" in state else ""
    unfinished = "unfinished" if state["command"] == "probe" else "unfinished, resumable"  # a probe begins anew
    over = bool(state.get("finished") or (pilots and pilots.running))
    phase = "finished" if over else "running" if is_held(run.path) else unfinished
    none = "none stable" if over else "none stable yet"
    found = _recommended(run, state, records) if over else None
    told = f"recommended {describe(found)}" if found else none if best is None else f"fastest {describe(best)}"
    return f"{state['command']}: {phase}, {counted(len(trials), 'probe')}{spent}, {told}"


def _recommended(run: Run, state: dict[str, Any], records: tuple[TrialRecord, ...]) -> ProbeResult | None:
    """What a search recommends, as its report states it: the fastest of its probes is usually a lucky one."""
    with contextlib.suppress(AutotuneError):  # a recipe or device that cannot be read is the report's to tell
        recipe, device = load_recipe(str(run.recipe_file)), load_device(run)
        found = found_in(state, records, recipe, device, None) if device else None
        return found.result if found else None
    return None


def status_json(run: Run) -> dict[str, Any]:
    """The same as one JSON object."""
    return {
        "run": str(run.path),
        **run.state(),
        "active": is_held(run.path),
        "also_running": _also_running(run),
        "trials": trial_rows(load_trials(run), None),
        "guard": to_json(pilots_status(run)),
        "training": to_json(read_snapshot(run)) if status_file(run).exists() else None,
    }


def show_status(run: Run, *, stderr: bool) -> None:
    """Clear the terminal and show the status, for `--watch`."""
    console = Console(stderr=stderr)
    if console.is_terminal:
        console.clear()
    console.print(status_text(run), highlight=False, markup=False, soft_wrap=True)
