"""Run folders: what lies in one, creating, finding, and holding one for a single writer."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autotune.codec import from_json
from autotune.errors import BusyError, FileError, UsageError
from autotune.locks import hold, is_locked
from autotune.machine import DeviceInfo
from autotune.store import content_hash, make_folder, read_json, write_json

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
NAMED = "a name has letters, digits, dots, dashes and underscores, and begins with a letter or a digit"
_LEFTOVERS = (".run.json.", ".lock")
"""Begin the names of what a command that was killed can leave in a folder before it is a run."""
_NAMES_MAX = 10
"""Runs that a message names: of more the newest."""


@dataclass(frozen=True)
class Run:
    """A folder ``runs/<name>/`` with everything that one search, probe or training produced.

    Attributes:
        path: the folder.
        fresh: whether this very command made it.
    """

    path: Path
    fresh: bool = field(default=False, compare=False)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def state_file(self) -> Path:
        """The run's own facts (JSON), see `state`; a folder without it is no run."""
        return self.path / "run.json"

    @property
    def recipe_file(self) -> Path:
        """Snapshot of the recipe (TOML)."""
        return self.path / "recipe.toml"

    @property
    def device_file(self) -> Path:
        """Snapshot of `DeviceInfo` (JSON)."""
        return self.path / "device.json"

    @property
    def study_file(self) -> Path:
        """Optuna SQLite storage: a trial per probe."""
        return self.path / "study.db"

    @property
    def manifest_file(self) -> Path:
        """What the search emits and the training executes."""
        return self.path / "manifest.json"

    @property
    def report_file(self) -> Path:
        """The Markdown report."""
        return self.path / "report.md"

    @property
    def train_folder(self) -> Path:
        """``events.jsonl`` and ``jobs/<job>/{checkpoints,metrics.csv,log}``."""
        return self.path / "train"

    @property
    def guard_folder(self) -> Path:
        """Of a guarded search, a run for the pilots of each point."""
        return self.path / "guard"

    @property
    def jobs_folder(self) -> Path:
        """In `train_folder`, a folder for each job, by its id."""
        return self.train_folder / "jobs"

    def state(self) -> dict[str, Any]:
        """The run's own facts: command, recipe, device fingerprint, budget, spent seconds, finished, created."""
        try:
            data = read_json(self.state_file)
        except FileError as error:
            raise FileError(f"{error}. The run is damaged: move the folder {self.path} away.") from error
        if not isinstance(data, dict) or not isinstance(data.get("created", ""), str):
            raise FileError(f"{self.state_file} is damaged: expected an object. Move the folder {self.path} away.")
        return data

    def update(self, **facts: Any) -> None:
        """Change facts of the run, durably."""
        known = self.state() if self.state_file.exists() else {}
        write_json(self.state_file, known | facts)

    @contextmanager
    def hold(self, *, in_use: bool = True) -> Iterator[None]:
        """Be the only writer of this run; when is among its facts.

        Args:
            in_use: it is worked in, and becomes the run that is used last; else others are only kept out.

        Raises:
            BusyError: another process holds it; the message names it.
        """
        with hold(self.path / ".lock", f"run {self.path}", "Stop it, or choose another run with --name or --new."):
            if in_use and self.state_file.exists():
                self.update(used=datetime.now(UTC).isoformat())
            yield


def is_held(path: Path) -> bool:
    """Whether a process holds the run in this folder."""
    return is_locked(path / ".lock")


def refuse_held(run: Run) -> None:
    """Say at once that a run is in use, where `Run.hold` comes only after much else.

    Raises:
        BusyError: another process holds it; the message names it.
    """
    if is_held(run.path):
        with run.hold():
            pass


def load_device(run: Run) -> DeviceInfo | None:
    """The machine that a run was measured on, None when it does not say.

    Raises:
        FileError: the file is damaged.
    """
    if not run.device_file.exists():
        return None
    try:
        device: DeviceInfo = from_json(DeviceInfo, read_json(run.device_file))
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        raise FileError(f"{run.device_file} is damaged ({error}): move it away, the report does without") from error
    return device


def all_runs(root: Path) -> list[Run]:
    """Every run under a folder, oldest first by creation."""
    return _by_creation(_runs_in(root))


def _runs_in(root: Path) -> list[Run]:
    return [Run(file.parent) for file in root.glob("*/run.json")]


def _by_creation(found: Sequence[Run]) -> list[Run]:
    return sorted(found, key=lambda run: (str(run.state().get("created", "")), run.name))


def running_runs(root: Path) -> list[Run]:
    """The runs under a folder that a process holds, the one last begun at the end; of others nothing is read."""
    held = [run for run in _runs_in(root) if is_held(run.path)]
    return sorted(_by_creation(held), key=_last_use)


def _last_use(run: Run) -> str:
    state = run.state()
    return max(str(state.get(fact, "")) for fact in ("created", "used"))


