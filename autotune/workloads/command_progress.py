"""How far a program is, read from what it prints: pure functions and one small counter.

Three ways: a running total (`counter`), a rate in steps per second (`rate`), or the lines that
`autotune.tick` writes to a pipe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from autotune.errors import UsageError
from autotune.workloads.command_numbers import number_at

PROGRESS: dict[str, dict[str, str]] = {
    # CleanRL prints "global_step=1234, episodic_return=..." at the end of each episode and "SPS: 567" at
    # the end of each iteration. That SPS is a mean since the start, warm-up included, so it only marks
    # the iteration's end and the steps come from the counter.
    "cleanrl": {"counter": r"global_step=(\d+)", "mark": r"SPS:\s*\d"},
    # Stable-Baselines3 prints a table at the end of each iteration.
    "sb3": {"counter": r"\|\s*total_timesteps\s*\|\s*([\d.e+]+)"},
}

WORKER = "worker"
"""Name of the group of a counter that tells whose total it is: the totals of several are summed."""
_ALIKE = 8
"""A total that begins anew grows as it did before, within this factor, and begins within as many such growths of 0;
as many at once are a leap, back to another total."""
_SMALLER_SHARE_MAX = 0.3
"""Of the totals told, the share that is smaller than one before from which on there are several."""
_MARKS_MIN = 5
"""Marks before iterations are taken to be of equal size."""
_CATCH_UP = 32
"""Marks over which a total that was told is caught up with: all at once it would look like a fast iteration."""
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-Z^-~])")
"""Colours, movements of the cursor, titles and links, character sets: ECMA-48's control sequences."""


