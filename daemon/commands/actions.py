"""Commands that change something: warm, defer, pin, cancel, shutdown, and keys for TCP endpoints."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from . import Add, connect, number_list, print_json, size

if TYPE_CHECKING:
    from ..protocol import Progress, Selection


def register(add: Add) -> None:
    warm = add("warm", "populate experts now, in the background", run_warm, json=True)
    warm.add_argument("--wait", action="store_true", help="until it is done, with its progress")
    defer = add("defer", "give experts' pages back", run_defer, json=True)
    pin = add("pin", "warm experts and never give them back for others", run_pin, json=True)
    pin.add_argument("--release", action="store_true", help="treat them like the others again")
    for command in (warm, defer, pin):
        command.add_argument("--layers", type=number_list, metavar="LIST", help="0,3,8-11 (default: all)")
        command.add_argument("--experts", type=number_list, metavar="LIST", help="0,3,8-11 (default: all)")
        command.add_argument("--hottest", type=int, metavar="N", help="only the N hottest of each layer")
        command.add_argument("--dense", action="store_true", help="the dense spans too")
    cancel = add("cancel", "end a request", run_cancel, json=True)
    cancel.add_argument("target", metavar="ID", help="as status shows it")
    add("shutdown", "let the daemon finish its answers and exit", run_shutdown, json=True)
    keys = add("keys", "make CURVE keys for a daemon on TCP and one client", run_keys, json=True)
    keys.add_argument("directory", metavar="DIR", help="of the daemon's --keys")
    keys.add_argument("--client", default="client", metavar="NAME", help="the client's name (default: client)")


def _selection(given: argparse.Namespace) -> Selection:
    from ..protocol import Selection

    return Selection(layers=given.layers, experts=given.experts, hottest=given.hottest, dense=given.dense)


def _say(given: argparse.Namespace, data: dict[str, Any]) -> None:
    if given.json:
        print_json(data)
        return
    parts = [f"{name} {_brief(name, value)}" for name, value in data.items()]
    print(", ".join(parts).replace("_", " "))


def _brief(name: str, value: object) -> str:
    if "bytes" in name and isinstance(value, int | float):
        return size(value)
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def run_warm(given: argparse.Namespace) -> None:
    def progress(step: Progress) -> None:
        print(f"\r{100 * step.done / max(1, step.total):3.0f} %  {size(step.done)} of {size(step.total)}",
              end="", file=sys.stderr, flush=True)  # fmt: skip

    show = given.wait and sys.stderr.isatty()
    with connect(given) as hearth:
        data = hearth.warm(_selection(given), wait=given.wait, progress=progress if show else None)
    if show:
        print(file=sys.stderr)
    _say(given, data)


def run_defer(given: argparse.Namespace) -> None:
    with connect(given) as hearth:
        _say(given, hearth.defer(_selection(given)))


def run_pin(given: argparse.Namespace) -> None:
    with connect(given) as hearth:
        _say(given, hearth.pin(_selection(given), release=given.release))


def run_cancel(given: argparse.Namespace) -> None:
    with connect(given) as hearth:
        _say(given, hearth.cancel(given.target))


def run_shutdown(given: argparse.Namespace) -> None:
    with connect(given) as hearth:
        data = hearth.shutdown()
    _say(given, data)


def run_keys(given: argparse.Namespace) -> None:
    """Server's pair and a client's: the daemon gets the public half of the client's, the client's directory both."""
    import shutil
    from pathlib import Path

    from ..security import write_pair

    directory = Path(given.directory)
    public = directory / "server.key"
    if not public.exists():
        write_pair(directory, "server")
    client = directory / given.client
    own, secret = write_pair(client, given.client)
    known = directory / "clients"
    known.mkdir(mode=0o700, exist_ok=True)
    shutil.copyfile(own, known / own.name)
    shutil.copyfile(public, client / "server.key")
    data = {"daemon": f"hearthd --keys {directory} ...", "client": f"hearthctl COMMAND --keys {secret} ..."}
    if given.json:
        print_json(data)
    else:
        print("\n".join(f"{name}: {text}" for name, text in data.items()))
        print(f"give the client the directory {client}, and delete it here", file=sys.stderr)
