"""The wheel: holds autotune/ and its data alone, and works outside a checkout."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from autotune import __version__

ROOT = Path(__file__).parent.parent
INFO = f"gpu_autotune-{__version__}.dist-info"
pytest.importorskip("build")
pytest.importorskip("hatchling")


def run(*arguments: object, **options: object) -> str:
    done = subprocess.run([str(part) for part in arguments], capture_output=True, text=True, **options)
    assert done.returncode == 0, (
        f"{arguments} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    )
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_it_installs_nothing_but_the_package(names):
    assert {name.split("/")[0] for name in names} == {"autotune", INFO}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "autotune").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == sources


def test_it_holds_the_data(names):
    for folder in ("probes", "manifests", "reports/templates"):
        expected = {f"autotune/data/{folder}/{path.name}" for path in (ROOT / folder).iterdir() if path.is_file()}
        assert expected
        assert {name for name in names if name.startswith(f"autotune/data/{folder}/")} == expected
    assert "autotune/device/prices.toml" in names
    assert not [name for name in names if "reference" in name]


def test_it_carries_licence_and_command(wheel, names):
    assert f"{INFO}/licenses/LICENSE" in names
    with zipfile.ZipFile(wheel) as archive:
        commands = archive.read(f"{INFO}/entry_points.txt").decode()
        metadata = archive.read(f"{INFO}/METADATA").decode()
    assert "autotune = autotune.cli:entry" in commands
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert not [line for line in required if any(name in line for name in ("torch", "jax", "envpool"))]


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A clean environment's bin folder: the wheel, and the dependencies of this one but not this checkout."""
    folder = tmp_path_factory.mktemp("clean") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "-q", "--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = folder.glob("lib/python*/site-packages")
    here = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    # Folders named in a .pth file are searched after the environment's own, and their own .pth
    # files (an editable install of this checkout) are not read.
    (site / "dependencies.pth").write_text("\n".join(here) + "\n")
    return folder / "bin"


def test_it_works_from_another_folder(installed, tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "AUTOTUNE"))}
    options = {"cwd": tmp_path, "env": clean}
    where = run(installed / "python", "-c", "import autotune; print(autotune.__file__)", **options)
    assert Path(where.strip()).is_relative_to(installed.parent)
    found = run(
        installed / "python", "-c", "from autotune import resources; print(resources.folder('probes'))", **options
    )
    assert Path(found.strip()).is_relative_to(installed.parent)
    points = ("--num-envs", "8,16", "--batch-size", "64", "--concurrency", "1")
    rows = json.loads(run(installed / "autotune", "probe", "busywork", *points, "--json", **options))["rows"]
    assert [(row["num_envs"], row["batch_size"], row["concurrency"]) for row in rows] == [(8, 64, 1), (16, 64, 1)]
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert all(row["sps_low"] < row["sps"] < row["sps_high"] for row in rows)
    assert (tmp_path / "runs").is_dir()