def compile_pattern(option: str, pattern: str, *, groups: int = 1) -> re.Pattern[str]:
    """A regular expression given by the user, with at least `groups` groups.

    Raises:
        UsageError: not a regular expression, or without the group that holds the number.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{option} '{pattern}' is not a regular expression: {error}") from None
    if compiled.groups - (WORKER in compiled.groupindex) < groups:
        raise UsageError(f"{option} '{pattern}' needs parentheses around the number, such as 'steps: ([0-9,]+)'")
    return compiled


@dataclass(frozen=True, kw_only=True)
class ProgressRule:
    """Which lines tell progress; with neither counter nor rate, `autotune.tick` does.

    Attributes:
        counter: group 1 is the running total of steps; a group named ``worker`` tells whose, and is not counted.
        rate: group 1 is steps per second since the line before, not a mean since the start.
        mark: lines at which progress is complete, None for every line.
    """

    counter: re.Pattern[str] | None = None
    rate: re.Pattern[str] | None = None
    mark: re.Pattern[str] | None = None

    @property
    def by_tick(self) -> bool:
        """Whether the script calls `autotune.tick`."""
        return self.counter is None and self.rate is None

    def describe(self, unread: str | None = None) -> str:
        """What was looked for, and `unread` if that was matched, for the message that nothing was found."""
        if self.by_tick:
            return "autotune.tick(steps) was not called"
        return f"{self._asked} matched {unread!r}, which is no number" if unread else f"no line matched {self._asked}"

    @property
    def _asked(self) -> str:
        option, pattern = ("--counter", self.counter) if self.counter else ("--rate", self.rate)
        return f"{option} '{pattern.pattern}'" if pattern else option

    def unmarked(self) -> str:
        """That lines told progress, but none that it counts, for the message that it stayed at zero."""
        mark = self.mark.pattern if self.mark else ""
        return (
            f": no line matched the mark '{mark}', at which progress counts; "
            f"with {self._asked} in place of preset and mark every line counts"
        )


def make_rule(*, counter: str | None, rate: str | None, mark: str | None, preset: str | None) -> ProgressRule:
    """The rule that the user's options describe.

    Raises:
        UsageError: options that contradict each other, an unknown preset, or a bad expression.
    """
    given = [name for name, value in (("counter", counter), ("rate", rate), ("progress", preset)) if value is not None]
    if len(given) > 1:
        raise UsageError(f"--{' and --'.join(given)} were given together: choose one of them")
    if preset is not None:
        if preset not in PROGRESS:
            raise UsageError(f"unknown --progress {preset!r}. There are: {', '.join(PROGRESS)}.")
        counter, mark = PROGRESS[preset]["counter"], mark or PROGRESS[preset].get("mark")
    return ProgressRule(
        counter=compile_pattern("--counter", counter) if counter is not None else None,
        rate=compile_pattern("--rate", rate) if rate is not None else None,
        mark=compile_pattern("mark", mark, groups=0) if mark else None,
    )


def preset_of(output: str) -> str | None:
    """The preset that lines of output fit, mark and all; None where none does."""
    text = _ESCAPES.sub("", output)
    return next((name for name, rule in PROGRESS.items() if all(re.search(each, text) for each in rule.values())), None)


@dataclass
class _Run:
    """Numbers that never fall.

    Attributes:
        first: of them.
        last: and largest.
        grown: how often they grew.
    """

    first: float
    last: float
    grown: int = 0

    @property
    def growth(self) -> float:
        """By how much they usually grow."""
        return (self.last - self.first) / self.grown if self.grown else self.last

    def add(self, number: float) -> float:
        """Take a number in; by how much it is larger."""
        added = number - self.last
        self.grown += added > 0
        self.last = number
        return added


class _Total:
    """A running total of one source, which may begin anew."""

    def __init__(self) -> None:
        self._run: _Run | None = None
        self._fallen: _Run | None = None  # numbers that are smaller, since the run's last
        self._before: _Run | None = None  # the largest run before it began anew
        self._since = 0.0  # steps since then
        self._one_of_several = False  # smaller numbers are another total

    @property
    def largest(self) -> float:
        """Since it began, anew or at all."""
        return self._run.last if self._run else 0.0

    def read(self, number: float) -> float:
        """Steps that a number adds; negative where it shows that it did not begin anew after all."""
        if self._run is None:
            self._run = _Run(first=number, last=number)
            return number
        if number >= self._run.last:
            return self._grow(self._run, number)
        if self._fallen is None or number < self._fallen.last:
            self._one_of_several |= self._fallen is not None and not self._fallen.grown  # fell twice before it grew
            self._fallen = _Run(first=number, last=number)
        else:
            self._fallen.add(number)
        if self._one_of_several or not _began_anew(self._run, self._fallen):
            return 0.0
        if self._before is None or self._run.last >= self._before.last:
            self._before, self._since = self._run, 0.0
        self._run, self._fallen = self._fallen, None
        self._since += number
        return number

    def _grow(self, run: _Run, number: float) -> float:
        self._fallen, before = None, self._before
        if before is not None and number >= before.last and number - run.last >= _ALIKE * run.growth:
            self._run, self._before, self._one_of_several = before, None, True  # it was there all the time
            return before.add(number) - self._since
        added = run.add(number)
        self._since += added
        return added


def _began_anew(run: _Run, fallen: _Run) -> bool:
    """Whether numbers that fell are the same total's: far below it, beginning near 0, and growing as it does."""
    if not fallen.grown or fallen.first >= run.last / 2:
        return False
    alike = run.growth / _ALIKE <= fallen.growth <= run.growth * _ALIKE
    return alike and (fallen.first <= _ALIKE * run.growth or fallen.grown >= _ALIKE)


