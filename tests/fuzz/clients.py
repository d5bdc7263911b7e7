"""Clients that come and go in mid-stream beside one that stays: whoever leaves ends its own request and no other.

    python -m tests.fuzz.clients --count 1000 --seed 1 [--beside 1] [--model FILE]

from the repository's root, with any installed hearthd; a daemon is started on the packaged model (or --model) for it.
So many clients each ask for a stream of 300 tokens and leave after the first reply and up to 20 ms more, in --beside
processes, while a bystander asks for 120 tokens again and again. Its answers must all be whole, and what it was told
alone. It prints how many they were; the exit code is 1 if one was not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
from contextlib import suppress
from pathlib import Path

from .daemon import PACKAGED, Bystander, Client, Daemon, NoAnswer

STAYS = {"op": "generate", "prompt": "Once upon", "max_tokens": 120, "ignore_eos": True, "sampling": {"temperature": 0}}
LEAVES = {"op": "generate", "prompt": "Once", "max_tokens": 300, "ignore_eos": True, "stream": True}


def leave(endpoint: str, count: int, seed: str) -> None:
    """So many clients, one after the other."""
    chance = random.Random(seed)
    for _ in range(count):
        with Client(endpoint) as client:
            client.send(LEAVES)
            with suppress(NoAnswer):
                client.take(5)
            time.sleep(chance.random() * 0.02)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--beside", type=int, default=1, help="processes of clients that leave")
    parser.add_argument("--model", type=Path, default=PACKAGED)
    given = parser.parse_args()
    with Daemon(given.model) as daemon, Bystander(daemon, STAYS) as bystander:
        begun = time.monotonic()
        spawn = multiprocessing.get_context("spawn")
        leaving = [
            spawn.Process(
                target=leave,
                args=(
                    daemon.endpoint,
                    given.count // given.beside + (number < given.count % given.beside),
                    f"{given.seed}/{number}",
                ),
            )
            for number in range(given.beside)
        ]
        for each in leaving:
            each.start()
        for each in leaving:
            each.join()
        seconds = time.monotonic() - begun
        seen, lives = bystander.stop(), daemon.alive
    print(f"{given.count} clients left in {seconds:.0f} s; the one that stayed asked {seen.asked} times,")
    print(f"{seen.failed} failed or were others than alone, the longest answer took {seen.longest:.2f} s")
    for answer in seen.wrong:
        print(answer)
    if not lives:
        print("the daemon ended")
    return int(seen.failed > 0 or not seen.asked or not lives)


if __name__ == "__main__":
    sys.exit(main())
