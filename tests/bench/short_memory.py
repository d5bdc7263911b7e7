"""Generation when RAM is short: every server in a memory cgroup of its own, smaller than the model.

Owns the cgroup (version 1 or 2, made and removed here; needs root) and the rates inside it. Starting and talking is
in contestants.py.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from contestants import Contestant, ContestantFailed, add_arguments, contestants_of
from measures import (
    GIB,
    drop_page_cache,
    figure,
    holding,
    machine,
    note,
    quote,
    random_tokens,
    ratio,
    rounds_of,
    table,
    write_json,
)

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """A fresh cgroup with a memory limit in bytes. Raises PermissionError, or OSError where there is no controller."""
    version_1 = (V1 / "memory.limit_in_bytes").exists()
    folder = (V1 if version_1 else V2) / f"hearthd-bench-{os.getpid()}"
    folder.mkdir()
    try:
        if version_1:
            (folder / "memory.limit_in_bytes").write_text(str(limit))
        else:
            (folder / "memory.max").write_text(str(limit))
            (folder / "memory.swap.max").write_text("0")
        yield folder
    finally:
        for _ in range(50):
            # Busy until the kernel has taken the last process out.
            try:
                folder.rmdir()
                break
            except OSError:
                time.sleep(0.1)


def peak_of(folder: Path) -> int:
    for name in ("memory.max_usage_in_bytes", "memory.peak"):
        with contextlib.suppress(OSError, ValueError):
            return int((folder / name).read_text())
    return 0


def one_run(contestant: Contestant, seed: int, given: argparse.Namespace) -> dict[str, float]:
    """Start, one prompt, one generation inside the limit. Raises ContestantFailed."""
    with memory_cgroup(int(given.limit * GIB)) as folder:
        # Pages that are cached already are charged to nobody here: they must be read by the server itself.
        drop_page_cache(given.model)
        contestant.start(folder)
        try:
            measures = {"ready": contestant.wait_ready()}
            prompt = random_tokens(given.prompt, given.vocabulary, seed)
            answer = contestant.generate(prompt, given.tokens, given.timeout, skip=int(given.tokens * given.skip))
            measures["ttft"] = answer.ttft
            measures["read_first"] = answer.disk_first
            measures["generated"] = len(answer.token_times)
            if answer.rate is not None and answer.disk_per_token is not None:
                measures["rate"] = answer.rate
                measures["read_per_token"] = answer.disk_per_token
            measures["peak"] = peak_of(folder)
            return measures
        finally:
            contestant.stop()


COLUMNS = [
    ("ready", "ready s", 2, 1),
    ("ttft", "ttft s", 2, 1),
    ("read_first", "GiB read at first token", 2, GIB),
    ("generated", "tokens", 0, 1),
    ("rate", "t/s", 2, 1),
    ("read_per_token", "GiB read per token", 3, GIB),
    ("peak", "peak GiB", 2, GIB),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # Greedy text of random weights falls into a loop of a few experts, which fit any memory: so sample.
    add_arguments(parser, temperature=1.0)
    parser.add_argument("--limit", type=float, default=3.0, help="GiB of the cgroup (default 3)")
    parser.add_argument("--prompt", type=int, default=31, help="prompt tokens (default 31)")
    parser.add_argument("-n", "--tokens", type=int, default=48, help="tokens to generate (default 48)")
    parser.add_argument("--skip", type=float, default=0.33, help="part of them left out of the rate (default 0.33)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds after which an answer is cut short")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    options = parser.parse_args()
    contestants = contestants_of(options)
    if not contestants:
        parser.error("no contestant: give --hearthd, --llama-server or --ik-server")

    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    failures: list[str] = []
    for turn, name in rounds_of(list(contestants), options.rounds):
        try:
            with holding(options.lock):
                measures = one_run(contestants[name], 7000 + turn, options)
        except ContestantFailed as error:
            failures.append(str(error))
            note(str(error))
        except (PermissionError, TimeoutError) as error:
            note(f"no start in a memory cgroup with a dropped page cache: {error}")
            return 77
        else:
            runs[name].append(measures)
            note(f"round {turn}, {name}: " + ", ".join(f"{key} {value:.4g}" for key, value in measures.items()))

    results: dict[str, dict[str, Any]] = {
        name: {key: quote([row[key] for row in rows if key in row]) for key, *_ in COLUMNS}
        for name, rows in runs.items()
        if rows
    }
    print(f"memory cgroup of {options.limit:g} GiB, {options.tokens} tokens after {options.prompt}, medians")
    lines = [
        [
            name,
            *(
                "-" if row[key]["median"] is None else figure(row[key]["median"] / unit, digits)
                for key, _, digits, unit in COLUMNS
            ),
        ]
        for name, row in results.items()
    ]
    print(table(["contestant", *(heading for _, heading, *_ in COLUMNS)], lines))
    ours = [name for name in results if name.startswith("hearthd") and results[name]["rate"]["median"]]
    others = [name for name in results if not name.startswith("hearthd") and results[name]["rate"]["median"]]
    compared: dict[str, Any] = {}
    if others:
        best = max(others, key=lambda name: results[name]["rate"]["median"])
        for name in ours:
            compared[name] = ratio(results[name]["rate"]["median"], results[best]["rate"]["median"])
            print(f"  {name}: {figure(compared[name])} x the best other's rate ({best})")
    report = {
        "machine": machine(),
        "model": options.model,
        "limit_gib": options.limit,
        "results": results,
        "ratios": compared,
        "failures": failures,
    }
    write_json(options.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
