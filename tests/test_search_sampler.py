"""Our sampler in a user's own Optuna study."""

import pickle
import threading

import numpy as np
import optuna
import pytest
from analytic_surface import GIB, memory_bytes, smooth_sps

from autotune.errors import UsageError
from autotune.records import Point
from autotune.search.sampler import GoodputSampler

KNOBS = {"num_envs": [8, 16, 32, 64, 128], "batch_size": [64, 128, 256, 512], "concurrency": [1, 2, 4]}


def objective(trial: optuna.Trial) -> float:
    """What the documentation shows: suggest, measure, report memory, return steps per second."""
    num_envs = trial.suggest_int("num_envs", 8, 128, log=True)
    batch_size = trial.suggest_int("batch_size", 64, 512, log=True)
    concurrency = trial.suggest_int("concurrency", 1, 4)
    trial.set_user_attr("cost_s", 30.0)
    vram_bytes, _ = memory_bytes(num_envs, batch_size, concurrency)
    if vram_bytes > 8 * GIB:
        trial.set_constraint("memory", 1.0)
        return 0.0
    trial.set_user_attr("vram_peak_bytes", vram_bytes)
    return smooth_sps(num_envs, batch_size, concurrency)


def points(study: optuna.Study) -> list[tuple[int, ...]]:
    return [tuple(trial.params[name] for name in KNOBS) for trial in study.trials]


def optimized(sampler: optuna.samplers.BaseSampler, n_trials: int, storage=None) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        direction="maximize", sampler=sampler, storage=storage, study_name="own", load_if_exists=True
    )
    study.optimize(objective, n_trials=n_trials)
    return study


def best_of_the_grid(limit_bytes: float) -> float:
    every = [(e, b, k) for e in KNOBS["num_envs"] for b in KNOBS["batch_size"] for k in KNOBS["concurrency"]]
    return max(smooth_sps(*point) for point in every if memory_bytes(*point)[0] <= limit_bytes)


def test_it_finds_the_best_with_named_knobs_and_a_memory_limit():
    study = optimized(GoodputSampler(knobs=KNOBS, vram_limit_bytes=0.95 * 8 * GIB), 18)
    assert study.best_value >= 0.97 * best_of_the_grid(0.95 * 8 * GIB)
    for point in points(study):
        assert all(value in KNOBS[name] for name, value in zip(KNOBS, point, strict=True))
        assert memory_bytes(*point)[0] <= 8 * GIB


def test_without_limits_it_learns_from_failures_only():
    study = optimized(GoodputSampler(knobs=KNOBS), 18)
    failed: list[tuple[int, ...]] = []
    for point, trial in zip(points(study), study.trials, strict=True):
        assert not any(all(a >= b for a, b in zip(point, other, strict=True)) for other in failed)
        if trial.value == 0:
            failed.append(point)
    assert study.best_value >= 0.95 * best_of_the_grid(8 * GIB)


def test_it_takes_the_grid_from_the_study_itself():
    study = optimized(GoodputSampler(), 18)
    for point in points(study)[1:]:
        assert point[0] in (8, 16, 32, 64, 128) and point[1] in (64, 128, 256, 512) and point[2] in (1, 2, 3, 4)
    assert study.best_value >= 0.9 * best_of_the_grid(8 * GIB)


def test_what_comes_next_keeps_to_the_memory_limit_on_the_studys_own_grid():
    sampler = GoodputSampler(vram_limit_bytes=1.0)
    study = optimized(sampler, 1)
    assert GoodputSampler().upcoming(study) is not None
    assert sampler.upcoming(study) is None


def test_a_continued_study_proposes_what_an_uninterrupted_one_does(tmp_path):
    whole = optimized(GoodputSampler(seed=3), 12)
    storage = f"sqlite:///{tmp_path / 'own.db'}"
    optimized(GoodputSampler(seed=3), 5, storage)
    assert points(optimized(GoodputSampler(seed=3), 7, storage)) == points(whole)


def test_further_parameters_are_drawn_at_random_and_repeatably():
    def values(seed: int) -> list[float]:
        study = optuna.create_study(direction="maximize", sampler=GoodputSampler(knobs=KNOBS, seed=seed))
        study.optimize(lambda trial: objective(trial) + 0 * trial.suggest_float("rate", 0, 1), n_trials=5)
        return [trial.params["rate"] for trial in study.trials]

    assert values(1) == values(1) != values(2)
    assert len(set(values(1))) == 5


