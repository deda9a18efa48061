"""A run's study opens in optuna-dashboard: what that program reads, read the same way with plain Optuna."""

import warnings
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from autotune.cli import main
from autotune.records import Point, ProbeResult
from autotune.runs import Run
from autotune.search.trials import add_probe_trial, open_study, records_of

SURFACE = (
    "# device: Made up\n# price_usd_per_hour: 2.0\n# baseline: num_envs=8 batch_size=64 concurrency=1\n"
    "num_envs,batch_size,concurrency,status,sps,sd_fraction,startup_s,vram_bytes,ram_bytes\n"
    "8,64,1,ok,100,0.01,2,,1000\n16,64,1,ok,180,0.01,2,,1500\n32,64,1,crashed,,,2,,\n"
)


def read_only(file: Path) -> optuna.Study:
    """The study as `optuna-dashboard sqlite:///FILE` opens it, from a file that nobody may write."""
    file.chmod(0o444)
    storage = optuna.storages.RDBStorage(f"sqlite:///file:{file}?mode=ro&uri=true", skip_table_creation=True)
    (summary,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=summary.study_name, storage=storage)


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Run:
    root = tmp_path_factory.mktemp("dashboard")
    surface = root / "small.csv"
    surface.write_text(SURFACE)
    arguments = ["search", "--executor", f"replay:{surface}", "--budget", "3m", "--runs", str(root / "runs")]
    assert main(arguments) == 0
    return Run(root / "runs" / "small-1")


def test_the_study_says_what_it_is(searched):
    study = read_only(searched.study_file)
    assert study.study_name == "small-1"
    assert [direction.name for direction in study.directions] == ["MAXIMIZE"]
    assert study.metric_names == ["env steps per dollar"]
    assert study.user_attrs["recipe"] == "small"
    assert study.user_attrs["baseline"] == "num_envs=8 batch_size=64 concurrency=1"
    assert study.user_attrs["device"].startswith("Made up")
    assert study.user_attrs["recommended"] == "num_envs=16 batch_size=64 concurrency=1"


def test_trials_show_settings_values_status_and_constraints(searched):
    study = read_only(searched.study_file)
    own = {record.number: record.result for record in records_of(study)}
    assert len(own) >= 3
    for trial in study.get_trials(deepcopy=False):
        result = own[trial.number]
        assert trial.state == TrialState.COMPLETE
        assert trial.params == {"num_envs": result.requested.num_envs, "batch_size": 64, "concurrency": 1}
        assert trial.user_attrs["status"] == result.status
        assert trial.constraints == {"stable": -1.0 if result.ok else 1.0}
        if result.ok:
            assert trial.value == pytest.approx(3600 * result.sps / 2.0)
            assert trial.user_attrs["sps"] == result.sps
        else:
            assert "sps" not in trial.user_attrs
            assert trial.user_attrs["detail"] == "recorded as crashed"
    assert {result.status for result in own.values()} == {"ok", "crashed"}
    assert study.best_trial.params["num_envs"] == 16


def test_probes_of_a_grid_are_a_study_too(tmp_path):
    run = Run(tmp_path)
    for num_envs, sps in ((8, 100.0), (16, None)):
        status = "ok" if sps else "oom"
        point = Point(num_envs=num_envs, batch_size=64)
        add_probe_trial(run, "grid", ProbeResult(requested=point, status=status, grade="quick", sps=sps))
    study = read_only(run.study_file)
    assert study.metric_names == ["env steps per second"]
    assert [trial.user_attrs["status"] for trial in study.trials] == ["ok", "oom"]
    assert study.best_value == 100.0


def test_a_study_of_another_name_is_gone_on_with(tmp_path):
    run = Run(tmp_path)
    storage = optuna.storages.RDBStorage(f"sqlite:///{run.study_file}")
    optuna.create_study(study_name="autotune", storage=storage, direction="maximize")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_study(run).study_name == "autotune"
    assert len(optuna.get_all_study_summaries(storage)) == 1
