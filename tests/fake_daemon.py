"""A daemon without a model, for the monitor: a scripted start from cold to warm, told over real sockets or none.

`python tests/fake_daemon.py --control ipc:///tmp/fake.control` plays it for hearthtop; `--picture FILE.svg` draws the
monitor's picture of it without either.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zmq
from hearthd.daemon.protocol import (
    Bytes,
    EventNow,
    ModelInfo,
    RequestRow,
    ResidencyNow,
    Result,
    Stats,
    StatusData,
    Warning_,
    encode,
)
from hearthd.daemon.reading import read
from hearthd.tui.units import size

GIB = 1 << 30
MIB = 1 << 20
BIRTH = 1_767_225_600.0  # 2026-01-01 00:00:00 UTC: the scenario's zero


@dataclass(frozen=True)
class Scenario:
    """What a daemon would say `t` seconds after its start. A pure function of t."""

    nodes: int = 1
    pid: int = 4242
    name: str = "Qwen3-30B-A3B-Instruct Q4_K_M"
    layers: int = 48
    experts: int = 128
    dense: int = int(1.09 * GIB)
    deferred: int = int(16.24 * GIB)
    disk: int = int(0.31 * GIB)  # bytes a second
    unknown: bool = False
    control: str = "ipc:///run/hearthd/default.control"
    telemetry: str = "ipc:///run/hearthd/default.telemetry"

    @property
    def dense_seconds(self) -> float:
        return self.dense / self.disk

    def warmed(self, t: float) -> float:
        """Share of the experts that is in memory."""
        return min(1.0, max(0.0, (t - self.dense_seconds) * self.disk / self.deferred))

    def apart(self, t: float) -> int:
        """Bytes of single experts in the arena: read there while cold, moved into the mapping when all is warm."""
        if self.nodes > 1 or self.unknown:
            return 0
        most = min(0.08 * self.deferred, max(0.0, 0.25 * self.disk * (t - 0.5)))
        since_warm = t - self.dense_seconds - self.deferred / self.disk
        return int(max(0.0, most - max(0.0, since_warm) * 2 * self.disk))

    def state(self, t: float) -> str:
        if t < 0.5:
            return "mapped"
        if t < self.dense_seconds:
            return "serving-cold"
        return "warming" if self.warmed(t) < 1 else "warm"

    def stats(self, t: float) -> Stats:
        warmed = self.warmed(t)
        busy = t >= 0.5 and warmed < 1
        wave = 1 + 0.06 * math.sin(t * 1.7) + 0.03 * math.sin(t * 5.1)
        rate = self.disk * wave if busy else 0.0
        rows = self.requests(t)
        prompts = sum(row.rate for row in rows if row.phase == "prompt")
        writes = sum(row.rate for row in rows if row.phase == "generate")
        left = int((1 - warmed) * self.layers * self.experts * 3)
        writing = busy and writes > 0
        reading = [row for row in rows if row.phase == "prompt"]
        writers = [row for row in rows if row.phase == "generate"]
        steps = 5.0 + 0.4 * math.sin(t) if reading else writes / max(1, len(writers))
        queue = [int(2 + 2 * math.sin(t * 3)) if prompts and busy else 0, 12 if writing else 0, 3 if writing else 0]
        return Stats(
            time=BIRTH + t,
            state=self.state(t),
            warm_percent=100 * warmed,
            warm_bytes=int(warmed * self.deferred),
            warm_rate=rate if warmed > 0 else 0.0,
            prompt_rate=prompts,
            generate_rate=writes,
            prompt_tokens=int(92 * t),
            generated_tokens=int(11 * max(0.0, t - 6)),
            requests=rows,
            steps_rate=steps,
            prompt_rows=prompts / steps if steps else 0.0,
            answer_rows=writes / steps if steps else 0.0,
            parts=float(len(reading) + len(writers)),
            sessions=len(reading) + len(writers),
            pool_blocks=512,
            pool_used=sum((row.prompt_done + row.generated + 63) // 64 for row in rows if row.phase != "queued"),
            pool_bytes=36 * MIB,
            waiting=sum(row.phase == "queued" for row in rows),
            queue_depths=[*queue, min(384, left), max(0, left - 384)],
            populated_bytes=min(int(t * self.disk), self.dense + self.deferred),
            populate_rate=rate,
            disk_read_bytes=min(int(t * self.disk), self.dense + self.deferred) + 21 * MIB,
            faults_minor_per_token=41.0 * (1 - warmed) + 0.4,
            faults_major_per_token=2.4 * (1 - warmed) ** 2,
            lookahead_recall=0.83 if writes else None,
            lookahead_wasted_bytes=int(12 * MIB * min(1.0, t / 30)),
            experts_used=min(self.layers * self.experts, int(self.layers * self.experts * (1 - math.exp(-t / 20)))),
            experts_total=self.layers * self.experts,
            local_share=[1.0, 0.983, 1.0, 1.0][: self.nodes] if self.nodes > 1 else [],
            layer=int(t * 7) % self.layers if rows else -1,
            private_bytes=131 * MIB,
            cpu_percent=187.0 if rows else 0.4,
        )

    def requests(self, t: float) -> list[RequestRow]:
        """A long chat, a score that comes again and again, a story that waits for its turn."""
        if t < 0.5:
            return []
        rows = []
        since = t - 0.5
        done = min(510, int(since * 95))
        written = max(0, int((since - 5.4) * (8 + 14 * self.warmed(t))))
        if written < 1200:
            phase = "prompt" if done < 510 else "generate"
            now = 95 + 9 * math.sin(t * 2) if phase == "prompt" else 8 + 14 * self.warmed(t) + math.sin(t)
            rows.append(
                RequestRow(id="chat-7f3a91", op="chat", phase=phase, prompt_tokens=510, prompt_done=done,
                           generated=written, max_tokens=1200, seconds=since, rate=now)
            )  # fmt: skip
        turn = since % 20
        if since > 8 and turn < 12:
            done = int(turn * 160)
            rows.append(
                RequestRow(id=f"score-{int(since // 20)}", op="score", phase="prompt", prompt_tokens=1920,
                           prompt_done=done, max_tokens=0, seconds=turn, rate=160 + 20 * math.sin(t * 1.3))
            )  # fmt: skip
        if rows:
            rows.append(RequestRow(id="story", op="generate", phase="queued", prompt_tokens=31, max_tokens=256,
                                   seconds=since % 9))  # fmt: skip
        return rows

    def residency(self, t: float) -> ResidencyNow:
        warmed = self.warmed(t)
        dense = min(1.0, t * self.disk / self.dense)
        rows = []
        for node in range(self.nodes):
            for role, whole, share in (("dense", self.dense, dense), ("expert", self.deferred, warmed)):
                total = whole // self.nodes
                part = min(1.0, share * (1 + 0.08 * (node - (self.nodes - 1) / 2))) if share < 1 else share
                arena = min(self.apart(t), int(total * part)) if role == "expert" else 0
                mapped = int((total * part - arena) * 0.94) if part < 1 else total - arena
                cached = int(total * part) - mapped - arena
                row = Bytes(node=node, role=role, total=total, mapped=mapped, cached=cached, arena=arena)  # type: ignore[arg-type]
                row.deferred = total - mapped - cached - arena
                row.locked = mapped if role == "dense" else 0
                if self.unknown:
                    row.unknown = row.total
                    row.mapped = row.cached = row.deferred = row.locked = 0
                if self.nodes > 1 and not self.unknown:
                    row.wrong_node = 14 * MIB if node == 1 and role == "expert" else 0
                rows.append(row)
        return ResidencyNow(
            time=BIRTH + t,
            rows=rows,
            experts=["?" * self.experts] * self.layers if self.unknown else self.expert_map(t),
            budget_bytes=int(19.2 * GIB),
            unknown_reason="the file belongs to another user: the kernel does not tell" if self.unknown else "",
            refresh_seconds=0.004,
        )

    def expert_map(self, t: float) -> list[str]:
        """Hot experts of every layer first, then layer after layer: as the sweep goes."""
        warmed = self.warmed(t)
        rows = []
        for layer in range(self.layers):
            marks = []
            for expert in range(self.experts):
                # A hot quarter, scattered by a fixed mixing of the two numbers.
                mixed = zlib.crc32(bytes((layer, expert % 256))) % 1009 / 1009
                hot = mixed < 0.25 * (1.6 - 1.2 * expert / self.experts)
                turn = mixed * 0.4 if hot else 0.12 + 0.84 * (layer + mixed) / (self.layers + 1)
                part = (warmed - turn) * 40 + 1
                marks.append("#" if part >= 1 or warmed >= 1 else str(max(0, int(part * 10))))
            rows.append("".join(marks))
        return rows

    def events(self, after: float, until: float) -> list[EventNow]:
        """Those of the scenario's time from after (excluded) to until (included)."""
        end = self.dense_seconds + self.deferred / self.disk
        start_line = (
            f"dense {size(self.dense)} populated in {self.dense_seconds:.2f} s, "
            f"experts deferred {size(self.deferred)}, warming in background (budget 19.2 GiB)"
        )
        script = [
            (0.02, "info", "mapped", f"{size(self.dense + self.deferred)} in 1 file, ready in 0.21 s", "mapped"),
            (0.5, "info", "serving-cold", "dense spans are being populated", "serving-cold"),
            (self.dense_seconds, "info", "warming", start_line, "warming"),
            (24.0, "warning", "lookahead-off", "lookahead reads nothing: the disk is busy with the sweep", None),
            (end, "info", "warm", "all experts are mapped", "warm"),
        ]
        return [
            EventNow(time=BIRTH + at, level=level, code=code, message=text, **({"state": state} if state else {}))  # type: ignore[arg-type]
            for at, level, code, text, state in script
            if after < at <= until
        ]

    def status(self, t: float) -> StatusData:
        total = self.dense + self.deferred
        return StatusData(
            version="0.1.0",
            pid=self.pid,
            uptime=t,
            control=self.control,
            telemetry=self.telemetry,
            model=ModelInfo(
                name=self.name, path="/models/model.gguf", architecture="qwen3moe", bytes=total, layers=self.layers,
                experts=self.experts, experts_used=8, vocabulary=151_936, context=32_768,
            ),
            isa="avx512-vnni",
            ready_seconds=0.21,
            warnings=[Warning_(code="mlock-limit", message="RLIMIT_MEMLOCK is 8.00 MiB: dense spans are not locked")],
            stats=self.stats(t),
            residency=self.residency(t),
            events=self.events(-1.0, t)[-64:],
            warm={"planned_bytes": self.deferred, "ready_bytes": int(self.warmed(t) * self.deferred)},
            arena={"in_use": "arena while cold", "reason": "single experts are read directly", "taken": self.apart(t)},
        )  # fmt: skip