def test_categorical_knobs_work_and_floats_are_refused():
    study = optuna.create_study(direction="maximize", sampler=GoodputSampler())

    def categorical(trial: optuna.Trial) -> float:
        envs = trial.suggest_categorical("num_envs", [8, 24, 100])
        return float(smooth_sps(envs, trial.suggest_categorical("batch_size", [64, 512]), 1))

    study.optimize(categorical, n_trials=6)
    assert study.best_params == {"num_envs": 100, "batch_size": 512}
    floats = optuna.create_study(direction="maximize", sampler=GoodputSampler())
    with pytest.raises(UsageError, match="suggest_int or suggest_categorical"):
        floats.optimize(lambda t: t.suggest_float("num_envs", 1, 8) + t.suggest_int("batch_size", 1, 8), n_trials=2)


def test_a_study_that_forbids_a_named_value_is_refused():
    study = optuna.create_study(direction="maximize", sampler=GoodputSampler(knobs={**KNOBS, "num_envs": [256]}))
    with pytest.raises(UsageError, match=r"does not allow num_envs=256.*high=128"):
        study.optimize(objective, n_trials=1)


def test_a_range_in_steps_is_kept_to():
    """Optuna takes what a sampler gives: 8 was measured of 1, 4, 7, 10."""

    def stepped(trial: optuna.Trial) -> float:
        return smooth_sps(
            trial.suggest_int("num_envs", 1, 10, step=3), trial.suggest_int("batch_size", 64, 448, step=128), 1
        )

    study = optuna.create_study(direction="maximize", sampler=GoodputSampler())
    study.optimize(stepped, n_trials=8)
    assert {trial.params["num_envs"] for trial in study.trials[1:]} <= {1, 4, 7}
    assert {trial.params["batch_size"] for trial in study.trials[1:]} <= {64, 192, 320}
    named = optuna.create_study(
        direction="maximize", sampler=GoodputSampler(knobs={"num_envs": [8], "batch_size": [64]})
    )
    with pytest.raises(UsageError, match=r"does not allow num_envs=8 .*step=3"):
        named.optimize(stepped, n_trials=1)


@pytest.mark.parametrize("how", ["raised", "pruned", "nan"])
def test_a_trial_without_a_value_is_not_measured_again(how):
    """Programs that run out of memory raise; half of the points do."""

    def failing(trial: optuna.Trial) -> float:
        value = objective(trial)
        if trial.params["num_envs"] < 32:
            return value
        if how == "nan":
            return float("nan")
        raise optuna.TrialPruned if how == "pruned" else MemoryError

    study = optuna.create_study(direction="maximize", sampler=GoodputSampler(knobs=KNOBS))
    study.optimize(failing, n_trials=12, catch=MemoryError)
    assert len(set(points(study))) == 12
    assert study.best_value >= 0.95 * max(smooth_sps(16, b, k) for b in KNOBS["batch_size"] for k in (1, 2, 4))


def test_trials_side_by_side_measure_whole_points_and_different_ones():
    """Both have taken num_envs when the first takes its other knobs, and neither has ended when both have a point."""
    proposed, sampler, both = [], GoodputSampler(knobs=KNOBS), threading.Barrier(2)

    def propose(problem, history, original=sampler.propose):
        proposed.append(original(problem, history))
        return proposed[-1]

    def beside(trial: optuna.Trial) -> float:
        trial.suggest_int("num_envs", 8, 128, log=True)
        both.wait(10)
        value = objective(trial)
        both.wait(10)
        return value

    sampler.propose = propose
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(beside, n_trials=12, n_jobs=2)
    assert len(set(points(study))) == 12
    assert {tuple(p.point.knobs().values()) for p in proposed} == set(points(study))
    assert pickle.loads(pickle.dumps(GoodputSampler(knobs=KNOBS))), "Optuna's way of keeping a sampler"


def test_further_parameters_are_drawn_independently_of_each_other():
    """All of a trial were the same quantile of their ranges: a low learning rate never met a high discount."""
    study = optuna.create_study(direction="maximize", sampler=GoodputSampler(knobs=KNOBS))
    drawn = []
    for _ in range(20):
        trial = study.ask()
        drawn.append([trial.suggest_float(name, 0.0, 1.0) for name in ("lr", "gamma")])
        study.tell(trial, objective(trial))
    assert abs(np.corrcoef(np.transpose(drawn))[0, 1]) < 0.6
    again = optuna.create_study(direction="maximize", sampler=GoodputSampler(knobs=KNOBS)).ask()
    assert [again.suggest_float(name, 0.0, 1.0) for name in ("lr", "gamma")] == drawn[0]


