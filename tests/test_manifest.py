"""The manifest: strict, canonical, and clear about what is wrong with an edited one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune import manifest as manifest_module
from autotune import resources
from autotune.errors import FileError, ManifestError
from autotune.manifest import (
    Manifest,
    build_manifest,
    bundled_manifests,
    check_manifest,
    json_schema,
    load_manifest,
    manifest_text,
    parse_manifest,
    save_manifest,
    write_bundled,
)
from autotune.probe.recipe import load_recipe
from autotune.records import Budget, Job, Limits, Point, ProbeResult, Recipe

POINT = Point(num_envs=16, batch_size=64, concurrency=2)
Edit = Callable[[dict[str, Any]], object]


def a_recipe(**changes: Any) -> Recipe:
    jobs = tuple(Job(id=f"busy-{n}", env="busy", seed=n, budget=Budget(unit="steps", amount=1e5)) for n in (1, 2, 3))
    recipe = Recipe(
        name="busywork",
        workload="busywork",
        hyperparameters={"rollout": 32},
        jobs=jobs,
        knobs={},
        grid={},
        baseline=POINT,
        limits=Limits(vram_fraction=0.8),
    )
    return replace(recipe, **changes)


def a_result() -> ProbeResult:
    return ProbeResult(
        requested=POINT,
        status="ok",
        grade="final",
        sps=1000.0,
        sps_low=970.0,
        sps_high=1030.0,
        job_sps=(500.0, 500.0),
        ram_peak_bytes=2**20,
        limited_by="env stepping",
    )


def a_manifest() -> Manifest:
    rungs = [(Point(num_envs=8, batch_size=64, concurrency=1), 600.0)]
    return build_manifest(
        a_recipe(), POINT, result=a_result(), ladder=rungs, price=2.0, provenance={"study": "study.db", "trials": 12}
    )


def edited(edit: Edit) -> str:
    data = json.loads(manifest_text(a_manifest()))
    edit(data)
    return json.dumps(data)


def test_round_trip_is_canonical(tmp_path: Path) -> None:
    manifest = a_manifest()
    save_manifest(tmp_path / "manifest.json", manifest)
    loaded = load_manifest(tmp_path / "manifest.json")
    assert loaded == manifest
    assert manifest_text(loaded) == (tmp_path / "manifest.json").read_text()
    assert json.loads(manifest_text(loaded))["schema"] == 1


def test_records_come_back() -> None:
    manifest = a_manifest()
    assert manifest.point.record() == POINT
    assert manifest.job_records() == a_recipe().jobs
    assert manifest.ladder[0].point.record() == Point(num_envs=8, batch_size=64, concurrency=1)
    assert manifest.stability.vram_fraction == 0.8


def test_goodput_per_usd_is_steps_per_dollar_and_null_without_a_price() -> None:
    prediction = a_manifest().prediction
    assert prediction is not None and prediction.goodput_per_usd == 3600 * 1000.0 / 2.0
    unpriced = build_manifest(a_recipe(), POINT, result=a_result()).prediction
    assert unpriced is not None and unpriced.goodput_per_usd is None
    assert build_manifest(a_recipe(), POINT).prediction is None


def test_further_knobs_round_trip_with_their_types() -> None:
    point = replace(POINT, extra=(("compile", True), ("env_threads", 4), ("gamma", 0.5), ("precision", "bf16")))
    assert parse_manifest(manifest_text(build_manifest(a_recipe(), point)), "m").point.record() == point


def test_an_edited_point_has_no_prediction() -> None:
    assert a_manifest().predicted() is not None
    assert parse_manifest(edited(lambda d: d["point"].update(num_envs=32)), "m").predicted() is None


BAD: list[tuple[str, Edit, list[str]]] = [
    ("unknown key", lambda d: d.update(colour="red"), ["colour", "not a key"]),
    ("misspelt key", lambda d: d["stability"].update(kep=2), ["stability.kep", "did you mean 'keep'"]),
    ("misspelt budget", lambda d: d["jobs"][0]["budget"].update(amout=1), ["jobs.0.budget.amout", "'amount'"]),
    ("missing", lambda d: d.pop("jobs"), ["jobs is missing"]),
    ("no jobs", lambda d: d.update(jobs=[]), ["jobs = []"]),
    ("zero", lambda d: d["point"].update(num_envs=0), ["point.num_envs = 0", "greater than or equal to 1"]),
    ("negative", lambda d: d["point"].update(batch_size=-4), ["point.batch_size = -4"]),
    ("text", lambda d: d["point"].update(num_envs="many"), ['point.num_envs = "many"', "integer"]),
    ("fraction", lambda d: d["point"].update(num_envs=1.5), ["point.num_envs = 1.5"]),
    ("boolean", lambda d: d["point"].update(num_envs=True), ["point.num_envs = true"]),
    ("concurrency", lambda d: d["point"].update(concurrency=9), ["point.concurrency = 9", "3 jobs", "lower it to 3"]),
    ("rung", lambda d: d["ladder"][0]["point"].update(concurrency=4), ["ladder.0.point.concurrency = 4"]),
    ("budget unit", lambda d: d["jobs"][1]["budget"].update(unit="days"), ['jobs.1.budget.unit = "days"', "hours"]),
    ("budget zero", lambda d: d["jobs"][1]["budget"].update(amount=0), ["jobs.1.budget.amount", "= 0"]),
    ("budget part", lambda d: d["jobs"][1]["budget"].update(amount=1.5), ["jobs.1.budget", "whole number"]),
    ("path in id", lambda d: d["jobs"][0].update(id="../evil"), ['jobs.0.id = "../evil"']),
    ("dots", lambda d: d["jobs"][0].update(id=".."), ['jobs.0.id = ".."']),
    ("newline in id", lambda d: d["jobs"][0].update(id="a\n"), ["jobs.0.id"]),
    ("NUL in id", lambda d: d["jobs"][0].update(id="a\0b"), ["jobs.0.id"]),
    ("long id", lambda d: d["jobs"][0].update(id="a" * 300), ["jobs.0.id"]),
    ("two ids", lambda d: d["jobs"][0].update(id="busy-2"), ["two jobs have the id 'busy-2'"]),
    ("path in name", lambda d: d.update(name="/etc/passwd"), ['name = "/etc/passwd"']),
    ("outside", lambda d: d["provenance"].update(study="../other/study.db"), ["provenance.study", "outside"]),
    ("absolute", lambda d: d["provenance"].update(study="/etc/passwd"), ["provenance.study", "outside"]),
    ("newer", lambda d: d.update(schema=2), ["schema = 2", "reads schema 1", "pip install -U"]),
    ("older", lambda d: d.update(schema=0), ["schema = 0"]),
    ("schema text", lambda d: d.update(schema="1"), ["schema"]),
    ("restarts", lambda d: d["stability"].update(restarts=3), ["stability.restarts = 3"]),
    ("no rate", lambda d: d["prediction"].update(sps=0), ["prediction.sps = 0"]),
    ("huge seed", lambda d: d["jobs"][0].update(seed=2**31), ["jobs.0.seed"]),
]


@pytest.mark.parametrize(("edit", "words"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_values_are_named(edit: Edit, words: list[str]) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(edited(edit), "runs/x/manifest.json")
    message = str(caught.value)
    assert message.startswith("runs/x/manifest.json: ")
    assert [word for word in words if word not in message] == []
    assert caught.value.exit_code == 2


def test_one_bad_job_is_one_complaint() -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(edited(lambda d: d.update(jobs=[{**d["jobs"][0], "id": "a/b"}])), "m.json")
    assert str(caught.value).startswith('m.json: jobs.0.id = "a/b": a name has letters, digits, dots, dashes and')
    assert "at least 1 item" not in str(caught.value)
    with pytest.raises(ManifestError) as caught:
        parse_manifest(
            edited(lambda d: d["jobs"][0]["budget"].update(amount=0) or d.update(jobs=d["jobs"][:1])), "m.json"
        )
    assert "jobs.0.budget.amount = 0" in str(caught.value)
    assert "at least 1 item" not in str(caught.value)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999"])
@pytest.mark.parametrize("field", ["hyperparameter", "knob", "interval"])
def test_no_number_that_json_does_not_have(text: str, field: str) -> None:
    edits: dict[str, Edit] = {
        "hyperparameter": lambda d: d["workload"]["hyperparameters"].update(lr="HERE"),
        "knob": lambda d: d["point"].update(lr="HERE"),
        "interval": lambda d: d["stability"].update(checkpoint_interval_s="HERE"),
    }
    with pytest.raises(ManifestError):
        parse_manifest(edited(edits[field]).replace('"HERE"', text), "m")


def test_every_truncation_is_refused_in_words(tmp_path: Path) -> None:
    whole = manifest_text(a_manifest()).rstrip()
    path = tmp_path / "manifest.json"
    for length in range(0, len(whole), 3):
        path.write_text(whole[:length])
        with pytest.raises(ManifestError, match="truncated"):
            load_manifest(path)


@pytest.mark.parametrize("raw", [b"[]", b"null", b"3", b'"x"', b"\xff\xfe", b"\0" * 100, b"[" * 100_000, b"{}"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(raw)
    with pytest.raises(ManifestError, match="manifest"):
        load_manifest(path)


def test_a_key_given_twice_is_refused() -> None:
    with pytest.raises(ManifestError, match="the key 'num_envs' is given twice"):
        parse_manifest('{"schema": 1, "point": {"num_envs": 8, "num_envs": 16}}', "m.json")


def test_missing_unreadable_and_huge_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ManifestError, match="there is no manifest"):
        load_manifest(tmp_path / "none.json")
    with pytest.raises(FileError, match="cannot read"):
        load_manifest(tmp_path)
    monkeypatch.setattr(manifest_module, "SIZE_LIMIT_BYTES", 10)
    save_manifest(tmp_path / "manifest.json", a_manifest())
    with pytest.raises(ManifestError, match="larger than"):
        load_manifest(tmp_path / "manifest.json")


def test_a_link_out_of_the_run_folder_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    save_manifest(run / "manifest.json", a_manifest())
    (run / "study.db").symlink_to(tmp_path / "elsewhere.db")
    with pytest.raises(ManifestError, match="outside the run folder"):
        load_manifest(run / "manifest.json")


def test_the_workload_refuses_what_can_never_run() -> None:
    check_manifest(a_manifest())
    cases: list[tuple[Edit, str]] = [
        (lambda d: d["point"].update(batch_size=100_000), "point: batch_size 100000 is larger than the rollout"),
        (lambda d: d["ladder"][0]["point"].update(batch_size=100_000), "ladder.0.point: batch_size"),
        (lambda d: d["workload"].update(name="busywrk"), "busywork"),
        (lambda d: d["workload"]["hyperparameters"].update(rolout=3), "rollout"),
        (lambda d: d["point"].update(num_env=3), "num_env"),
        (
            lambda d: d.update(workload={"name": "atari", "backend": "jax", "hyperparameters": {}}),
            "workload.backend: 'jax', but workload 'atari' runs on 'torch'",
        ),
    ]
    for edit, words in cases:
        with pytest.raises(Exception, match=words) as caught:
            check_manifest(parse_manifest(edited(edit), "m"))
        assert getattr(caught.value, "exit_code", None) == 2


def test_schema_names_every_section() -> None:
    schema = json_schema()
    sections = {"schema", "name", "workload", "point", "jobs", "ladder", "stability", "prediction", "device"}
    assert set(schema["properties"]) == sections | {"learning", "provenance"}
    assert schema["additionalProperties"] is False


def test_pilot_is_the_beginning_of_full() -> None:
    made = bundled_manifests(a_recipe())
    assert set(made) == {"mini", "pilot", "full"}
    pilot, full = (json.loads(manifest_text(made[name])) for name in ("pilot", "full"))
    budgets = [
        (p["budget"].pop("amount"), f["budget"].pop("amount")) for p, f in zip(pilot["jobs"], full["jobs"], strict=True)
    ]
    assert pilot.pop("name") != full.pop("name")
    assert pilot == full
    assert budgets == [(1000, 100_000)] * 3


CAMPAIGN_EPISODES = {
    "MsPacman": 30000,
    "Asteroids": 25000,
    "Seaquest": 25000,
    "BeamRider": 20000,
    "SpaceInvaders": 15000,
    "Enduro": 15000,
    "Breakout": 10000,
    "Boxing": 10000,
    "Freeway": 3000,
    "Pong": 3000,
}


def test_the_bundled_files_are_what_the_recipe_makes(tmp_path: Path) -> None:
    write_bundled(tmp_path, load_recipe("atari"))
    folder = resources.folder("manifests")
    assert sorted(path.name for path in folder.iterdir()) == sorted(path.name for path in tmp_path.iterdir())
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (folder / path.name).read_bytes(), f"regenerate {path.name} with write_bundled"


def test_the_bundled_manifests_load_and_pass_their_workload() -> None:
    loaded = {name: load_manifest(resources.find("manifests", name)) for name in ("mini", "pilot", "full")}
    for manifest in loaded.values():
        check_manifest(manifest)
        assert manifest.workload.hyperparameters["schedule_horizon_steps"] == 10_000_000
        assert (manifest.prediction, manifest.device, manifest.provenance) == (None, None, None)
    episodes = {job.env.removesuffix("-v5"): job.budget.amount for job in loaded["full"].jobs}
    assert episodes == CAMPAIGN_EPISODES
    assert [job.budget.amount * 100 for job in loaded["pilot"].jobs] == list(CAMPAIGN_EPISODES.values())
    (mini,) = loaded["mini"].jobs
    assert (mini.env, mini.budget.unit, mini.budget.amount) == ("Breakout-v5", "episodes", 2)
    assert loaded["mini"].point.record() == Point(num_envs=8, batch_size=256, concurrency=1)
