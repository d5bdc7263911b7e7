"""`hearthctl bench`: the engine's rates on a model, without a daemon. Owns flags and table; measures nothing."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from . import Add, CommandError, print_json, size, table


def _counts(text: str) -> list[int]:
    """Numbers apart by commas: "512,1024"; 0 leaves a kind of test out."""
    try:
        counts = [int(word) for word in text.split(",") if word]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers") from None
    if any(count < 0 for count in counts):
        raise argparse.ArgumentTypeError(f"{text!r} has a negative number")
    return counts


def register(add: Add) -> None:
    bench = add("bench", "measure prompt and generation rates of a model, without a daemon", run_bench, json=True)
    bench.add_argument("model", metavar="MODEL", help="a GGUF file, any file of a split model, or a Hugging Face name")
    bench.add_argument("-p", "--n-prompt", type=_counts, default=[512], metavar="LIST", help="tokens (default: 512)")
    bench.add_argument("-n", "--n-gen", type=_counts, default=[128], metavar="LIST", help="tokens (default: 128)")
    bench.add_argument("-d", "--n-depth", type=_counts, default=[0], metavar="LIST",
                       help="tokens in the context before (default: 0)")  # fmt: skip
    bench.add_argument("-b", "--batch-size", type=_counts, default=[512], metavar="LIST",
                       help="tokens of a prompt per step (default: 512)")  # fmt: skip
    bench.add_argument("-r", "--repetitions", type=int, default=5, metavar="N", help="(default: 5)")
    bench.add_argument("-t", "--threads", type=int, metavar="N", help="(default: physical cores)")
    bench.add_argument("--isa", metavar="NAME", help="instruction set (default: the best, or HEARTHD_ISA)")


def run_bench(given: argparse.Namespace) -> None:
    from ..bench import Bench, tests_of

    if given.repetitions < 1:
        raise CommandError("at least one repetition is needed")
    tests = list(tests_of(given.n_prompt, given.n_gen, given.n_depth or [0], given.batch_size or [512]))
    if not tests or any(test.batch < 1 for test in tests):
        raise CommandError("nothing to measure: give -p or -n, and a batch size of at least 1")
    context = max(test.depth + test.prompt + test.generate for test in tests)
    try:
        bench = Bench(
            given.model,
            context=context,
            batch=max(test.batch for test in tests),
            threads=given.threads,
            isa=given.isa,
        )
    except ValueError as error:
        raise CommandError(str(error)) from error

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        results = [bench.run(test, given.repetitions, progress).as_dict() for test in tests]
        data: dict[str, Any] = {
            "model": bench.model.paths[0],
            "name": bench.model.name,
            "bytes": sum(bench.model.sizes),
            "architecture": bench.model.architecture,
            "results": results,
        }
    finally:
        bench.close()
    if given.json:
        print_json(data)
        return
    print(f"{data['name'] or data['model']}, {size(data['bytes'])}, {data['architecture']}")
    head = ["test", "batch", "isa", "threads", "t/s", "spread", "weights GB/s"]
    rows = []
    for row in results:
        weights = row.get("weight_bytes_per_second")
        rows.append([
            row["test"],
            row["n_batch"],
            row["isa"],
            row["threads"],
            f"{row['median']:.2f}",
            f"{row['spread']:.1%}",
            f"{weights / 1e9:.2f}" if weights else "",
        ])
    print(table(head, rows))
