"""The manifest: what a search emits and `autotune train` executes.

Strict on purpose: an unknown key, a value out of range or a newer schema is refused with the
field, the value, what was expected and the remedy, since a training that silently ignores an
edited setting costs days.
"""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from autotune import __version__, registry, resources
from autotune.codec import to_json
from autotune.device.mps import check_sharing
from autotune.errors import FileError, ManifestError, UsageError
from autotune.machine import DeviceInfo
from autotune.manifest_schema import LearningSection, Manifest
from autotune.records import SHARING, Budget, Point, ProbeResult, Recipe
from autotune.runs import NAMED
from autotune.store import canonical_json, content_hash, durable_write, make_folder

__all__ = [
    "Manifest",
    "build_manifest",
    "bundled_manifests",
    "check_manifest",
    "json_schema",
    "load_manifest",
    "manifest_hash",
    "manifest_text",
    "parse_manifest",
    "save_manifest",
    "write_bundled",
]

SCHEMA = 1
SIZE_LIMIT_BYTES = 4 * 2**20


def manifest_text(manifest: Manifest) -> str:
    """Canonical JSON of a manifest, the same text for the same content.

    Without a word on learning it is the text that manifests had before they could say one.
    """
    data = manifest.model_dump(mode="json", by_alias=True)
    return canonical_json({key: data[key] for key in data if key != "learning" or data[key] is not None}) + "\n"


def manifest_hash(manifest: Manifest) -> str:
    """SHA-256 of the content."""
    return content_hash(manifest_text(manifest))


