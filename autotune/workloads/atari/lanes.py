"""Lanes: threads that work side by side on one training, each with its share of this process's cores.

A lane steps and acts for some of the environments, and computes the gradient of its share of every minibatch; the
shares are added before the one optimizer step, so that the learning rule is that of a single thread.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")

LANES_MAX = 4
_LANE_ENVS_MIN = 2
_LANE_BATCH_MIN = 32
_ACTING_ENVS_MIN = 2
"""Environments of an acting lane for each of EnvPool's threads: they step for about as long as a GPU takes to act."""


def lane_count(asked: int, cores: int, num_envs: int, batch_size: int) -> int:
    """Lanes of a training: what was asked for, else one for each core while each has enough to do.

    Tried on 2 cores; more than `LANES_MAX` are taken only when asked for.

    Args:
        asked: the setting, 0 for automatic.
        cores: this process's share of them.
        num_envs: environments, at least one for each lane.
        batch_size: samples of a minibatch, which the lanes share.
    """
    if asked:
        return min(asked, num_envs, batch_size)
    return max(1, min(cores, LANES_MAX, num_envs // _LANE_ENVS_MIN, batch_size // _LANE_BATCH_MIN))


def acting_lanes(num_envs: int, threads: int) -> int:
    """Lanes that act where a device computes: two take turns, one's environments step while the other's actions come.

    Both have all of EnvPool's threads. Fewer environments would make the device act twice as often for no gain.

    Args:
        num_envs: environments, of both.
        threads: EnvPool's.
    """
    return 2 if num_envs >= 2 * _ACTING_ENVS_MIN * threads else 1


def lane_columns(num_envs: int, lanes: int) -> list[slice]:
    """Which environments each lane has: neighbours, as equal in number as can be."""
    edges = [num_envs * lane // lanes for lane in range(lanes + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


class Lanes:
    """The threads, `count` of them, each computing with `threads` threads of torch.

    One lane is the calling thread itself.
    """

    def __init__(self, count: int, threads: int) -> None:
        self.count = count
        self.threads = threads
        self._pool = ThreadPoolExecutor(count, "lane", torch.set_num_threads, (threads,)) if count > 1 else None

    def run(self, work: Callable[[int], Result]) -> list[Result]:
        """Call `work` with every lane's number, all at once; returns the results by lane, raises the first error."""
        if self._pool is None:
            return [work(0)]
        return list(self._pool.map(work, range(self.count)))

    def close(self) -> None:
        """End the threads; safe to call twice."""
        if self._pool is not None:
            self._pool.shutdown()
