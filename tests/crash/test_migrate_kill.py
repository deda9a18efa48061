"""SIGKILL at random moments of migrations and rollbacks: either the old state holds or the new one."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from migration_run import NEW, STEPS, a_manifest, content, old_run, steps_of

from autotune.runs import Run
from autotune.train.events import read_events
from autotune.train.folder import open_migrated_run
from autotune.train.migrate import rollback, take_over
from autotune.train.migration import load_migration, successor
from autotune.train.migration_plan import plan_migration

BACK_AND_FORTH = """
import sys
from pathlib import Path
from autotune.manifest import load_manifest
from autotune.runs import Run
from autotune.train.migrate import rollback, take_over
from autotune.train.migration import successor
from autotune.train.migration_plan import plan_migration

source, run = Run(Path(sys.argv[1])), Run(Path(sys.argv[2]))
manifest = load_manifest(run.manifest_file)
print("ready", flush=True)
while True:
    if successor(source) is None:
        take_over(plan_migration(manifest, source), source, run)
    rollback(run)
"""
KILLS = 4


def check(source: Run, run: Run, before: dict[str, bytes]) -> None:
    assert content(source) == before, "the old run is whole, always"
    migration = load_migration(run)
    assert (migration is None) is (successor(source) is None)
    if migration is None:
        assert not run.train_folder.exists()
        return
    assert steps_of(run) == STEPS
    assert content(Run(run.train_folder / "backup")) == before
    assert {event["job"]: event["total_env_steps"] for event in read_events(run)} == STEPS


def test_killed_migrations_and_rollbacks_leave_one_whole_state(tmp_path: Path) -> None:
    source = old_run(tmp_path)
    manifest = a_manifest("ab", replace(NEW, concurrency=2), name="new")
    run = open_migrated_run(tmp_path / "new.json", manifest, source, tmp_path)
    before, random_s = content(source), random.Random(0)
    for _ in range(KILLS):
        command = [sys.executable, "-c", BACK_AND_FORTH, str(source.path), str(run.path)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        time.sleep(random_s.uniform(0.0, 0.4))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        check(source, run, before)
    if successor(source) is None:
        take_over(plan_migration(manifest, source), source, run)
        check(source, run, before)
    rollback(run)
    check(source, run, before)
