"""The report's figures as plain JSON, for `--json`."""

from __future__ import annotations

from typing import Any

from autotune.report.facts import Facts
from autotune.report.measured import Measured
from autotune.report.projection import HOUR_S, Projection, Quantity

_TRIAL_KEYS = (
    *("number", "stage", "num_envs", "batch_size", "concurrency", "status", "grade", "sps", "sps_low", "sps_high"),
    *("job_sps", "vram_peak_bytes", "ram_peak_bytes", "cost_s", "startup_s", "first_iteration_s"),
    *("reset_fraction", "limited_by", "detail"),
)


def report_json(facts: Facts) -> dict[str, Any]:
    """Every figure of the report; null is unknown, never NaN."""
    return {
        "run": facts.run.name,
        "recipe": facts.recipe.name if facts.recipe else None,
        "device": facts.device.fingerprint if facts.device else None,
        "price_usd_per_hour": facts.price.usd_per_hour if facts.price else None,
        "price_note": facts.price.note if facts.price else None,
        "spent_s": facts.spent_s,
        "guard_s": facts.guard_s,
        "budget_s": facts.budget_s,
        "points_measured": facts.points_measured,
        "tuned": _measured(facts, facts.tuned),
        "baseline": _measured(facts, facts.baseline),
        "rule_of_thumb": _measured(facts, facts.rule_of_thumb),
        "savings": {
            "baseline": _savings(facts, facts.baseline),
            "rule_of_thumb": _savings(facts, facts.rule_of_thumb),
        },
        "learning": _learning(facts),
        "training": _training(facts),
        "trials": [_trial(row, facts) for row in facts.trial_rows],
    }


def _learning(facts: Facts) -> dict[str, Any] | None:
    """What is known of learning at the tuned point, as the manifest says it."""
    known = facts.manifest.checked() if facts.manifest else None
    return known.model_dump(mode="json") if known else None


def _training(facts: Facts) -> dict[str, Any] | None:
    """What a training took so far, and what it has left; null where nothing was trained."""
    if facts.training is None:
        return None
    spent_s, plan = facts.trained_s, facts.plan_left
    return {
        "machine_s": spent_s,
        "usd": spent_s / HOUR_S * facts.price.usd_per_hour if facts.price else None,
        "jobs_left": [each.job.id for each in facts.left.unfinished] if facts.left else None,
        "left": _projection(plan) if plan else None,
    }


def _goodput_per_usd(sps: float | None, facts: Facts) -> float | None:
    """As `ProbeResult.goodput_per_usd`, of a stable point's speed."""
    return HOUR_S * sps / facts.price.usd_per_hour if facts.price and sps is not None else None


def _trial(row: dict[str, Any], facts: Facts) -> dict[str, Any]:
    shown = {key: row[key] for key in _TRIAL_KEYS}
    knobs = dict(row["extra"])
    return {
        **knobs,
        **shown,
        "job_sps": list(row["job_sps"]),
        "flags": list(row["flags"]),
        "goodput_per_usd": _goodput_per_usd(row["sps"] if row["status"] == "ok" else None, facts),
    }


def _measured(facts: Facts, measured: Measured | None) -> dict[str, Any] | None:
    if measured is None:
        return None
    result, sps = measured.result, measured.sps
    plan = facts.projection(measured)
    return {
        **measured.point.knobs(),
        "role": measured.role,
        "status": result.status,
        "grade": result.grade,
        "launches": measured.launches,
        "sps": sps.value if sps else None,
        "sps_low": sps.low if sps else None,
        "sps_high": sps.high if sps else None,
        "job_sps": list(result.job_sps),
        "vram_peak_bytes": result.vram_peak_bytes,
        "ram_peak_bytes": result.ram_peak_bytes,
        "goodput_per_usd": _goodput_per_usd(sps.value if sps else None, facts),
        "limited_by": result.limited_by,
        "projection": _projection(plan) if plan else None,
    }


def _projection(plan: Projection) -> dict[str, Any]:
    return {
        **_ends("hours", plan.hours),
        "hours_least": plan.least.value if plan.least else None,
        **_ends("usd", plan.usd),
        "days": plan.days,
        "concurrency": plan.slots,
        "jobs": [
            {
                "id": job.id,
                "budget": {"unit": job.budget.unit, "amount": job.budget.amount},
                "steps": job.steps,
                **_ends("hours", job.hours),
                "usd": job.usd,
            }
            for job in plan.jobs
        ],
    }


def _savings(facts: Facts, reference: Measured | None) -> dict[str, Any] | None:
    saved = facts.saved(reference)
    if saved is None:
        return None
    return {
        **_ends("hours", saved.hours),
        **_ends("usd", saved.usd),
        **_ends("fraction", saved.fraction),
        "tied": saved.tied,
    }


def _ends(name: str, value: Quantity | None) -> dict[str, float | None]:
    return {
        name: value.value if value else None,
        f"{name}_low": value.low if value else None,
        f"{name}_high": value.high if value else None,
    }
