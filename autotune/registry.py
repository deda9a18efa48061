"""Names of plug-ins: bundled ones here, others through entry-point groups ``autotune.<kind>``.

Objects are imported when they are asked for, so that naming a workload loads no framework.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from autotune.errors import AutotuneError, UsageError

Kind = Literal["workload", "executor", "sampler", "meter", "section"]

BUNDLED: dict[Kind, dict[str, str]] = {
    "workload": {
        "atari": "autotune.workloads.atari:AtariWorkload",
        "busywork": "autotune.workloads.busywork:BusyworkWorkload",
        "cartpole-jax": "autotune.workloads.cartpole_jax:CartpoleJaxWorkload",
        "command": "autotune.workloads.command:CommandWorkload",
        "doctor": "autotune.workloads.doctor:DoctorWorkload",
    },
    "executor": {
        "isolated": "autotune.executors.isolated:IsolatedExecutor",
        "replay": "autotune.executors.replay:ReplayExecutor",
    },
    "sampler": {
        "autotune": "autotune.search.sampler:GoodputSampler",
        "tpe": "autotune.search.samplers:tpe",
        "gp": "autotune.search.samplers:gp",
        "random": "autotune.search.samplers:random",
        "grid": "autotune.search.samplers:GridSampler",
        "hillclimb": "autotune.search.samplers:HillClimbSampler",
    },
    "meter": {
        "vram": "autotune.meters.vram:VramMeter",
        "power": "autotune.meters.power:PowerMeter",
        "health": "autotune.meters.health:HealthMeter",
        "host": "autotune.meters.host:HostMeter",
    },
    "section": {
        "summary": "autotune.report.sections.summary:render",
        "device": "autotune.report.sections.device:render",
        "trials": "autotune.report.sections.trials:render",
        "bottleneck": "autotune.report.sections.bottleneck:render",
        "stability": "autotune.report.sections.stability:render",
        "cost": "autotune.report.sections.cost:render",
        "training": "autotune.report.sections.training:render",
    },
}


def _installed(kind: Kind) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=f"autotune.{kind}")}


def names(kind: Kind) -> list[str]:
    """Every name of a kind, bundled first."""
    return list(dict.fromkeys([*BUNDLED[kind], *_installed(kind)]))


def load(kind: Kind, name: str) -> Any:
    """Import the object behind a name; a bundled name wins over an installed one.

    Raises:
        UsageError: no such name; the message lists those there are.
        AutotuneError: an installed one cannot be imported; names its package.
    """
    if name in BUNDLED[kind]:
        module, _, attribute = BUNDLED[kind][name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    installed = _installed(kind)
    if name in installed:
        return _load_installed(kind, installed[name])
    raise UsageError(unknown_name(kind, name, names(kind)))


def _load_installed(kind: Kind, entry: EntryPoint) -> Any:
    with blamed(kind, entry.name, "be loaded"):
        return entry.load()


def make(kind: Kind, name: str, *arguments: Any) -> Any:
    """What a class or function of that name makes of the arguments.

    Raises:
        UsageError: there is none of this name, or it lacks a package; see `load`.
        AutotuneError: an installed part failed; names its package.
    """
    made_by = load(kind, name)
    with blamed(kind, name):
        return made_by(*arguments)


@contextmanager
def blamed(kind: Kind, name: str, what: str = "be made") -> Iterator[None]:
    """Whatever somebody else's part raises within is told as an error of its package; errors in words stay as they are.

    What it prints goes to stderr: stdout is for data.

    Raises:
        AutotuneError: an installed part failed; names its package.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except AutotuneError:
        raise
    except (Exception, SystemExit) as error:  # the latter would end the command in silence, with a code of ours
        entry = None if name in BUNDLED[kind] else _installed(kind).get(name)
        if entry is None:
            raise
        package = entry.dist.name if entry.dist else "unknown"
        raise AutotuneError(
            f"{kind} {name!r} ({entry.value}, of the package {package}) cannot {what}: "
            f"{type(error).__name__}: {error}. Mend that package, or uninstall it"
        ) from error


class Watched:
    """Somebody else's part, as it is but for what its methods raise: an error of its package (`blamed`)."""

    def __init__(
        self,
        kind: Kind,
        name: str,
        part: Any,
        answers: Mapping[str, Callable[[Any], Any]] | None = None,
        what: str = "",
    ) -> None:
        """Watch `part`, which is installed under that name.

        Args:
            kind: of the part.
            name: of the part.
            part: whose methods are called.
            answers: by method, what takes or refuses its answer.
            what: it cannot do when one of them fails, ``propose a point``; by default carry that one out.
        """
        self._kind, self._name, self._part, self._answers, self._what = kind, name, part, answers or {}, what

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._part, attribute)
        return functools.partial(self._call, attribute, value) if callable(value) else value

    def _call(self, attribute: str, method: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        with blamed(self._kind, self._name, self._what or f"carry out {attribute}()"):
            answer = method(*arguments, **named)
            return self._answers[attribute](answer) if attribute in self._answers else answer


def unknown_name(kind: str, name: str, known: list[str]) -> str:
    """A message for a misspelt name: the nearest one first, then all."""
    return f"unknown {kind} {name!r}.{did_you_mean(name, known)} There are: {', '.join(known)}."


def did_you_mean(name: str, known: list[str]) -> str:
    """`` Did you mean 'atari'?`` of the nearest name, nothing where none is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
