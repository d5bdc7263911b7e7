"""Commands that need no daemon: plan a model that nobody serves yet, synthesise one, print the protocol."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ..config import ConfigError, parse_budget
from . import Add, CommandError, connect, print_json, size, table


def register(add: Add) -> None:
    plan = add("plan", "what a model takes on this machine, and what each option would do", run_plan, json=True)
    plan.add_argument("model", nargs="?", metavar="MODEL", help="a file, a name in the Hugging Face cache or of a "
                      "known shape; none: what the daemon serves")  # fmt: skip
    plan.add_argument("--memory-budget", metavar="auto|SIZE|PERCENT", help="of model and sessions (default: auto)")
    plan.add_argument("--context", type=int, metavar="N", help="tokens of one session (default: 4096)")
    plan.add_argument("--sessions", type=int, metavar="N", help="answers in progress at a time (default: 4)")
    plan.add_argument("--type", default=None, help="of a shape's tensors: Q4_K_M, MXFP4, ...")
    replay = add("replay", "what more memory would buy: a routing trace against policies", run_replay, json=True)
    replay.add_argument("trace", metavar="TRACE", help="written by hearthd --trace")
    replay.add_argument("--budget", metavar="SIZE|PERCENT", action="append", default=[], help="bytes for experts, or a "
                        "share of all experts; may be repeated (default: the run's own, and 10 to 100 %%)")  # fmt: skip
    replay.add_argument("--skip", type=int, metavar="N", help="tokens that only fill the memory (default: a third)")
    synth = add("synth", "write a model of a real shape with random weights", run_synth, json=True)
    synth.add_argument("out", metavar="OUT.gguf")
    synth.add_argument("--shape", default="qwen3-30b-a3b", help="default: qwen3-30b-a3b; a wrong name lists all")
    synth.add_argument("--size", metavar="SIZE", help="at most so many bytes (4G), by leaving out layers")
    synth.add_argument("--type", default="Q4_K_M", help="default: Q4_K_M")
    synth.add_argument("--unevenness", type=float, metavar="SHARE", help="of the choices that the busiest quarter gets")
    synth.add_argument("--seed", type=int, default=0)
    add("protocol", "the JSON Schema of requests, replies and telemetry", run_protocol)


def _size(text: str, flag: str, total: int = 0) -> int:
    """Bytes for `4G`; `30%` too where there is a total to take it of. Raises CommandError."""
    try:
        if text != "auto" and (total or "%" not in text):
            return parse_budget(text, total, flag) or 0
    except ConfigError as error:
        if "unit" in str(error):
            raise CommandError(str(error), 2) from None
    raise CommandError(f"{flag}: {text!r} is not a size such as 4G" + " nor a share such as 80%" * bool(total), 2)


def run_replay(given: argparse.Namespace) -> None:
    from ..residency.replay import Trace
    from ..residency.replay import table as outcomes

    try:
        trace = Trace.load(given.trace)
        total = int(trace.nbytes.sum())
        budgets = [_size(text, "--budget", total) for text in given.budget]
    except ValueError as error:
        raise CommandError(str(error), 65) from None
    tokens = len(trace.choices)
    skip = tokens // 3 if given.skip is None else max(min(given.skip, tokens), 0)
    run, own = trace.run_bytes_per_token(skip), trace.run_budget()
    if not budgets:
        budgets = sorted({*((own,) if own else ()), *(total * share // 100 for share in (10, 25, 40, 55, 70, 85, 100))})
    rows = outcomes(trace, budgets, skip=skip)
    if given.json:
        print_json({
            "tokens": tokens, "skip": skip, "expert_bytes": total, "run_budget": own, "run_bytes_per_token": run,
            "outcomes": [{"policy": r.policy, "budget": r.budget, "hit_rate": r.hit_rate,
                          "bytes_per_token": r.bytes_per_token} for r in rows],
        })  # fmt: skip
        return
    print(f"{tokens} tokens, the first {skip} of them only to fill the memory; experts {size(total)}\n")
    policies = list(dict.fromkeys(r.policy for r in rows))
    lines = []
    for budget in budgets:
        cells = [f"{size(r.bytes_per_token)} {100 * r.hit_rate:5.1f} %" for r in rows if r.budget == budget]
        lines.append([size(budget), *cells, size(run) if run is not None and budget == own else "-"])
    print(table(["budget", *policies, "the run"], lines))
    print("\nBytes read per token, and the share of the experts used that were there.")


def run_plan(given: argparse.Namespace) -> None:
    if given.model is None:
        for option in ("memory_budget", "context", "sessions", "type"):
            if getattr(given, option) is not None:
                flag = "--" + option.replace("_", "-")
                raise CommandError(f"{flag}: needs a MODEL; without one the daemon's own settings are planned with", 2)
        with connect(given) as hearth:
            data = hearth.plan()
    else:
        data = _plan(given)
    if given.json:
        print_json(data)
    else:
        _print_plan(data)


def _plan(given: argparse.Namespace) -> dict[str, Any]:
    from ..model.plan import find_model, plan, this_machine

    budget = "auto" if given.memory_budget is None else given.memory_budget
    context = 4096 if given.context is None else given.context
    sessions = 4 if given.sessions is None else given.sessions
    parse_budget(budget, 1, "--memory-budget")
    if context < 1:
        raise CommandError(f"--context: {context} is not at least 1", 2)
    if sessions < 1:
        raise CommandError(f"--sessions: {sessions} is not at least 1", 2)
    try:
        model = find_model(given.model)
        machine = this_machine(getattr(model, "paths", None) or (), budget)
        return plan(model, machine, recipe=given.type, context=context, sessions=sessions)
    except (KeyError, ValueError) as error:
        raise CommandError(str(error.args[0] if error.args else error), 2) from None


def _print_plan(data: dict[str, Any]) -> None:
    model, memory, budget, cache = data["model"], data["bytes"], data["budget"], data["cache"]
    print(f"{model['name']} ({model['architecture']}): {model['parameters'] / 1e9:.2f} G parameters, "
          f"{model['layers']} layers, {model['experts_used']} of {model['experts']} experts per token\n")  # fmt: skip
    rows = [[role, size(memory[role]), ", ".join(f"{name} {size(n)}" for name, n in data["types"][role].items())]
            for role in ("dense", "experts")]  # fmt: skip
    print(table(["role", "bytes", "by type"], rows))
    print(f"\nsessions {size(cache['bytes'])} at most: {cache['sessions']} of {cache['context']} tokens, "
          f"{size(cache['bytes_at_context'])} each, and {size(cache['step_bytes'])} for steps; "
          f"{size(budget['sessions'])} of the budget are kept for them")  # fmt: skip
    print(f"budget   {size(budget['bytes'])} ({budget['reason']}): "
          + ("all of it fits" if budget["fits"] else f"{100 * budget['share_admitted']:.0f} % of the experts fit"))
    machine = data["machine"]
    print(f"disk     {size(machine['disk_rate'])}/s, {'measured' if machine['disk_measured'] else 'assumed'}\n")
    print(table(
        ["--experts", "--warm", "READY after", "first answer after", "warm after", "resident", "what"],
        [[option["experts"], option["warm"], f"{option['seconds_to_ready']:.1f} s",
          f"{option['seconds_to_ready'] + option['seconds_to_first_answer']:.1f} s", _after(option["seconds_to_warm"]),
          size(option["resident"]) + (" (over budget)" if option["over_budget"] else ""), option["what"]]
         for option in data["options"]],
    ))  # fmt: skip
    print("\nTimes are those of the disk alone, for a first prompt of 512 tokens, from a cold cache.")
    for warning in data["warnings"]:
        print("warning  " + ": ".join(str(part) for part in warning.values()))


def _after(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f} s"


def run_synth(given: argparse.Namespace) -> None:
    from ..model.synth import synthesise

    show = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if show:
            print(f"\r{100 * done / max(1, total):3.0f} %  {size(done)} of {size(total)}", end="", file=sys.stderr)

    limit = _size(given.size, "--size") if given.size else None
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


def run_protocol(given: argparse.Namespace) -> None:
    from ..schema import schema

    print_json(schema())
