"""Actor-critic networks: the Nature CNN for images, two small tanh networks for vectors."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from autotune.errors import WorkerError
from autotune.workloads.atari.environment import EnvironmentSpec, allowed_threads

CONVOLUTIONS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Channels, kernel and stride of each layer (Mnih et al. 2015, doi:10.1038/nature14236)."""


class ImageActorCritic(nn.Module):
    """Nature CNN with a policy and a value head on 512 shared features."""

    def __init__(self, shape: tuple[int, ...], actions: int, generator: torch.Generator) -> None:
        super().__init__()
        channels, height, width = shape
        layers = []
        for out, kernel, stride in CONVOLUTIONS:
            layers.append(nn.Conv2d(channels, out, kernel, stride))
            channels = out
            height, width = ((side - kernel) // stride + 1 for side in (height, width))
        self.first, self.second, self.third = layers
        self.hidden = nn.Linear(channels * height * width, 512)
        self.policy = nn.Linear(512, actions)
        self.value = nn.Linear(512, 1)
        _initialise([*layers, self.hidden], math.sqrt(2), generator)
        _initialise([self.policy], 0.01, generator)
        _initialise([self.value], 1.0, generator)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (batch, actions) and values (batch,) in float32 of uint8 images (batch, channels, height, width).

        The division by 255 is folded into the first layer's weights: uint8 is exact in bf16, x / 255 is not.
        """
        device = observations.device.type
        low = torch.is_autocast_enabled(device)
        x = observations.to(torch.get_autocast_dtype(device) if low else torch.float32)
        x = conv2d(x, self.first.weight * (1 / 255), self.first.bias, self.first.stride).relu_()
        x = self.third(self.second(x).relu_()).relu_()
        x = self.hidden(x.flatten(1)).relu_()
        with torch.autocast(device, enabled=False):
            x = x.float()
            return self.policy(x), self.value(x).squeeze(-1)


class VectorActorCritic(nn.Module):
    """Separate actor and critic, two tanh layers each."""

    def __init__(self, shape: tuple[int, ...], actions: int, hidden: int, generator: torch.Generator) -> None:
        super().__init__()
        self.policy = self._network(shape[0], hidden, actions, 0.01, generator)
        self.value = self._network(shape[0], hidden, 1, 1.0, generator)

    @staticmethod
    def _network(inputs: int, hidden: int, outputs: int, gain: float, generator: torch.Generator) -> nn.Sequential:
        body = [nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)]
        head = nn.Linear(hidden, outputs)
        _initialise(body, math.sqrt(2), generator)
        _initialise([head], gain, generator)
        return nn.Sequential(body[0], nn.Tanh(), body[1], nn.Tanh(), head)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (batch, actions) and values (batch,) of vectors (batch, values)."""
        return self.policy(observations).float(), self.value(observations).float().squeeze(-1)


def build_model(spec: EnvironmentSpec, hidden: int, seed: int) -> nn.Module:
    """The network for an environment, on the CPU, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    if spec.kind == "image":
        return ImageActorCritic(spec.shape, spec.actions, generator)
    return VectorActorCritic(spec.shape, spec.actions, hidden, generator)


def twin(model: nn.Module, spec: EnvironmentSpec, hidden: int) -> nn.Module:
    """A network with the parameters of another one, in the same memory, and gradients of its own."""
    found = build_model(spec, hidden, 0)
    for own, shared in zip(found.parameters(), model.parameters(), strict=True):
        own.data = shared.data
    return found


def compiled(model: nn.Module, device: torch.device) -> nn.Module:
    """The network through torch.compile: same parameters, compiled when it is first called.

    Raises:
        WorkerError: what the compiler needs is not installed.
    """
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        raise WorkerError(f"compile = true needs a C++ compiler, and there is no {compiler!r}: install one (g++)")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise WorkerError("compile = true needs Triton on a GPU: install the package triton")
    # One compiling process per core of this process's share, not of the machine; read once, when torch loads it.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(allowed_threads()))
    network: nn.Module = torch.compile(model)  # type: ignore[assignment]
    return network


def _initialise(layers: Sequence[nn.Linear | nn.Conv2d], gain: float, generator: torch.Generator) -> None:
    """Orthogonal weights (arXiv:1312.6120) and zero biases."""
    for layer in layers:
        nn.init.orthogonal_(layer.weight, gain, generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
