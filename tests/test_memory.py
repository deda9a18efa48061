"""The memory rule over every resource: device and host memory, shared memory, threads."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_host import host

from autotune.machine import RAM_UNSTATED_BYTES, DeviceInfo
from autotune.records import REFUSED, Limits, Point, ProbeResult
from autotune.search import memory
from autotune.search.memory import PEAKS, MemoryLimits, fit, memory_limits, observed, safe_points, upper_bound
from autotune.search.space import counts
from autotune.workloads.learning import Rollout

GIB = 2**30
RECORDED = Path(__file__).parent.parent / "reports" / "reference" / "memory" / "probes.csv"


def at(num_envs: int, batch_size: int = 256, concurrency: int = 1) -> Point:
    return Point(num_envs=num_envs, batch_size=batch_size, concurrency=concurrency)


def stable(point: Point, **peaks: int) -> ProbeResult:
    return ProbeResult(requested=point, status="ok", grade="quick", sps=1.0, **peaks)


def allowed(history: list[ProbeResult], limits: MemoryLimits, *points: Point) -> list[bool]:
    return [bool(may) for may in safe_points(points, history, limits, None)]


@pytest.mark.parametrize(
    ("peak", "limit"),
    [
        ("vram_peak_bytes", "vram_bytes"),
        ("ram_peak_bytes", "ram_bytes"),
        ("shm_peak_bytes", "shm_bytes"),
        ("threads_peak", "threads"),
    ],
)
def test_each_resource_is_limited_by_what_was_seen_of_it(peak, limit):
    history = [stable(at(8), **{peak: 100}), stable(at(16), **{peak: 180})]
    # 10 an environment and 20 a process, so 340 for 32 environments and 660 for 64
    points = [at(32), at(64), at(32, concurrency=2)]
    assert allowed(history, MemoryLimits(**{limit: 400.0}), *points) == [True, False, False]
    assert allowed(history, MemoryLimits(**{limit: 800.0}), *points) == [True, True, True]
    assert allowed(history, MemoryLimits(), *points) == [True, True, True]


def failed(point: Point, status: str) -> ProbeResult:
    return ProbeResult(requested=point, status=status, grade="quick")


@pytest.mark.parametrize(
    ("status", "heavier", "lighter_batch"),
    [("oom", True, False), ("crashed", True, True), ("timeout", True, True), ("host_lost", False, False)],
)
def test_a_failure_that_a_heavier_point_does_not_share_forbids_no_heavier_one(status, heavier, lighter_batch):
    """And crashes and timeouts then come from something else than weight, elsewhere, too; a lost machine forbids."""
    history = [failed(at(8), status), failed(at(4, 1024), status)]
    asked = (at(16), at(8, 2048), at(8))
    assert allowed(history, MemoryLimits(), *asked) == [False, False, False]
    assert allowed([*history, stable(at(32))], MemoryLimits(), *asked) == [heavier, lighter_batch, False]
    other = [failed(at(8), "oom"), failed(at(4, 1024), "crashed"), stable(at(32))]
    assert allowed(other, MemoryLimits(), *asked) == [True, False, False], "to run out of memory excuses no crash"
    refused = [replace(each, flags=(REFUSED,)) for each in history]
    assert allowed(refused, MemoryLimits(), *asked) == [True, True, False], (
        "a program that refuses settings ran nothing"
    )


@pytest.mark.parametrize("status", ["crashed", "timeout"])
@pytest.mark.parametrize(
    ("peaks", "forbids"),
    [((100, 480), False), ((100, 240), True), ((None, None), False)],  # 8 environments in 100: 32 may need 400
)
def test_a_crash_where_no_more_is_needed_than_others_took_forbids_nothing_heavier(status, peaks, forbids):
    light, other = peaks
    history = [
        stable(at(8), vram_peak_bytes=light),
        failed(at(32, 128), status),
        stable(at(16, 64, 2), vram_peak_bytes=other),
    ]
    asked = [at(64, 128), at(32, 512)]
    assert allowed(history, MemoryLimits(), *asked, at(32, 128)) == [not forbids, not forbids, False]
    history[1] = failed(at(32, 128), "oom")
    assert allowed(history, MemoryLimits(), *asked) == [False, False]


def test_where_no_memory_is_known_a_crash_of_more_than_others_had_forbids_what_is_heavier():
    history = [stable(at(8)), failed(at(32, 512), "crashed"), stable(at(16, 64, 2))]
    assert allowed(history, MemoryLimits(), at(64, 512), at(32, 256)) == [False, True]


@pytest.mark.parametrize("held", [85, 95])
def test_what_asks_for_no_more_than_a_point_that_ran_may_run(held):
    """A baseline at the edge of memory left nothing to search: for all the law says, a lighter point takes as much."""
    history = [stable(at(64, 256, 2), vram_peak_bytes=held)]
    points = [at(32, 256, 2), at(64, 128, 2), at(64, 256, 1), at(128, 256, 1), at(32, 512, 2)]
    assert allowed(history, MemoryLimits(vram_bytes=90), *points) == [True, True, True, False, False]
    assert allowed(history, MemoryLimits(vram_bytes=held), history[0].requested) == [True]
    assert not any(allowed(history, MemoryLimits(vram_bytes=5), *points))
    history.append(failed(at(32, 128, 1), "host_lost"))
    assert not any(allowed(history, MemoryLimits(vram_bytes=90), *points))


@pytest.mark.parametrize(("peak", "status"), [("vram_peak_bytes", "oom"), ("ram_peak_bytes", "host_lost")])
def test_an_unknown_limit_is_less_than_a_failed_point_was_expected_to_need(peak, status):
    """10 an environment and 20 a process: 4 x 64 environments were expected to need 2640, 1 x 192 to need 1940."""
    history = [
        stable(at(8), **{peak: 100}),
        stable(at(16, concurrency=2), **{peak: 360}),
        failed(at(64, 256, 4), status),
    ]
    points = [at(192), at(512), at(32, 256, 4)]  # the second takes more, and is no heavier in every knob
    assert allowed(history, MemoryLimits(), *points) == [True, False, True]
    history[-1] = failed(at(64, 256, 4), "crashed")
    assert allowed(history, MemoryLimits(), *points) == [True, True, True]
    history[-1] = failed(at(8, 128, 2), status)  # less than what has run took: the law is wrong there
    assert allowed(history, MemoryLimits(), at(512)) == [True]


def test_memory_that_nobody_stated_is_no_limit():
    recorded = DeviceInfo(kind="cpu", name="cpu", host=replace(host(), ram_limit_bytes=RAM_UNSTATED_BYTES))
    assert memory_limits(Limits(), recorded).ram_bytes is None


def test_memory_that_goes_with_a_product_of_the_knobs_scales_in_proportion():
    """What was seen of one point bounds those beside it, though no sum of the knobs fits them all."""

    def taken(point: Point) -> float:
        return 0.4 * GIB + 2e3 * point.num_envs * point.batch_size

    seen = [at(8, 256), at(64, 256), at(128, 1024, 4), at(1024, 4096), at(128, 64, 12), at(32, 4096, 6), at(512, 256)]
    seen = [*seen, at(256, 256, 8), at(128, 512, 12)]
    rows, each = counts(seen, None), np.array([taken(point) for point in seen])
    more = upper_bound(counts([at(128, 512, 16), at(256, 512, 12)], None), rows, each)
    assert (more >= [taken(at(128, 512)), taken(at(256, 512))]).all()
    assert (more <= 1.0801 * np.array([1.0, 2.0]) * taken(at(128, 512))).all()


def test_a_resource_that_was_never_taken_limits_nothing():
    limits = MemoryLimits(shm_bytes=0.0, threads=4.0)
    assert allowed([stable(at(8), shm_peak_bytes=0)], limits, at(1024)) == [True]


def test_environments_in_processes_are_held_off_a_pids_limit():
    """One process for each environment beside the learner: 365 of them restarted a machine, 20 did not."""
    history = [stable(at(1, 32, 1), threads_peak=20), stable(at(32, 512, 1), threads_peak=20 + 31 * 4)]
    assert allowed(history, MemoryLimits(threads=450.0), at(64, 1024, 1), at(256, 2048, 8)) == [True, False]


def test_threads_of_a_process_end_at_a_share_of_one_core():
    """Two cores: 11 threads alone, 5 for each of two, and 5 for each of four, as recorded."""
    history = [stable(at(8, 256, 1), threads_peak=11), stable(at(8, 256, 2), threads_peak=10)]
    fitting, short = MemoryLimits(threads=21.0), MemoryLimits(threads=19.0)
    assert allowed(history, fitting, at(8, 256, 4)) == [True]
    assert allowed(history, short, at(8, 256, 4)) == [False]


def test_what_processes_share_is_taken_once():
    """Two GiB of libraries that all share, half a GiB for each process: eight take six GiB, and not twenty."""
    history = [stable(at(8, concurrency=k), ram_peak_bytes=int((2 + 0.5 * k) * GIB)) for k in (1, 2, 4)]
    rows = counts([result.requested for result in history], None)
    each = np.array([taken for _, taken in observed(history, "ram")])
    law = fit(rows, each)
    assert law[4] == pytest.approx(2 * GIB, rel=1e-6)
    assert law[:4] @ [1, 8, 256, 16] == pytest.approx(0.5 * GIB, rel=1e-6)
    bound = 8 * upper_bound(counts([at(8, concurrency=8)], None), rows, each)[0]
    assert 6 * GIB <= bound <= 8 * GIB


def test_limits_leave_out_what_others_hold():
    machine = host(shm_total_bytes=GIB, shm_free_bytes=GIB // 2, pids_limit=1000, pids_used=300)
    found = memory_limits(Limits(ram_fraction=0.8), DeviceInfo(kind="cpu", name="c", host=machine))
    assert found.shm_bytes == pytest.approx(0.3 * GIB)
    assert found.threads == pytest.approx(500)
    unknown = replace(machine, shm_total_bytes=None, shm_free_bytes=None, pids_limit=None)
    found = memory_limits(Limits(), DeviceInfo(kind="cpu", name="c", host=unknown))
    assert (found.shm_bytes, found.threads, found.vram_bytes) == (None, None, None)


def test_recorded_probes_are_predicted_by_those_before_them():
    """Each of the recorded real probes, from the fourth of its history on, from all before it."""
    histories: dict[str, list[tuple[Point, float]]] = {}
    with RECORDED.open() as lines:
        for row in csv.DictReader(lines):
            point = at(*(int(row[name]) for name in ("num_envs", "batch_size", "concurrency")))
            histories.setdefault(row["source"], []).append((point, int(row["ram_peak_bytes"]) / point.concurrency))
    errors, under = [], 0
    for seen in histories.values():
        rows, each = counts([point for point, _ in seen], Rollout(steps=128)), np.array([taken for _, taken in seen])
        for now in range(3, len(seen)):
            before = slice(0, now)
            bound = upper_bound(rows[now : now + 1], rows[before], each[before])[0]
            errors.append(bound / each[now] - 1)
            under += each[now] / bound > 1.08
    assert len(errors) >= 8
    assert under == 0
    assert np.median(errors) < 0.2


def grid_rows(count: int) -> np.ndarray:
    points = [(e, b, k) for e in (8, 16, 32) for b in (64, 256, 512) for k in (1, 2)]
    return np.array(points[:: 18 // count], dtype=float)


@pytest.mark.parametrize(
    ("count", "noise", "least", "most", "seen"),
    [(18, 0.0, 1.009, 1.02, 1.01), (6, 0.0, 1.03, 2.0, 1.03), (18, 0.02, 1.03, 1.3, 1.08)],
)
def test_the_bound_is_as_close_as_launches_agree(count, noise, least, most, seen):
    rng, law = np.random.default_rng(1), np.array([4e8, 1e7, 4e5, 0.0, 1e8])
    rows = grid_rows(count)
    each = memory.features(rows) @ law * (1 + rng.normal(0, noise, count))
    asked = np.array([[32.0, 512.0, 1.0], [32.0, 512.0, 2.0]])
    over = memory.upper_bound(asked, rows, each) / (memory.features(asked) @ law)
    assert least <= over.min()
    assert over.max() <= most
    assert (memory.upper_bound(rows, rows, each) / each).max() <= seen * (1 + 1e-6)
    assert memory.features(np.array([[8.0, 256.0, 2.0]])).tolist() == [[1, 8, 256, 16, 0.5]]


def test_every_peak_is_a_field_of_a_result():
    assert set(PEAKS.values()) <= set(ProbeResult.__dataclass_fields__)


def test_the_bound_holds_where_quickhull_gives_up(monkeypatch):
    rng = np.random.default_rng(3)
    rows = np.column_stack([2.0 ** rng.integers(0, 9, 12), 2.0 ** rng.integers(5, 12, 12), rng.integers(1, 5, 12)])
    each = memory.features(rows) @ np.array([4e8, 1e6, 2e4, 1e6, 1e8]) * np.exp(rng.normal(0, 0.02, 12))
    memory._corners.cache_clear()
    usual = memory.upper_bound(rows, rows, each)
    quickhull = memory.HalfspaceIntersection

    def refuse(refused):
        def intersect(halfspaces, inside, qhull_options):
            if qhull_options in refused:
                raise memory.QhullError("wide facet")
            return quickhull(halfspaces, inside, qhull_options=qhull_options)

        memory._corners.cache_clear()
        monkeypatch.setattr(memory, "HalfspaceIntersection", intersect)
        return memory.upper_bound(rows, rows, each)

    assert refuse({"Qx"}) == pytest.approx(usual, rel=1e-6)
    assert (refuse({"Qx", "QJ"}) >= usual * (1 - 1e-9)).all()
    memory._corners.cache_clear()
