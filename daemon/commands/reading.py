"""Commands that read the daemon's state: status, residency, experts. Nothing here changes anything."""

from __future__ import annotations

import argparse
from typing import Any

from . import Add, connect, print_json, size, table


def register(add: Add) -> None:
    add("status", "what the daemon serves, how, and what it is doing", run_status, json=True)
    residency = add("residency", "what of the model lies where, as the kernel counts it", run_residency, json=True)
    residency.add_argument("--by", choices=["role", "layer", "node", "tensor"], default="role")
    experts = add("experts", "how often each expert was used, and how much of it is resident", run_experts, json=True)
    experts.add_argument("--layer", type=int, help="of one layer, expert by expert")
    experts.add_argument("--tensors", action="store_true", help="tensor by tensor: used/total, also in a step")


def run_status(given: argparse.Namespace) -> None:
    with connect(given) as hearth:
        status = hearth.status()
    if given.json:
        print_json(status)
        return
    model, stats = status.model, status.stats
    beyond = f" of {model.layers_in_file} in the file" if model.layers_in_file > model.layers else ""
    lines = [
        ("state", stats.state_line()),
        ("model", f"{model.name or model.path} ({model.architecture}, {size(model.bytes)})"),
        ("shape", f"{model.layers} layers{beyond}, {model.experts} experts of which {model.experts_used} used, "
                  f"vocabulary {model.vocabulary}, context {model.context}"),
        ("control", status.control),
        ("telemetry", status.telemetry),
        ("process", f"{status.pid}, up {status.uptime:.0f} s, ready after {status.ready_seconds:.2f} s, "
                    f"hearthd {status.version}"),
        ("kernels", status.isa or "not ready yet"),
        ("options", ", ".join(f"{name} {_brief(value)}" for name, value in status.options.items())),
        ("start", status.start_line),
        ("private", size(stats.private_bytes)),
        ("arena", _arena(status.arena)),
        ("tokens", f"{stats.prompt_tokens} read, {stats.generated_tokens} generated"),
    ]  # fmt: skip
    for name, text in lines:
        if text:
            print(f"{name:<10} {text}")
    for warning in status.warnings:
        print(f"{'warning':<10} {warning.code}: {warning.message}")
    for row in stats.requests:
        print(f"{'request':<10} {row.id} {row.op} {row.phase}: {row.prompt_done}/{row.prompt_tokens} read, "
              f"{row.generated}/{row.max_tokens} generated, {row.rate:.1f}/s")  # fmt: skip
    for event in status.events[-3:]:
        print(f"{'event':<10} {event.code}: {event.message}")


def _arena(arena: dict[str, Any]) -> str:
    """What serves experts and why, and what lies there: `arena while cold, 1.21 GiB taken: ...`."""
    if not arena:
        return ""
    facts = [str(arena["in_use"]) if "taken" in arena else "none"]
    if "taken" in arena:
        facts.append(f"{size(arena['taken'])} taken")
    if "moved_home" in arena:
        facts.append(f"{size(arena['moved_home'])} moved into the mapping")
    return f"{', '.join(facts)}: {arena['reason']}"


def _brief(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value > 99999 else str(value)


GROUPS = ("node", "layer", "tensor", "type", "role")
STATES = ("mapped", "arena", "cached", "deferred", "unknown", "locked")


def run_residency(given: argparse.Namespace) -> None:
    with connect(given) as hearth:
        data = hearth.residency(given.by)
    if given.json:
        print_json(data)
        return
    rows = data.get("rows", [])
    names = [name for name in GROUPS if rows and name in rows[0]]
    placed = any(row.get("wrong_node") is not None for row in rows)
    near = any("local_share" in row for row in rows)
    print(
        table(
            [*names, "total", *STATES, *["wrong node"] * placed, *["local"] * near],
            [[*("-" if row[name] is None else row[name] for name in names), size(row["total"]),
              *(size(row.get(state, 0)) for state in STATES),
              *[size(row.get("wrong_node") or 0)] * placed, *[f"{100 * row.get('local_share', 0):.1f} %"] * near]
             for row in rows],
        )
    )  # fmt: skip
    if reason := data.get("unknown_reason"):
        print(f"unknown: {reason}")


def run_experts(given: argparse.Namespace) -> None:
    with connect(given) as hearth:
        data = hearth.experts(given.layer)
    if given.json:
        print_json(data)
        return
    rows: list[list[object]] = []
    if given.tensors:
        for t in (tensor for layer in data["layers"] for tensor in layer.get("tensors", [])):
            rows.append([t["name"], t["type"], f"{t['used']}/{t['total']}", f"{t['used_per_step']:.1f}/{t['total']}",
                         size(t["bytes_per_step"])])  # fmt: skip
        print(table(["tensor", "type", "used/total", "in a step", "bytes of a step"], rows))
        return
    for layer in data["layers"]:
        counts = layer["counts"]
        if given.layer is not None:
            resident = layer.get("resident", "").ljust(len(counts))
            rows += [[layer["layer"], at, count, resident[at]] for at, count in enumerate(counts)]
        else:
            total = sum(counts)
            busiest = f"{100 * max(counts) / total:.0f} %" if total else "-"
            per_step = max((tensor["used_per_step"] for tensor in layer.get("tensors", [])), default=0.0)
            rows.append([layer["layer"], total, f"{sum(count > 0 for count in counts)}/{len(counts)}",
                         f"{per_step:.1f}/{len(counts)}", busiest, layer.get("resident", "")])  # fmt: skip
    if given.layer is not None:
        print(table(["layer", "expert", "used", "resident"], rows))
    else:
        head = ["layer", "routed", "used/total", "in a step", "busiest", "resident (tenths, # whole, ? unknown)"]
        print(table(head, rows))
