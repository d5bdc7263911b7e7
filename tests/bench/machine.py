"""How fast this machine reads memory and disk: the yardsticks of every other benchmark here.

Owns the measuring of bare bandwidths; knows no model and no engine.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measures import GIB, drop_page_cache, figure, holding, machine, note, quote, table, write_json

PIECE = 4 << 20
MADV_POPULATE_READ = 22
HUGE = 2 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_FAILED = ctypes.c_void_p(-1).value


class Range:
    """An address range, aligned to 2 MiB: anonymous memory, or the start of a file. Raises OSError."""

    def __init__(self, nbytes: int, path: str | None = None) -> None:
        self.nbytes = nbytes
        self._whole = nbytes + HUGE
        reserve = _libc.mmap(None, self._whole, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
        if reserve == _FAILED:
            raise OSError(ctypes.get_errno(), "cannot reserve addresses")
        self._reserve = reserve
        self.address = (reserve + HUGE - 1) // HUGE * HUGE
        fixed = 0x10
        if path is None:
            at = _libc.mmap(
                self.address,
                nbytes,
                mmap.PROT_READ | mmap.PROT_WRITE,
                mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | fixed,
                -1,
                0,
            )
        else:
            with open(path, "rb") as file:
                at = _libc.mmap(self.address, nbytes, mmap.PROT_READ, mmap.MAP_SHARED | fixed, file.fileno(), 0)
        if at == _FAILED:
            raise OSError(ctypes.get_errno(), "cannot map", path or "memory")

    def advise(self, offset: int, nbytes: int, advice: int) -> None:
        if _libc.madvise(self.address + offset, nbytes, advice):
            raise OSError(ctypes.get_errno(), "madvise failed")

    def populate(self) -> None:
        for offset in range(0, self.nbytes, PIECE):
            self.advise(offset, min(PIECE, self.nbytes - offset), MADV_POPULATE_READ)

    def fill(self, byte: int, advice: int = mmap.MADV_HUGEPAGE) -> None:
        """Give anonymous memory its pages, of the kind advised."""
        self.advise(0, self.nbytes, advice)
        ctypes.memset(self.address, byte, self.nbytes)

    def close(self) -> None:
        _libc.munmap(self._reserve, self._whole)


def build_reader(folder: Path) -> ctypes.CDLL:
    """Compiles read_bandwidth.c, which stands beside this file. Raises CalledProcessError."""
    source, library = Path(__file__).with_name("read_bandwidth.c"), folder / "read_bandwidth.so"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O3", "-shared", "-fPIC", "-pthread", "-o", library, source], check=True)
    reader = ctypes.CDLL(str(library))
    reader.bench_read.restype = ctypes.c_uint64
    reader.bench_read.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_int),
        ctypes.c_int,
        ctypes.POINTER(ctypes.c_double),
    ]
    return reader


def read_rates(reader: ctypes.CDLL, memory: Range, threads: int, passes: int) -> list[float]:
    """Bytes per second of each pass over a range, its first (cold caches and page tables) left out.

    RuntimeError where so many threads cannot be had.
    """
    mine = sorted(os.sched_getaffinity(0))
    cpus = [mine[i % len(mine)] for i in range(threads)]
    seconds = (ctypes.c_double * (passes + 1))()
    reader.bench_read(memory.address, memory.nbytes, threads, (ctypes.c_int * threads)(*cpus), passes + 1, seconds)
    if not all(seconds):
        raise RuntimeError(f"{threads} threads cannot be had")
    return [memory.nbytes / s for s in list(seconds)[1:]]


def memory_bandwidth(nbytes: int, path: str | None, counts: list[int], passes: int) -> dict[str, Any]:
    """Reading huge pages, small pages and, with a file, its resident mapping."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        reader = build_reader(Path(folder))
        kinds: list[tuple[str, str | None, int | None]] = [
            ("huge pages", None, mmap.MADV_HUGEPAGE),
            ("small pages", None, mmap.MADV_NOHUGEPAGE),
        ]
        if path is not None:
            kinds.append(("mapped file", path, None))
        for kind, file, advice in kinds:
            memory = Range(min(nbytes, os.path.getsize(file)) if file else nbytes, file)
            try:
                if advice is not None:
                    memory.fill(1, advice)
                else:
                    memory.populate()
                for threads in counts:
                    results[f"{kind}, {threads} threads"] = quote(read_rates(reader, memory, threads, passes))
            finally:
                memory.close()
    return results