@dataclass
class _Batches:
    """Steps at marks, where totals are told now and then only, such as at the end of a game.

    Iterations of equal size are recognised: of a total told in the k-th, at least 1/k is the size, and less than
    1/(k - 1). What was done is then known better than what was told, which lags by up to a game of every environment.

    Attributes:
        marks: so far.
        size: steps of an iteration at least.
        told: the total at the mark before.
        done: steps at the mark before.
        equal: whether all totals so far agree with iterations of equal size.
    """

    marks: int = 0
    size: float = 0.0
    told: float = 0.0
    done: float = 0.0
    equal: bool = True

    def mark(self, total: float) -> float:
        """Steps done at a mark before which `total` was told last."""
        self.marks += 1
        self.size = max(self.size, total / self.marks)
        self.equal = self.equal and (total == self.told or total > (self.marks - 1) * self.size)
        self.told = total
        by_size = self.done + self.size
        equal = self.equal and self.marks >= _MARKS_MIN
        self.done = by_size + max(0.0, total - by_size) / _CATCH_UP if equal else total
        return self.done


class ProgressCounter:
    """Adds up the steps that lines tell.

    A total that falls is another one, of a learner behind its actor say, and the largest counts. Where what follows is
    near 0 and grows as the largest did, the program began to count anew, and what it counts from there is added.

    Attributes:
        steps: done so far, up to the last mark; see `_Batches`.
        found: whether any line told a number.
        unread: what was matched last, where it is no number.
        unmatched: lines since the last that told a number.
        numbers: totals read.
        smaller: those of them that were smaller than one before, and no part of a count that began anew.
    """

    def __init__(self, rule: ProgressRule) -> None:
        self.steps = 0.0
        self.found = False
        self.unread: str | None = None
        self.numbers = self.smaller = self.unmatched = 0
        self._rule = rule
        self._unmarked_steps = 0.0
        self._batches = _Batches()
        self._totals: dict[str, _Total] = {}
        self._rate_at_s: float | None = None

    @property
    def several_totals(self) -> bool:
        """Whether the numbers read are more than one total, of which the largest counts."""
        return self.smaller > _SMALLER_SHARE_MAX * self.numbers

    @property
    def unmarked(self) -> bool:
        """Whether lines told progress, and none matched the mark at which it counts."""
        return self._rule.mark is not None and not self.steps and self._unmarked_steps > 0

    @property
    def largest(self) -> float:
        """The largest total that any source has."""
        return max((total.largest for total in self._totals.values()), default=0.0)

    def read_line(self, line: str, t_s: float) -> None:
        """Take in a line of output that arrived at monotonic time `t_s`."""
        text = _ESCAPES.sub("", line)
        self.unmatched += 1
        if self._rule.counter:
            for match in self._rule.counter.finditer(text):
                self._read_total(match.groupdict().get(WORKER) or "", self._number(match))
        elif self._rule.rate:
            rates = [number for match in self._rule.rate.finditer(text) if (number := self._number(match)) is not None]
            if rates:
                self._read_rate(rates[-1], t_s)
        if self._rule.mark is None:
            self.steps = self._unmarked_steps
        elif self._rule.mark.search(text):
            self.steps = max(self.steps, self._batches.mark(self._unmarked_steps))

    def read_tick(self, line: str) -> None:
        """Take in a line that `autotune.tick` wrote: ``<process id> <total>``."""
        process, _, total = line.strip().partition(" ")
        if total.isdigit():
            if process in self._totals and float(total) < self._totals[process].largest:
                del self._totals[process]  # the process id is another process's now
            self._read_total(process, float(total))
            self.steps = self._unmarked_steps

    def _read_total(self, source: str, number: float | None) -> None:
        if number is None:
            return
        self.found = True
        total = self._totals.setdefault(source, _Total())
        self._unmarked_steps += total.read(number)
        self.numbers += 1
        self.smaller += number < total.largest

    def _read_rate(self, rate_sps: float, t_s: float) -> None:
        if self._rate_at_s is not None:
            self._unmarked_steps += rate_sps * (t_s - self._rate_at_s)
        self._rate_at_s = t_s
        self.found = True

    def _number(self, match: re.Match[str]) -> float | None:
        """The group's number, whole."""
        group = 2 if match.re.groupindex.get(WORKER) == 1 else 1
        if not match[group]:
            return None
        number = number_at(match, group)
        self.unread = match[group] if number is None else None
        self.unmatched = self.unmatched if number is None else 0
        return number
