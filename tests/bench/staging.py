"""When copying a step's experts before multiplying would pay: straight from the mapping against copies in huge pages.

    python tests/bench/staging.py [--types Q4_K,Q8_0] [--tokens 1,8,32,128,512,2048]

For each type, step size and evenness of routing, one expert tensor is multiplied: from the mapping (what the engine
does); after copying the used experts into an arena of huge pages, as they are or unpacked to the panels that the
multiply takes (not with AMX); after copying all experts; and from copies made beforehand, which cost nothing here but
memory. Owns the routing, the file and the table; staging.c does the work with the engine's own kernels and threads.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hearthd import cyext
from hearthd.cyext import kernels
from hearthd.daemon.model.synth.blocks import random_blocks
from hearthd.daemon.model.synth.routing import DEFAULT, row_lengths, slope_for
from machine import Range
from measures import figure, holding, machine, note, quote, ratio, table, write_json

WAYS = ("mapping", "copy used", "repack used", "copy all", "kept copy", "kept panels", "read only")


class Tensor(ctypes.Structure):
    """struct tensor of staging.c."""

    _fields_ = [(name, ctypes.c_int32) for name in ("type", "layers", "experts", "rows", "cols")] + [
        (name, ctypes.c_void_p) for name in ("mapped", "arena", "panels")
    ]


def build(folder: Path) -> ctypes.CDLL:
    """Compiles staging.c against the installed library and this tree's headers. Raises CalledProcessError."""
    built = Path(next(str(Path(p) / "libhearth.so") for p in cyext.__path__ if (Path(p) / "libhearth.so").exists()))
    here = Path(__file__).resolve().parent
    headers, library = here.parents[1] / "cyext", folder / "staging.so"
    flags = [
        "-O2",
        "-shared",
        "-fPIC",
        "-pthread",
        f"-I{headers}",
        f"-I{headers}/kernels",
        f"-Wl,-rpath,{built.parent}",
    ]
    subprocess.run([os.environ.get("CC", "cc"), *flags, "-o", library, here / "staging.c", built], check=True)
    staging = ctypes.CDLL(str(library))
    staging.staging_panels.restype = ctypes.c_uint64
    return staging


def routing(given: argparse.Namespace, share: float, steps: int, tokens: int) -> np.ndarray:
    """int32 [steps, tokens, used]: distinct experts of each token; the busiest quarter gets about `share` of choices.

    Which experts are busy differs from step to step, as it does from layer to layer.
    """
    source = np.random.default_rng(tokens)
    lengths = row_lengths(given.experts, slope_for(given.experts, given.used, share))
    chosen = np.empty((steps, tokens, given.used), np.int32)
    for step in range(steps):
        logits = source.standard_normal((tokens, given.experts), np.float32) * source.permutation(lengths)
        chosen[step] = np.argsort(-logits, axis=1)[:, : given.used]
    return chosen


