import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from fake_host import host

from autotune import resources
from autotune.errors import ManifestError, UsageError
from autotune.probe.recipe import (
    check_point,
    command_recipe,
    dump_recipe,
    load_recipe,
    missing_placeholders,
    parse_recipe,
    restrict_games,
    rule_of_thumb,
    with_jobs,
)
from autotune.records import Budget, Job, Point, Recipe

GAMES = """
name = "games"
workload = "atari"

[hyperparameters]
rollout = 16
learning_rate = 2.5e-4
note = "a \\"quoted\\" word"

[knobs]
num_envs = {min = 5, max = 128}
batch_size = [64, 256, 1024]
concurrency = {min = 1, max = 16}
precision = ["fp32", "bf16"]

[grid]
num_envs = [8, 64]
concurrency = [1, 2, 12]

[baseline]
num_envs = 10
batch_size = 128
concurrency = 3

[quick]
window_s = 4

[limits]
vram_fraction = 0.8

[[jobs]]
id = "breakout"
env = "Breakout-v5"
seed = 1
episodes = 100

[[jobs]]
id = "pong"
env = "Pong-v5"
seed = 2
steps = 1_000_000

[[jobs]]
id = "pong-again"
env = "Pong-v5"
seed = 3
hours = 0.5
"""


def games(text: str = GAMES) -> Recipe:
    return parse_recipe(text, source="games.toml", name="stem")


def test_a_recipe_says_what_it_means():
    recipe = games()
    assert recipe.name == "games"
    assert recipe.knobs["num_envs"] == (8, 16, 32, 64, 128)
    assert recipe.knobs["batch_size"] == (64, 256, 1024)
    assert recipe.knobs["concurrency"] == (1, 2, 3)  # no more processes than jobs
    assert recipe.knobs["precision"] == ("fp32", "bf16")
    assert recipe.grid["concurrency"] == (1, 2)
    assert recipe.grid["batch_size"] == (128,)  # the baseline's, where the grid says nothing
    assert recipe.baseline == Point(num_envs=10, batch_size=128, concurrency=3, extra=(("precision", "fp32"),))
    assert (recipe.quick.window_s, recipe.quick.discard_s) == (4.0, 10.0)
    assert (recipe.final.window_s, recipe.final.window_iterations) == (30.0, 6)
    assert recipe.limits.vram_fraction == 0.8
    assert [job.budget for job in recipe.jobs] == [
        Budget(unit="episodes", amount=100),
        Budget(unit="steps", amount=1_000_000),
        Budget(unit="hours", amount=0.5),
    ]


def test_concurrency_levels_are_the_methods():
    jobs = "".join(f'\n[[jobs]]\nid = "more-{n}"\nenv = "Pong-v5"\nsteps = 1\n' for n in range(20))
    assert games(GAMES + jobs).knobs["concurrency"] == (1, 2, 3, 4, 6, 8, 12, 16)


@pytest.mark.parametrize("name", resources.bundled("probes"))
def test_bundled_recipes_are_read_and_written_back(name):
    recipe = load_recipe(name)
    assert parse_recipe(dump_recipe(recipe), source=recipe.source, name="other") == recipe
    check_point(recipe, recipe.baseline)


def test_every_part_survives_being_written():
    recipe = replace(games(), points=(Point(num_envs=8, batch_size=64, extra=(("precision", "bf16"),)),))
    text = dump_recipe(recipe)
    assert parse_recipe(text, source="games.toml", name="x") == recipe
    assert tomllib.loads(text)["hyperparameters"]["note"] == 'a "quoted" word'


