"""How long one client can stop the event loop for the others, with the worst messages that the limits allow.

    python -m tests.fuzz.loop_pause [NAME ...] [--times N]      # the longest pause per case, in milliseconds

from the repository's root. Starts a daemon on the packaged model with one more task on its loop, which sleeps two
milliseconds again and again and notes by how much it came late. Prints each case with the longest pause while it was
sent, worked on and answered; what the machine itself does to an idle daemon stands in the first line; with --times the
shortest and the longest of several runs tell the two apart. Nothing is asserted: machines differ.
"""

from __future__ import annotations

import argparse
import json
import mmap
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import trio
import zmq
from hearthd.daemon import protocol

from .daemon import PACKAGED, Daemon

TICK = 0.002
IDLE_SECONDS = 2.0
SECONDS = 60.0  # for the answers of one case

Case = Callable[[], list[list[bytes]]]  # the frames of one message or several


def watched(main: Callable[..., Any], seen: mmap.mmap) -> Callable[..., Any]:
    """`main` with a task beside it that writes the longest pause of the loop into `seen` (a double, seconds)."""

    async def watch() -> None:
        while True:
            before = time.perf_counter()
            await trio.sleep(TICK)
            late = time.perf_counter() - before - TICK
            if late > struct.unpack("d", seen[:8])[0]:
                seen[:8] = struct.pack("d", late)

    async def both(*arguments: Any) -> Any:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            result = await main(*arguments)
            nursery.cancel_scope.cancel()
        return result

    return both


def serve(path: str, arguments: list[str]) -> int:
    from hearthd.daemon import cli

    with open(path, "r+b") as file:
        seen = mmap.mmap(file.fileno(), 8)
    run = trio.run
    trio.run = lambda main, *given, **options: run(watched(main, seen), *given, **options)  # type: ignore[assignment]
    return cli.main(arguments)


# -- the worst that one client can send --------------------------------------------------------------------------------

M = 1 << 20
LIMIT = protocol.MESSAGE_LIMIT


def message(op: str, field: str, inner: bytes, rest: bytes = b"") -> list[bytes]:
    return [b"", b'{"op":"' + op.encode() + b'","id":7,"' + field.encode() + b'":' + inner + rest + b"}"]


