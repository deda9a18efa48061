"""The learner: network, optimizer and precision; acts on observations and updates from rollouts."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autotune.workloads.atari import ppo
from autotune.workloads.atari.environment import EnvironmentSpec
from autotune.workloads.atari.graphs import Replayed, Tensors, can_record
from autotune.workloads.atari.lanes import Lanes
from autotune.workloads.atari.model import build_model, compiled, twin
from autotune.workloads.atari.rollout import Samples
from autotune.workloads.atari.settings import PPOSettings, Precision

Array = np.ndarray[Any, Any]

LOW_PRECISION = {"bf16": torch.bfloat16, "fp16": torch.float16}
ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")
_LANE_SEEDS = 1_000_003


class Learner:
    """PPO on one device. Heads, loss and optimizer state are in float32 whatever the precision.

    Every lane has a network of its own, which shares the parameters but not their gradients. With `overlap` the
    policy that acts is a copy, renewed by `publish`.

    Attributes:
        precision: in effect; float32 for vector observations whatever was asked for.
        compiled: whether the network runs through torch.compile.
        cuda_graphs: whether acting and minibatches are replayed.
        updates: optimizer steps taken so far.
        generator: source of minibatch orders, and of the first lane's actions.
    """

    def __init__(
        self,
        spec: EnvironmentSpec,
        settings: PPOSettings,
        device: torch.device,
        precision: Precision,
        seed: int,
        lanes: Lanes | None = None,
        actors: int = 1,
    ) -> None:
        """A learner for an environment.

        Args:
            spec: of the environment.
            settings: hyperparameters.
            device: for network and optimizer.
            precision: of the network's arithmetic.
            seed: of weights, actions and minibatch orders.
            lanes: that share every minibatch, this thread alone by default.
            actors: lanes that act, each with a source of actions of its own.
        """
        self._lanes = lanes or Lanes(1, 1)
        self.settings = settings
        self.device = device
        # A network for vectors is too small to gain from low precision.
        self.precision = "fp32" if spec.kind == "vector" else precision
        self.channels_last = spec.kind == "image" and (
            device.type != "mps" if settings.channels_last == "auto" else settings.channels_last
        )
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = self.precision == "tf32"
        self.model = self._build(spec, seed)
        self.compiled = settings.compile
        self._models = [self.model, *(twin(self.model, spec, settings.hidden) for _ in range(1, self._lanes.count))]
        self._networks = [self._network(model) for model in self._models]
        self.optimizer = self._adam()
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == "fp16")
        self._actor, self._policy = self.model, self._networks[0]
        if settings.overlap:
            self._actor = self._build(spec, seed).requires_grad_(False)
            self._policy = self._network(self._actor)
        # The learner's comes first; an actor beside it cannot share it.
        self._generators = [torch.Generator(device) for _ in range(actors + settings.overlap)]
        self.generator = self._generators[0]
        self._seed_generators(seed)
        self.cuda_graphs = device.type == "cuda" and self._replays(spec)
        acting = self._generators[settings.overlap :]
        self._acts = [Replayed(functools.partial(self._act_apart, own), own) for own in acting]
        self._minibatches = Replayed(functools.partial(self._share, 0, 1.0))
        self.updates = 0

    def _build(self, spec: EnvironmentSpec, seed: int) -> nn.Module:
        """The network as it is kept: on the device, in the memory layout in effect."""
        model = build_model(spec, self.settings.hidden, seed).to(self.device)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return model

    def _network(self, model: nn.Module) -> nn.Module:
        """What is called to run it."""
        return compiled(model, self.device) if self.compiled else model

    def _replays(self, spec: EnvironmentSpec) -> bool:
        """Whether to replay on CUDA: as the setting says, else where the learning of some zeros can be recorded."""
        if self.settings.cuda_graphs != "auto":
            return self.settings.cuda_graphs
        if self.compiled:
            return False
        count, kind = 8, torch.uint8 if spec.kind == "image" else torch.float32
        observations = torch.zeros((count, *spec.shape), dtype=kind, device=self.device)
        actions, zeros = (
            torch.zeros(count, dtype=torch.int64, device=self.device),
            torch.zeros(count, device=self.device),
        )
        recorded = can_record(lambda: self._share(0, 1.0, observations, actions, zeros, zeros, zeros, zeros))
        self.model.zero_grad(set_to_none=True)
        return recorded

    def _adam(self) -> torch.optim.Adam:
        settings, fused = self.settings, self.device.type in ("cpu", "cuda")
        return torch.optim.Adam(
            self.model.parameters(), lr=settings.learning_rate, eps=settings.adam_epsilon, fused=fused
        )

    @contextlib.contextmanager
    def autocast(self, *, cached: bool = True) -> Iterator[None]:
        """Compute in the low precision in effect, if one is; converted weights are kept meanwhile if `cached`."""
        low = LOW_PRECISION.get(self.precision)
        with torch.autocast(self.device.type, dtype=low, enabled=low is not None, cache_enabled=cached):
            yield

    def publish(self) -> None:
        """Act with the present weights from now on."""
        if self._actor is not self.model:
            with torch.no_grad():
                torch._foreach_copy_(list(self._actor.parameters()), list(self.model.parameters()))

    def values(self, observations: Tensor) -> Tensor:
        """What the network that acts expects from here: (batch,)."""
        values: Tensor = self._policy(observations)[1]
        return values

    def act(self, observations: Tensor, lane: int = 0) -> Tensors:
        """Sample actions: (actions, log probabilities, values), each (batch,), on the device, until the next call."""
        if self.cuda_graphs:
            return self._acts[lane](observations)
        return self._act(self._generators[lane + self.settings.overlap], observations)

    def _act(self, generator: torch.Generator, observations: Tensor) -> Tensors:
        logits, values = self._policy(observations)
        log_probs = logits.log_softmax(-1)
        # argmax of p / Exp(1) draws from p without waiting for the device.
        noise = torch.empty_like(log_probs).exponential_(generator=generator)
        actions = (log_probs.exp() / noise).argmax(-1, keepdim=True)
        return actions.squeeze(-1), log_probs.gather(-1, actions).squeeze(-1), values

    def _act_apart(self, generator: torch.Generator, observations: Tensor) -> Tensors:
        """Act with nothing that was computed before: a replay converts the weights anew."""
        with self.autocast(cached=False):
            return self._act(generator, observations)

    def update(self, samples: Samples, batch_size: int, learning_rate: float) -> dict[str, float]:
        """Run every epoch over the samples' valid rows; returns the means of the loss terms.

        Raises:
            WorkerError: a term became NaN or infinite; names it and the update.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if len(samples.rows) == 0:  # nothing but a reset: one environment, one step
            return dict.fromkeys(ppo.LossTerms._fields, 0.0)
        first = self.updates + 1
        if self.settings.advantage_normalisation == "rollout":
            kept = samples.advantages[samples.rows]
            samples.advantages[samples.rows] = ppo.normalised(kept)
        terms = [
            self._minibatch(samples, rows, whole=len(rows) == batch_size)
            for _ in range(self.settings.epochs)
            for rows in ppo.minibatches(samples.rows, batch_size, self.generator)
        ]
        table = torch.stack(terms).cpu().double().numpy()
        ppo.refuse_nonfinite(table, first)
        return dict(zip(ppo.LossTerms._fields, table.mean(axis=0).tolist(), strict=True))

    def _minibatch(self, samples: Samples, rows: Tensor, *, whole: bool) -> Tensor:
        """One optimizer step; returns the loss terms, detached, without waiting for the device."""
        terms = self.gradients(samples, rows, whole=whole)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_gradient_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.updates += 1
        return terms

    def gradients(self, samples: Samples, rows: Tensor, *, whole: bool = True) -> Tensor:
        """Put the gradient of the loss of some rows where the parameters keep theirs, not yet clipped.

        Each lane computes its share of the rows; the sum is the gradient of the whole up to rounding.

        Args:
            samples: that the rows are of.
            rows: indices of them.
            whole: they are a minibatch's usual number, and may be replayed: as many as the resets left do not come
                again.

        Returns:
            (terms,) the loss terms, in the order of `ppo.LossTerms`, detached.
        """
        advantages = samples.advantages[rows]
        if self.settings.advantage_normalisation == "minibatch":
            advantages = ppo.normalised(advantages)
        shares = list(zip(rows.chunk(self._lanes.count), advantages.chunk(self._lanes.count), strict=True))

        def share(lane: int) -> Tensor | None:
            if lane >= len(shares):  # fewer rows than lanes
                self._models[lane].zero_grad(set_to_none=True)
                return None
            own, its_advantages = shares[lane]
            inputs = (*samples.minibatch(own), its_advantages)
            if self.cuda_graphs and whole:
                return self._replayed_minibatch(*inputs)
            return self._share(lane, len(own) / len(rows), *inputs)[0]

        terms = [part for part in self._lanes.run(share) if part is not None]
        for model in self._models[1 : len(shares)]:
            torch._foreach_add_(_gradients(self.model), _gradients(model))
        self.scaler.unscale_(self.optimizer)
        return terms[0] if len(terms) == 1 else torch.stack(terms).sum(0)

    def _share(
        self, lane: int, weight: float, images: Tensor, actions: Tensor, log_probs: Tensor, old_values: Tensor,
        returns: Tensor, advantages: Tensor,
    ) -> Tensors:  # fmt: skip
        """(`weight` times the loss terms, detached, the lane's gradients of so much of the loss ...)."""
        settings, model = self.settings, self._models[lane]
        with self.autocast():
            logits, values = self._networks[lane](images)
        terms = ppo.ppo_loss(
            logits,
            values,
            actions,
            log_probs,
            old_values,
            advantages,
            returns,
            clip=settings.clip,
            value_clip=settings.value_clip,
            value_coefficient=settings.value_coefficient,
            entropy_coefficient=settings.entropy_coefficient,
        )
        model.zero_grad(set_to_none=True)
        self.scaler.scale(terms.total * weight).backward()  # type: ignore[no-untyped-call]
        return torch.stack([term.detach() for term in terms]) * weight, *_gradients(model)

    def _replayed_minibatch(self, *inputs: Tensor) -> Tensor:
        """The whole of a minibatch; the gradients lie where the replay leaves them."""
        terms, *gradients = self._minibatches(*inputs)
        for parameter, gradient in zip(self.model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        return terms.clone()

    def _seed_generators(self, seed: int) -> None:
        for lane, generator in enumerate(self._generators):
            generator.manual_seed(seed + _LANE_SEEDS * lane)

    @property
    def nbytes(self) -> int:
        """Bytes of parameters, every lane's gradients, Adam's two moments, and the copy that acts if there is one."""
        own = sum(parameter.nbytes for parameter in self.model.parameters())
        return own * (1 + len(self._models) + 2 + (self._actor is not self.model))

    def arrays(self) -> dict[str, Array]:
        """Weights, Adam's moments and the generator's state as plain arrays, by name."""
        found = {f"model.{name}": _array(value) for name, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                found[f"adam.{key}.{name}"] = _array(value)
        states = {_generator_key(n): _array(g.get_state()) for n, g in enumerate(self._generators)}
        return {**found, **states}

    def meta(self) -> dict[str, Any]:
        """What `arrays` leaves out, as JSON values."""
        return {"updates": self.updates, "generator_device": self.device.type, "loss_scale": self.scaler.get_scale()}

    def load(self, arrays: Mapping[str, Array], meta: Mapping[str, Any], seed: int) -> None:
        """Put back what `arrays` and `meta` gave, whatever device and point they came from.

        A generator's state means nothing on another kind of device: there, and for a lane that there was not, a
        new one is seeded from the seed and the number of updates.
        """
        weights = {key.removeprefix("model."): torch.tensor(a) for key, a in arrays.items() if key.startswith("model.")}
        self.model.load_state_dict(weights)
        for name, parameter in self.model.named_parameters():
            state = {key: arrays[f"adam.{key}.{name}"] for key in ADAM_STATE if f"adam.{key}.{name}" in arrays}
            if state:
                self.optimizer.state[parameter] = {k: self._adam_value(k, v, parameter) for k, v in state.items()}
        self.publish()
        self.updates = int(meta["updates"])
        self._seed_generators(seed + self.updates)
        if meta["generator_device"] == self.device.type:
            for lane, generator in enumerate(self._generators):
                if (key := _generator_key(lane)) in arrays:  # of a lane that there was
                    generator.set_state(torch.tensor(arrays[key]))
        if self.scaler.is_enabled() and meta["loss_scale"] > 1:
            # In place: recorded minibatches read the scale where it lies.
            self.scaler.load_state_dict(self.scaler.state_dict() | {"scale": meta["loss_scale"], "_growth_tracker": 0})

    def _adam_value(self, key: str, array: Array, parameter: Tensor) -> Tensor:
        """One value of Adam's state where the optimizer wants it: moments in the parameter's own memory layout."""
        value = torch.tensor(array)
        if key == "step":
            return value.to(self.device) if self.device.type == "cuda" else value
        return torch.empty_like(parameter).copy_(value)


def _gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def _generator_key(lane: int) -> str:
    return f"generator.{lane}" if lane else "generator"


def _array(tensor: Tensor) -> Array:
    return np.array(tensor.detach().cpu().contiguous().numpy())
