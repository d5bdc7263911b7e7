"""Clients that come and go in mid-stream beside one that stays: whoever leaves ends its own request and no other.

    python -m tests.fuzz.clients --count 1000 --seed 1 [--beside 1] [--model FILE]

from the repository's root, with any installed hearthd; a daemon is started on the packaged model (or --model) for it.
So many clients each ask for a stream of 300 tokens and leave after the first reply and up to 20 ms more, in --beside
processes, while one client, in a process of its own, asks for 120 tokens again and again and reads all of them. Its
answers must all be whole, and equal. It prints how many they were; the exit code is 1 if one was not.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import hearthd.daemon
import zmq

PACKAGED = Path(hearthd.daemon.__path__[0]) / "data" / "tinystories-moe-Q4_K_M.gguf"
READY_SECONDS = 60
STAYS = {"op": "generate", "prompt": "Once upon", "max_tokens": 120, "ignore_eos": True, "sampling": {"temperature": 0}}
LEAVES = {"op": "generate", "prompt": "Once", "max_tokens": 300, "ignore_eos": True, "stream": True}


def connected(context: zmq.Context[Any], kind: int, endpoint: str) -> zmq.Socket[bytes]:
    raw = context.socket(kind)
    raw.linger, raw.rcvtimeo = 0, 60_000
    raw.connect(endpoint)
    return raw


class Staying:
    """The one that stays: how its requests ended, and the different texts that it was given."""

    def __init__(self, context: zmq.Context[Any], endpoint: str) -> None:
        self.ends: Counter[str] = Counter()
        self.texts: set[str] = set()
        self.longest = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(context, endpoint))
        self._thread.start()

    def _run(self, context: zmq.Context[Any], endpoint: str) -> None:
        raw = connected(context, zmq.REQ, endpoint)
        while not self._over.is_set():
            started = time.monotonic()
            raw.send_json(STAYS)
            try:
                reply: dict[str, Any] = json.loads(raw.recv())
            except zmq.Again:
                self.ends["no answer"] += 1
                break
            self.longest = max(self.longest, time.monotonic() - started)
            self.ends[reply.get("reason") or f"{reply['code']}: {reply['message']}"] += 1
            self.texts.add(reply.get("text", ""))
        raw.close()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def leave(endpoint: str, count: int, seed: str) -> None:
    """So many clients, one after the other."""
    context, chance = zmq.Context(), random.Random(seed)
    for _ in range(count):
        raw = connected(context, zmq.DEALER, endpoint)
        raw.send_json(LEAVES)
        raw.poll(5000)
        time.sleep(chance.random() * 0.02)
        raw.close()


def started(model: Path, endpoint: str, directory: str) -> subprocess.Popen[bytes]:
    program = [sys.executable, "-m", "hearthd.daemon.cli", str(model), "--control", endpoint]
    environment = os.environ | {"HEARTHD_STATE_DIRECTORY": f"{directory}/state"}
    process = subprocess.Popen(program, env=environment, stderr=subprocess.DEVNULL)
    for _ in range(READY_SECONDS * 20):
        if Path(endpoint.removeprefix("ipc://")).exists() or process.poll() is not None:
            break
        time.sleep(0.05)
    return process


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--beside", type=int, default=1, help="processes of clients that leave")
    parser.add_argument("--model", type=Path, default=PACKAGED)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, zmq.Context() as context:
        endpoint = f"ipc://{directory}/control"
        process = started(given.model, endpoint, directory)
        try:
            staying = Staying(context, endpoint)
            begun = time.monotonic()
            shares = [given.count // given.beside + (n < given.count % given.beside) for n in range(given.beside)]
            spawn = multiprocessing.get_context("spawn")
            leaving = [
                spawn.Process(target=leave, args=(endpoint, share, f"{given.seed}/{number}"))
                for number, share in enumerate(shares)
            ]
            for each in leaving:
                each.start()
            for each in leaving:
                each.join()
            seconds = time.monotonic() - begun
            staying.stop()
            lives = process.poll() is None
        finally:
            process.terminate()
            process.wait(30)
    failed = sum(count for end, count in staying.ends.items() if end != "length")
    print(f"{given.count} clients left in {seconds:.0f} s; the one that stayed asked {staying.ends.total()} times,")
    print(f"{failed} failed, {len(staying.texts)} different texts, the longest answer took {staying.longest:.2f} s")
    for end, count in staying.ends.most_common():
        print(f"{count:6} {end}")
    if not lives:
        print(f"the daemon ended: {process.returncode}")
    return int(failed > 0 or len(staying.texts) != 1 or not lives)


if __name__ == "__main__":
    sys.exit(main())
