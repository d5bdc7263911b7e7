"""Cold starts, side by side: ready, first token, bytes read, the second request, six requests in a row.

The page cache is dropped before every start (so this needs root), and memory touched, so that a virtual machine has it
at hand; contestants alternate, each start is a process of its own. Owns what is measured after a cold start; starting
and talking is in contestants.py.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

from contestants import Contestant, ContestantFailed, add_arguments, contestants_of
from measures import (
    GIB,
    back_memory,
    drop_page_cache,
    figure,
    holding,
    machine,
    note,
    quote,
    random_tokens,
    ratio,
    rounds_of,
    shards,
    table,
    write_json,
)

# What each measure is called in tables: key, heading, digits, divisor.
COLUMNS = [
    ("ready", "ready s", 2, 1),
    ("first_from_start", "first token from start s", 2, 1),
    ("ttft", "ttft s", 2, 1),
    ("read_first", "GiB read at first token", 2, GIB),
    ("cold_rate", "t/s of the first answer", 1, 1),
    ("second_ttft", "second ttft s", 2, 1),
    ("first_over_second", "first/second", 2, 1),
    ("settled_ttft", "settled ttft s", 2, 1),
    ("rate_1", "t/s, 1st of six", 1, 1),
    ("rate_6", "t/s, 6th", 1, 1),
    ("sixth_over_first", "6th/1st", 3, 1),
    ("read_all", "GiB read in all", 2, GIB),
]


def one_start(contestant: Contestant, length: int, seed: int, given: argparse.Namespace) -> dict[str, float]:
    """All measures of one cold start. Raises ContestantFailed."""

    def prompt(number: int) -> list[int]:
        return random_tokens(length, given.vocabulary, seed + number)

    drop_page_cache(given.model)
    back_memory(2 * sum(map(os.path.getsize, shards(given.model))))
    contestant.start()
    try:
        measures = {"ready": contestant.wait_ready()}
        first = contestant.generate(prompt(0), given.tokens)
        measures["ttft"] = first.ttft
        measures["first_from_start"] = first.sent + first.ttft - contestant.started
        measures["read_first"] = first.disk_first
        if first.rate is not None:
            measures["cold_rate"] = first.rate
        second = contestant.generate(prompt(1), given.tokens)
        measures["second_ttft"] = second.ttft
        measures["first_over_second"] = first.ttft / second.ttft
        if not given.no_row:
            # Until the warmer (ours, or the other's prefetch) has had its time; the same for every contestant.
            time.sleep(given.settle)
            answers = [contestant.generate(prompt(2 + i), max(given.tokens, 32)) for i in range(6)]
            measures["settled_ttft"] = answers[0].ttft
            first_rate, last_rate = answers[0].rate, answers[-1].rate
            if first_rate is not None and last_rate is not None:
                measures["rate_1"], measures["rate_6"] = first_rate, last_rate
                measures["sixth_over_first"] = last_rate / first_rate
            measures["read_all"] = answers[-1].disk_last
        else:
            measures["read_all"] = second.disk_last
        return measures
    finally:
        contestant.stop()


def summary(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            key: quote([run[key] for run in rows if key in run]) for key, *_ in COLUMNS if any(key in r for r in rows)
        }
        for name, rows in runs.items()
        if rows
    }


def show(length: int, results: dict[str, dict[str, Any]]) -> None:
    columns = [column for column in COLUMNS if any(column[0] in row for row in results.values())]
    rows = []
    for name, measures in results.items():
        cells = []
        for key, _, digits, unit in columns:
            quoted = measures.get(key)
            if quoted is None:
                cells.append("-")
            else:
                spread = f" ±{quoted['spread'] * 50:.0f}%" if len(quoted["samples"]) > 1 else ""
                cells.append(f"{figure(quoted['median'] / unit, digits)}{spread}")
        rows.append([name, *cells])
    print(f"\nprompt of {length} tokens, median ± half the spread")
    print(table(["contestant", *(heading for _, heading, *_ in columns)], rows))


def ratios(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The first hearthd's medians over the best other's."""
    ours = next((name for name in results if name.startswith("hearthd")), None)
    others = [name for name in results if not name.startswith("hearthd")]
    if ours is None or not others:
        return {}
    found: dict[str, Any] = {}
    for key in ("ready", "first_from_start", "ttft", "second_ttft", "read_first"):
        best = min(others, key=lambda name: results[name][key]["median"])
        found[key] = {
            "ratio": ratio(results[ours][key]["median"], results[best][key]["median"]),
            "against": best,
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--prompts", default="510,31", help="prompt lengths (default 510,31)")
    parser.add_argument("-n", "--tokens", type=int, default=16, help="tokens per answer (default 16)")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--settle", type=float, default=8.0, help="seconds before the six requests (default 8)")
    parser.add_argument("--no-row", action="store_true", help="leave the six requests out")
    options = parser.parse_args()

    contestants = contestants_of(options)
    if not contestants:
        parser.error("no contestant: give --hearthd, --llama-server or --ik-server")
    report: dict[str, Any] = {"machine": machine(), "model": options.model, "prompts": {}}
    for length in (int(word) for word in options.prompts.split(",")):
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
        failures: list[str] = []
        for turn, name in rounds_of(list(contestants), options.rounds):
            seed = 1000 * length + 10 * turn
            try:
                with holding(options.lock):
                    measures = one_start(contestants[name], length, seed, options)
            except ContestantFailed as error:
                failures.append(str(error))
                note(str(error))
            except (PermissionError, TimeoutError) as error:
                note(str(error))
                return 77
            else:
                runs[name].append(measures)
                said = ", ".join(f"{key} {value:.4g}" for key, value in measures.items())
                note(f"{length} tokens, round {turn}, {name}: {said}")
        results = summary(runs)
        show(length, results)
        compared = ratios(results)
        for key, value in compared.items():
            print(f"  {key}: {figure(value['ratio'])} of the best other ({value['against']})")
        report["prompts"][str(length)] = {"results": results, "ratios": compared, "failures": failures}
        write_json(options.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
