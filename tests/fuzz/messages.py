"""Messages of any kind put to the control protocol's decoder, and to a living daemon beside a client with a question.

    python -m tests.fuzz.messages --decoder 10000000 --seed 1
    python -m tests.fuzz.messages --daemon 1000000 --seed 1 [--senders 3] [--fake]

from the repository's root, with any installed hearthd. The decoder is called in this process's children: every body
becomes a request that is the same when it is written and read again, or an error with a code, words, and no more bytes
than --error; anything else, a death, or more than --seconds for one body is a fault. `--one N` reads message N alone.

The daemon is sent such bodies by several clients, in frames of all kinds, some by clients that go away; it has to live,
to write no traceback, to answer each sender's status between, and every request of the bystander as if alone. The exit
code is 1 if there were faults. Some 10,000 messages a second are decoded, some 1,500 sent, on one core.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import multiprocessing
import random
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from hearthd.daemon import protocol

from .bodies import BLOCK, Bodies, frames
from .daemon import QUESTION, Bystander, Client, Daemon, NoAnswer

CHILD = 100  # blocks before a process of its own ends
MARKS = 64  # messages between two that have to be answered


def decoder() -> Callable[[bytes], Any]:
    """Bytes to a request or a protocol.Error, as the daemon does it: one function, or two in older versions."""
    try:
        from hearthd.daemon.reading import read

        return read
    except ImportError:
        from hearthd.daemon.control import explain

    def both(body: bytes) -> Any:
        try:
            return protocol.decode_request(body)
        except Exception:
            return explain(body)

    return both


def fault_of(decode: Callable[[bytes], Any], body: bytes, longest: int) -> tuple[str, str]:
    """What became of a body (its operation, or the error's code), and what is wrong with that, if anything is."""
    found = decode(body)
    if isinstance(found, protocol.Error):
        written = protocol.encode(found)
        if not found.code or not found.message or found.code == "failed":
            return found.code, f"an error that says nothing: {written[:300]!r}"
        if len(written) > longest:
            return found.code, f"an error of {len(written)} bytes for a body of {len(body)}"
        return found.code, ""
    if not isinstance(found, protocol.Request):
        return "?", f"neither request nor error: {type(found)}"
    kind = str(found.__struct_config__.tag)
    if len(body) < 4096:
        again = decode(msgspec.json.encode(found))
        if again != found:
            return kind, f"{found!r:.300} is read again as {again!r:.300}"
    return kind, ""


class Decoded:
    """What a child found in its blocks; sent through a pipe."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[tuple[int, str]] = []


def decode_blocks(options: argparse.Namespace, first: int, last: int, at: Any, pipe: Any) -> None:
    """Child: blocks first to last - 1; `at` holds the message and the time it began."""
    faulthandler.enable()
    decode, bodies, result = decoder(), Bodies(options.seed, largest=options.largest), Decoded()
    for block in range(first, last):
        for place, body in enumerate(bodies.block(block)):
            at[0], at[1] = block * BLOCK + place, time.monotonic()
            try:
                kind, fault = fault_of(decode, body, options.error)
            except Exception as error:
                kind, fault = "raised", f"{type(error).__name__}: {error}"[:500]
            result.counts[kind] += 1
            if fault:
                result.faults.append((int(at[0]), fault))
    pipe.send(result)


def run_decoder(options: argparse.Namespace) -> int:
    blocks = -(-options.decoder // BLOCK)
    counts: Counter[str] = Counter()
    faults: list[tuple[int, str]] = []
    forked = multiprocessing.get_context("fork")
    began = time.monotonic()
    for first in range(0, blocks, CHILD):
        at = forked.Array("d", [first * BLOCK, time.monotonic()], lock=False)
        receive, send = forked.Pipe(duplex=False)
        last = min(first + CHILD, blocks)
        child = forked.Process(target=decode_blocks, args=(options, first, last, at, send))
        child.start()
        send.close()
        while not receive.poll(0.2) and child.is_alive():
            if time.monotonic() - at[1] > options.seconds:
                child.kill()
        try:
            result = receive.recv()
        except EOFError:
            child.join()
            ended = f"exit {child.exitcode}, {time.monotonic() - at[1]:.1f} s after it began"
            result = Decoded()
            result.faults.append((int(at[0]), f"the child ended ({ended}); blocks {first} to {last - 1} count no more"))
        child.join()
        counts += result.counts
        for fault in result.faults:
            if len(faults) < 20:
                print(f"message {fault[0]}: {fault[1]}", flush=True)
            faults.append(fault)
    seconds = time.monotonic() - began
    total = sum(counts.values())
    print(f"\ndecoder, seed {options.seed}: {total} messages in {seconds:.0f} s ({total / seconds:.0f}/s)\n")
    print("| became | messages |\n| --- | --- |")
    for kind, count in sorted(counts.items(), key=lambda pair: -pair[1]):
        print(f"| {kind} | {count} |")
    print(f"| faults | {len(faults)} |", flush=True)
    return 1 if faults or total < options.decoder else 0


def one(options: argparse.Namespace) -> int:
    bodies = Bodies(options.seed, largest=options.largest)
    body = list(bodies.block(options.one // BLOCK))[options.one % BLOCK]
    print(f"{len(body)} bytes: {body[:2000]!r}")
    began = time.monotonic()
    found = decoder()(body)
    print(f"{time.monotonic() - began:.4f} s: {found!r:.2000}")
    print(fault_of(decoder(), body, options.error))
    return 0


# -- the living daemon -------------------------------------------------------------------------------------------------


def send_blocks(endpoint: str, options: argparse.Namespace, sender: int, count: int, pipe: Any) -> None:
    """A sender: so many messages, on a socket that is given up now and then; a status between must be answered."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    chance = random.Random(f"{options.seed}/frames/{sender}")
    bodies = Bodies(options.seed, largest=options.largest, tokens=8)
    sent, replies, events, silent, longest = 0, 0, Counter[str](), 0, 0.0
    client = Client(endpoint)
    block = sender * 1_000_000
    with contextlib.suppress(KeyboardInterrupt):
        while sent < count:
            for body in bodies.block(block):
                message = frames(chance, body)
                client.socket.send_multipart(message)
                sent += 1
                large = sum(map(len, message)) > options.limit
                if sent % MARKS and not large:
                    continue
                mark = f"mark-{sender}-{sent}"
                began = time.monotonic()
                try:
                    if not large:  # libzmq ends such a connection
                        replies += _until(client, mark, events)
                except NoAnswer:
                    silent += 1
                longest = max(longest, time.monotonic() - began)
                if large or chance.random() < 0.05:
                    client.close()
                    if chance.random() < 0.2:
                        _garbage(endpoint, chance)
                    client = Client(endpoint)
                if sent >= count:
                    break
            block += 1
    client.close()
    pipe.send((sent, replies, events, silent, longest))


def _until(client: Client, mark: str, events: Counter[str]) -> int:
    """Take replies until that of a status with this id; how many there were."""
    client.send({"op": "status", "id": mark})
    taken = 0
    while True:
        if not client.socket.poll(60_000):
            raise NoAnswer(mark)
        reply = json.loads(_body(client))
        taken += 1
        events[reply.get("code") or reply["event"]] += 1
        if reply.get("id") == mark:
            return taken


def _body(client: Client) -> bytes:
    """The JSON frame of a reply, whatever envelope its request had; a score's logits may follow it."""
    return next(frame for frame in client.socket.recv_multipart() if frame.startswith(b'{"event"'))


def _garbage(endpoint: str, chance: random.Random) -> None:
    """Something that is not even ZeroMQ, or the beginning of it."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as raw:
        raw.connect(endpoint.removeprefix("ipc://"))
        raw.sendall(chance.choice((b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f", chance.randbytes(100))))


def run_daemon(options: argparse.Namespace) -> int:
    question = {**QUESTION, "id": "bystander"}
    flags = ["--context", "64", "--queue", "64"]
    forked = multiprocessing.get_context("fork")
    began = time.monotonic()
    with Daemon(None, *flags, fake=options.fake) as daemon, Bystander(daemon, question, pause=0.005) as bystander:
        before = daemon.memory()
        pipes = []
        for sender in range(options.senders):
            receive, send = forked.Pipe(duplex=False)
            count = options.daemon // options.senders
            told = (daemon.endpoint, options, sender, count, send)
            child = forked.Process(target=send_blocks, args=told, daemon=True)
            child.start()
            send.close()
            pipes.append(receive)
        sent = replies = silent = lost = 0
        longest, events = 0.0, Counter[str]()
        for pipe in pipes:
            while not pipe.poll(0.5) and daemon.alive:
                pass
            try:
                found = pipe.recv() if pipe.poll(70) else (0, 0, Counter(), 1, 0.0)
            except EOFError:
                lost, found = lost + 1, (0, 0, Counter(), 0, 0.0)
            sent, replies, silent = sent + found[0], replies + found[1], silent + found[3]
            events, longest = events + found[2], max(longest, found[4])
        alive, log, tracebacks = daemon.alive, daemon.log, daemon.tracebacks()
        after = daemon.memory() if alive else 0
        try:
            seen = bystander.stop() if alive else None
        except NoAnswer:
            seen = None
        code = daemon.stop() if alive else daemon.process.returncode
    seconds = time.monotonic() - began
    print(f"\ndaemon, seed {options.seed}: {sent} messages from {options.senders} clients in {seconds:.0f} s\n")
    print("| measure | found |\n| --- | --- |")
    print(f"| the daemon | {'lives' if alive else f'died, exit {code}'}, exit {code} when asked to end |")
    print(f"| tracebacks in its log | {tracebacks} |")
    print(f"| status unanswered between | {silent}; longest wait {longest:.2f} s |")
    print(f"| senders that died | {lost} |")
    words = f"{seen.asked} asked, {seen.failed} failed, longest {seen.longest:.2f} s" if seen else "not answered"
    print(f"| bystander | {words} |")
    print(f"| memory | {before >> 20} MiB before, {after >> 20} MiB after |")
    words = ", ".join(f"{name} {count}" for name, count in events.most_common())
    print(f"| replies | {replies}: {words} |", flush=True)
    if tracebacks or not alive:
        at = log.find("Traceback")
        print(log[at - 300 : at + 2500] if at >= 0 else log[-2500:])
    if seen and seen.failed:
        print("the bystander's wrong answers:", *seen.wrong, sep="\n    ")
    return 1 if not alive or tracebacks or silent or lost or code or seen is None or seen.failed else 0


def main(given: list[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made.add_argument("--decoder", type=int, default=0, metavar="N", help="messages for the decoder")
    made.add_argument("--daemon", type=int, default=0, metavar="N", help="messages for a living daemon")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--senders", type=int, default=3)
    made.add_argument("--fake", action="store_true", help="serve an engine that only counts")
    made.add_argument("--largest", type=int, default=1 << 20, help="bytes of the longest messages")
    made.add_argument("--error", type=int, default=4096, help="bytes of the longest error")
    made.add_argument("--seconds", type=float, default=5.0, help="for one message of the decoder")
    made.add_argument("--one", type=int, help="read one message of the decoder's and show it")
    options = made.parse_args(given)
    options.limit = protocol.MESSAGE_LIMIT
    if options.one is not None:
        return one(options)
    failed = run_decoder(options) if options.decoder else 0
    return (run_daemon(options) if options.daemon else 0) or failed


if __name__ == "__main__":
    sys.exit(main())
