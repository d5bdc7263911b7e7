"""Servers under several clients at once, side by side on one GGUF file: their total rate, and what a long prompt that
arrives does to answers that are running.

    python tests/bench/clients.py MODEL --llama-server PATH --ik-server PATH [--clients 1,2,4,8,16] [--json FILE]

Owns the clients, each a process of its own, and their figures. All servers live throughout, share the file's page cache
and are asked one at a time, by turns; every prompt is another one, and no server keeps prompts. Each server has as many
slots as there are clients at most. A first pass of all, not counted, warms them.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from typing import Any

from contestants import Answer, Contestant, ContestantFailed, add_arguments, contestants_of
from measures import figure, holding, machine, note, quote, random_tokens, ratio, rounds_of, table, write_json
from throughput import Held

SETTINGS = {
    "llama.cpp": {"default": "", "no-repack": "--no-repack"},
    "ik": {"default": "", "repacked": "--run-time-repack"},
}
TIMEOUT = 600.0  # seconds of a turn
PAUSE = 0.5  # between turns: threads of the last one may still spin
GAP = 2.0  # seconds that answers run before the long prompt arrives

_forked = multiprocessing.get_context("fork")


@dataclass
class Heard:
    """What one client heard. Times are of time.monotonic(), which all processes share."""

    answer: Answer
    ended: float
    error: str = ""

    @property
    def count(self) -> int:
        return self.answer.counted or len(self.answer.token_times)


class Client:
    """One request in a process of its own. It is sent when `gate` opens, and left when `over` is set."""

    def __init__(self, contestant: Contestant, tokens: list[int], count: int, gate: Event, over: Event) -> None:
        self.begun = _forked.Event()  # its first token is there
        self._pipe, other = _forked.Pipe()
        run = (contestant, tokens, count, gate, over, other)
        self._process = _forked.Process(target=self._live, args=run, daemon=True)
        self._process.start()
        other.close()  # so that the pipe ends when the process does

    def _live(
        self, contestant: Contestant, tokens: list[int], count: int, gate: Event, over: Event, pipe: Connection
    ) -> None:
        gate.wait()
        answer, error = Answer(sent=time.monotonic()), ""
        try:
            for _ in contestant.stream(tokens, answer, count, answer.sent + TIMEOUT):
                answer.token_times.append(time.monotonic())
                self.begun.set()
                if over.is_set():
                    break
        except ContestantFailed as failure:
            error = str(failure)
        self.begun.set()
        pipe.send(Heard(answer, time.monotonic(), error))

    def heard(self) -> Heard:
        """Waits for the end. Raises ContestantFailed."""
        try:
            if not self._pipe.poll(TIMEOUT):
                raise ContestantFailed("a client heard nothing for too long")
            heard: Heard = self._pipe.recv()
        except EOFError:
            raise ContestantFailed("a client's process ended") from None
        finally:
            self._process.kill()
            self._process.join()
        if heard.error or not heard.answer.token_times:
            raise ContestantFailed(heard.error or "a client got no token")
        return heard


@dataclass(frozen=True)
class Crowd:
    """One turn of so many clients."""

    total: float  # tokens answered per second, from the first request to the last token, prompts included
    answers: float  # the clients' own rates after their first tokens, added up
    first: float  # seconds to the first token, the last client's

    @staticmethod
    def of(heard: Sequence[Heard]) -> Crowd:
        seconds = max(each.ended for each in heard) - min(each.answer.sent for each in heard)
        return Crowd(
            total=sum(each.count for each in heard) / seconds,
            answers=sum(each.answer.rate or 0.0 for each in heard),
            first=max(each.answer.ttft for each in heard),
        )


@dataclass(frozen=True)
class Beside:
    """Answers that ran when a long prompt arrived. Rates are of all of them together."""

    before: float  # tokens per second
    during: float  # until the long prompt's first token
    kept: float  # during / before
    gap: float  # seconds between two tokens of one of them before, median
    longest: float  # the longest between two of one of them while the prompt was read
    first: float  # seconds to the long prompt's first token

    @staticmethod
    def of(answers: Sequence[Heard], long: Heard) -> Beside:
        arrived, first = long.answer.sent, long.answer.token_times[0]
        if not all(each.answer.whole for each in answers):
            note("some tokens came together: gaps are longer than they were")
        pairs = [
            pair for each in answers for pair in zip(each.answer.token_times, each.answer.token_times[1:], strict=False)
        ]
        rates = []
        for begin, end in ((arrived - GAP, arrived), (arrived, first)):
            rates.append(sum(begin <= at < end for each in answers for at in each.answer.token_times) / (end - begin))
        return Beside(
            before=rates[0],
            during=rates[1],
            kept=rates[1] / rates[0],
            gap=statistics.median(after - at for at, after in pairs if after < arrived),
            longest=max(after - at for at, after in pairs if after >= arrived and at <= first),
            first=first - arrived,
        )


class Prompts:
    """Random prompts, none twice: no server can have kept one."""

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary, self._seed = vocabulary, 0

    def take(self, length: int) -> list[int]:
        self._seed += 1
        return random_tokens(length, self._vocabulary, self._seed)


def crowd(contestant: Contestant, prompts: Sequence[list[int]], count: int) -> Crowd:
    """A client for every prompt, all at once. Raises ContestantFailed."""
    gate, over = _forked.Event(), _forked.Event()
    clients = [Client(contestant, prompt, count, gate, over) for prompt in prompts]
    gate.set()
    return Crowd.of([client.heard() for client in clients])


def beside(contestant: Contestant, prompts: Sequence[list[int]], long: list[int], count: int) -> Beside:
    """The long prompt arrives when an answer to every other one is running; ends with its first tokens."""
    gate, late, over = _forked.Event(), _forked.Event(), _forked.Event()
    clients = [Client(contestant, prompt, count, gate, over) for prompt in prompts]
    last = Client(contestant, long, 8, late, _forked.Event())
    gate.set()
    for client in clients:
        client.begun.wait(TIMEOUT)
    time.sleep(GAP + 0.5)
    late.set()
    last.begun.wait(TIMEOUT)
    time.sleep(0.5)
    over.set()
    heard, late_one = [client.heard() for client in clients], last.heard()
    if short := [each for each in heard if each.ended < late_one.answer.token_times[0]]:
        raise ContestantFailed(f"{len(short)} answers ended before the long prompt was read: give a larger --longest")
    return Beside.of(heard, late_one)


@contextmanager
def living(contestants: dict[str, Contestant]) -> Iterator[None]:
    """All servers, started one after the other; those that fail are left out."""
    try:
        for name, contestant in list(contestants.items()):
            contestant.start()
            try:
                note(f"{name}: ready after {contestant.wait_ready():.1f} s")
            except ContestantFailed as error:
                note(str(error))
                contestants.pop(name).stop()
        yield
    finally:
        for contestant in contestants.values():
            contestant.stop()


Turn = Callable[[Contestant], Crowd | Beside]


def by_turns(
    contestants: dict[str, Contestant], turns: dict[str, Turn], given: argparse.Namespace
) -> dict[str, dict[str, list[Crowd | Beside]]]:
    """What each turn of each contestant came to: by turn and name. One server is asked at a time."""
    found: dict[str, dict[str, list[Crowd | Beside]]] = {what: {name: [] for name in contestants} for what in turns}
    for what, turn in turns.items():
        for number, name in rounds_of(list(contestants), given.rounds):
            with holding(given.lock):
                time.sleep(PAUSE)
                try:
                    value = turn(contestants[name])
                except ContestantFailed as error:
                    note(f"{what}, {name}: {error}")
                    continue
            found[what][name].append(value)
            shown = ", ".join(f"{key} {figure(number)}" for key, number in vars(value).items())
            note(f"{what}, round {number}, {name}: {shown}")
    return found


def figures(found: dict[str, dict[str, list[Crowd | Beside]]]) -> dict[str, dict[str, dict[str, Any]]]:
    """By turn and name: each measure quoted."""
    return {
        what: {
            name: {key: quote([vars(value)[key] for value in values]) for key in vars(values[0])}
            for name, values in rows.items()
            if values
        }
        for what, rows in found.items()
    }


def compared(quoted: dict[str, dict[str, Any]], key: str) -> tuple[str, float | None, str]:
    """Ours, its ratio to the best of the others, that one's name."""
    ours = next((name for name in quoted if name.startswith("hearthd")), "")
    others = [name for name in quoted if not name.startswith("hearthd")]
    best = max(others, key=lambda name: float(quoted[name][key]["median"]), default="")
    value = ratio(quoted[ours][key]["median"], quoted[best][key]["median"]) if ours and best else None
    return ours, value, best