class FakeDaemon:
    """Plays a Scenario over a ROUTER and a PUB, in a thread. Keeps the operations it was asked for in `asked`."""

    def __init__(
        self, scenario: Scenario, *, start: float = 0.0, pace: float = 0.25, garbage: bool = False
    ) -> None:
        self.scenario = scenario
        self.asked: list[str] = []
        self.published = 0
        self._start = start
        self._pace = pace
        self._garbage = garbage  # publish a broken body before every good one
        self._stop = threading.Event()
        self._bound = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FakeDaemon:
        self._thread.start()
        assert self._bound.wait(5), "the fake daemon could not bind"
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(5)

    def _run(self) -> None:
        context = zmq.Context()
        control, telemetry = context.socket(zmq.ROUTER), context.socket(zmq.PUB)
        try:
            control.bind(self.scenario.control)
            telemetry.bind(self.scenario.telemetry)
            self._bound.set()
            self._play(control, telemetry)
        finally:
            control.close(linger=0)
            telemetry.close(linger=0)
            context.term()

    def _play(self, control: zmq.Socket, telemetry: zmq.Socket) -> None:
        born = time.monotonic()
        last = self._start - 1e-9
        due = born
        while not self._stop.is_set():
            t = self._start + time.monotonic() - born
            if time.monotonic() >= due:
                due += self._pace
                messages = [("stats", self.scenario.stats(t)), ("residency", self.scenario.residency(t))]
                for topic, message in [*messages, *(("event", e) for e in self.scenario.events(last, t))]:
                    now = msgspec.structs.replace(message, time=time.time())
                    telemetry.send_multipart([topic.encode(), encode(now)])
                if self._garbage:
                    telemetry.send_multipart([b"stats", b'{"topic": "stats", "state": 7'])
                last = t
                self.published += 1
            if control.poll(max(1, int(1000 * min(0.02, due - time.monotonic())))):
                *route, body = control.recv_multipart()
                request = read(body)
                op = type(request).__name__.lower()
                self.asked.append(op)
                data = msgspec.to_builtins(self.scenario.status(t)) if op == "status" else {"started": True}
                control.send_multipart([*route, encode(Result(id=request.id, data=data))])