def find_run(root: Path, word: str | None) -> Run:
    """The run that the user means: a name, a path, or the one used last.

    Raises:
        UsageError: there is none.
    """
    if word is not None:
        run = Run(Path(word) if "/" in word else root / word)
        if not run.state_file.is_file():
            names = [run.name for run in reversed(all_runs(root))]
            more = f" and {len(names) - _NAMES_MAX} more" if len(names) > _NAMES_MAX else ""
            known = ", ".join(names[:_NAMES_MAX]) + more or "none"
            raise UsageError(f"there is no run {word!r} in {root}/ (runs: {known})")
        return run
    runs = sorted(all_runs(root), key=_last_use)
    if not runs:
        raise UsageError(f"there is no run in {root}/ yet: start one with `autotune search --budget 30m`")
    return runs[-1]


@contextmanager
def discarded_when_refused(run: Run) -> Iterator[None]:
    """Remove a run that this command made and that did nothing yet, when it is refused, or something is bad or busy."""
    try:
        yield
    except (UsageError, BusyError, FileError):
        begun = any(file.exists() for file in (run.study_file, run.train_folder / "events.jsonl"))
        if run.fresh and not begun and not _trained(run):
            _discard(run.path)
        raise


def _trained(run: Run) -> bool:
    """Whether it says that it trained, though somebody may have removed what it trained since."""
    with contextlib.suppress(FileError):
        return run.state().get("training") is not None
    return False


def _discard(folder: Path) -> None:
    """Remove a run as far as possible; of one that is a link only what lies in it: the link is the user's."""
    with contextlib.suppress(OSError):
        for entry in list(folder.iterdir()) if folder.is_symlink() else [folder]:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


def check_name(name: str) -> str:
    """A run's name, safe as a folder name.

    Raises:
        UsageError: other characters, or too long.
    """
    if not NAME.fullmatch(name):
        raise UsageError(
            f"run name {name!r} must be 1 to 100 letters, digits, dots, dashes or underscores, "
            "starting with a letter or digit"
        )
    return name


def create_run(root: Path, name: str, **facts: Any) -> Run:
    """A new run folder with its facts.

    Raises:
        FileError: it cannot be created.
        UsageError: the name is taken or unusable.
    """
    run = Run(root / check_name(name), fresh=True)
    if run.state_file.exists():
        raise UsageError(f"run {name!r} exists already in {root}/: choose another --name, or leave --name out")
    if run.path.is_dir() and not all(entry.name.startswith(_LEFTOVERS) for entry in run.path.iterdir()):
        raise UsageError(
            f"the folder {run.path} holds files but no run.json: it is no run, or a damaged one. "
            "Restore run.json, or choose another --name"
        )
    make_folder(run.path)
    run.update(created=datetime.now(UTC).isoformat(), name=name, **facts)
    return run


def next_name(root: Path, stem: str) -> str:
    """``<stem>-<n>`` with the first n above every one taken."""
    taken = [int(m[1]) for p in root.glob(f"{stem}-*") if (m := re.fullmatch(re.escape(stem) + r"-(\d+)", p.name))]
    return f"{stem}-{max(taken, default=0) + 1}"


def numbered_run(root: Path, stem: str, **facts: Any) -> Run:
    """A new run ``<stem>-<n>``; commands that start at the same moment get different numbers.

    Raises:
        FileError: it cannot be created.
    """
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-.")[:80] or "run"
    make_folder(root)
    while True:
        name = next_name(root, stem)
        try:
            (root / name).mkdir()
        except FileExistsError:
            continue
        return create_run(root, name, **facts)


def open_run(
    root: Path,
    *,
    command: str,
    stem: str,
    recipe: str,
    device: str,
    name: str | None,
    new: bool,
    lacking: str | None = None,
    **facts: Any,
) -> Run:
    """The run that a search, probe or record works in: the newest unfinished one with the same facts, else a new one.

    Args:
        root: folder of the runs.
        command: ``search``, ``probe`` or ``record``.
        stem: new runs are called ``<stem>-<n>``.
        recipe: text that must be the same for a run to be resumed.
        device: fingerprint, likewise.
        name: a certain run.
        new: never resume.
        lacking: a fact without which a finished run is gone on with, too.
        facts: further values that must be the same.

    Raises:
        UsageError: the named run exists and is another one; the message names the difference.
    """
    wanted = {"command": command, "recipe_hash": content_hash(recipe), "device": device, **facts}

    def ended(state: dict[str, Any]) -> bool:
        return bool(state.get("finished")) and (lacking is None or bool(state.get(lacking)))

    if name is not None and (run := Run(root / check_name(name))).state_file.exists():
        state = run.state()
        differing = [key for key, value in wanted.items() if state.get(key) != value]
        if new or differing or ended(state):
            why = f"another {', '.join(differing)}" if differing else "finished" if ended(state) else "there"
            raise UsageError(f"run {name!r} in {root}/ is already {why}: choose another --name, or leave --name out")
        return run
    if name is None and not new:
        for run in reversed(all_runs(root)):
            state = run.state()
            if not ended(state) and all(state.get(key) == value for key, value in wanted.items()):
                return run
    if name is not None:
        return create_run(root, name, finished=False, **wanted)
    return numbered_run(root, stem, finished=False, **wanted)
