"""A daemon in which chosen functions fail, whenever they are called after it has got ready.

As a program: `failing.py MODULE:NAME=EXCEPTION[,...] COMMAND OF HEARTHD...`. Decides nothing about what comes of it.
"""

from __future__ import annotations

import builtins
import errno
import functools
import importlib
import sys
from typing import Any

from hearthd.daemon import cli, notify


def make_fail(place: str, ready: list[bool]) -> None:
    """`hearthd.daemon.residency.ledger:Ledger.refresh=OSError`"""
    where, _, kind = place.partition("=")
    module, _, name = where.partition(":")
    *owners, last = name.split(".")
    owner: Any = functools.reduce(getattr, owners, importlib.import_module(module))
    real = getattr(owner, last)
    error: type[Exception] = getattr(builtins, kind)

    @functools.wraps(real)
    def failing(*given: Any, **named: Any) -> Any:
        if ready:
            raise error(errno.EIO, "injected") if issubclass(error, OSError) else error("injected")
        return real(*given, **named)

    setattr(owner, last, failing)


if __name__ == "__main__":
    ready: list[bool] = []
    for place in sys.argv[1].split(","):
        make_fail(place, ready)
    told = notify.Notifier.ready

    def say_ready(self: notify.Notifier, status: str) -> None:
        ready.append(True)
        told(self, status)

    notify.Notifier.ready = say_ready  # type: ignore[method-assign]
    sys.exit(cli.main(sys.argv[sys.argv.index("hearthd.daemon.cli") + 1 :]))
