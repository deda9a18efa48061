"""At which of a manifest's points a training runs: the tuned one, or a lighter rung. An unstable one is left."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from autotune.availability import RESTART_S, availability
from autotune.machine import DeviceInfo
from autotune.manifest import Manifest, manifest_hash
from autotune.manifest_schema import Knobs
from autotune.records import Point
from autotune.runs import Run
from autotune.stats import failure_rate_mean_per_hour
from autotune.train.events import Event, last_event, make_event, opened_otherwise, read_events
from autotune.train.sessions import Session, checkpoint_seconds, sessions_of
from autotune.units import format_count, format_duration, how_often

LEAST_FAILURES = 2
"""So often a rung must have failed before it is judged: one failure may have come from outside."""

_RESTART_MOST_S = 600.0
"""What is longer was spent until somebody came to start the machine or the training again."""
_HOUR_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A point of the ladder, with what the training has seen of it on this device.

    Attributes:
        point: its knobs.
        predicted_sps: env steps per second of all processes together while nothing fails, as the manifest promises;
            None when it does not.
        trained_sps: the same as the training measured it last; None likewise.
        failures: times that the machine went down or a job ran out of memory.
        hosts_lost: of these, times that the machine went down.
        seconds: of training.
        kept: share of the time that is kept work, failing on as it did: 1 but for its checkpoints without a failure.
    """

    point: Point
    predicted_sps: float | None
    trained_sps: float | None
    failures: int
    hosts_lost: int
    seconds: float
    kept: float

    @property
    def sps(self) -> float | None:
        """Its speed; None when unknown."""
        return self.predicted_sps or self.trained_sps

    @property
    def goodput_sps(self) -> float | None:
        """Expected env steps per second that survive; None when its speed is unknown."""
        return None if self.sps is None else self.sps * self.kept

    @property
    def unstable(self) -> bool:
        """Whether it failed often enough to be judged."""
        return self.failures >= LEAST_FAILURES

    @property
    def record(self) -> str:
        """What happened on it, in words."""
        lost, starved = self.hosts_lost, self.failures - self.hosts_lost
        what = [f"the machine went down {how_often(lost)}"] if lost else []
        what += [f"a job ran out of memory {how_often(starved)}"] if starved else []
        return f"{' and '.join(what)} in {format_duration(self.seconds)} of training at it"


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where on its ladder a training stands.

    Attributes:
        rung: to train at.
        stepped: whether it goes there only now.
        why: why not at the tuned point, or why there in spite of its failures; empty where there is nothing to say.
    """

    rung: Rung
    stepped: bool
    why: str


def rungs_of(manifest: Manifest, events: Sequence[Event], device: str) -> list[Rung]:
    """The tuned point and the ladder's, with what a training's events tell of each on that device (a fingerprint)."""
    sessions = [session for session in sessions_of(events) if session.device == device]
    downs_s = [session.down_s for session in sessions if session.host_lost]
    restart_s = min(statistics.median(downs_s), _RESTART_MOST_S) if downs_s else RESTART_S
    checkpoint_s = checkpoint_seconds(sessions)
    interval_s = manifest.stability.checkpoint_interval_s
    predicted = manifest.predicted()
    promised = [predicted.sps if predicted else None, *(each.goodput_sps for each in manifest.ladder)]
    found = []
    for (_, knobs), predicted_sps in zip(manifest.points(), promised, strict=True):
        point = knobs.record()
        own = [session for session in sessions if session.point == point.knobs()]
        failures, seconds = sum(session.failures for session in own), sum(session.seconds for session in own)
        mean_failure_s = _HOUR_S / failure_rate_mean_per_hour(failures, max(seconds, 1.0) / _HOUR_S)
        kept = availability(mean_failure_s, restart_s, checkpoint_s, interval_s)
        found.append(
            Rung(
                point=point,
                predicted_sps=predicted_sps,
                trained_sps=_trained_sps(own),
                failures=failures,
                hosts_lost=sum(session.host_lost for session in own),
                seconds=seconds,
                kept=kept if failures else interval_s / (interval_s + checkpoint_s),
            )
        )
    return found


def _trained_sps(sessions: Sequence[Session]) -> float | None:
    return next((session.sps for session in reversed(sessions) if session.sps), None)


def choose_rung(manifest: Manifest, events: Sequence[Event], opening: Event) -> Step:
    """Where a training goes on: as far down as it has stepped, and lower where that is expected to bring more.

    A rung that failed `LEAST_FAILURES` times is left for the lighter one with the highest expected goodput, its speed
    times the share of the time that its failure rate (Jeffreys' mean) leaves as kept work; one that has not failed is
    taken to last. It never goes up again, but an edited manifest is judged anew from its tuned point.

    Args:
        manifest: as it is now.
        events: of the training so far.
        opening: the event ``opened`` that is about to be written, with `manifest` (its hash) and `device`.
    """
    rungs = rungs_of(manifest, [*events, opening], opening["device"])
    newest = last_event(events, {"edited", "stepped"})
    stepped = newest if newest and newest["kind"] == "stepped" else None  # an edit before it has been judged
    if opened_otherwise(events, opening["manifest"]):
        stepped = None
    begun = _place(rungs, stepped) if stepped else 0
    at, why = begun, ""
    while rungs[at].unstable and (lighter := rungs[at + 1 :]):
        best = at + 1 + _best(lighter)
        why = _why(rungs[at], rungs[best])
        if not _pays(rungs[at], rungs[best]):
            break
        at = best
    if at == begun and stepped and not why:
        why = str(stepped.get("detail", ""))
    return Step(rung=rungs[at], stepped=at > begun, why=why)


def next_step(manifest: Manifest, run: Run, device: DeviceInfo) -> Step:
    """Where the run's training would go on, opened now.

    Raises:
        FileError: its events are damaged.
    """
    opening = make_event("opened", manifest=manifest_hash(manifest), device=device.fingerprint)
    return choose_rung(manifest, read_events(run), opening)


def at_rung(manifest: Manifest, rung: Rung) -> Manifest:
    """The manifest as if the rung were what it tuned; its prediction is of the other point, and no longer counts."""
    return manifest.model_copy(update={"point": Knobs.model_validate(rung.point.knobs())})


def _place(rungs: Sequence[Rung], stepped: Event) -> int:
    return next((n for n, rung in enumerate(rungs) if rung.point.knobs() == stepped.get("point")), 0)


def _best(rungs: Sequence[Rung]) -> int:
    """The one of the highest goodput; the first where that of none is known."""
    return max(range(len(rungs)), key=lambda n: (rungs[n].goodput_sps or 0.0, -n))


def _pays(rung: Rung, lighter: Rung) -> bool:
    """Whether the lighter one is expected to bring more, or nobody knows."""
    now, then = rung.goodput_sps, lighter.goodput_sps
    return now is None or then is None or then > now


def _why(rung: Rung, lighter: Rung) -> str:
    speed = f" of its {format_count(rung.sps)} SPS" if rung.sps else ""
    found = f"{rung.point.label()} is unstable: {rung.record}, which leaves {rung.kept:.0%}{speed} as kept work"
    beside = f" ({format_count(lighter.sps)} SPS)" if lighter.sps else ""
    if _pays(rung, lighter):
        nevertheless = "to stay at it, take the ladder out of the manifest"
        return f"{found}; training steps down to {lighter.point.label()}{beside}; {nevertheless}"
    return f"{found}; that is still more than {lighter.point.label()} brings{beside}, so training stays"
