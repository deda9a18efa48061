"""Recorded surfaces made from formulas, for tests of the search."""

from collections.abc import Callable
from pathlib import Path

COLUMNS = "num_envs,batch_size,concurrency,status,sps,sd_fraction,startup_s,vram_bytes,ram_bytes"
GIB = 2**30
ENVS = (8, 16, 32, 64, 128, 256)
BATCHES = (64, 128, 256, 512, 1024)
LEVELS = (1, 2, 3, 4)


def smooth_sps(envs: int, batch: int, processes: int) -> float:
    """One process takes 20 us + 1 ms / envs + 2 ms / batch a step, 60 % of it on the shared device."""
    own_s = 20e-6 + 1e-3 / envs + 2e-3 / batch
    return processes / (own_s + 0.6 * (processes - 1) * own_s)


def memory_bytes(envs: int, batch: int, processes: int) -> tuple[int, int]:
    """VRAM and RAM of all processes."""
    return (
        int(processes * (0.5 + 0.02 * envs + 0.002 * batch) * GIB),
        int(processes * (1.0 + 0.03 * envs) * GIB),
    )


def write_surface(
    path: Path,
    *,
    sps: Callable[[int, int, int], float] = smooth_sps,
    status: Callable[[int, int, int], str] | None = None,
    noise: float = 0.02,
    startup_s: float = 10.0,
    vram_limit: float = 16 * GIB,
    ram_limit: float = 32 * GIB,
    cores: int = 4,
    baseline: str = "num_envs=8 batch_size=256 concurrency=1",
) -> Path:
    """Write a surface over the small grid; by default points fail where they do not fit."""

    def fate(envs: int, batch: int, processes: int) -> str:
        vram, ram = memory_bytes(envs, batch, processes)
        return "oom" if vram > 0.98 * vram_limit else "host_lost" if ram > ram_limit else "ok"

    lines = [
        "# device: Test GPU",
        "# synthetic: true",
        f"# vram_limit_bytes: {int(vram_limit)}",
        f"# ram_limit_bytes: {int(ram_limit)}",
        f"# cpu_cores: {cores}",
        "# price_usd_per_hour: 2.0",
        f"# baseline: {baseline}",
        COLUMNS,
    ]
    for envs in ENVS:
        for batch in BATCHES:
            for processes in LEVELS:
                word = (status or fate)(envs, batch, processes)
                measured = f"{sps(envs, batch, processes):.3f}" if word == "ok" else ""
                vram, ram = memory_bytes(envs, batch, processes)
                lines.append(f"{envs},{batch},{processes},{word},{measured},{noise},{startup_s},{vram},{ram}")
    path.write_text("\n".join(lines) + "\n")
    return path
