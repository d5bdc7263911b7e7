"""What the daemon last said, and for how long it has said so: one mutable Collector, frozen Snapshots of it.

Owns histories, the list of events and the judgement whether the daemon is there. It opens no socket and draws nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import msgspec
from hearthd.daemon.protocol import EventNow, ResidencyNow, Stats, StatusData

KEEP_SECONDS = 1800
KEEP_EVENTS = 200
# A plot shows the shortest of these that holds the whole history, then the longest.
WINDOWS = (60, 300, 900, 1800)

Link = Literal["connecting", "up", "away"]


@dataclass(frozen=True, slots=True)
class Curve:
    """A measured quantity, one value a second: the second's Unix time and its mean."""

    times: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    def columns(self, count: int, window: int, now: float) -> list[float | None]:
        """Means over `count` equal stretches of the last `window` seconds, oldest first; None where nothing is known.

        Stretches start at multiples of their own length, so that a picture moves by whole columns and does not shimmer.
        """
        step = _step(count, window)
        last = int(now) // step
        sums = [0.0] * count
        seen = [0] * count
        begin = bisect_left(self.times, (last - count + 1) * step)
        for second, value in zip(self.times[begin:], self.values[begin:], strict=True):
            column = count - 1 - (last - second // step)
            if 0 <= column < count:
                sums[column] += value
                seen[column] += 1
        return [total / n if n else None for total, n in zip(sums, seen, strict=True)]

    def span(self, count: int, window: int) -> int:
        """Seconds that `columns` covers with these arguments: whole seconds a column, so perhaps more than `window`."""
        return _step(count, window) * count


def _step(count: int, window: int) -> int:
    return max(1, math.ceil(window / max(1, count)))


class History:
    """Grows a Curve from samples of any rate."""

    def __init__(self) -> None:
        self._times: deque[int] = deque()
        self._values: deque[float] = deque()
        self._samples = 0

    def add(self, at: float, value: float) -> None:
        second = int(at)
        if self._times and second < self._times[-1]:
            return  # the clock was set back: wait until it is past the newest
        if self._times and self._times[-1] == second:
            self._samples += 1
            self._values[-1] += (value - self._values[-1]) / self._samples
            return
        self._times.append(second)
        self._values.append(value)
        self._samples = 1
        while self._times[0] <= second - KEEP_SECONDS:
            self._times.popleft()
            self._values.popleft()

    def curve(self) -> Curve:
        return Curve(tuple(self._times), tuple(self._values))


@dataclass(frozen=True, slots=True)
class Histories:
    deferred: Curve = field(default_factory=Curve)
    prompt: Curve = field(default_factory=Curve)
    generate: Curve = field(default_factory=Curve)
    populate: Curve = field(default_factory=Curve)

    @property
    def window(self) -> int:
        """Seconds that every plot shows."""
        starts = [c.times[0] for c in (self.deferred, self.prompt) if c.times]
        ends = [c.times[-1] for c in (self.deferred, self.prompt) if c.times]
        span = max(ends) - min(starts) if starts else 0
        return next((w for w in WINDOWS if span <= w), WINDOWS[-1])


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that one picture of the screen needs. Nothing in it is changed after it was made."""

    now: float
    endpoint: str
    link: Link
    since: float  # Unix time since which `link` holds; when away: when the daemon was last heard
    status: StatusData | None
    stats: Stats | None
    residency: ResidencyNow | None
    histories: Histories
    events: tuple[EventNow, ...]  # newest first

    @property
    def uptime(self) -> float:
        """Seconds that the daemon has run; carried on from its last `status` by the monitor's own clock."""
        return 0.0 if self.status is None else self.status.uptime

    @property
    def seconds_to_warm(self) -> float | None:
        """Estimate from what is planned, what is done and the present rate; None when there is no ground for one."""
        if self.stats is None or self.stats.state == "warm" or self.stats.warm_rate <= 0:
            return None
        planned = self.status.warm.get("planned_bytes", 0) if self.status is not None else 0
        if not isinstance(planned, (int, float)) or planned <= 0:
            if not 0 < self.stats.warm_percent < 100:
                return None
            planned = self.stats.warm_bytes * 100 / self.stats.warm_percent
        left = planned - self.stats.warm_bytes
        return left / self.stats.warm_rate if left > 0 else None


class Collector:
    """Takes messages as they come; gives a Snapshot when asked."""

    def __init__(self, endpoint: str, now: float) -> None:
        self.endpoint = endpoint
        self.link: Link = "connecting"
        self.since = now
        self.heard = now
        self._status: StatusData | None = None
        self._status_at = now
        self._stats: Stats | None = None
        self._residency: ResidencyNow | None = None
        self._events: list[EventNow] = []  # newest first
        self._forget()

    def _forget(self) -> None:
        self._stats = None
        self._residency = None
        self._deferred = History()
        self._prompt = History()
        self._generate = History()
        self._populate = History()

    @property
    def pid(self) -> int:
        return 0 if self._status is None else self._status.pid

    def _alive(self, now: float) -> None:
        self.heard = now
        if self.link != "up":
            if self.link == "away":
                self.note("info", "connected", f"the daemon is back after {now - self.since:.0f} s", now)
            self.link = "up"
            self.since = now

    def take_status(self, status: StatusData, now: float) -> None:
        old = self._status
        self._alive(now)
        if old is not None and old.pid != status.pid:
            same = old.model.path == status.model.path and old.model.bytes == status.model.bytes
            what = "the same model" if same else f"another model: {status.model.name}"
            self.note("info", "restarted", f"a new daemon, process {status.pid}, with {what}", now)
            if same:
                self._stats = self._residency = None  # the histories of one model go on across restarts
            else:
                self._forget()
        for event in status.events:
            self._add(event)
        self._status = status
        self._status_at = now
        # Telemetry is fresher where it flows; where it does not, `status` is all there is.
        if self._stats is None or status.stats.time > self._stats.time + 1:
            self._stats = status.stats
        if status.residency.rows and (self._residency is None or status.residency.time > self._residency.time + 3):
            self._residency = status.residency

    def take_stats(self, stats: Stats, now: float) -> None:
        self._alive(now)
        self._stats = stats
        self._prompt.add(now, stats.prompt_rate)
        self._generate.add(now, stats.generate_rate)
        self._populate.add(now, stats.populate_rate)

    def take_residency(self, residency: ResidencyNow, now: float) -> None:
        self._alive(now)
        self._residency = residency
        if residency.rows and not any(row.unknown == row.total > 0 for row in residency.rows):
            self._deferred.add(now, sum(row.deferred for row in residency.rows))

    def take_event(self, event: EventNow, now: float) -> None:
        self._alive(now)
        self._add(event)

    def note(self, level: Literal["info", "warning", "error"], code: str, message: str, now: float) -> None:
        """An event of the monitor's own."""
        self._add(EventNow(time=now, level=level, code=code, message=message))

    def _add(self, event: EventNow) -> None:
        """In order of time, each once: `status` repeats old ones, and a late subscriber is sent the last one again."""
        place = bisect_left(self._events, -event.time, key=lambda known: -known.time)
        for known in self._events[place:]:
            if known.time != event.time:
                break
            if (known.code, known.message) == (event.code, event.message):
                return
        self._events.insert(place, event)
        del self._events[KEEP_EVENTS:]

    def lost(self, now: float) -> None:
        """The daemon has been silent for too long."""
        if self.link == "up":
            self.link = "away"
            self.since = self.heard
            self.note("warning", "away", "the daemon does not answer", now)

    def snapshot(self, now: float) -> Snapshot:
        status = self._status
        if status is not None and self.link == "up":
            passed = max(0.0, now - self._status_at)
            status = msgspec.structs.replace(status, uptime=status.uptime + passed)
        return Snapshot(
            now=now,
            endpoint=self.endpoint,
            link=self.link,
            since=self.since,
            status=status,
            stats=self._stats,
            residency=self._residency,
            histories=Histories(
                deferred=self._deferred.curve(),
                prompt=self._prompt.curve(),
                generate=self._generate.curve(),
                populate=self._populate.curve(),
            ),
            events=tuple(self._events),
        )

