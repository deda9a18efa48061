"""The README says what is there: its file tree, links, commands, exit codes and excerpts."""

import ast
import importlib
import re
import textwrap
from dataclasses import replace
from pathlib import Path

import click
import pytest

from autotune import errors, registry
from autotune.cli import cli
from autotune.probe.recipe import parse_recipe
from autotune.records import Point

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
MAKE_TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def tree() -> dict[str, str]:
    """What the README's file tree says of each path: two more blanks are one folder deeper."""
    said, folders = dict[str, str](), list[str]()
    for blanks, name, words in re.findall(r"^    ( *)(\S+) +(.+)$", section("Files"), re.MULTILINE):
        depth = len(blanks) // 2
        folders[depth:] = [name]
        said["".join(folders)] = words
    return said


def test_the_file_tree_matches_the_files():
    listed = set(tree())
    missing = sorted(path for path in listed if not (ROOT / path).exists())
    assert missing == [], "in the README's file tree, but not there"
    files = {
        str(path.relative_to(ROOT))
        for pattern in ("autotune/**/*.py", "autotune/**/*.toml", "probes/*", "manifests/*.json")
        for path in ROOT.glob(pattern)
        if path.name != "__init__.py" and "data" not in path.relative_to(ROOT).parts
    }
    assert sorted(files - listed) == [], "there, but without a line in the README's file tree"


def test_no_line_of_the_file_tree_breaks_off_within_a_sentence_of_its_module():
    broken = []
    for path, words in tree().items():
        module = ast.parse((ROOT / path).read_text()) if path.endswith(".py") else ast.parse("")
        said, docstring = (
            " ".join(text.replace("`", "").lower().split()) for text in (words, ast.get_docstring(module) or "")
        )
        if docstring.startswith(said) and re.match(r" ?\w", docstring[len(said) :]):
            broken.append(path)
    assert broken == []


def test_relative_links_lead_somewhere():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", TEXT) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def commands() -> list[str]:
    """Every `autotune ...` command line in the README's code."""
    code = re.findall(r"^    (.+)$", TEXT.split("\n## Files\n")[0], re.MULTILINE) + re.findall(r"`([^`\n]+)`", TEXT)
    return [line.split("#")[0].strip() for line in code if re.match(r"autotune [a-z-]", line)]


@pytest.mark.parametrize("line", sorted(set(commands())))
def test_commands_and_options_exist(line):
    words = line.split(" -- ")[0].split()[1:]
    if words[0].startswith("-"):
        assert words[0] in {option for parameter in cli.params for option in parameter.opts}
        return
    command = cli.commands[words[0]]
    known = {option for parameter in command.params for option in (*parameter.opts, "--help")}
    assert {word for word in words if word.startswith("--")} <= known


def test_every_command_is_shown():
    shown = {line.split()[1] for line in commands()}
    assert set(cli.commands) <= shown
    assert isinstance(cli, click.Group)


def test_make_targets_exist():
    named = set(re.findall(r"(?:^    |`)make ([a-z-]+)", TEXT, re.MULTILINE))
    assert {"demo", "test"} <= named <= MAKE_TARGETS


def test_exit_codes_are_those_of_the_program():
    rows = {int(code) for code in re.findall(r"^\| (\d+) \|", section("Exit codes"), re.MULTILINE)}
    ours = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert rows == ours


def test_the_recipe_is_one():
    (block,) = (text for text in re.findall(r"(?:^(?:    .+)\n)+", TEXT, re.MULTILINE) if "workload = " in text)
    recipe = parse_recipe(textwrap.dedent(block), source="README.md", name="mine")
    assert recipe.knobs["lr"] == (2.5e-4, 5e-4)
    assert replace(recipe.baseline, extra=()) == Point(num_envs=8, batch_size=256)
    workload = registry.load("workload", recipe.workload)(recipe.hyperparameters)
    workload.check(replace(recipe.baseline, extra=(("lr", 5e-4),)), recipe.jobs)


def test_the_study_is_one():
    (program,) = re.findall(r"```python\n(.+?)```", TEXT, re.DOTALL)
    scope = {"measure": lambda num_envs, batch_size: 0.0 if num_envs == 64 else 10.0 * num_envs + batch_size / 100}
    exec(program, scope)
    assert scope["study"].best_params["num_envs"] == 32
    failed = [trial.params["batch_size"] for trial in scope["study"].trials if trial.value == 0]
    assert failed == sorted(failed, reverse=True) and len(failed) == len(set(failed)), "never as heavy as one that did"


def test_the_groups_of_plug_ins_are_those_that_are_looked_for():
    rows = re.findall(r"^\| `autotune\.(\w+)` \|", section("Parts of your own"), re.MULTILINE)
    assert sorted(rows) == sorted(registry.BUNDLED)
    for name in re.findall(r"`(autotune(?:\.\w+)+\.[A-Z]\w+)`", section("Parts of your own")):
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute)


def test_excerpts_are_what_the_evidence_says():
    excerpt = TEXT.split("<!-- demo:begin -->")[1].split("<!-- demo:end -->")[0]
    sources = re.findall(r"\]\((reports/reference/[^)]+)\)", excerpt)
    lines = re.findall(r"^    (.+)$", excerpt, re.MULTILINE)
    assert sources
    assert len(lines) > 5
    known = {line.rstrip() for source in sources for line in (ROOT / source).read_text().splitlines()}
    assert [line for line in lines if line.rstrip() not in known] == []