def filled(piece: bytes, count: int, last: bytes, room: int = LIMIT - 1000) -> bytes:
    """A list of as many pieces as there may be."""
    return b"[" + piece * min(count, room // len(piece)) + last + b"]"


def string(piece: bytes, room: int = LIMIT - 1000, characters: int = protocol.TEXT_LIMIT) -> bytes:
    return b'"' + piece * min(room // len(piece), characters) + b'"'


def asked(op: str, **fields: Any) -> list[bytes]:
    return [b"", json.dumps({"op": op, "id": 7, **fields}).encode()]


IDS = json.dumps([1000 + i % 900 for i in range(protocol.TOKENS_LIMIT)]).encode()
WORDS = json.dumps(("once upon a time " * (M // 2))[: protocol.TEXT_LIMIT]).encode()
STOPS = [chr(97 + i % 26) * (protocol.STOP_LIMIT - 2) + f"{i:02}" for i in range(protocol.STOPS_LIMIT)]
SELECTED = [0] * protocol.SELECTED_LIMIT
BACK = {"repeat_last": -1, "repeat_penalty": 1.1, "logprobs": 100}
VALUES = protocol.PARTS_LIMIT - 100
STRUCTURE = protocol.STRUCTURE_LIMIT - 1000
SMALL = b"1.2345678901234567891e-300,"
TURN = b'{"role":"user","content":"a"},'


def chat(content: bytes) -> list[bytes]:
    return message("chat", "messages", b'[{"role":"user","content":' + content + b"}]")


CASES: dict[str, Case] = {
    "a million ids: generate": lambda: [message("generate", "tokens", IDS)],
    "a million ids: score": lambda: [message("score", "tokens", IDS)],
    "a million ids: detokenize": lambda: [message("detokenize", "tokens", IDS)],
    "six million ids": lambda: [message("detokenize", "tokens", filled(b"1,", 6 * M, b"1"))],
    "a million ids, the last is none": lambda: [message("detokenize", "tokens", IDS[:-1] + b",-1]")],
    "a million ids as an unknown field": lambda: [message("score", "x", IDS)],
    "text of words: tokenize": lambda: [message("tokenize", "text", WORDS)],
    "text of words: generate": lambda: [message("generate", "prompt", WORDS)],
    "text of one letter: tokenize": lambda: [message("tokenize", "text", string(b"a"))],
    "text of newlines, escaped: tokenize": lambda: [message("tokenize", "text", string(b"\\n"))],
    "text of escapes: tokenize": lambda: [message("tokenize", "text", string(b"\\u4e2d"))],
    "text of ideograms: tokenize": lambda: [message("tokenize", "text", string("中".encode()))],
    "text of emojis: tokenize": lambda: [message("tokenize", "text", string("😀".encode()))],
    "text of quotes: generate": lambda: [message("generate", "prompt", string(b'\\"'))],
    "text too long": lambda: [message("tokenize", "text", string(b"a", characters=LIMIT))],
    "blanks": lambda: [message("tokenize", "text", b" " * (LIMIT - 100) + b'""')],
    "chat of empty objects": lambda: [message("chat", "messages", filled(b"{},", VALUES, b"{}", STRUCTURE))],
    "chat of lists": lambda: [chat(filled(b"[],", VALUES, b"0", STRUCTURE))],
    "chat of small numbers": lambda: [chat(filled(SMALL, VALUES, b"0", STRUCTURE))],
    "chat of names": lambda: [chat(b"{" + b",".join(b'"%d":1' % number for number in range(VALUES)) + b"}")],
    "chat of strings": lambda: [chat(filled(b'"' + b"a" * 150 + b'",', VALUES, b'""'))],
    "chat of short messages": lambda: [message("chat", "messages", filled(TURN, VALUES // 2, b"{}", 4 * M))],
    "chat of one long text": lambda: [chat(WORDS)],
    "chat, too many lists": lambda: [message("chat", "messages", filled(b"[],", 4 * M, b"[]"))],
    "chat, too deep": lambda: [chat(b"[" * 30000 + b"]" * 30000)],
    "200 small chats of lists": lambda: [chat(filled(b"[],", VALUES, b"0", 64000))] * 200,
    "stop strings": lambda: [asked("generate", prompt="Once upon a time", max_tokens=100, stop=STOPS, stream=True)],
    "looking back": lambda: [asked("generate", prompt="a b c " * 80, max_tokens=100, sampling=BACK)],
    "logits": lambda: [asked("score", tokens=[5] * 500, logits=True)],
    "selection": lambda: [asked("defer", select={"experts": SELECTED, "layers": SELECTED})],
    "residency by tensor": lambda: [asked("residency", by="tensor")],
    "an id of a megabyte": lambda: [asked("status", colour="a" * M)],
    "5000 questions": lambda: [asked("status")] * 5000,
    "a million frames": lambda: [[b"", *[b"x"] * M]],
    "garbage": lambda: [[b"", byte * (LIMIT - 100)] for byte in (b"\xff", b"[", b'"', b"\\", b" ")],
}


def last(frames: list[bytes]) -> bool:
    return json.loads(frames[1])["event"] not in ("token", "progress")


def run(names: list[str], times: int) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(8))
        file.flush()
        seen = mmap.mmap(file.fileno(), 8)
        program = ["-m", "tests.fuzz.loop_pause", "--serve", file.name]
        with Daemon(PACKAGED, program=program) as daemon, zmq.Context() as context:
            first = [asked("generate", prompt="a", max_tokens=1)]
            one(context, daemon.endpoint, seen, "(getting ready)", lambda: first)
            while daemon.ask({"op": "status"})["data"]["stats"]["state"] != "warm":
                time.sleep(0.1)
            seen[:8] = bytes(8)
            time.sleep(IDLE_SECONDS)
            print(f"{1000 * struct.unpack('d', seen[:8])[0]:8.1f} ms  (idle)")
            for name, case in CASES.items():
                if not names or any(wanted in name for wanted in names):
                    one(context, daemon.endpoint, seen, name, case, times)


def one(
    context: zmq.Context[Any], endpoint: str, seen: mmap.mmap, name: str, case: Case, times: int = 1
) -> None:
    """Print the pauses of one case, the shortest first: what is above it the machine has added."""
    pauses = []
    for _ in range(times):
        pause, told = strain(context, endpoint, seen, case())
        pauses.append(1000 * pause)
    print(f"{min(pauses):8.1f} to {max(pauses):.1f} ms  {name}: {told}", flush=True)


def strain(
    context: zmq.Context[Any], endpoint: str, seen: mmap.mmap, messages: list[list[bytes]]
) -> tuple[float, str]:
    """The longest pause in seconds while a client sends these and reads the answers, and what became of them."""
    with context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.connect(endpoint)
        socket.send_multipart([b"", b'{"op":"status"}'])
        socket.recv_multipart()
        seen[:8] = bytes(8)
        begin, answers = time.monotonic(), []
        for frames in messages:
            socket.send_multipart(frames)
            while socket.poll(0):
                answers += filter(last, [socket.recv_multipart()])
        while len(answers) < len(messages) and socket.poll(int(1000 * (begin + SECONDS - time.monotonic()))):
            answers += filter(last, [socket.recv_multipart()])
        seconds = time.monotonic() - begin
        time.sleep(0.05)  # what is freed afterwards counts too
        pause = struct.unpack("d", seen[:8])[0]
    said = json.loads(answers[-1][1]) if answers else {"event": "none"}
    text = f"{said['event']} {said.get('code', '')} {said.get('message', '')}"
    return pause, f"{len(answers)} of {len(messages)} answered in {seconds:.2f} s; {text:.70}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        sys.exit(serve(sys.argv[2], sys.argv[3:]))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="part of a case's name; none: all")
    parser.add_argument("--times", type=int, default=1, metavar="N", help="run each case so often")
    chosen = parser.parse_args()
    run(chosen.names, chosen.times)
