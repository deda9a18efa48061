"""Writes harsher surfaces than the shipped ones, to see how the search fails: formulas, no model of any machine.

    python reports/reference/search/make_harsh_surfaces.py FOLDER
    python reports/reference/search/bench.py --methods autotune --surfaces $(ls FOLDER/*.csv | paste -sd,)

Twenty-one kinds, three of each: the best point at 16 processes, at one, or at the smallest minibatch; few stable
points; independent roughness and noise; cliffs; two optima; hosts that go down without a word about memory; memory
that is no sum of its knobs, a product or a square; slow starts; heavy points that hang; light ones that do, or crash;
a baseline that fails, or a rule of thumb; one level of a knob that hangs; 80 to 1,000 points, with holes.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

GIB = 2**30
COLUMNS = "num_envs,batch_size,concurrency,status,sps,sd_fraction,startup_s,vram_bytes,ram_bytes"
LEVELS = (1, 2, 3, 4, 6, 8, 12, 16)
ENVS, BATCHES = tuple(2**i for i in range(3, 10)), tuple(2**i for i in range(6, 12))
Number = Callable[[int, int, int], float]


def law(fixed: float, per_env: float, per_batch: float, share: float) -> Number:
    """Steps per second of k processes that take this long a step and share a part of it."""

    def sps(e: int, b: int, k: int) -> float:
        own = fixed + per_env / e + per_batch / b
        return k / (own + share * (k - 1) * own)

    return sps


@dataclass(frozen=True, kw_only=True)
class Case:
    """A kind of surface: its throughput, its points, and which of them fail."""

    sps: Number
    grid: tuple[Sequence[int], Sequence[int], Sequence[int]] = (ENVS, BATCHES, LEVELS)
    fails: Callable[[int, int, int], str | None] = lambda e, b, k: None
    vram_gib: Number = lambda e, b, k: k * (0.6 + 0.01 * e + 0.001 * b)
    ram_gib: Number = lambda e, b, k: k * (1.0 + 0.01 * e)
    limits_gib: tuple[float, float] = (16, 32)
    cores: int = 8
    noise: float = 0.02
    start_s: Number = lambda e, b, k: 12.0
    baseline: tuple[int, int, int] = (8, 256, 1)
    baseline_runs: bool = True
    hole: Callable[[int, int, int], bool] = lambda e, b, k: False
    memory_known: bool = True


def rough(random: np.random.Generator, grid: tuple[Sequence[int], Sequence[int], Sequence[int]], dev: float) -> Number:
    """A random factor of each point's own."""
    field = {point: float(np.exp(random.normal(0, dev))) for point in itertools.product(*grid)}
    return lambda e, b, k: field[e, b, k]


