"""Imports point down only, and the parent process stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "autotune"

# A name is a module or package directly under autotune/; it may import what stands above it here, and nothing
# of its own line (except inside one package).
LAYERS = [
    {"__version__", "errors", "machine", "progress"},
    {"records"},
    {"codec"},
    {"availability", "registry", "signals", "stats", "store", "streams", "units"},
    {"locks", "resources"},
    {"runs"},
    {"device", "workloads"},
    {"meters", "worker"},
    {"executors"},
    {"manifest_schema", "probe"},
    {"manifest"},
    {"search", "train"},
    {"export", "guard", "report"},
    {"options", "views"},
    {"choices", "live"},
    {"measuring", "training"},
    {"cli"},
    {"__main__", "testing"},
]
LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}
FRAMEWORKS = {"torch", "jax", "jaxlib", "envpool"}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def unit_of(dotted: str) -> str:
    """``autotune.search.study`` -> ``search``."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file it does, by name through importlib too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "autotune":
            yield from (f"autotune.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            yield from (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant))


def breaks_order(importer: str, target: str) -> bool:
    """Whether an import between units points up or sideways."""
    return importer != target and LEVELS[target] >= LEVELS[importer]


def test_every_module_has_a_layer():
    found = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in modules()} - {"__init__"}
    assert found <= set(LEVELS), "name the layer of the new module in LAYERS"


def test_imports_point_down():
    upward = []
    for path in modules():
        unit = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if unit == "__init__":
            continue
        for name in imported(path):
            if name.startswith("autotune.") and breaks_order(unit, unit_of(name)):
                upward.append(f"{path.relative_to(ROOT)} imports {name}")
    assert upward == []


def test_the_order_is_told_from_its_opposite():
    assert breaks_order("worker", "executors")
    assert breaks_order("search", "train")
    assert breaks_order("records", "units")
    assert not breaks_order("search", "probe")
    assert not breaks_order("search", "search")


def test_the_package_itself_imports_only_the_tick():
    assert [name for name in imported(ROOT / "__init__.py") if name.startswith("autotune")] == ["autotune.progress"]


def test_only_workloads_import_frameworks():
    elsewhere = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in modules()
        if path.relative_to(ROOT).parts[0] != "workloads"
        for name in imported(path)
        if name.split(".")[0] in FRAMEWORKS
    ]
    assert elsewhere == []


def test_only_one_module_imports_nvml():
    importers = {str(path.relative_to(ROOT)) for path in modules() if "pynvml" in set(imported(path))}
    assert importers == {"device/nvml.py"}


def loaded_by(code: str, names: set[str]) -> set[str]:
    """Which of the modules are loaded in a fresh interpreter after some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return names & set(done.stdout.split())


def test_the_command_line_loads_no_framework_and_nothing_heavy():
    heavy = FRAMEWORKS | {"optuna", "pandas", "matplotlib", "scipy", "numpy", "pynvml"}
    assert loaded_by("import autotune.cli", heavy | {"click"}) == {"click"}


@pytest.mark.parametrize("name", ["atari", "busywork", "cartpole-jax", "command", "doctor"])
def test_naming_a_workload_loads_no_framework(name):
    code = f"from autotune import registry\nregistry.load('workload', {name!r})"
    assert loaded_by(code, FRAMEWORKS | {"pydantic"}) <= {"pydantic"}


def test_a_parent_that_reads_a_recipe_loads_no_framework():
    code = (
        "from autotune.probe.recipe import load_recipe\n"
        "from autotune.executors.isolated import IsolatedExecutor\n"
        "from autotune.device.inspect import inspect_device\n"
        "load_recipe('atari'), inspect_device('cpu')"
    )
    assert loaded_by(code, FRAMEWORKS) == set()
