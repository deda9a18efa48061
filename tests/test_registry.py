"""Names of plug-ins, and the files that are bundled."""

import json
import math
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from optuna.samplers import RandomSampler

from autotune import errors, registry, resources
from autotune.cli import main
from autotune.errors import AutotuneError, UsageError
from autotune.executors.answers import ANSWERS
from autotune.executors.isolated import IsolatedExecutor
from autotune.meters.base import SampledMeter
from autotune.records import Point, ProbeResult
from autotune.search.sampler import GoodputSampler

POINT = Point(num_envs=1, batch_size=32)


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, known in registry.BUNDLED.items() for name in known], ids=str
)
def test_every_bundled_name_leads_to_something_callable(kind, name):
    assert callable(registry.load(kind, name))


def test_a_misspelt_name_gets_a_hint():
    with pytest.raises(UsageError, match=r"unknown workload 'atarri'. Did you mean 'atari'\? There are: atari, busy"):
        registry.load("workload", "atarri")
    with pytest.raises(UsageError, match=r"unknown meter 'zzz'. There are: vram, power, health, host"):
        registry.load("meter", "zzz")


def test_an_installed_plugin_is_found_and_cannot_replace_a_bundled_one(monkeypatch):
    def entries(group):
        assert group == "autotune.sampler"
        target = "autotune.units:parse_price"
        return [EntryPoint("mine", target, group), EntryPoint("tpe", target, group)]

    monkeypatch.setattr(registry, "entry_points", entries)
    assert registry.load("sampler", "mine")("2.0") == 2.0
    assert registry.names("sampler") == [*registry.BUNDLED["sampler"], "mine"]
    assert registry.load("sampler", "tpe").__module__ == "autotune.search.samplers"


def test_a_broken_plugin_is_named_with_what_is_wrong_with_it(monkeypatch):
    entry = EntryPoint("mine", "autotune_plugin_that_is_gone:Meter", "autotune.meter")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    with pytest.raises(AutotuneError, match=r"meter 'mine' \(autotune_plugin_that_is_gone:Meter, .* No module named"):
        registry.load("meter", "mine")


def test_a_plugin_that_fails_when_it_is_made_is_named_and_errors_in_words_stay(monkeypatch):
    """Of a bundled one it is a bug, which shows its traceback."""
    entry = EntryPoint("mine", "my_package:Meter", "autotune.meter")
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry])
    said = r"meter 'mine' \(my_package:Meter, .* cannot be made: KeyError: 'fan'"
    with pytest.raises(AutotuneError, match=said), registry.blamed("meter", "mine"):
        raise KeyError("fan")
    said = r"meter 'mine' .* cannot be made: SystemExit: this needs fan-control"
    with pytest.raises(AutotuneError, match=said), registry.blamed("meter", "mine"):
        sys.exit("this needs fan-control")
    with pytest.raises(UsageError, match=r"^of the user$"), registry.blamed("meter", "mine"):
        raise UsageError("of the user")
    with pytest.raises(KeyError), registry.blamed("meter", "host"):
        raise KeyError("a bug")


@pytest.mark.parametrize(("kind", "command"), [("sampler", "search"), ("executor", "search"), ("meter", "probe")])
def test_a_plugin_that_fails_ends_a_command_in_words(kind, command, monkeypatch, tmp_path, capsys):
    entry = EntryPoint("mine", "test_registry:broken", f"autotune.{kind}")
    monkeypatch.setattr(EntryPoint, "load", lambda self: broken)
    monkeypatch.setattr(registry, "entry_points", lambda group: [entry] if group == entry.group else [])
    named = [] if kind == "meter" else [f"--{kind}", "mine"]
    grid = ["--num-envs", "8", "--batch-size", "64"] if command == "probe" else []
    assert main([command, "busywork", "--runs", str(tmp_path), *named, *grid]) == 1
    assert f"{kind} 'mine' (test_registry:broken" in capsys.readouterr().err


def broken(*_, **__):
    raise RuntimeError("broken")


