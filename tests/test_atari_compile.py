"""The network through torch.compile: the same numbers, the same checkpoint names. Compiling takes half a minute."""

import shutil

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("envpool")

from autotune.records import Budget, Job, Point  # noqa: E402
from autotune.workloads.atari import AtariWorkload  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")]
JOB = Job(id="job", env="Breakout-v5", seed=1, budget=Budget(unit="steps", amount=1000))


def test_a_compiled_session_does_what_an_eager_one_does(monkeypatch):
    monkeypatch.setenv("AUTOTUNE_THREADS", "1")
    sessions = []
    for compile in (False, True):
        point = Point(num_envs=4, batch_size=16, extra=(("compile", compile),))
        sessions.append(AtariWorkload({"rollout": 8, "epochs": 1}).open(point, JOB, "cpu"))
    eager, compiled = sessions
    assert (eager.effective["compile"], compiled.effective["compile"]) == (False, True)
    images = torch.randint(0, 256, (4, 4, 84, 84), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(compiled._learner.values(images), eager._learner.values(images))
    work = [compiled.step() for _ in range(3)]
    assert sum(w.env_steps for w in work) + sum(w.reset_rows for w in work) == 3 * 4 * 8
    assert all(w.minibatches == 2 for w in work)
    assert set(compiled.state().arrays) >= set(eager.state().arrays)
    eager.restore(compiled.state())
    for session in sessions:
        session.close()
