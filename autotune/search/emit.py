"""From what a search found to the manifest that trains with it."""

from __future__ import annotations

from autotune.machine import DeviceInfo
from autotune.manifest import build_manifest, save_manifest
from autotune.manifest_schema import LearningSection
from autotune.records import Recipe
from autotune.runs import Run
from autotune.search.result import StudyResult
from autotune.worker.checkpoint import trained_env_steps


def emit_manifest(found: StudyResult, recipe: Recipe, run: Run, device: DeviceInfo, learning: LearningSection) -> None:
    """Write ``manifest.json`` into the run; `learning` is what is known of learning at its point.

    Raises:
        FileError: the run folder cannot be written.
    """
    manifest = build_manifest(
        recipe,
        found.point,
        result=found.result,
        ladder=[(rung.requested, rung.sps) for rung in found.ladder],
        price=found.price_usd_per_hour,
        device=device,
        learning=learning,
        provenance={
            "study": run.study_file.name,
            "trials": sum(trial.counts for trial in found.trials),
            "trained_env_steps": trained_env_steps(recipe.checkpoints),
        },
    )
    save_manifest(run.manifest_file, manifest)