def test_a_plugin_whose_methods_fail_ends_a_search_in_words(monkeypatch, tmp_path, capsys):
    """A sampler that proposes nothing usable, and an executor that loses its cluster, ended in tracebacks."""
    parts = {"sampler": lambda seed: Rubbish(seed=seed), "executor": Lost}
    monkeypatch.setattr(EntryPoint, "load", lambda self: parts[self.name])
    monkeypatch.setattr(registry, "_installed", lambda kind: {kind: EntryPoint(kind, "mine", f"autotune.{kind}")})
    monkeypatch.setattr(registry, "names", lambda kind: list(registry.BUNDLED[kind]))
    surface = resources.folder("reports/reference/surfaces") / "cartpole-cpu-2-cores.csv"
    command = ["search", "--budget", "10m", "--runs", str(tmp_path)]
    assert main([*command, "--executor", f"replay:{surface}", "--sampler", "sampler"]) == 1
    assert "sampler 'sampler' (mine, of the package unknown) cannot propose a point: TypeErr" in capsys.readouterr().err
    assert main([*command, "busywork", "--executor", "executor"]) == 1
    assert "executor 'executor' (mine, of the package unknown) cannot carry out run(): Runt" in capsys.readouterr().err


def test_a_sampler_made_of_ours_that_fails_ends_a_search_in_words(monkeypatch, tmp_path, capsys):
    """It chooses whole points, and is asked in another way than Optuna's: the search ended in a traceback."""
    own = type("Own", (GoodputSampler,), {"propose": lambda *_: 1 / 0})
    monkeypatch.setattr(EntryPoint, "load", lambda self: own)
    entry = EntryPoint("mine", "mine", "autotune.sampler")
    monkeypatch.setattr(registry, "_installed", lambda kind: {"mine": entry} if kind == "sampler" else {})
    surface = resources.folder("reports/reference/surfaces") / "cartpole-cpu-2-cores.csv"
    command = ["search", "--runs", str(tmp_path), "--executor", f"replay:{surface}", "--sampler", "mine"]
    assert main(command) == 1
    assert "sampler 'mine' (mine, of the package unknown) cannot propose a point: Zero" in capsys.readouterr().err


def error_of_a_search_with(executor, monkeypatch, tmp_path, capsys):
    """What a search says that an installed executor ended."""
    monkeypatch.setattr(EntryPoint, "load", lambda self: executor)
    entry = EntryPoint("mine", "mine", "autotune.executor")
    monkeypatch.setattr(registry, "_installed", lambda kind: {"mine": entry} if kind == "executor" else {})
    command = ["search", "busywork", "--budget", "10m", "--runs", str(tmp_path), "--executor", "mine"]
    assert main(command) == 1
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "answer", "said"),
    [
        ("clock_s", "12:00", "its answer is '12:00', not a finite number"),
        ("predict_cost_s", math.nan, "its answer is nan, not a finite number"),
        ("run", None, "its answer is None, not a ProbeResult"),
        ("run", ProbeResult(requested=POINT, status="fine", grade="quick"), "status of its answer is 'fine', not one"),
        ("run", ProbeResult(requested=POINT, status="ok", grade="quick"), "sps of its answer is None, not a"),
        ("run", ProbeResult(requested=POINT, status="ok", grade="quick", sps=math.nan), "sps of its answer is nan"),
        ("run", ProbeResult(requested=POINT, status="ok", grade="quick", sps=0.0), "sps of its answer is 0.0, not a"),
        ("run", ProbeResult(requested=POINT, status="oom", grade="quick", detail={1}), "cannot be kept as JSON: Obj"),
    ],
)
def test_what_an_executor_answers_is_held_against_its_contract(method, answer, said, monkeypatch, tmp_path, capsys):
    """None of them raises within the executor, and each ended the search in a traceback."""
    odd = type("Odd", (IsolatedExecutor,), {method: lambda *_: answer, "ceilings": lambda *_, **__: {}})
    err = error_of_a_search_with(odd, monkeypatch, tmp_path, capsys)
    assert f"executor 'mine' (mine, of the package unknown) cannot carry out {method}(): TypeError: " in err
    assert said in err


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "its answer is None, not a mapping"),
        ({"env": math.nan}, "'env' of its answer is nan"),
        ({1: 1.0}, "{1: 1.0}, not a map"),
    ],
)
def test_the_ceilings_that_an_executor_tells_are_held_against_its_contract(answer, said, monkeypatch, tmp_path, capsys):
    """They are kept as JSON: NaN, or a number of numpy's, ended the search in a traceback."""
    odd = type("Odd", (IsolatedExecutor,), {"ceilings": lambda *_, **__: answer})
    err = error_of_a_search_with(odd, monkeypatch, tmp_path, capsys)
    assert "executor 'mine' (mine, of the package unknown) cannot carry out ceilings(): TypeError: " in err
    assert said in err
    assert ANSWERS["ceilings"]({"env": np.float32(0.5)}) == {"env": 0.5}


