"""Prompt and generation rates on one GGUF file, side by side with llama.cpp and ik_llama.cpp, everything resident.

Owns the comparison: `hearthctl bench` measures ours, the others' llama-bench theirs, alternating, with the same
threads. With --sessions it is so many sessions in the same steps, and the others' llama-batched-bench. The file is held
in memory by this process throughout; the memory's own bandwidth is measured in the same run.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import machine as bare
from contestants import find_program
from measures import figure, holding, machine, note, quote, ratio, rounds_of, shards, table, write_json

Parse = Callable[[str], list[tuple[str, list[float]]]]

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Held:
    """A model's files mapped, populated and locked while this lives. Warns when the lock is refused."""

    def __init__(self, model: str) -> None:
        self.ranges = [bare.Range(os.path.getsize(path), path) for path in shards(model)]
        for memory in self.ranges:
            memory.populate()
            if _libc.mlock(memory.address, memory.nbytes):
                note(f"not locked: {os.strerror(ctypes.get_errno())}; the kernel may take pages back in between")

    def close(self) -> None:
        for memory in self.ranges:
            memory.close()


def parse_hearthctl(text: str) -> list[tuple[str, list[float]]]:
    return [(row["test"], row["samples"]) for row in json.loads(text)["results"]]


def parse_llama_bench(text: str) -> list[tuple[str, list[float]]]:
    """JSON of llama-bench; what it prints around the JSON is left out."""
    rows = json.loads(text[text.index("[\n") : text.rindex("]") + 1])
    return [(f"pp{row['n_prompt']}" if row["n_prompt"] else f"tg{row['n_gen']}", row["samples_ts"]) for row in rows]


def parse_hearthctl_batches(text: str) -> list[tuple[str, list[float]]]:
    found = []
    for row in json.loads(text)["results"]:
        for what, count, seconds in (("pp", row["pp"], row["samples_t_pp"]), ("tg", row["tg"], row["samples_t_tg"])):
            if count:
                found.append((f"{what} x {row['pl']}", [row["pl"] * count / each for each in seconds]))
    return found