def feed(collector, scenario: Scenario, until: float, step: float = 0.25) -> None:
    """Tells a Collector of the scenario up to `until` seconds, at its own clock, without sockets."""
    collector.take_status(scenario.status(0.0), BIRTH)
    last = -1.0
    for tick in range(int(until / step) + 1):
        t = tick * step
        for event in scenario.events(last, t):
            collector.take_event(event, event.time)
        collector.take_stats(scenario.stats(t), BIRTH + t)
        if tick % 4 == 0:
            collector.take_residency(scenario.residency(t), BIRTH + t)
        last = t
    collector.take_status(scenario.status(until), BIRTH + until)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--control", default="ipc:///tmp/hearthd-fake.control")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--unknown", action="store_true")
    parser.add_argument("--seconds", type=float, default=38.0, help="of the scenario in the picture")
    parser.add_argument("--size", default="120x40")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    telemetry = options.control.removesuffix(".control") + ".telemetry"
    scenario = Scenario(nodes=options.nodes, unknown=options.unknown, control=options.control, telemetry=telemetry)
    if options.picture is not None:
        from hearthd.tui.app import HearthTop
        from hearthd.tui.picture import draw

        app = HearthTop(scenario.control, clock=lambda: BIRTH + options.seconds, link=None)
        feed(app.collector, scenario, options.seconds)
        width, height = map(int, options.size.split("x"))
        options.picture.write_text(asyncio.run(draw(app, width, height)), encoding="utf-8")
        return
    with FakeDaemon(scenario):
        print(f"hearthtop --control {scenario.control}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