@pytest.mark.parametrize("most", [16, 64])
def test_a_trial_under_way_is_no_evidence_that_a_failed_lighter_one_was_an_accident(most):
    """Of two side by side the lighter failed first, and what is heavier than it was proposed all the same."""
    study = optuna.create_study(direction="maximize", sampler=GoodputSampler(knobs=KNOBS))

    def asked() -> tuple[optuna.Trial, Point]:
        trial = study.ask()
        knobs = {name: trial.suggest_int(name, values[0], values[-1], log=True) for name, values in KNOBS.items()}
        return trial, Point.from_knobs(knobs)

    failed: list[Point] = []
    beside = asked()
    for _ in range(14):
        newest = asked()
        assert not any(newest[1].dominates(point) for point in failed)
        (trial, point), beside = sorted([beside, newest], key=lambda pair: pair[1].num_envs * pair[1].concurrency)
        if point.num_envs * point.concurrency > most:
            failed.append(point)
        study.tell(trial, 0.0 if point in failed else smooth_sps(point.num_envs, point.batch_size, point.concurrency))
    assert failed


@pytest.mark.parametrize("directions", [["minimize"], ["maximize", "minimize"]])
def test_a_study_that_does_not_maximise_one_value_is_refused(directions):
    """Seconds per step that are minimised would be made as long as possible."""
    study = optuna.create_study(directions=directions, sampler=GoodputSampler(knobs=KNOBS))
    with pytest.raises(UsageError, match=rf"direction is {', '.join(directions)}: make it with direction=\"maximize\""):
        study.optimize(objective, n_trials=2)


@pytest.mark.parametrize("options", [{"knobs": {**KNOBS, "num_envs": []}}, {"knobs": KNOBS, "rollout": 0}, {}])
def test_knobs_without_a_point_are_refused(options):
    def words(trial: optuna.Trial) -> float:
        return float(trial.suggest_categorical("num_envs", ["8", "16"])) + trial.suggest_int("batch_size", 64, 512)

    with pytest.raises(UsageError, match="the knobs allow no point: give num_envs"):
        optuna.create_study(direction="maximize", sampler=GoodputSampler(**options)).optimize(words, n_trials=3)


@pytest.mark.parametrize("how", ["raised", "pruned", "zero"])
def test_a_trial_that_ends_before_it_suggests_every_knob_is_not_measured_again(how):
    """Programs make their environments first, and run out of memory there."""
    tried: list[tuple[int, ...]] = []
    sampler = GoodputSampler(knobs=KNOBS)

    def failing(trial: optuna.Trial) -> float:
        tried.append(tuple(sampler._point(trial.study, trial.study.trials[-1]).knobs().values()))
        if trial.suggest_int("num_envs", 8, 128, log=True) >= 32:
            if how == "zero":
                return 0.0
            raise optuna.TrialPruned if how == "pruned" else MemoryError
        return objective(trial)

    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(failing, n_trials=14, catch=MemoryError)
    assert len(set(tried)) == 14
    assert study.best_value >= 0.95 * max(smooth_sps(16, b, k) for b in KNOBS["batch_size"] for k in (1, 2, 4))


@pytest.mark.parametrize("knobs", [{"num_envs": [8, 16, 32, 64]}, {"num_envs": [8, 64], "batch_size": [512]}, None])
def test_a_study_of_one_knob_finds_its_best(knobs):
    study = optuna.create_study(direction="maximize", sampler=GoodputSampler(knobs=knobs))
    study.optimize(lambda trial: smooth_sps(trial.suggest_int("num_envs", 8, 64, log=True), 512, 1), n_trials=7)
    assert study.best_params == {"num_envs": 64}


def test_a_named_knob_that_the_study_never_suggests_is_refused():
    """Each trial would be one of a point that the study has not heard of, proposed again for ever."""
    study = optuna.create_study(direction="maximize", sampler=GoodputSampler(knobs=KNOBS))

    def forgetful(trial: optuna.Trial) -> float:
        return smooth_sps(trial.suggest_int("num_envs", 8, 128, log=True), trial.suggest_int("batch_size", 64, 512), 1)

    with pytest.raises(UsageError, match="without suggesting concurrency, and the sampler was given 3 values of it"):
        study.optimize(forgetful, n_trials=3)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"numenvs": [8], "batch_size": [64]}, "unknown knob 'numenvs'. Did you mean 'num_envs'?"),
        ({"num_envs": [0, 8], "batch_size": [64]}, "num_envs=0 must be a whole number of at least 1"),
        ({"num_envs": [8, 8.5], "batch_size": [64]}, "num_envs=8.5 must be a whole number"),
        ({"num_envs": ["8"], "batch_size": [64]}, "num_envs='8' must be a whole number"),
    ],
)
def test_named_knobs_that_are_no_counts_are_refused(knobs, said):
    with pytest.raises(UsageError) as caught:
        GoodputSampler(knobs=knobs)
    assert said in str(caught.value)
    GoodputSampler(knobs={"num_envs": 2 ** np.arange(3, 7), "batch_size": [64]})