def parse_batched_bench(text: str) -> list[tuple[str, list[float]]]:
    """Lines of llama-batched-bench's table: PP, TG, B, N_KV, T_PP, S_PP, T_TG, S_TG, T, S."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if len(cells) == 10 and cells[0].isdigit():
            found += [(f"pp x {cells[2]}", [float(cells[5])]), (f"tg x {cells[2]}", [float(cells[7])])]
    if not found:
        raise ValueError(f"no table: {text[-300:]!r}")
    return found


class Program:
    """A contestant: a command that measures by itself and prints JSON."""

    def __init__(self, name: str, family: str, command: list[str], parse: Parse, isa: str | None = None) -> None:
        self.name, self.family, self.command, self.parse, self.isa = name, family, command, parse, isa

    def run(self) -> list[tuple[str, list[float]]]:
        environment = dict(os.environ)
        if self.isa:
            environment["HEARTHD_ISA"] = self.isa
        done = subprocess.run(
            self.command, capture_output=True, text=True, errors="replace", env=environment, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{self.name} ended with {done.returncode}: {done.stderr[-500:]}")
        # Some of the others write their table to stderr.
        return self.parse(done.stdout if done.stdout.strip() else done.stderr)


def contestants(given: argparse.Namespace) -> dict[str, Program]:
    """All whose programs were given; with `only`, whose name contains one of its words."""
    found = batched(given) if given.sessions else single(given)
    words = given.only.split(",") if given.only else [""]
    return {program.name: program for program in found if any(word in program.name for word in words)}


def batched(given: argparse.Namespace) -> list[Program]:
    size = [str(given.prompt), str(given.generate)]
    room = str(max(map(int, given.sessions.split(","))) * (given.prompt + given.generate))
    found: list[Program] = []
    if (hearthctl := find_program(given.hearthctl, "hearthctl")) is not None:
        test = ["-p", size[0], "-n", size[1], "-t", str(given.threads), "-r", str(given.repetitions)]
        command = [hearthctl, "bench", given.model, "-B", given.sessions, *test, "--json"]
        found.append(Program("hearthd", "hearthd", command, parse_hearthctl_batches))
    test = ["-npp", size[0], "-ntg", size[1], "-npl", given.sessions, "-c", room, "-t", str(given.threads)]
    for family, binary, settings in (
        ("llama.cpp", given.llama_batched_bench, {"default": [], "no-repack": ["--no-repack"]}),
        ("ik", given.ik_batched_bench, {"default": [], "repacked": ["--run-time-repack"]}),
    ):
        if binary:
            for name, options in settings.items():
                command = [binary, "-m", given.model, *test, *options]
                found.append(Program(f"{family} {name}", family, command, parse_batched_bench))
    return found


def single(given: argparse.Namespace) -> list[Program]:
    test = ["-p", str(given.prompt), "-n", str(given.generate), "-t", str(given.threads), "-r", str(given.repetitions)]
    found: list[Program] = []
    if (hearthctl := find_program(given.hearthctl, "hearthctl")) is not None:
        for isa in [None, *(word for word in given.isa.split(",") if word)]:
            name = f"hearthd {isa}" if isa else "hearthd"
            command = [hearthctl, "bench", given.model, *test, "--json"]
            found.append(Program(name, name, command, parse_hearthctl, isa))
    for family, binary in (("llama.cpp", given.llama_bench), ("llama.cpp avx2", given.llama_bench_avx2)):
        if binary:
            for attention in "01":
                for repack in "01":
                    setting = ["-fa", attention, "--repack", repack]
                    command = [binary, "-m", given.model, *test, *setting, "-o", "json"]
                    found.append(
                        Program(f"{family} fa {attention} repack {repack}", family, command, parse_llama_bench)
                    )
    if given.ik_bench:
        for repack in "01":
            command = [given.ik_bench, "-m", given.model, *test, "-fa", "1", "-rtr", repack, "-o", "json"]
            found.append(Program(f"ik fa 1 rtr {repack}", "ik", command, parse_llama_bench))
    return found


def best_of(
    results: dict[str, dict[str, Any]], programs: dict[str, Program], families: set[str], test: str
) -> str | None:
    names = [name for name, row in results.items() if programs[name].family in families and test in row]
    return max(names, key=lambda name: results[name][test]["median"], default=None)


def compare(results: dict[str, dict[str, Any]], programs: dict[str, Program], tests: list[str]) -> list[dict[str, Any]]:
    """Each of ours against the best of the others; AVX2 alone also against llama.cpp built for AVX2."""
    lines = []
    for name in (name for name in results if name.startswith("hearthd")):
        groups = [{"llama.cpp", "ik"}, {"llama.cpp"}]
        if programs[name].isa == "avx2":
            groups.append({"llama.cpp avx2"})
        for test in tests:
            for families in groups:
                other = best_of(results, programs, families, test)
                if other is not None and test in results[name]:
                    value = ratio(results[name][test]["median"], results[other][test]["median"])
                    line = {"ours": name, "test": test, "ratio": value, "against": other}
                    if line not in lines:
                        lines.append(line)
    return lines


def weight_bytes(hearthctl: str | None, given: argparse.Namespace) -> float | None:
    """Bytes of weights a generated token needs, by our own count; None where that cannot be had."""
    if hearthctl is None:
        return None
    command = [hearthctl, "bench", given.model, "-p", "0", "-n", "1", "-r", "1", "--json"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(json.loads(done.stdout)["results"][0]["weight_bytes_per_token"])
    except (OSError, subprocess.CalledProcessError, LookupError, ValueError) as error:
        note(f"weights of a token not counted: {error}")
        return None


def read_bandwidth(given: argparse.Namespace) -> float:
    """Bytes per second that the same threads read from huge pages and do nothing else."""
    with tempfile.TemporaryDirectory() as folder:
        reader = bare.build_reader(Path(folder))
        memory = bare.Range(1 << 30)
        try:
            memory.fill(1)
            rates = bare.read_rates(reader, memory, given.threads, 5)
        finally:
            memory.close()
    return float(quote(rates)["median"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--hearthctl", help="its program (default: from PATH; none: leave out)")
    parser.add_argument(
        "--isa", default="", help="further hearthd contestants with these instruction sets: avx512,avx2"
    )
    parser.add_argument("--llama-bench", help="llama.cpp's")
    parser.add_argument("--llama-bench-avx2", help="llama.cpp's, built for AVX2 only")
    parser.add_argument("--ik-bench", help="ik_llama.cpp's llama-bench")
    parser.add_argument("--sessions", help="so many at once instead: 1,2,4,8; with the next two")
    parser.add_argument("--llama-batched-bench", help="llama.cpp's")
    parser.add_argument("--ik-batched-bench", help="ik_llama.cpp's")
    parser.add_argument("--only", help="contestants whose name contains one of these words (comma)")
    parser.add_argument("-p", "--prompt", type=int, default=512)
    parser.add_argument("-n", "--generate", type=int, default=64)
    parser.add_argument("-t", "--threads", type=int, default=2)
    parser.add_argument("-r", "--repetitions", type=int, default=2, help="within a process (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each contestant (default 3)")
    parser.add_argument("--lock", help="hold this file's flock during each process")
    parser.add_argument("--json", help="write the results there")
    given = parser.parse_args()
    programs = contestants(given)
    if not programs:
        parser.error("no contestant")

    samples: dict[str, dict[str, list[float]]] = {name: {} for name in programs}
    bandwidths: list[float] = []
    failures: list[str] = []
    held = Held(given.model)
    try:
        for turn, name in rounds_of(list(programs), given.rounds):
            with holding(given.lock):
                # Beside every process: the memory's own speed moves with the neighbours, too.
                bandwidths.append(read_bandwidth(given))
                try:
                    rows = programs[name].run()
                except (RuntimeError, OSError, ValueError) as error:
                    failures.append(f"{name}: {error}")
                    note(failures[-1])
                    continue
            for test, values in rows:
                samples[name].setdefault(test, []).extend(values)
            note(f"round {turn}, {name}: " + ", ".join(f"{test} {figure(max(values))}" for test, values in rows))
        per_token = weight_bytes(programs["hearthd"].command[0] if "hearthd" in programs else None, given)
    finally:
        held.close()

    results = {name: {test: quote(v) for test, v in rows.items()} for name, rows in samples.items() if rows}
    tests = list(dict.fromkeys(test for row in results.values() for test in row))
    bandwidth = float(quote(bandwidths)["median"])
    print(f"{os.path.basename(given.model)}, {given.threads} threads, t/s: median (spread), best")
    lines = []
    for name, row in results.items():
        cells = []
        for test in tests:
            quoted = row.get(test)
            cells += (
                [f"{quoted['median']:.1f} ({quoted['spread']:.0%})", f"{quoted['max']:.1f}"] if quoted else ["-", "-"]
            )
        lines.append([name, *cells])
    print(table(["contestant", *(heading for test in tests for heading in (test, f"{test} best"))], lines))
    compared = compare(results, programs, tests)
    for line in compared:
        print(f"  {line['ours']}, {line['test']}: {figure(line['ratio'])} x {line['against']}")
    low, high = min(bandwidths) / 1e9, max(bandwidths) / 1e9
    print(f"  memory read by {given.threads} threads: {bandwidth / 1e9:.1f} GB/s ({low:.1f} to {high:.1f})")
    used: dict[str, float] = {}
    if per_token:
        for name, row in results.items():
            if f"tg{given.generate}" in row:
                used[name] = row[f"tg{given.generate}"]["median"] * per_token / bandwidth
        shown = ", ".join(f"{name} {value:.2f}" for name, value in used.items() if name.startswith("hearthd"))
        print(f"  weights of a token: {per_token / 1e9:.3f} GB; read in generation / memory's own: {shown}")
    report = {
        "machine": machine(),
        "model": given.model,
        "threads": given.threads,
        "results": results,
        "ratios": compared,
        "memory_bytes_per_second": quote(bandwidths),
        "weight_bytes_per_token": per_token,
        "bandwidth_used": used,
        "failures": failures,
    }
    write_json(given.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