def test_defaults_where_a_recipe_is_silent():
    text = """
workload = "busywork"
[knobs]
num_envs = {min = 1, max = 64}
batch_size = [32, 512]
[[jobs]]
id = "a"
env = "b"
steps = 10
"""
    recipe = parse_recipe(text, source="x", name="stem")
    assert recipe.name == "stem"
    assert recipe.baseline == Point(num_envs=8, batch_size=512, concurrency=1)
    assert recipe.grid == {"num_envs": (1, 8, 64), "batch_size": (512,), "concurrency": (1,)}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("rollout = 16", "rollout = ", ["not valid TOML"]),
        ("[quick]\nwindow_s = 4", "[quick]\nwindow = 4", ["'quick.window'", "Did you mean 'window_s'", "discard_s"]),
        ("window_s = 4", "window_s = -4", ["quick.window_s = -4", "greater than 0"]),
        ('name = "games"', 'name = "../games"', ["name = '../games'"]),
        ("num_envs = {min = 5, max = 128}", "num_envs = {min = 128, max = 5}", ["knobs.num_envs", "must not exceed"]),
        ("num_envs = {min = 5, max = 128}", "num_envs = {min = 5, max = 7}", ["none of the powers of two"]),
        ("batch_size = [64, 256, 1024]", "batch_size = [64, 0]", ["batch_size = 0", "at least 1"]),
        ("batch_size = [64, 256, 1024]", "batch_size = [256, 64]", ["ascending"]),
        ("batch_size = [64, 256, 1024]", "batch_size = [64.5]", ["batch_size = 64.5", "whole number"]),
        ("batch_size = [64, 256, 1024]", "batch_size = []", ["batch_size", "at least one value"]),
        ("batch_size = [64, 256, 1024]\n", "", ["knobs.batch_size is missing"]),
        ("batch_size = 128", "batch_size = 161", ["batch_size=161", "rollout of 160 samples"]),
        ("batch_size = 128", "batch = 128", ["'batch'", "not a knob", "batch_size"]),
        ("num_envs = 10", "num_envs = -1", ["baseline.num_envs = -1", "at least 1"]),
        ("episodes = 100", "episodes = 100\nsteps = 5", ["exactly one of", "steps, episodes"]),
        ("episodes = 100", "", ["exactly one of", "none"]),
        ("episodes = 100", "episodes = nan", ["jobs[0].episodes", "finite"]),
        ('id = "pong-again"', 'id = "pong"', ["'pong' is given twice"]),
        ('id = "pong"', 'id = "Pong/v5"', ["[1].id = 'Pong/v5'", "letters, digits, dots"]),
        ("vram_fraction = 0.8", "vram_fraction = 1.8", ["limits.vram_fraction = 1.8", "less than or equal to 1"]),
        ('workload = "atari"', "", ["'workload' is missing"]),
        ("num_envs = {min = 5, max = 128}", "num_envs = 8", ["knobs.num_envs = 8: expected a list such as"]),
        ("num_envs = {min = 5, max = 128}", "num_envs = {min = 5}", ["'knobs.num_envs.max' is missing"]),
        ("num_envs = {min = 5, max = 128}", "num_envs = [8, nan]", ["knobs.num_envs[1]", "finite number"]),
        ("num_envs = {min = 5, max = 128}", "num_envs = [8, 9999999999]", ["num_envs = 9999999999", "2,147,483,647"]),
        ('["fp32", "bf16"]', '[["fp32"]]', ["knobs.precision[0]", "a number, a text"]),
        ("rollout = 16", "rollout = 1979-05-27", ["hyperparameters.rollout"]),
        ("rollout = 16", "rollout = " + "[" * 5000, ["nested too deeply"]),
        ("episodes = 100", "episodes = 1.5", ["episodes = 1.5 must be a whole number"]),
        ("episodes = 100", "episodes = 1e300", ["jobs[0].episodes", "1000000000000000"]),
        ("seed = 2", "seed = 99999999999", ["jobs[1].seed = 99999999999"]),
        ('name = "games"', f'name = "{"x" * 200}"', ["name = "]),
        ('name = "games"', "points = [{num_envs = 8}]", ["points", "num_envs, batch_size, concurrency, precision"]),
        (
            'name = "games"',
            'points = [{num_envs = 0, batch_size = 1, concurrency = 1, precision = "fp32"}]',
            ["points.num_envs = 0", "at least 1"],
        ),
    ],
)
def test_a_fault_is_named_with_file_key_value_and_expectation(old, new, words):
    assert old in GAMES
    with pytest.raises(ManifestError) as caught:
        games(GAMES.replace(old, new, 1))
    for word in ["games.toml", *words]:
        assert word in str(caught.value)


def test_the_default_is_the_own_file_then_atari(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_recipe().name == "atari"
    (tmp_path / "autotune.toml").write_text(GAMES)
    assert load_recipe().name == "games"


def test_an_own_file_that_cannot_be_read_is_not_passed_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "autotune.toml").symlink_to("gone.toml")
    with pytest.raises(UsageError, match=r"no file 'autotune.toml'"):
        load_recipe()