def cases(random: np.random.Generator) -> Iterator[tuple[str, Case]]:
    """One of each kind."""
    roomy, large, usual = (80.0, 256.0), (40.0, 128.0), (ENVS, BATCHES, LEVELS)
    yield "edge16", Case(sps=law(3e-5, 1e-3, 2e-3, random.uniform(0.01, 0.05)), limits_gib=roomy)
    alone = law(2e-5, random.uniform(0.5, 2) * 1e-3, random.uniform(1, 4) * 1e-3, 1.0)
    yield "alone", Case(sps=lambda e, b, k: alone(e, b, k) * 0.9 ** (k - 1), limits_gib=large)
    most, half, mild = random.uniform(4, 7), law(2e-5, 1e-3, 2e-3, 0.5), law(2e-5, 1e-3, 2e-3, 0.3)
    uneven = rough(random, usual, 0.05)
    yield (
        "fragile",
        Case(
            sps=lambda e, b, k: half(e, b, k) * uneven(e, b, k),
            fails=lambda e, b, k: "crashed" if np.log2(e) + np.log2(b / 64) / 2 + 1.2 * np.log2(k) > most else None,
        ),
    )
    bumps, base = rough(random, usual, 0.12), law(2e-5, 1e-3, 2e-3, 0.6)
    yield "rough", Case(sps=lambda e, b, k: base(e, b, k) * bumps(e, b, k), noise=0.06, limits_gib=(24, 64))
    edge_e, edge_b, edge_k = (
        int(random.choice([32, 64, 128])), int(random.choice([256, 512, 1024])), int(random.choice([3, 4, 6])),
    )  # fmt: skip
    steep = law(2e-5, 1e-3, 2e-3, 0.4)

    def cliffs(e: int, b: int, k: int) -> float:
        factor = (0.6 if e * k > edge_e * 4 else 1) * (0.7 if b > edge_b else 1) * (0.8 if k > edge_k else 1)
        return steep(e, b, k) * factor

    yield "cliff", Case(sps=cliffs, limits_gib=large)
    many = 2 * int(random.choice([128, 256, 512]))
    yield (
        "blindhost",
        Case(
            sps=mild,
            fails=lambda e, b, k: "host_lost" if e * k > many else "oom" if b * k > 4096 else None,
            limits_gib=(1e6, 1e6),
            memory_known=False,
        ),
    )
    yield (
        "product",
        Case(
            sps=mild,
            vram_gib=lambda e, b, k: k * (0.5 + 0.002 * b + 2e-5 * e * b + 0.002 * e),
            ram_gib=lambda e, b, k: 3 + k * (0.8 + 0.02 * e**1.1),
        ),
    )
    few = ((4, 8, 16, 32, 64), (128, 256, 512, 1024), (1, 2, 3, 4))
    uneven4, shared = rough(random, few, 0.04), law(5e-5, 1e-3, 5e-3, random.uniform(0.3, 0.9))
    yield "small", Case(sps=lambda e, b, k: shared(e, b, k) * uneven4(e, b, k), grid=few, noise=0.04)
    odd = (
        (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256),
        (64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048),
        LEVELS,
    )
    uneven5, gaps, broad = (
        rough(random, odd, 0.05),
        rough(random, odd, 1.0),
        law(2e-5, 1.5e-3, 3e-3, random.uniform(0.3, 0.7)),
    )

    def ridge(e: int, b: int, k: int) -> float:
        off = abs(np.log2(e * k / 64))
        return broad(e, b, k) * uneven5(e, b, k) * (1 - 0.05 * off**2 if off < 3.5 else 0.4)

    yield (
        "thousand",
        Case(sps=ridge, grid=odd, hole=lambda e, b, k: gaps(e, b, k) > 2.0, limits_gib=large, noise=0.03),
    )
    uneven6 = rough(random, usual, 0.06)
    yield (
        "slowstart",
        Case(
            sps=lambda e, b, k: half(e, b, k) * uneven6(e, b, k),
            start_s=lambda e, b, k: 60 + 3 * k + 0.05 * e,
            limits_gib=large,
        ),
    )
    left = (random.integers(3, 6), random.integers(6, 9), 0.5)
    right = (random.integers(7, 10), random.integers(9, 12), 2.5)
    height = random.uniform(0.8, 1.2)

    def hill(at: tuple[float, float, float], width: float) -> Number:
        return lambda e, b, k: float(
            np.exp(-((np.log2(e) - at[0]) ** 2 + 0.6 * (np.log2(b) - at[1]) ** 2 + (np.log2(k) - at[2]) ** 2) / width)
        )

    first, second = hill(left, 8), hill(right, 5)
    yield (
        "twopeaks",
        Case(
            sps=lambda e, b, k: 2000 + 30000 * (height * first(e, b, k) + second(e, b, k)), limits_gib=roomy, noise=0.03
        ),
    )
    lucky, flat = int(random.choice([128, 512, 1024])), law(2e-5, 5e-4, 1e-5, 0.8)
    yield "needle", Case(sps=lambda e, b, k: flat(e, b, k) * (1.25 if b == lucky else 1.0), limits_gib=roomy)
    yield (
        "tiny",
        Case(
            sps=lambda e, b, k: 20000 * k / (1 + 0.25 * (k - 1)) * (8 / e) ** 0.2 * (64 / b) ** 0.1,
            limits_gib=roomy,
            baseline=(64, 512, 1),
        ),
    )
    cpu = (tuple(2**i for i in range(8)), tuple(2**i for i in range(5, 10)), (1, 2, 3, 4))
    uneven7 = rough(random, cpu, 0.03)

    def two_cores(e: int, b: int, k: int) -> float:
        stepping, sharing = min(1, 0.5 + 0.12 * np.log2(e + 1)), 1 + 0.2 * min(k - 1, 1) - 0.1 * max(k - 2, 0)
        return float(uneven7(e, b, k) * 900 * stepping * sharing * (b / 512) ** 0.15)

    yield (
        "cpu",
        Case(
            sps=two_cores, grid=cpu, cores=2, noise=0.05, start_s=lambda e, b, k: 9.0, baseline=(1, 32, 4),
            limits_gib=(16, 32),
        ),
    )  # fmt: skip
    until, steeper, uneven8 = random.uniform(6, 9), law(2e-5, 1e-3, 2e-3, 0.3), rough(random, usual, 0.05)
    yield (
        "hanging",
        Case(
            sps=lambda e, b, k: steeper(e, b, k) * uneven8(e, b, k),
            fails=lambda e, b, k: "timeout" if np.log2(e) + 1.5 * np.log2(k) > until else None,
            limits_gib=roomy,
        ),
    )
    enough, how = int(random.choice([16, 32])), str(random.choice(["timeout", "crashed"]))
    yield (
        "light",
        Case(
            sps=mild, fails=lambda e, b, k: how if e < enough or b > 16 * e else None, limits_gib=large,
            baseline_runs=False,
        ),
    )  # fmt: skip
    power = random.uniform(0.8, 1.2)
    yield "times", Case(sps=mild, vram_gib=lambda e, b, k: k * (0.4 + 2e-6 * (e * b) ** power + 0.001 * e))
    yield "square", Case(sps=mild, vram_gib=lambda e, b, k: k * (0.4 + 3e-7 * b * b + 2e-5 * e * e))
    yield from odd_cases(random, how)