def spread_over(threads: int, pieces: int, work: Callable[[int], None]) -> float:
    """Seconds for some threads to work through all pieces, each taking the next one."""
    remaining = iter(range(pieces))
    lock = threading.Lock()

    def run() -> None:
        while True:
            with lock:
                piece = next(remaining, None)
            if piece is None:
                return
            work(piece)

    workers = [threading.Thread(target=run) for _ in range(threads)]
    start = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - start


def disk_direct(path: str, nbytes: int, threads: int) -> float:
    """Bytes per second with O_DIRECT reads of 4 MiB, each thread into huge pages of its own.

    Small pages would cut every read into as many segments, and the segments' limit would be measured.
    """
    file = os.open(path, os.O_RDONLY | os.O_DIRECT)
    local = threading.local()
    buffers: list[Range] = []

    def work(piece: int) -> None:
        if not hasattr(local, "view"):
            buffer = Range(PIECE)
            buffer.advise(0, PIECE, mmap.MADV_HUGEPAGE)
            buffers.append(buffer)
            local.view = (ctypes.c_char * PIECE).from_address(buffer.address)
        os.preadv(file, [local.view], piece * PIECE)

    try:
        return nbytes / spread_over(threads, nbytes // PIECE, work)
    finally:
        os.close(file)
        for buffer in buffers:
            buffer.close()


def disk_populate(path: str, nbytes: int, threads: int) -> float:
    """Bytes per second with MADV_POPULATE_READ in pieces of 4 MiB on a shared mapping."""
    memory = Range(nbytes, path)
    try:
        return nbytes / spread_over(
            threads, nbytes // PIECE, lambda piece: memory.advise(piece * PIECE, PIECE, MADV_POPULATE_READ)
        )
    finally:
        memory.close()


def disk_bandwidth(path: str, nbytes: int, counts: list[int], rounds: int, lock: str | None) -> dict[str, Any]:
    nbytes = min(nbytes, os.path.getsize(path)) // PIECE * PIECE
    rates: dict[str, list[float]] = {}
    for _ in range(rounds):
        for kind, measure in (("O_DIRECT", disk_direct), ("mapped populate", disk_populate)):
            for threads in counts:
                with holding(lock):
                    drop_page_cache()
                    rates.setdefault(f"{kind}, {threads} threads", []).append(measure(path, nbytes, threads))
    return {name: quote(samples) for name, samples in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", help="a file of some GiB, to read from disk (as root) and as a resident mapping")
    parser.add_argument("--bytes", type=float, default=2.0, help="GiB to read (default 2)")
    parser.add_argument("--threads", default="1,2", help="thread counts for memory (default 1,2)")
    parser.add_argument("--workers", default="1,2,4", help="thread counts for the disk (default 1,2,4)")
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("--no-disk", action="store_true")
    parser.add_argument("--lock", help="hold this file's flock during each measurement")
    parser.add_argument("--json", help="write the results there")
    options = parser.parse_args()
    nbytes = int(options.bytes * GIB) // HUGE * HUGE

    results: dict[str, Any] = {"machine": machine()}
    with holding(options.lock):
        counts = [int(n) for n in options.threads.split(",")]
        results["memory"] = memory_bandwidth(nbytes, options.file, counts, options.repetitions)
    if options.file and not options.no_disk:
        workers = [int(n) for n in options.workers.split(",")]
        try:
            results["disk"] = disk_bandwidth(options.file, nbytes, workers, options.repetitions, options.lock)
        except PermissionError as error:
            note(f"disk left out: {error}")
    for what in ("memory", "disk"):
        if what in results:
            rows = [
                [name, *(figure(row[key] / 1e9) for key in ("median", "min", "max")), figure(row["spread"])]
                for name, row in results[what].items()
            ]
            print(table([f"{what}, GB/s", "median", "min", "max", "spread"], rows), end="\n\n")
    write_json(options.json, results)


if __name__ == "__main__":
    main()
