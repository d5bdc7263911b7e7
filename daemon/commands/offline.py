"""Commands that need no daemon: synth, and plan for a model that none serves."""

from __future__ import annotations

import argparse
import sys

from ..config import parse_budget
from . import Add, CommandError, print_json, size


def register(add: Add) -> None:
    synth = add("synth", "write a model of a real shape with random weights", run_synth, json=True)
    synth.add_argument("out", metavar="OUT.gguf")
    synth.add_argument("--shape", default="qwen3-30b-a3b", help="default: qwen3-30b-a3b; --list shows all")
    synth.add_argument("--size", metavar="SIZE", help="at most so many bytes (4G), by leaving out layers")
    synth.add_argument("--type", default="Q4_K_M", help="default: Q4_K_M")
    synth.add_argument("--unevenness", type=float, metavar="SHARE", help="of the choices that the busiest quarter gets")
    synth.add_argument("--seed", type=int, default=0)


def run_synth(given: argparse.Namespace) -> None:
    from ..model.synth import synthesise

    show = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if show:
            print(f"\r{100 * done / max(1, total):3.0f} %  {size(done)} of {size(total)}", end="", file=sys.stderr)

    limit = parse_budget(given.size, 0) if given.size else None
    options = {} if given.unevenness is None else {"unevenness": given.unevenness}
    try:
        made = synthesise(
            given.out, given.shape, limit, given.type, seed=given.seed, progress=progress, **options
        )
    except (KeyError, ValueError) as error:
        raise CommandError(str(error.args[0] if error.args else error), 2) from None
    finally:
        if show:
            print(file=sys.stderr)
    if given.json:
        print_json({"path": made.path, "bytes": made.nbytes, "summary": made.summary})
    else:
        print(f"{made.path}: {made.summary}")