class Files:
    """The tensor's file, mapped and populated, and the arenas for its copies."""

    def __init__(self, given: argparse.Namespace, staging: ctypes.CDLL, number: int, folder: Path) -> None:
        _, block, nbytes = kernels.types()[number]
        expert = random_blocks(np.random.Generator(np.random.SFC64(1)), number, given.rows * given.columns // block,
                               nbytes, 0.02).tobytes()  # fmt: skip
        self.nbytes = len(expert) * given.experts * given.layers
        path = folder / "experts"
        with open(path, "wb") as file:
            for place in range(given.experts * given.layers):
                # Rows turned round, so that taking one expert for another gives other results.
                cut = place % given.rows * (len(expert) // given.rows)
                file.write(expert[cut:])
                file.write(expert[:cut])
            file.write(bytes(4096))
            os.fsync(file.fileno())
        self.ranges = [Range(self.nbytes + 4096, str(path)), Range(self.nbytes + 4096)]
        self.ranges[0].populate()
        self.tensor = Tensor(number, given.layers, given.experts, given.rows, given.columns, self.ranges[0].address,
                             self.ranges[1].address)  # fmt: skip
        self.panels = int(staging.staging_panels(ctypes.byref(self.tensor), given.isa)) * given.layers
        if self.panels:
            self.ranges.append(Range(self.panels + 4096))
            self.tensor.panels = self.ranges[2].address
        for memory in self.ranges[1:]:
            memory.fill(0)

    def close(self) -> None:
        for memory in self.ranges:
            memory.close()


def measure(given: argparse.Namespace, staging: ctypes.CDLL, files: Files, share: float, tokens: int) -> dict[str, Any]:
    """One line of the table: seconds of a step by each way, and experts used of those there are."""
    steps = max(2, min(64, 256 // tokens))
    chosen = routing(given, share, steps, tokens)
    x = np.random.default_rng(0).standard_normal((tokens, given.columns), np.float32)
    cpus = np.array(sorted(os.sched_getaffinity(0))[: given.threads], np.int32)
    seconds = np.zeros((len(WAYS), given.repetitions))
    used = ctypes.c_int64()
    at = [ctypes.c_void_p(array.ctypes.data) for array in (cpus, chosen, x, seconds)]
    done = staging.staging_measure(ctypes.byref(files.tensor), given.isa, len(cpus), at[0], steps, tokens, given.used,
                                   at[1], at[2], given.repetitions, at[3], ctypes.byref(used))  # fmt: skip
    if not done:
        raise RuntimeError("out of memory, or a copy gave other results than the mapping")
    line: dict[str, Any] = {"tokens": tokens, "even": share <= 0.25, "used": used.value / steps, "total": given.experts}
    line["seconds"] = {way: quote(list(row / steps)) for way, row in zip(WAYS, seconds, strict=True) if row.any()}
    return line


def show(name: str, lines: list[dict[str, Any]]) -> None:
    """Speed of each way in units of the mapping's: above 1 it would pay. Then copying the used against copying all."""
    rows = []
    for line in lines:
        took = {way: quoted["median"] for way, quoted in line["seconds"].items()}
        rows.append([
            str(line["tokens"]), "even" if line["even"] else "uneven", f"{line['used']:.0f}/{line['total']}",
            figure(1e3 * took["mapping"]), *(figure(ratio(took["mapping"], took.get(way))) for way in WAYS[1:]),
            figure(ratio(took["copy all"], took["copy used"])),
            figure(ratio(took["copy all"] - took["kept copy"], took["copy used"] - took["kept copy"])),
        ])  # fmt: skip
    head = ["tokens", "routing", "used/total", "mapping, ms", *WAYS[1:], "used : all", "copies alone"]
    print(f"{name}: speed against the mapping's\n{table(head, rows)}\n", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", default="Q4_K,Q6_K,Q8_0,IQ4_XS,MXFP4")
    parser.add_argument("--tokens", default="1,8,32,128,512,2048", help="step sizes")
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--used", type=int, default=8, help="experts of a token")
    parser.add_argument("--rows", type=int, default=768)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=4, help="tensors that steps take turns with")
    parser.add_argument("--shares", default=f"{DEFAULT},0.25",
                        help="of all choices that the busiest quarter of the experts gets (0.25: even)")  # fmt: skip
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("--isa", help="instruction set (default: the best)")
    parser.add_argument("--folder", help="where the file is made (default: the temporary directory)")
    parser.add_argument("--lock", help="hold this file's flock while measuring a line")
    parser.add_argument("--json", help="write the results there")
    given = parser.parse_args()
    if given.rows % 32 or given.columns % 256:
        parser.error("panels have 32 rows, blocks up to 256 columns: --rows and --columns in multiples of these")
    given.isa = kernels.select(given.isa).encode()
    numbers = {name.upper(): number for number, (name, _, _) in kernels.types().items()}

    report: dict[str, Any] = {"machine": machine(), "types": {}}
    for name in given.types.upper().split(","):
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            staging = build(Path(folder))
            note(f"{name}: writing and copying")
            files = Files(given, staging, numbers[name], Path(folder))
            try:
                lines = []
                for share in map(float, given.shares.split(",")):
                    for tokens in map(int, given.tokens.split(",")):
                        with holding(given.lock):
                            lines.append(measure(given, staging, files, share, tokens))
            finally:
                files.close()
        show(name, lines)
        report["types"][name] = lines
    write_json(given.json, report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
