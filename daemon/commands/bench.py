"""`hearthctl bench`: the engine's rates on a model, without a daemon. Owns flags and table; measures nothing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import Add, CommandError, print_json, size, table

if TYPE_CHECKING:
    from ..bench import BatchResult, Result


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
    bench.add_argument("-p", "--n-prompt", type=_counts, default=[512], metavar="LIST",
                       help="tokens of prompt (default: 512)")  # fmt: skip
    bench.add_argument("-n", "--n-gen", type=_counts, default=[128], metavar="LIST",
                       help="tokens generated (default: 128)")  # fmt: skip
    bench.add_argument("-d", "--n-depth", type=_counts, default=[0], metavar="LIST",
                       help="tokens in the context before (default: 0)")  # fmt: skip
    bench.add_argument("-b", "--batch-size", type=_counts, default=[512], metavar="LIST",
                       help="tokens of a prompt per step (default: 512)")  # fmt: skip
    bench.add_argument("-B", "--sessions", type=_counts, default=[], metavar="LIST",
                       help="so many sessions at once, each with -p and -n: a table of batches")  # fmt: skip
    bench.add_argument("-r", "--repetitions", type=int, default=5, metavar="N", help="of each measurement (default: 5)")
    bench.add_argument("-t", "--threads", type=int, metavar="N", help="compute threads (default: physical cores)")
    bench.add_argument("--isa", metavar="NAME", help="instruction set (default: the best, or HEARTHD_ISA)")


def run_bench(given: argparse.Namespace) -> None:
    from ..bench import Batch, Bench, Test, batches_of, tests_of

    if given.repetitions < 1:
        raise CommandError("at least one repetition is needed")
    lists = (given.n_prompt, given.n_gen, given.n_depth or [0], given.batch_size or [512])
    tests: list[Test | Batch] = [*(batches_of(*lists, given.sessions) if given.sessions else tests_of(*lists))]
    if not tests or any(test.batch < 1 for test in tests):
        raise CommandError("nothing to measure: give -p or -n, and a batch size of at least 1")
    sessions = max(given.sessions, default=1)
    if given.sessions and min(given.sessions) < 1:
        raise CommandError("at least one session is needed")
    try:
        bench = Bench(
            given.model,
            context=max(test.depth + test.prompt + test.generate for test in tests),
            batch=max(sessions, *(test.batch for test in tests)),
            sessions=sessions,
            threads=given.threads,
            isa=given.isa,
        )
    except ValueError as error:
        raise CommandError(str(error)) from error

    def progress(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    singles: list[Result] = []
    batches: list[BatchResult] = []
    try:
        for test in tests:
            if isinstance(test, Batch):
                batches.append(bench.run_batch(test, given.repetitions, progress))
            else:
                singles.append(bench.run(test, given.repetitions, progress))
        name, nbytes = bench.model.name, sum(bench.model.sizes)
        path, architecture = bench.model.paths[0], bench.model.architecture
    finally:
        bench.close()
    if given.json:
        results = [*(result.as_dict() for result in singles), *(result.as_dict() for result in batches)]
        data = {"model": path, "name": name, "bytes": nbytes, "architecture": architecture, "results": results}
        print_json(data)
        return
    print(f"{name or path}, {size(nbytes)}, {architecture}")
    print(_batch_table(batches) if batches else _table(singles))


def _table(results: Sequence[Result]) -> str:
    head = ["test", "batch", "isa", "threads", "t/s", "spread", "weights GB/s"]
    rows = [
        [
            result.test.name,
            result.test.batch,
            result.isa,
            result.threads,
            f"{result.median:.2f}",
            f"{result.spread:.1%}",
            f"{result.weight_rate / 1e9:.2f}" if result.weight_bytes else "",
        ]
        for result in results
    ]
    return table(head, rows)


def _batch_table(results: Sequence[BatchResult]) -> str:
    """Columns as in llama-batched-bench, with the depth before the prompts."""
    head = ["depth", "PP", "TG", "B", "N_KV", "T_PP s", "S_PP t/s", "T_TG s", "S_TG t/s", "T s", "S t/s"]
    rows = [
        [
            result.test.depth,
            result.test.prompt,
            result.test.generate,
            result.test.sessions,
            result.test.cached,
            f"{result.prompt_seconds:.3f}",
            f"{result.prompt_rate:.2f}",
            f"{result.generate_seconds:.3f}",
            f"{result.generate_rate:.2f}",
            f"{result.seconds:.3f}",
            f"{result.rate:.2f}",
        ]
        for result in results
    ]
    return table(head, rows)
