"""CUDA graphs: work on a device that is recorded once and then launched as a whole.

A minibatch is many small kernels, and a device waits for Python between them when the minibatch is small.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from autotune.errors import WorkerError

Tensors = tuple[Tensor, ...]
WARM_UP = 3
"""Calls step by step before the recording: libraries set themselves up in them, which cannot be recorded."""
_RECORDING = threading.Lock()


class Replayed:
    """A function of tensors that is replayed where it can be.

    The first calls run step by step. The shapes that are the first to come once more than `WARM_UP` times are recorded;
    from then on calls of these shapes copy their inputs into the recorded tensors and replay. Other shapes, such as a
    rollout's last minibatch, still run step by step.
    """

    def __init__(self, work: Callable[..., Tensors], generator: torch.Generator | None = None) -> None:
        """Nothing is recorded yet.

        Args:
            work: launches on the device and never waits for it; what else it reads, weights say, must stay where it is
                in memory.
            generator: that it draws from.
        """
        self._work = work
        self._generator = generator
        self._seen: Counter[tuple[torch.Size, ...]] = Counter()
        self._shapes: tuple[torch.Size, ...] = ()
        self._graph: Any = None
        self._inputs: Tensors = ()
        self._outputs: Tensors = ()

    def __call__(self, *inputs: Tensor) -> Tensors:
        """The outputs; the next call overwrites them.

        Raises:
            WorkerError: the work cannot be recorded.
        """
        shapes = tuple(each.shape for each in inputs)
        if self._graph is None:
            self._seen[shapes] += 1
            if self._seen[shapes] > WARM_UP:
                self._shapes, self._inputs = shapes, tuple(each.clone() for each in inputs)
                with torch.cuda.device_of(inputs[0]):  # type: ignore[no-untyped-call]
                    self._graph, self._outputs = record(lambda: self._work(*self._inputs), self._generator)
        if self._graph is None or shapes != self._shapes:
            return self._work(*inputs)
        for own, new in zip(self._inputs, inputs, strict=True):
            own.copy_(new)
        self._graph.replay()
        return self._outputs


def can_record(work: Callable[[], Tensors]) -> bool:
    """Whether CUDA records `work`, which runs for it."""
    for _ in range(WARM_UP):
        outputs = work()
    try:
        with torch.cuda.device_of(outputs[0]):  # type: ignore[no-untyped-call]
            record(work, None)
    except WorkerError:
        return False
    return True


def record(work: Callable[[], Tensors], generator: torch.Generator | None) -> tuple[Any, Tensors]:
    """What `work` launches on the current device, unexecuted, and the tensors in which a replay leaves its outputs.

    One thread at a time; others may go on launching work of their own.

    Raises:
        WorkerError: CUDA refuses something that `work` does.
        torch.OutOfMemoryError: as without recording.
    """
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    before = torch.cuda.current_stream()
    try:
        with _RECORDING, torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"):  # type: ignore[no-untyped-call]
            outputs = work()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        torch.cuda.set_stream(before)  # torch leaves the recording's current when the recording cannot be ended
        if isinstance(error.__context__, torch.OutOfMemoryError):
            raise error.__context__ from error
        raise WorkerError(f"cuda_graphs = true cannot be had here: {error}; use cuda_graphs = false") from error
    return graph, outputs
