from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

import pytest

from autotune.testing.workload import WorkloadContract

OWN_SCRIPT = Path(__file__).parent.parent / "data" / "own_script.py"


class TestBusywork(WorkloadContract):
    name = "busywork"
    hyperparameters: ClassVar = {
        "rollout": 8,
        "env_s": 0.0,
        "step_overhead_s": 0.0,
        "reset_fraction": 0.1,
        "episode_steps": 10,
    }


class TestCommand(WorkloadContract):
    name = "command"
    hyperparameters: ClassVar = {
        "argv": [
            *(sys.executable, str(OWN_SCRIPT), "--num-envs", "{num_envs}", "--minibatch-size", "{batch_size}"),
            *("--report", "counter", "--seed", "{seed}"),
        ],
        "counter": r"steps: ([\d,]+)",
    }
    keeps_state = False
    slices = False


class TestAtari(WorkloadContract):
    name = "atari"
    hyperparameters: ClassVar = {"rollout": 8, "epochs": 1, "hidden": 8}

    @pytest.fixture(autouse=True)
    def _needs(self):
        pytest.importorskip("torch")
        pytest.importorskip("envpool")


class TestCartpoleJax(WorkloadContract):
    name = "cartpole-jax"
    hyperparameters: ClassVar = {"rollout": 8, "epochs": 1}

    @pytest.fixture(autouse=True)
    def _needs(self):
        pytest.importorskip("jax")
        pytest.importorskip("envpool")
