"""Where the control and telemetry sockets, keys and state lie. Builds and checks names; binds nothing.

Order: what the flag says, `HEARTHD_CONTROL`, `$RUNTIME_DIRECTORY` (systemd), `$XDG_RUNTIME_DIR/hearthd`, then
`/run/hearthd` for root and a private directory under `/tmp` for anybody else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .trust import distrust

IPC = "ipc://"
TCP = "tcp://"
PATH_LIMIT = 107  # bytes in sockaddr_un.sun_path, without the closing zero
DEFAULT_NAME = "default"


class EndpointError(ValueError):
    """An endpoint that no socket can have; the text says why."""


def runtime_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """The directory of the sockets of this user's or this unit's daemons."""
    if given := environ.get("RUNTIME_DIRECTORY"):
        return Path(given.split(":")[0])
    if given := environ.get("XDG_RUNTIME_DIR"):
        return Path(given) / "hearthd"
    if os.geteuid() == 0:
        return Path("/run/hearthd")
    return Path(f"/tmp/hearthd-{os.geteuid()}")


def state_directory(environ: Mapping[str, str] = os.environ) -> Path:
    """Where heat is kept between runs."""
    if given := environ.get("STATE_DIRECTORY"):
        return Path(given.split(":")[0])
    if os.geteuid() == 0 and not environ.get("XDG_STATE_HOME"):
        return Path("/var/lib/hearthd")
    base = environ.get("XDG_STATE_HOME") or Path(environ.get("HOME", "/")) / ".local" / "state"
    return Path(base) / "hearthd"


def check(endpoint: str) -> str:
    """The endpoint itself, when a socket can have it. Raises EndpointError."""
    try:
        endpoint.encode()
    except UnicodeEncodeError:
        raise EndpointError(f"{endpoint!a}: not UTF-8, and ZeroMQ's names have to be") from None
    if endpoint.startswith(IPC):
        path = endpoint[len(IPC) :]
        if not path or path == "*" or path.startswith("@"):
            raise EndpointError(f"{endpoint}: an ipc endpoint needs a path")
        if (size := len(os.fsencode(path))) > PATH_LIMIT:
            raise EndpointError(f"{endpoint}: the path has {size} bytes, a socket's path may have {PATH_LIMIT}")
        return endpoint
    if endpoint.startswith(TCP):
        host, _, port = endpoint[len(TCP) :].rpartition(":")
        if not host or not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536):
            raise EndpointError(f"{endpoint}: expected tcp://HOST:PORT, with a port from 1 to 65535")
        return endpoint
    raise EndpointError(f"{endpoint}: expected ipc://PATH or tcp://HOST:PORT")


def is_tcp(endpoint: str) -> bool:
    return endpoint.startswith(TCP)


def ipc_path(endpoint: str) -> Path | None:
    """The socket file of an ipc endpoint; None for tcp."""
    return Path(endpoint[len(IPC) :]) if endpoint.startswith(IPC) else None


def normal(endpoint: str) -> str:
    """A bare path is short for `ipc://PATH`."""
    return IPC + os.path.abspath(endpoint) if endpoint and "://" not in endpoint else endpoint


def control_to_bind(given: str, name: str, environ: Mapping[str, str] = os.environ) -> str:
    """The daemon's control endpoint. Raises EndpointError."""
    return check(normal(given) or f"{IPC}{runtime_directory(environ)}/{name}.control")


def telemetry_to_bind(given: str, control: str) -> str:
    """The telemetry endpoint: as given, else beside the control endpoint (`.telemetry`, or the next port)."""
    if given:
        if (made := check(normal(given))) == control:
            raise EndpointError(f"{made}: control and telemetry cannot share an endpoint")
        return made
    if is_tcp(control):
        host, _, port = control.rpartition(":")
        if int(port) == 65535:
            raise EndpointError(f"{control}: there is no next port for telemetry: say which with --telemetry")
        return check(f"{host}:{int(port) + 1}")
    return check(control.removesuffix(".control") + ".telemetry")


def control_to_connect(given: str, environ: Mapping[str, str] = os.environ) -> str:
    """The control endpoint a client should talk to: as given, or the daemon of the usual place.

    A bare word is a daemon's name, if one of that name has its socket in a usual place. Nothing given: with several
    daemons in one directory the one named `default` is meant; with exactly one, that one. Raises EndpointError, also
    where somebody else may have laid the socket (root may look at everybody's).
    """
    try:
        endpoint = _to_connect(given, environ)
    except EndpointError as error:
        if given or not environ.get("HEARTHD_CONTROL"):
            raise
        raise EndpointError(f"HEARTHD_CONTROL: {error}") from None
    path = ipc_path(endpoint)
    if path is not None and os.geteuid() != 0 and (why := distrust(path)):
        raise EndpointError(f"{endpoint}: {why}: not connecting")
    return endpoint


def _to_connect(given: str, environ: Mapping[str, str]) -> str:
    places = [runtime_directory(environ)]
    if (system := Path("/run/hearthd")) not in places:
        places.append(system)
    if given or (given := environ.get("HEARTHD_CONTROL", "")):
        if "/" in given:
            return check(normal(given))
        named = [place / f"{given}.control" for place in places]
        known = next((path for path in named if path.exists()), None)
        # If nobody has this name, the path where that daemon would be tells more than one in the working directory.
        return check(normal(str(known or (given if Path(given).exists() else named[0]))))
    for place in places:
        usual = place / f"{DEFAULT_NAME}.control"
        found = sorted(place.glob("*.control"))
        if usual in found:
            return check(f"{IPC}{usual}")
        if len(found) == 1:
            return check(f"{IPC}{found[0]}")
        if found:
            names = ", ".join(path.stem for path in found)
            raise EndpointError(f"several daemons run in {place} ({names}): say which with --control")
    return check(f"{IPC}{places[0]}/{DEFAULT_NAME}.control")