def odd_cases(random: np.random.Generator, how: str) -> Iterator[tuple[str, Case]]:
    """Failures that have nothing to do with weight: the baseline or the rule of thumb alone, or one level of a knob."""
    large, mild, half = (40.0, 128.0), law(2e-5, 1e-3, 2e-3, 0.3), law(2e-5, 1e-3, 2e-3, 0.5)
    yield (
        "firstfails",
        Case(
            sps=mild, fails=lambda e, b, k: how if (e, b, k) == (8, 256, 1) else None, limits_gib=large,
            baseline_runs=False,
        ),
    )  # fmt: skip
    knob, uneven = int(random.integers(3)), rough(random, (ENVS, BATCHES, LEVELS), 0.05)
    level = int(random.choice(([64, 128], [256, 512], [2, 4])[knob]))
    yield (
        "level",
        Case(
            sps=lambda e, b, k: half(e, b, k) * uneven(e, b, k),
            fails=lambda e, b, k: "timeout" if (e, b, k)[knob] == level else None, limits_gib=large,
            baseline=(8, 128, 1),
        ),
    )  # fmt: skip
    yield (
        "thumbfails",
        Case(
            sps=lambda e, b, k: half(e, b, k) * uneven(e, b, k),
            fails=lambda e, b, k: how if (e, b, k) == (64, 256, 1) else None, limits_gib=large,
        ),
    )  # fmt: skip


def lines(name: str, case: Case) -> Iterator[str]:
    """A surface file."""
    vram_limit, ram_limit = case.limits_gib
    envs, batch, processes = case.baseline
    yield f"# device: {name}"
    yield "# synthetic: true"
    yield f"# vram_limit_bytes: {int(vram_limit * GIB)}"
    yield f"# ram_limit_bytes: {int(ram_limit * GIB)}"
    yield f"# cpu_cores: {case.cores}"
    yield "# price_usd_per_hour: 1.0"
    yield f"# baseline: num_envs={envs} batch_size={batch} concurrency={processes}"
    yield COLUMNS
    for point in itertools.product(*case.grid):
        if case.hole(*point) and point != case.baseline:
            continue
        vram, ram = case.vram_gib(*point), case.ram_gib(*point)
        status = case.fails(*point) or (
            "host_lost" if ram > ram_limit else "oom" if vram > 0.985 * vram_limit else "ok"
        )
        status = "ok" if point == case.baseline and case.baseline_runs else status
        measured = f"{case.sps(*point):.6g},{case.noise:.3g}" if status == "ok" else ","
        held = f"{int(vram * GIB)},{int(ram * GIB)}" if case.memory_known else ","
        yield f"{','.join(map(str, point))},{status},{measured},{case.start_s(*point):.1f},{held}"


def main() -> None:
    """Write the surfaces."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(3):
        for name, case in cases(np.random.default_rng(100 + seed)):
            (folder / f"{name}-{seed}.csv").write_text("\n".join(lines(name, case)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