def test_what_plugins_print_is_no_data(monkeypatch, tmp_path, capsys):
    """A package that greets on import, as some do, made `--json` no JSON."""
    parts = {"meter": Loud, "section": lambda facts: print("a section") or "written"}

    loads = EntryPoint.load

    def greeting(entry):
        if entry.name not in parts:
            return loads(entry)
        print(f"welcome to {entry.name}")
        return parts[entry.name]

    monkeypatch.setattr(EntryPoint, "load", greeting)
    installed = {kind: EntryPoint(kind, "mine", f"autotune.{kind}") for kind in parts}
    monkeypatch.setattr(registry, "_installed", lambda kind: {kind: installed[kind]} if kind in installed else {})
    grid = ["--num-envs", "8", "--batch-size", "64", "--concurrency", "1", "--runs", str(tmp_path)]
    assert main(["probe", "busywork", *grid, "--json"]) == 0
    shown = capsys.readouterr()
    assert [row["status"] for row in json.loads(shown.out)["rows"]] == ["ok"]
    assert "welcome to meter\n" in shown.err and "a meter is made\n" in shown.err and "a reading\n" in shown.err
    assert main(["report", "--runs", str(tmp_path), "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)
    assert "welcome to section\n" in shown.err and "a section\n" in shown.err


class Loud(SampledMeter):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        print("a meter is made")

    def read(self):
        print("a reading")
        return {}


class Rubbish(RandomSampler):
    def sample_independent(self, *_):
        return None


class Lost(IsolatedExecutor):
    def run(self, request):
        raise RuntimeError("the cluster is gone")


def test_a_folder_is_called_one_and_the_file_of_a_run_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"^'.*' is a folder: name the recipe file in it$"):
        resources.find("probes", str(tmp_path))
    (tmp_path / "manifest.json").touch()
    with pytest.raises(UsageError, match=r"' is a folder: name the manifest file in it, '.*/manifest\.json'$"):
        resources.find("manifests", f"{tmp_path}/")


def test_bundled_files_are_found_by_word_and_others_by_path(tmp_path):
    probes = resources.bundled("probes")
    assert {"atari", "busywork", "cartpole", "cartpole-jax"} <= set(probes)
    assert {"full", "mini", "pilot"} == set(resources.bundled("manifests"))
    for name in probes:
        assert resources.find("probes", name).is_file()
    own = tmp_path / "atari.toml"
    own.write_text("")
    assert resources.find("probes", str(own)) == own
    with pytest.raises(UsageError, match=r"no file '.*none.toml'; bundled names are: atari"):
        resources.find("probes", f"{tmp_path}/none.toml")
    with pytest.raises(UsageError, match=r"unknown recipe 'atary'. Did you mean 'atari'"):
        resources.find("probes", "atary")


def test_a_wheels_own_data_comes_before_the_checkout(tmp_path, monkeypatch):
    package = tmp_path / "autotune"
    (package / "data" / "probes").mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert resources.folder("probes") == package / "data" / "probes"
    assert resources.folder("manifests") == tmp_path / "manifests"


def test_every_error_has_the_exit_code_that_the_design_gives():
    codes = {name: kind.exit_code for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert codes == {
        "AutotuneError": 1,
        "UsageError": 2,
        "FileError": 1,
        "ManifestError": 2,
        "BusyError": 1,
        "InfeasibleError": 3,
        "DeviceError": 4,
        "WorkerError": 1,
    }
    assert all(issubclass(getattr(errors, name), errors.AutotuneError) for name in codes)
