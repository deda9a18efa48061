"""Writes the synthetic surfaces: an invented, labelled model of PPO-like training on rented GPUs.

    python reports/reference/search/make_surfaces.py

One process collects a rollout (CPU cores step environments, the GPU infers) and then learns over
minibatches (roofline plus kernel launches). K processes form a closed queueing network of a CPU pool
and a GPU, solved by exact mean value analysis (Reiser and Lavenberg 1980). On top: cache and
oversubscription effects, memory, failures near the limits, and optionally a random rough field.
The search knows none of this; it sees probes. The figures rank methods and promise nothing.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent.parent / "surfaces"
ENVS = 2 ** np.arange(0, 11)
BATCHES = 2 ** np.arange(5, 14)
LEVELS = np.array([1, 2, 3, 4, 6, 8, 12, 16])
ROLLOUT, EPOCHS = 128, 4
COLUMNS = "num_envs,batch_size,concurrency,status,sps,sd_fraction,startup_s,vram_bytes,ram_bytes"
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a made-up host can do."""

    device: str
    flops: float  # reachable in mixed precision, per second
    bandwidth: float  # bytes per second
    launch_s: float  # per kernel
    vram_mib: float
    context_mib: float
    cores: int
    ram_gib: float
    switch: float  # cost of time-slicing per further process
    price_usd_per_hour: float


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a made-up training asks of it."""

    env_s: float  # core-seconds per env step
    gflop: float  # forward, per sample
    kernels_forward: int
    kernels_train: int
    activations_kib: float  # per sample in training
    observation_kib: float
    parameters_million: float
    env_mib: float  # host memory per environment


A100 = Machine(
    device="A100-40GB-like", flops=45e12, bandwidth=1.4e12, launch_s=5e-6, vram_mib=40 * 1024, context_mib=480,
    cores=12, ram_gib=85, switch=0.015, price_usd_per_hour=2.0,
)  # fmt: skip
T4 = Machine(
    device="T4-like", flops=4.5e12, bandwidth=0.25e12, launch_s=7e-6, vram_mib=15 * 1024, context_mib=330,
    cores=4, ram_gib=26, switch=0.035, price_usd_per_hour=0.55,
)  # fmt: skip
CNN = Program(
    env_s=160e-6, gflop=0.0225, kernels_forward=14, kernels_train=95, activations_kib=330, observation_kib=28,
    parameters_million=1.7, env_mib=11,
)  # fmt: skip
RESNET = Program(
    env_s=160e-6, gflop=0.13, kernels_forward=48, kernels_train=330, activations_kib=1500, observation_kib=28,
    parameters_million=1.1, env_mib=11,
)  # fmt: skip
MLP = Program(
    env_s=45e-6, gflop=0.0004, kernels_forward=16, kernels_train=110, activations_kib=9, observation_kib=0.4,
    parameters_million=0.15, env_mib=3,
)  # fmt: skip
LSTM = Program(
    env_s=9e-6, gflop=0.004, kernels_forward=40, kernels_train=420, activations_kib=60, observation_kib=4,
    parameters_million=2.0, env_mib=0.6,
)  # fmt: skip

CASES = {
    "a100-cnn-env-bound": (A100, CNN, 0.0),
    "a100-resnet-vram-cliff": (A100, RESNET, 0.0),
    "a100-lstm-plateau": (A100, LSTM, 0.0),
    "a100-cnn-rough": (A100, CNN, 0.10),
    "t4-cnn-ram-bound": (T4, CNN, 0.0),
    "t4-resnet-vram-cliff": (T4, RESNET, 0.0),
    "t4-mlp-plateau": (T4, MLP, 0.0),
    "t4-lstm-rough": (T4, LSTM, 0.10),
}


def logistic(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x)."""
    return 1 / (1 + np.exp(-x))


def queueing(cpu_s: np.ndarray, gpu_s: np.ndarray, think_s: np.ndarray) -> np.ndarray:
    """Iterations per second of K customers at two queueing stations, for the demands of every point."""
    rate = np.zeros(cpu_s.shape)
    for level, processes in enumerate(LEVELS):
        c, g, z = cpu_s[..., level], gpu_s[..., level], think_s[..., level]
        queue_c, queue_g = np.zeros_like(c), np.zeros_like(g)
        for customers in range(1, processes + 1):
            wait_c, wait_g = c * (1 + queue_c), g * (1 + queue_g)
            x = customers / (z + wait_c + wait_g)
            queue_c, queue_g = x * wait_c, x * wait_g
        rate[..., level] = x
    return rate