def test_a_byte_order_mark_and_an_odd_file_name_do_no_harm(tmp_path):
    file = tmp_path / "my games (1).toml"
    file.write_text(GAMES.replace('name = "games"', ""), encoding="utf-8-sig")
    assert load_recipe(str(file)).name == "my-games-1"


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(UsageError, match=r"busywrok.*Did you mean 'busywork'"):
        load_recipe("busywrok")
    with pytest.raises(UsageError, match="there is no file"):
        load_recipe("missing.toml")


def test_games_are_found_by_either_name_in_any_case():
    recipe = restrict_games(games(), ["PONG"])
    assert [job.id for job in recipe.jobs] == ["pong", "pong-again"]
    assert recipe.knobs["concurrency"] == (1, 2)
    assert recipe.baseline.concurrency == 2
    assert [job.id for job in restrict_games(games(), ["breakout-v5"]).jobs] == ["breakout"]


def test_a_game_without_a_job_gets_the_first_ones_budget():
    recipe = restrict_games(games(), ["Boxing"])
    assert recipe.jobs == (Job(id="boxing", env="Boxing-v5", seed=1, budget=Budget(unit="episodes", amount=100)),)
    assert recipe.knobs["concurrency"] == (1,)
    job = restrict_games(games(), ["MiniGrid-Empty-5x5-v0", "phys2d/CartPole-v1"]).jobs
    assert [(j.id, j.env) for j in job] == [
        ("minigrid-empty-5x5", "MiniGrid-Empty-5x5-v0"),
        ("phys2d-cartpole", "phys2d/CartPole-v1"),
    ]
    with pytest.raises(UsageError, match="not a name such as Breakout"):
        restrict_games(games(), ["../Boxing"])


def test_a_game_is_one_job_however_it_is_spelt():
    assert [job.id for job in restrict_games(games(), ["ALE/Breakout-v5", "Breakout"]).jobs] == ["breakout"]
    assert [job.env for job in restrict_games(games(), ["ALE/Boxing-v5", "Boxing", "boxing"]).jobs] == ["ALE/Boxing-v5"]


def test_two_versions_of_a_game_are_two_jobs_with_ids_of_their_own():
    two = ["LunarLander-v2", "LunarLander-v3"]
    assert [(job.id, job.env) for job in restrict_games(games(), two).jobs] == [
        ("lunarlander", "LunarLander-v2"),
        ("lunarlander-v3", "LunarLander-v3"),
    ]
    assert len({job.id for job in restrict_games(games(), two, 2).jobs}) == 4
    assert [job.id for job in restrict_games(games(), ["Breakout", "Breakout-v0"]).jobs] == ["breakout", "breakout-v0"]


def test_every_game_is_trained_with_several_seeds():
    recipe = load_recipe("atari", seeds=2)
    assert len(recipe.jobs) == 20 and recipe.knobs["concurrency"][-1] == 16, "levels beyond the file's ten jobs count"
    assert [(job.id, job.env, job.seed) for job in recipe.jobs[:3]] == [
        ("mspacman-1", "MsPacman-v5", 1),
        ("mspacman-2", "MsPacman-v5", 2),
        ("asteroids-1", "Asteroids-v5", 1),
    ]
    two = restrict_games(recipe, ["pong", "Tennis"], 2)
    assert [(job.id, job.seed) for job in two.jobs] == [("pong-1", 1), ("pong-2", 2), ("tennis-1", 1), ("tennis-2", 2)]
    assert two.knobs["concurrency"] == (1, 2, 3, 4)
    seeds = load_recipe("cartpole", seeds=3).jobs
    assert [(job.env, job.seed) for job in seeds] == [("CartPole-v1", 1), ("CartPole-v1", 2), ("CartPole-v1", 3)]
    assert len({job.id for job in seeds}) == 3
    with pytest.raises(ManifestError, match="10,010 jobs are more than a manifest holds: at most 10,000"):
        load_recipe("atari", seeds=1001)


def test_fewer_jobs_than_any_level_leave_their_number():
    recipe = replace(games(), knobs={**games().knobs, "concurrency": (2, 3)})
    assert with_jobs(recipe, recipe.jobs[:1]).knobs["concurrency"] == (1,)
    listed = replace(recipe, points=tuple(replace(recipe.baseline, concurrency=count) for count in (1, 2, 3)))
    assert with_jobs(listed, recipe.jobs[:2]).points == listed.points[:2]


