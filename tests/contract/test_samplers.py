from importlib.util import find_spec

import pytest

from autotune.testing.sampler import SamplerContract


class TestOurs(SamplerContract):
    name = "autotune"


class TestTpe(SamplerContract):
    name = "tpe"


@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch")
class TestGp(SamplerContract):
    name = "gp"
    count = 11  # the first ten are drawn at random


class TestRandom(SamplerContract):
    name = "random"


class TestGrid(SamplerContract):
    name = "grid"


class TestHillClimb(SamplerContract):
    name = "hillclimb"