def throughput(machine: Machine, program: Program, random: np.random.Generator) -> np.ndarray:
    """Aggregate steps per second, (num_envs, batch_size, concurrency)."""
    shape = (len(ENVS), len(BATCHES), len(LEVELS))
    envs, processes = ENVS[:, None, None].astype(float), LEVELS[None, None, :].astype(float)
    batch = np.minimum(BATCHES[None, :, None].astype(float), envs * ROLLOUT)
    cores = machine.cores
    cache = 1 + 0.35 * logistic(np.log2(envs * processes * program.env_mib / (cores * 40)))
    crowd = 1 + 0.05 * np.maximum(0, np.log2(processes * np.minimum(envs, cores) / cores))
    work_s = envs * ROLLOUT * program.env_s * cache * crowd
    alone_s, pool_s = work_s / np.minimum(envs, cores) / 0.85, work_s / cores / 0.9
    half = 10 ** random.uniform(1.6, 2.4)
    gflop = program.gflop * 1e9
    infer_s = ROLLOUT * (
        envs * gflop / (machine.flops * envs / (envs + half)) + program.observation_kib * 1024 * envs / 10e9
    )
    minibatches = EPOCHS * np.ceil(envs * ROLLOUT / batch)
    wave = 1 + 0.12 * np.abs(np.sin(np.log2(batch) * 2.3 + random.uniform(0, 6)))
    learn_s = batch * 3 * gflop / (machine.flops * batch / (batch + 2 * half)) * wave
    learn_s = learn_s + program.parameters_million * 28e6 / machine.bandwidth
    learn_s = learn_s + program.activations_kib * 1024 * batch * 2.2 / machine.bandwidth
    launches = ROLLOUT * program.kernels_forward + minibatches * program.kernels_train
    launch_s = launches * machine.launch_s * np.exp(random.normal(0, 0.15))
    gpu_s = (infer_s + minibatches * learn_s) * (1 + machine.switch * (processes - 1) ** 0.8) + 0.35 * launch_s
    python_s = ROLLOUT * (90 + 0.25 * envs) * 1e-6 * np.exp(random.normal(0, 0.2))
    think_s = (0.65 * launch_s + python_s) * np.maximum(1, 1.2 * processes / cores) + np.maximum(0, alone_s - pool_s)
    full = [np.broadcast_to(part, shape) for part in (pool_s, gpu_s, think_s)]
    return queueing(*full) * envs * ROLLOUT


def rough_field(random: np.random.Generator, deviation: float) -> np.ndarray:
    """A random factor: a smooth part (1.5 octaves), an independent one, and a step along two axes."""

    def smooth(places: np.ndarray) -> np.ndarray:
        gap = np.subtract.outer(places, places)
        return np.linalg.cholesky(np.exp(-0.5 * (gap / 1.5) ** 2) + 1e-6 * np.eye(len(places)))

    shape = (len(ENVS), len(BATCHES), len(LEVELS))
    axes = [smooth(np.log2(values)) for values in (ENVS, BATCHES, LEVELS)]
    field = np.einsum("ai,bj,ck,ijk->abc", *axes, random.normal(size=shape)) * deviation
    field += random.normal(0, 0.4 * deviation, shape[:2])[:, :, None]
    field[random.integers(5, 10) :] -= random.uniform(0, 1.5 * deviation)
    field[:, :, random.integers(1, len(LEVELS)) :] -= random.uniform(0, 1.5 * deviation)
    return np.exp(field)


def memory(machine: Machine, program: Program, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of VRAM and RAM of all processes, (num_envs, batch_size, concurrency)."""
    envs, processes = ENVS[:, None, None].astype(float), LEVELS[None, None, :].astype(float)
    batch = np.minimum(BATCHES[None, :, None].astype(float), envs * ROLLOUT)
    workspace_mib = 120 + 0.12 * batch**0.8 * random.uniform(0.7, 1.6)
    held_mib = program.parameters_million * 16 + envs * ROLLOUT * program.observation_kib / 1024
    held_mib = held_mib + batch * (program.activations_kib + 4 * program.observation_kib) / 1024
    held_mib = held_mib + envs * program.activations_kib * 0.25 / 1024
    each_mib = machine.context_mib + workspace_mib + held_mib * random.uniform(1.08, 1.3)
    each_gib = 2.4 + envs * program.env_mib / 1024 + envs * ROLLOUT * program.observation_kib / 1024**2 * 0.5
    shape = (len(ENVS), len(BATCHES), len(LEVELS))
    return each_mib * processes * MIB, np.broadcast_to(each_gib * processes * GIB, shape)


def rows(machine: Machine, program: Program, rough: float, random: np.random.Generator) -> list[str]:
    """A surface's lines."""
    sps = throughput(machine, program, random)
    if rough:
        sps = sps * rough_field(random, rough)
    vram, ram = memory(machine, program, random)
    start_s = random.uniform(8, 22)
    lines = []
    for (i, j, k), value in np.ndenumerate(sps):
        envs, batch, processes = int(ENVS[i]), int(BATCHES[j]), int(LEVELS[k])
        if batch > envs * ROLLOUT:
            continue
        iterations = max(2.0, 10 * value / (envs * ROLLOUT))
        noise = float(np.hypot(0.035 / np.sqrt(max(1.5, 0.4 * iterations)), 0.01))
        startup_s = start_s + 0.7 * processes + 0.004 * envs * np.sqrt(processes)
        load = processes * min(envs, machine.cores) / machine.cores
        status = "ok"
        if ram[i, j, k] > machine.ram_gib * GIB:
            status = "host_lost"
        elif vram[i, j, k] > 0.985 * machine.vram_mib * MIB:
            status = "oom"
        elif vram[i, j, k] > 0.96 * machine.vram_mib * MIB or ram[i, j, k] > 0.95 * machine.ram_gib * GIB or load > 14:
            status = "crashed"
        measured = f"{value:.6g},{noise:.3g}" if status == "ok" else ","
        memory_cells = f"{round(vram[i, j, k] / MIB) * MIB},{round(ram[i, j, k] / MIB) * MIB}"
        lines.append(f"{envs},{batch},{processes},{status},{measured},{startup_s:.1f},{memory_cells}")
    return lines


def main() -> None:
    """Write the surfaces."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, (machine, program, rough) in CASES.items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        header = [
            f"# device: {machine.device}",
            "# synthetic: true",
            f"# vram_limit_bytes: {int(machine.vram_mib * MIB)}",
            f"# ram_limit_bytes: {int(machine.ram_gib * GIB)}",
            f"# cpu_cores: {machine.cores}",
            f"# price_usd_per_hour: {machine.price_usd_per_hour}",
            "# baseline: num_envs=8 batch_size=256 concurrency=1",
        ]
        text = "\n".join([*header, COLUMNS, *rows(machine, program, rough, random)]) + "\n"
        (FOLDER / f"synthetic-{name}.csv").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