def test_no_more_processes_than_the_limit_says_and_no_minibatch_beyond_a_rollout():
    limited = games(GAMES.replace("vram_fraction = 0.8", "concurrency_max = 2"))
    assert (limited.knobs["concurrency"], limited.grid["concurrency"]) == ((1, 2), (1, 2))
    assert (limited.baseline.concurrency, len(limited.jobs)) == (2, 3)
    silent = games(GAMES.replace("num_envs = 10\nbatch_size = 128\nconcurrency = 3\n", ""))
    assert (silent.baseline.num_envs, silent.baseline.batch_size) == (8, 64), "256 are more than 8 x 16 samples"


@pytest.mark.parametrize(
    ("point", "words"),
    [
        (Point(num_envs=0, batch_size=64), "num_envs=0 must be at least 1"),
        (Point(num_envs=8, batch_size=64, concurrency=4), "more than the 3 jobs"),
        (Point(num_envs=8, batch_size=129), "rollout of 128 samples"),
    ],
)
def test_impossible_points_are_refused(point, words):
    with pytest.raises(UsageError, match=words):
        check_point(games(), point)
    check_point(games(), Point(num_envs=8, batch_size=128, concurrency=3))


def test_rule_of_thumb_follows_the_cores():
    recipe = games()
    assert rule_of_thumb(recipe, host(cpu_cores_allowed=4.0)).label() == (
        "num_envs=32 batch_size=256 concurrency=1 precision=fp32"
    )
    few = rule_of_thumb(recipe, host(cpu_cores_allowed=0.5))
    assert (few.num_envs, few.batch_size) == (8, 64), "no minibatch beyond the rollout of 128 samples"
    assert rule_of_thumb(recipe, host(cpu_cores_allowed=2.0)).batch_size == 256, "all of a rollout"
    assert rule_of_thumb(recipe, host(cpu_cores_allowed=64.0)).num_envs == 128
    mixed = replace(recipe, knobs={**recipe.knobs, "env_threads": ("auto", 2, 8)})
    assert dict(rule_of_thumb(mixed, host(cpu_cores_allowed=3.0)).extra)["env_threads"] == 2
    threads = replace(recipe, knobs={**recipe.knobs, "env_threads": (1, 2, 4, 8)})
    assert dict(rule_of_thumb(threads, host(cpu_cores_allowed=3.0)).extra)["env_threads"] == 4


def test_a_command_has_the_knobs_it_has_placeholders_for():
    recipe = command_recipe(["python", "train.py", "--n", "{num_envs}"], counter=r"step (\d+)", jobs=3)
    assert recipe.knobs["num_envs"] == tuple(2**n for n in range(11))
    assert recipe.knobs["batch_size"] == (1,)
    assert recipe.knobs["concurrency"] == (1, 2, 3)
    assert recipe.baseline == Point(num_envs=8, batch_size=1, concurrency=1)
    assert recipe.hyperparameters == {
        "argv": ["python", "train.py", "--n", "{num_envs}"],
        "counter": r"step (\d+)",
        "cwd": str(Path.cwd()),
    }
    assert len({job.id for job in recipe.jobs}) == 3
    with pytest.raises(UsageError, match="brace"):
        command_recipe(["python", "{"])


@pytest.mark.parametrize(
    ("argv", "jobs", "told"),
    [
        (["train", "{num_envs}"], 1, []),
        (["train", "{lr}"], 1, []),
        (["train"], 1, ["neither {num_envs} nor {batch_size}: there is nothing to tune"]),
        (["train", "{seed}"], 2, ["neither {num_envs} nor {batch_size}: only concurrency is tuned"]),
        (["train", "{num_envs}"], 2, ["all 2 jobs are the same command: write {seed} or {job}"]),
        (["train", "{batch_size}", "{job}"], 2, []),
    ],
)
def test_what_a_command_leaves_out_is_told(argv, jobs, told):
    sentences = list(missing_placeholders(command_recipe(argv, progress="sb3", jobs=jobs)))
    assert len(sentences) == len(told) and all(words in text for words, text in zip(told, sentences, strict=True))
