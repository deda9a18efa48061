"""What a checkpoint costs a training: at most 1 % of its time at the default interval."""

import tempfile
from pathlib import Path

import pytest

from autotune.manifest_schema import Stability
from autotune.records import Budget, Job, Point
from autotune.worker.checkpoint import refuse_nonfinite, save_checkpoint
from autotune.workloads.atari import AtariWorkload
from autotune.workloads.protocol import SessionState

pytest.importorskip("torch")
pytest.importorskip("envpool")


@pytest.fixture
def session(monkeypatch):
    monkeypatch.setenv("AUTOTUNE_THREADS", "1")
    job = Job(id="a", env="Breakout-v5", seed=1, budget=Budget(unit="steps", amount=1000))
    session = AtariWorkload({"rollout": 16, "epochs": 1}).open(Point(num_envs=8, batch_size=64), job, "cpu")
    session.step()  # Adam has no state before
    yield session
    session.close()


def test_a_checkpoint_of_breakout(benchmark, session):
    """State, check, encoding, hash, write and flush to this disk: 20 MB of weights and moments."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:

        def save():
            state = session.state()
            refuse_nonfinite(state)
            whole = SessionState(arrays=state.arrays, meta={"session": state.meta})
            return save_checkpoint(Path(folder), whole, env_steps=session.env_steps, score=1.0)

        path = benchmark.pedantic(save, rounds=10, warmup_rounds=1)
        assert path.stat().st_size > 19e6
    interval_s = Stability().checkpoint_interval_s
    benchmark.extra_info["share_of_interval"] = benchmark.stats["median"] / interval_s
    assert benchmark.stats["median"] / interval_s <= 0.01
