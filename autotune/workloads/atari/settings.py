"""The hyperparameters of the PPO workload: names, defaults, limits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator

from autotune.errors import UsageError
from autotune.records import Point
from autotune.workloads.learning import LearningRule
from autotune.workloads.settings import parse_settings, workload_knobs

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Option = bool | int | float | str
_COUNTS = ("frame_skip", "stack_num", "img_height", "img_width", "max_episode_steps", "noop_max")
"""EnvPool's options that it takes unseen: 0 ended the process with a segmentation fault."""

_STICKY = "repeat_action_probability"
"""EnvPool takes it unseen, too: at 1 and above a game repeats one action for ever, whatever the policy says."""

_MOST_THREADS = 1024
"""More than the cores of any machine; where the host could not start so many, EnvPool aborted without a reason."""


class PPOSettings(LearningRule):
    """Hyperparameters of PPO (Schulman et al. 2017, arXiv:1707.06347), Atari values by default.

    Those of `LearningRule` adapt rollout and learning rate to a point.

    Attributes:
        rollout: vector steps collected before each update.
        epochs: passes over the collected samples.
        learning_rate: Adam's, at the start of the schedule.
        anneal: whether the learning rate falls linearly with env steps.
        schedule_horizon_steps: env steps at which the schedule ends, whatever the job's budget.
        anneal_floor: fraction of the learning rate that is kept from there on.
        adam_epsilon: Adam's denominator term.
        gamma: discount factor per env step.
        gae_lambda: decay of generalised advantage estimation (arXiv:1506.02438).
        clip: range of the probability ratio, and of the value change when `value_clip`.
        value_clip: whether value changes are clipped too.
        value_coefficient: weight of the value loss.
        entropy_coefficient: weight of the entropy bonus.
        max_gradient_norm: global norm to which gradients are clipped.
        advantage_normalisation: over the whole rollout (independent of batch_size), each
            minibatch, or not at all.
        precision: ``auto`` takes bf16 or fp16 where a CUDA device computes it natively, bf16 where a CPU has AMX or
            AVX-512 BF16, else fp32.
        deterministic: refuse operations whose result may differ between equal runs, and take slower ones
            in their place. On a CPU equal runs (seed, point, torch and EnvPool threads) are bit-identical with
            and without it: EnvPool is stepped in lock-step here, never asynchronously. GPUs need it, and
            promise nothing across driver or torch versions.
        compile: whether the network goes through torch.compile (a C++ compiler on a CPU, Triton on a GPU).
        cuda_graphs: record acting and minibatches once and launch them as a whole from then on, on a CUDA device (no
            effect on others). ``auto`` does where a trial can be recorded and the network is not compiled. On an H200
            at 256 environments and minibatch 2048, bf16, learning alone made 180,500 env steps a second for 90,300, and
            acting 469,000 for 206,000.
        channels_last: memory layout of images; ``auto`` is true but for MPS.
        episodic_life: whether a lost life ends an episode for learning (Atari).
        reward_clip: whether learning sees the sign of the reward only (Atari).
        env_threads: EnvPool's threads, 0 for the process's share of cores.
        lanes: threads that each step some of the environments and, on a CPU, compute a share of every minibatch;
            0 for one per core where each has enough to do, 1 for one thing at a time on all cores. On a GPU they
            take turns, so that one's environments step while the other one's actions come; 0 for two where there
            are enough environments. An H200 with 16 cores, 256 environments, minibatch 2048: 11,490 SPS for 9,110.
        overlap: collect the next rollout while learning from the last one, on half of a CPU's cores or beside the
            GPU. The policy that acts is then one iteration older than without; the ratio of PPO's loss is to the
            policy that acted. Breakout on 2 cores: 1,181 SPS for 1,027 (8 environments, minibatch 256), 1,334 for
            1,270 (16, 512), 1,393 for 1,440 (64, 1024). An H200 with 16 cores: 12,090 for 11,490 (256, 2048). Not by
            default, since learning was not compared.
        env_options: further EnvPool options of the environment, by EnvPool's names.
        hidden: units per layer of the network for vector observations.
    """

    rollout: int = Field(default=128, ge=1)
    epochs: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=2.5e-4, gt=0)
    anneal: bool = True
    schedule_horizon_steps: int = Field(default=10_000_000, ge=1)
    anneal_floor: float = Field(default=0.01, ge=0, le=1)
    adam_epsilon: float = Field(default=1e-5, gt=0)
    gamma: float = Field(default=0.99, ge=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    clip: float = Field(default=0.1, gt=0)
    value_clip: bool = True
    value_coefficient: float = Field(default=0.5, ge=0)
    entropy_coefficient: float = Field(default=0.01, ge=0)
    max_gradient_norm: float = Field(default=0.5, gt=0)
    advantage_normalisation: Literal["rollout", "minibatch", "none"] = "rollout"
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    deterministic: bool = False
    compile: bool = False
    cuda_graphs: Literal["auto"] | bool = "auto"
    channels_last: Literal["auto"] | bool = "auto"
    episodic_life: bool = True
    reward_clip: bool = True
    env_threads: int = Field(default=0, ge=0, le=_MOST_THREADS)
    lanes: int = Field(default=0, ge=0, le=64)
    overlap: bool = False
    env_options: dict[str, Option] = Field(default_factory=dict)
    hidden: int = Field(default=64, ge=1)

    @field_validator("env_options")
    @classmethod
    def _refuse_impossible_values(cls, options: dict[str, Option]) -> dict[str, Option]:
        for name in _COUNTS:
            value = options.get(name, 1)
            if isinstance(value, int | float) and value < 1:
                raise ValueError(f"{name} = {value} must be at least 1")
        chance = options.get(_STICKY, 0)
        if isinstance(chance, int | float) and not 0 <= chance < 1:
            raise ValueError(f"{_STICKY} = {chance} must be at least 0 and below 1; 0.25 is usual")
        return options

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Self:
        """Settings from a recipe's or manifest's hyperparameters.

        Raises:
            UsageError: an unknown name or a value out of range.
        """
        return parse_settings(cls, "atari", values)

    def at(self, point: Point) -> Self:
        """These settings as they take effect at a point: its further knobs, its rollout, its learning rate.

        Raises:
            UsageError: a knob that is no setting, a value out of range, or a point beyond samples_per_update.
        """
        return self.parse({**self.model_dump(), **workload_knobs(point)}).in_effect(point)


def check_point(settings: PPOSettings, point: Point) -> None:
    """Refuse points that can never run, or never learn.

    Raises:
        UsageError: a knob below 1, a minibatch larger than the rollout, or a single sample whose advantage
            is normalised to 0.
    """
    settings.check_counts(point)
    over, samples = settings.advantage_normalisation, point.num_envs * settings.rollout
    if over != "none" and {"minibatch": point.batch_size, "rollout": samples}[over] == 1:
        raise UsageError(
            f"{'batch_size' if over == 'minibatch' else 'num_envs x rollout'} 1 with advantage_normalisation = "
            f"{over!r} makes every advantage 0, and nothing is learnt; use a larger one or "
            f"advantage_normalisation = {'rollout' if samples > 1 else 'none'!r}"
        )