def json_schema() -> dict[str, Any]:
    """JSON Schema of the manifest, as published in `manifests/manifest.schema.json`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Manifest.model_json_schema(by_alias=True)}


def _not_json(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON: write a number or null")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        double = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {double!r} is given twice in one object: keep one of them")
    return found


def parse_manifest(text: str | bytes, source: str) -> Manifest:
    """Validate the text of a manifest; `source` names it in messages.

    Raises:
        ManifestError: not JSON, a newer schema, an unknown key or a bad value.
    """
    try:
        data = json.loads(text, parse_constant=_not_json, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ManifestError(
            f"{source} is not valid JSON ({error}); it may be truncated: "
            "restore it, or let `autotune search` emit it anew"
        ) from error
    version = data.get("schema") if isinstance(data, dict) else None
    if isinstance(version, int) and version > SCHEMA:
        raise ManifestError(
            f"{source}: schema = {version}, but this autotune {__version__} reads schema {SCHEMA}: "
            "update it with `pip install -U gpu-autotune`, or let `autotune search` emit the manifest anew"
        )
    try:
        return Manifest.model_validate_json(json.dumps(data))
    except ValidationError as error:
        raise ManifestError(_explain(error, source)) from error


def _explain(error: ValidationError, source: str) -> str:
    lines = []
    problems = error.errors(include_url=False)
    around = {problem["loc"][:depth] for problem in problems for depth in range(len(problem["loc"]))}
    # a list with a bad item counts as short of it
    problems = [each for each in problems if not (each["type"] == "too_short" and each["loc"] in around)]
    for problem in problems[:5]:
        where = ".".join(str(part) for part in problem["loc"]) or "manifest"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "string_pattern_mismatch":
            message = NAMED
        if problem["type"] == "extra_forbidden":
            lines.append(f"{where} is not a key of a manifest: {_nearest_key(problem['loc'])}")
        elif problem["type"] == "missing":
            lines.append(f"{where} is missing: add it (manifests/manifest.schema.json lists every key)")
        elif where == "manifest":
            lines.append(message)
        else:
            value = json.dumps(problem["input"], default=str)
            lines.append(f"{where} = {value if len(value) < 100 else value[:97] + '...'}: {message}")
    remedy = "Correct it, or let `autotune search` emit the manifest anew."
    return f"{source}: " + "; ".join(lines) + f". {remedy}"


def _nearest_key(location: tuple[int | str, ...]) -> str:
    model: Any = Manifest
    for part in location[:-1]:
        if isinstance(part, str) and isinstance(model, type) and issubclass(model, BaseModel):
            fields = {field.alias or name: field.annotation for name, field in model.model_fields.items()}
            model = _model_in(fields.get(part))
    keys = [field.alias or name for name, field in model.model_fields.items()] if model else []
    near = difflib.get_close_matches(str(location[-1]), keys, n=1, cutoff=0.5)
    return (f"did you mean {near[0]!r}? " if near else "") + f"There are: {', '.join(keys)}"


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((model for part in typing.get_args(annotation) if (model := _model_in(part))), None)


def load_manifest(path: Path) -> Manifest:
    """Read and validate a manifest.

    Raises:
        ManifestError: it does not say what the schema asks for, or names a file outside its folder.
        FileError: it cannot be read.
    """
    try:
        if path.stat().st_size > SIZE_LIMIT_BYTES:
            raise ManifestError(f"{path} is larger than {SIZE_LIMIT_BYTES >> 20} MiB: that is no manifest")
        text = path.read_bytes()
    except FileNotFoundError:
        known = ", ".join(resources.bundled("manifests"))
        raise ManifestError(f"there is no manifest {path}: name a file, or a bundled one ({known})") from None
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror or error}. Check its permissions.") from error
    manifest = parse_manifest(text, str(path))
    study = manifest.provenance.study if manifest.provenance else None
    if study and not (path.parent / study).resolve().is_relative_to(path.parent.resolve()):
        raise ManifestError(f"{path}: provenance.study = {study!r} leads outside the run folder: name a file inside it")
    return manifest


def save_manifest(path: Path, manifest: Manifest) -> None:
    """Write a manifest, durably and canonically.

    Raises:
        FileError: the folder is missing, read-only or full.
    """
    durable_write(path, manifest_text(manifest))


def check_manifest(manifest: Manifest) -> None:
    """Refuse points and jobs that the workload can never run, without loading a framework.

    Raises:
        UsageError: unknown workload, unknown hyperparameter, another framework, a knob or job out of range.
    """
    name, backend = manifest.workload.name, manifest.workload.backend
    workload = registry.make("workload", name, manifest.workload.hyperparameters)
    own = getattr(workload, "backend", None)
    if own is not None and backend not in (None, own):
        raise ManifestError(
            f"manifest {manifest.name!r}, workload.backend: {backend!r}, but workload {name!r} runs on {own!r}: "
            "correct one of the two"
        )
    for field, knobs in manifest.points():
        try:
            check_sharing(dict(knobs.record().extra).get(SHARING))
            workload.check(knobs.record(), manifest.job_records())
        except UsageError as error:
            raise ManifestError(f"manifest {manifest.name!r}, {field}: {error}") from error


def build_manifest(
    recipe: Recipe,
    point: Point,
    *,
    result: ProbeResult | None = None,
    ladder: Sequence[tuple[Point, float | None]] = (),
    price: float | None = None,
    device: DeviceInfo | None = None,
    provenance: Mapping[str, Any] | None = None,
    learning: LearningSection | None = None,
    name: str | None = None,
) -> Manifest:
    """The manifest of a recipe's jobs at a point.

    Args:
        recipe: workload, hyperparameters, jobs and limits.
        point: the tuned point.
        result: its measurement, for the prediction.
        ladder: lighter points with their predicted goodput in env steps per second.
        price: US dollars per hour of the whole machine.
        device: what it was tuned on.
        provenance: `study`, `trials`, `versions`, `commit`, `created`; versions and time are filled in.
        learning: what is known of learning at the point.
        name: the recipe's name if None.

    Raises:
        ManifestError: the parts do not make a valid manifest.
    """
    workload = registry.load("workload", recipe.workload)
    origin = {"created": datetime.now(UTC).isoformat(timespec="seconds"), **dict(provenance or {})}
    packages = dict(device.host.packages) if device else {}
    origin["versions"] = {"autotune": __version__, **packages, **dict(origin.get("versions") or {})}
    data = {
        "schema": SCHEMA,
        "name": name or recipe.name,
        "workload": {
            "name": recipe.workload,
            "backend": getattr(workload, "backend", None),
            "hyperparameters": to_json(recipe.hyperparameters),
        },
        "point": point.knobs(),
        "jobs": [to_json(job) | {"budget": _budget(job.budget)} for job in recipe.jobs],
        "ladder": [{"point": rung.knobs(), "goodput_sps": goodput} for rung, goodput in ladder],
        "stability": {"vram_fraction": recipe.limits.vram_fraction, "ram_fraction": recipe.limits.ram_fraction},
        "prediction": _prediction(point, result, price) if result and result.sps is not None else None,
        "device": {"fingerprint": device.fingerprint, "name": device.name, "kind": device.kind} if device else None,
        "provenance": origin if provenance is not None else None,
        "learning": learning.model_dump(mode="json") if learning else None,
    }
    return parse_manifest(canonical_json(data), f"manifest of recipe {recipe.name!r}")


def _budget(budget: Budget) -> dict[str, Any]:
    whole = int(budget.amount) if budget.amount == int(budget.amount) else budget.amount
    return {"unit": budget.unit, "amount": whole}


def _prediction(point: Point, result: ProbeResult, price: float | None) -> dict[str, Any]:
    same = ["sps", "sps_low", "sps_high", "job_sps", "vram_peak_bytes", "ram_peak_bytes", "power_w"]
    return {
        **{name: to_json(getattr(result, name)) for name in [*same, "limited_by", "grade"]},
        "point": point.knobs(),
        "price_usd_per_hour": price,
        "goodput_per_usd": result.goodput_per_usd(price),
    }


STANDARD_POINT = Point(num_envs=8, batch_size=256, concurrency=1)
PILOT_SHARE = 0.01
MINI_EPISODES = 2


def bundled_manifests(recipe: Recipe) -> dict[str, Manifest]:
    """`mini`, `pilot` and `full`, from the bundled `atari` recipe.

    All three share workload, hyperparameters (the schedule horizon among them) and point, and
    pilot and full the jobs too: only the stopping budgets differ, so that a pilot is the
    beginning of the full run. The point is the one of Schulman et al. 2017 (8 environments,
    minibatches of 256), which runs anywhere; a search replaces it.
    """
    first = next((job for job in recipe.jobs if job.env.startswith("Breakout")), recipe.jobs[0])
    jobs = {
        "mini": (replace(first, budget=Budget(unit="episodes", amount=MINI_EPISODES)),),
        "pilot": tuple(replace(job, budget=_share(job.budget, PILOT_SHARE)) for job in recipe.jobs),
        "full": recipe.jobs,
    }
    return {
        name: build_manifest(replace(recipe, jobs=chosen), STANDARD_POINT, name=name) for name, chosen in jobs.items()
    }


def _share(budget: Budget, share: float) -> Budget:
    amount = budget.amount * share
    return replace(budget, amount=amount if budget.unit == "hours" else float(max(1, round(amount))))


def write_bundled(folder: Path, recipe: Recipe) -> None:
    """Write the bundled manifests and the JSON Schema into `folder`."""
    make_folder(folder)
    for name, manifest in bundled_manifests(recipe).items():
        save_manifest(folder / f"{name}.json", manifest)
    durable_write(folder / "manifest.schema.json", canonical_json(json_schema()) + "\n")
