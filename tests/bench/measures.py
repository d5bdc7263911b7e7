"""Medians, spreads, tables, caches and locks that the benchmarks share.

Owns how a figure is quoted; what is measured, and against whom, belongs to each script.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import platform
import random
import re
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

GIB = 1 << 30


def quote(samples: Sequence[float]) -> dict[str, Any]:
    """Median, minimum, maximum and spread ((max - min) / median) of some samples, with the samples themselves."""
    if not samples:
        return {"median": None, "min": None, "max": None, "spread": None, "samples": []}
    middle = statistics.median(samples)
    low, high = min(samples), max(samples)
    return {
        "median": middle,
        "min": low,
        "max": high,
        "spread": (high - low) / middle if middle else 0.0,
        "samples": list(samples),
    }


def ratio(ours: float | None, theirs: float | None) -> float | None:
    return ours / theirs if ours is not None and theirs else None


def figure(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join("-" * (width + 1) + (":" if i else "-") for i, width in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def rounds_of(names: Sequence[str], rounds: int) -> Iterator[tuple[int, str]]:
    """Every contestant once per round, each round begun by another one, so that drift of the machine hits all alike."""
    for turn in range(rounds):
        start = turn % len(names)
        for name in [*names[start:], *names[:start]]:
            yield turn, name


@contextlib.contextmanager
def holding(lock: str | None) -> Iterator[None]:
    """Holds an flock for one measurement, so that others who share the machine can stay away."""
    if lock is None:
        yield
        return
    with open(lock, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def shards(model: str) -> list[str]:
    """The files of a model, of which any may be named."""
    found = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", model)
    if not found:
        return [model]
    return [f"{found[1]}-{i:05}-of-{found[2]}.gguf" for i in range(1, int(found[2]) + 1)]


def cached_share(path: str) -> float:
    """What part of a file's pages is in the page cache. Needs a file of one's own, else mincore tells nothing."""
    page, size = os.sysconf("SC_PAGE_SIZE"), os.path.getsize(path)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    pages = (ctypes.c_ubyte * ((size + page - 1) // page))()
    with (
        open(path, "rb") as file,
        mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as at,
    ):
        address = ctypes.c_char.from_buffer(at)
        failed = libc.mincore(ctypes.addressof(address), size, pages)
        del address
    if failed:
        raise OSError(ctypes.get_errno(), "mincore failed", path)
    return sum(bytes(pages)) / len(pages)


def back_memory(nbytes: int) -> None:
    """Touch so much memory and free it at once.

    A virtual machine with free page reporting gives freed memory back to its host and gets it again page by page, below
    a GB/s here: without this, a cold start would measure the host, and whoever happens to start right after a big
    process ended would win.
    """
    available = int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024  # type: ignore[index]
    nbytes = min(nbytes, available * 3 // 4)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    for at in range(0, nbytes, mmap.PAGESIZE):
        memory[at] = 1
    memory.close()


def drop_page_cache(model: str | None = None, patience: float = 60.0) -> None:
    """Everything clean goes; dirty pages are written first. Needs root: raises PermissionError with what to do.

    Pages that some process has mapped stay. With a model it is made sure that its files are gone, waiting for whoever
    holds them; raises TimeoutError: a start on half a cached model would measure nothing.
    """
    deadline = time.monotonic() + patience
    while True:
        os.sync()
        try:
            Path("/proc/sys/vm/drop_caches").write_text("1\n")
        except PermissionError as error:
            raise PermissionError("a cold start needs the page cache dropped: run this as root") from error
        share = max(map(cached_share, shards(model))) if model is not None else 0.0
        if share < 0.01:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{share:.0%} of {model} stays cached: another process has it mapped (use a copy)")
        time.sleep(0.5)


def random_tokens(count: int, vocabulary: int, seed: int) -> list[int]:
    """Token ids that no special token and no end of text is likely to be among: the middle of the vocabulary."""
    source = random.Random(seed)
    return [source.randrange(vocabulary // 16, vocabulary * 3 // 4) for _ in range(count)]


def disk_bytes(pid: int) -> int:
    """Bytes that a process has had read from disk, as the kernel counted them: page faults and read-ahead included."""
    for line in Path(f"/proc/{pid}/io").read_text().splitlines():
        if line.startswith("read_bytes:"):
            return int(line.split()[1])
    raise OSError(f"/proc/{pid}/io has no read_bytes")


def machine() -> dict[str, Any]:
    model = ""
    flags: set[str] = set()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            model = value.strip()
        elif key.strip() == "flags":
            flags = set(value.split())
    sets = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    return {
        "processor": model,
        "cpus": sorted(os.sched_getaffinity(0)),
        "isa": [name for name in sets if name in flags],
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
        "memory_gib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def write_json(path: str | None, results: dict[str, Any]) -> None:
    if path is not None:
        Path(path).write_text(json.dumps(results, indent=1) + "\n")