def cell(quoted: dict[str, Any], digits: int = 1, unit: float = 1.0) -> str:
    return f"{figure(quoted['median'] / unit, digits)} ({quoted['spread']:.0%})"


def show_clients(found: dict[str, dict[str, dict[str, Any]]]) -> None:
    """found: by number of clients and contestant."""
    names = list(dict.fromkeys(name for quoted in found.values() for name in quoted))
    for key, what in (("total", "tokens answered per second, prompts included"), ("answers", "while answering")):
        print(f"\n{what}: median (spread), by number of clients")
        rows = [[name, *(cell(row[name][key]) if name in row else "-" for row in found.values())] for name in names]
        print(table(["contestant", *found], rows))
    one = next(iter(found.values()))
    for many, quoted in found.items():
        name, value, best = compared(quoted, "total")
        if value is not None:
            print(f"  {many} clients: {name} {figure(value)} x {best}")
        if name in one and quoted is not one:
            value = ratio(quoted[name]["total"]["median"], one[name]["total"]["median"])
            print(f"  {many} clients: {name} {figure(value)} x its own with {next(iter(found))}")


def show_beside(quoted: dict[str, dict[str, Any]]) -> None:
    columns = (
        ("before", "t/s before", 1, 1.0),
        ("during", "t/s meanwhile", 1, 1.0),
        ("kept", "kept", 2, 1.0),
        ("gap", "gap before ms", 0, 1e-3),
        ("longest", "longest gap ms", 0, 1e-3),
        ("first", "its first token s", 1, 1.0),
    )
    rows = [[name, *(cell(row[key], digits, unit) for key, _, digits, unit in columns)] for name, row in quoted.items()]
    print(table(["contestant", *(heading for _, heading, *_ in columns)], rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--clients", default="1,2,4,8,16", help="at once (default 1,2,4,8,16; empty: leave out)")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt (default 128)")
    parser.add_argument("-n", "--tokens", type=int, default=64, help="tokens of each answer (default 64)")
    parser.add_argument("--long", type=int, default=4000, help="tokens of the long prompt (default 4000; 0: leave out)")
    parser.add_argument("--beside", type=int, default=4, help="answers that run when it arrives (default 4)")
    parser.add_argument("--longest", type=int, default=2000, help="tokens of those answers at most (default 2000)")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    given = parser.parse_args()
    counts = [int(word) for word in given.clients.split(",") if word]
    prompts = Prompts(given.vocabulary)
    report: dict[str, Any] = {"machine": machine(), "model": given.model, "threads": given.threads}

    def crowd_of(many: int) -> Turn:
        return lambda server: crowd(server, [prompts.take(given.prompt) for _ in range(many)], given.tokens)

    def beside_long(server: Contestant) -> Beside:
        return beside(
            server, [prompts.take(given.prompt) for _ in range(given.beside)], prompts.take(given.long), given.longest
        )

    def measured(turns: dict[str, Turn], slots: int, context: int) -> dict[str, dict[str, dict[str, Any]]]:
        given.context = context
        contestants = contestants_of(given, SETTINGS, slots)
        if not contestants:
            parser.error("no contestant: give --hearthd, --llama-server or --ik-server")
        with living(contestants):
            for server in contestants.values():
                crowd_of(1)(server)
            return figures(by_turns(contestants, turns, given))

    held = Held(given.model)
    try:
        if counts:
            turns = {str(many): crowd_of(many) for many in counts}
            report["clients"] = measured(turns, max(counts), given.prompt + given.tokens + 64)
            write_json(given.json, report)
        if given.long:
            room = max(given.long + 64, given.prompt + given.longest)
            report["beside"] = measured({str(given.long): beside_long}, given.beside + 1, room + 64)
            write_json(given.json, report)
    finally:
        held.close()

    print(f"{os.path.basename(given.model)}, {given.threads} threads")
    if found := report.get("clients"):
        print(f"prompts of {given.prompt}, answers of {given.tokens}")
        show_clients(found)
    for what, quoted in report.get("beside", {}).items():
        print(f"\na prompt of {what} arrives beside {given.beside} answers: median (spread)")
        show_beside(quoted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
