"""Every way to compute a prompt's logits must give the same bits: the ways, and what differs.

    python -m tests.one_order [--isa avx2] [--tokens 200] [--quick] [FILE or FOLDER ...]

runs them all over files (default: tiny, arch, arch2 and tiny-ik of the test models), names each model, instruction set
and way whose bits differ, with the largest difference, and exits 1 if there is one. tests/test_one_order.py runs few of
them. What no engine here opens is named and passed over.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hearthd.cyext import kernels
from hearthd.daemon.model.engine import Engine
from hearthd.daemon.model.gguf import ModelError
from numpy.typing import NDArray

from tests.opened import Opened, stepped

Tokens = NDArray[np.int32]
Logits = NDArray[np.float32]
Way = Callable[[Engine, Tokens], Logits]

SIZES = (1, 2, 3, 7, 16, 31, 32, 33, 64, 100)
FOLDERS = ("tiny", "arch", "arch2", "tiny-ik")
BATCH = 512


def chunks(*sizes: int) -> Way:
    """A prompt alone, cut into pieces of these sizes in turn."""

    def compute(engine: Engine, tokens: Tokens) -> Logits:
        session = engine.new_session()
        found = [stepped(engine, (session, part, "all"))[0] for part in pieces(tokens, sizes)]
        session.close()
        return np.concatenate(found)

    return compute


def beside(others: int, *sizes: int) -> Way:
    """The same among rows of so many other sessions of other tokens, at other depths and in pieces of other sizes:
    single rows and parts of prompts, some before it in the step and some after, some with logits and some without."""

    def compute(engine: Engine, tokens: Tokens) -> Logits:
        rng = np.random.default_rng([others, *sizes])
        strangers = [engine.new_session() for _ in range(others)]
        session, found = engine.new_session(), []
        for stranger in strangers[::2]:
            stepped(engine, (stranger, other_tokens(rng, engine, int(rng.integers(1, 40))), "none"))
        for part in pieces(tokens, sizes):
            room = engine.batch - len(part)
            parts = []
            for stranger in strangers:
                n = min(int(rng.choice([1, 1, 2, 5, 19])), room, engine.context - stranger.length)
                if n > 0:
                    room -= n
                    parts.append((stranger, other_tokens(rng, engine, n), str(rng.choice(["none", "last", "all"]))))
            place = int(rng.integers(0, len(parts) + 1))
            parts.insert(place, (session, part, "all"))
            found.append(stepped(engine, *parts)[place])
        for each in (session, *strangers):
            each.close()
        return np.concatenate(found)

    return compute


def wanted_late(*sizes: int) -> Way:
    """Only the last row of each piece wants logits: the last layer computes that one alone. The rest is NaN."""

    def compute(engine: Engine, tokens: Tokens) -> Logits:
        session, found, at = engine.new_session(), np.full((len(tokens), engine.n_vocab), np.nan, np.float32), 0
        for part in pieces(tokens, sizes):
            at += len(part)
            found[at - 1] = stepped(engine, (session, part, "last"))[0][0]
        session.close()
        return found

    return compute


def pieces(tokens: Tokens, sizes: tuple[int, ...]) -> Iterator[Tokens]:
    at = 0
    for size in itertools.cycle(sizes):
        if at >= len(tokens):
            return
        yield tokens[at : at + size]
        at += size


def other_tokens(rng: np.random.Generator, engine: Engine, n: int) -> Tokens:
    return rng.integers(0, engine.n_vocab, n).astype(np.int32)


class Machine(NamedTuple):
    """What an engine runs on, and the ways that it is asked."""

    threads: int
    deferred: bool
    ways: dict[str, Way]


# A few that meet every size of a piece at some alignment, and every kind of company.
QUICK = [
    Machine(2, False, {"one by one among 5": beside(5, 1), "last rows only": wanted_late(6, 1, 13)}),
    Machine(3, True, {"in pieces": chunks(1, 2, 3, 7, 16, 31), "in pieces among 11": beside(11, 4, 1, 9, 33)}),
]

EVERY: dict[str, Way] = {
    **{f"in pieces of {size}": chunks(size) for size in SIZES},
    **{f"in pieces of {size} among {1 + 3 * k % 15}": beside(1 + 3 * k % 15, size) for k, size in enumerate(SIZES)},
    **{f"last rows of {size}": wanted_late(size) for size in SIZES},
    **{name: way for machine in QUICK for name, way in machine.ways.items()},
}
# Company of each size, too, on one machine or another.
ALL = [
    Machine(threads, deferred, EVERY | {f"one by one among {n}": beside(n, 1) for n in range(1 + k, 16, 8)})
    for k, (threads, deferred) in enumerate(itertools.product((1, 2, 3, 4), (False, True)))
]


def differing(path: Path, isa: str, tokens: int, machines: list[Machine]) -> list[str]:
    """What does not give the bits of the whole prompt on two threads. ModelError where the model does not open."""
    room = {"context": max(2 * tokens, 256), "sequences": 16, "batch": BATCH}
    with Opened(path, isa=isa, **room) as engine:
        prompt = np.random.default_rng(tokens).integers(0, engine.n_vocab, tokens).astype(np.int32)
        exact = chunks(tokens)(engine, prompt)
    found = []
    for threads, deferred, ways in machines:
        with Opened(path, isa=isa, threads=threads, deferred=deferred, **room) as engine:
            for name, way in ways.items():
                logits = way(engine, prompt)
                asked = ~np.isnan(logits[:, 0]) | np.isnan(exact[:, 0])
                same = np.array_equal(logits[asked].view(np.uint32), exact[asked].view(np.uint32))
                if not same or not asked[-1]:
                    off = np.abs(logits[asked] - exact[asked]).max(axis=1)
                    where = f"{threads} threads{', deferred' if deferred else ''}"
                    rows = f"{np.count_nonzero(off)} rows, by {off.max():.1e}"
                    found.append(f"{path.name} {isa} {name} ({where}): {rows}")
    return found


def files_of(folder: Path) -> list[Path]:
    """Models in a folder; of a split one its first file."""
    return [path for path in sorted(folder.glob("*.gguf")) if "-of-" not in path.name or "-00001-of-" in path.name]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--isa", action="append", choices=kernels.available())
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--quick", action="store_true", help="few ways, on two kinds of machine")
    chosen = parser.parse_args()
    models = Path(os.environ.get("HEARTHD_TEST_MODELS") or Path(__file__).resolve().parents[2] / "shared" / "models")
    paths = chosen.paths or [models / name for name in FOLDERS]
    files = [file for path in paths for file in (files_of(path) if path.is_dir() else [path])]
    machines = QUICK if chosen.quick else ALL
    wrong = 0
    for path, isa in itertools.product(files, chosen.isa or kernels.available()):
        try:
            found = differing(path, isa, chosen.tokens, machines)
        except ModelError as error:
            print(f"{path.name}: not opened: {str(error)[:120]}", flush=True)
            continue
        wrong += len(found)
        print("\n".join(found) if found else f"{path.name} {isa}: the same bits", flush=True)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
