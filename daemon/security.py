"""CURVE keys for TCP endpoints: who may talk to the daemon over a network. Refuses TCP without keys.

A keys directory holds `server.key_secret` and the clients' `clients/*.key` (ZeroMQ certificate files). ZAP is RFC 27 of
ZeroMQ; CURVE is RFC 26.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
import zmq
import zmq.utils.z85

from . import endpoints
from .sockets import Socket, make, pumping
from .trust import loose_secret

log = logging.getLogger(__name__)

ZAP = "inproc://zeromq.zap.01"


class KeyTrouble(ValueError):
    """Keys that are missing or unusable (exit code 78)."""


def read_certificate(path: Path) -> dict[str, str]:
    """The `name = "value"` lines of a ZeroMQ certificate file. Raises KeyTrouble."""
    found: dict[str, str] = {}
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise KeyTrouble(f"{path}: {error}") from None
    for line in lines:
        name, equals, value = line.partition("=")
        if equals and not line.lstrip().startswith("#"):
            found[name.strip()] = value.strip().strip('"')
    if len(found.get("public-key", "")) != 40:
        raise KeyTrouble(f"{path}: no public key of 40 characters")
    return found


def read_secret(path: Path) -> dict[str, str]:
    """A certificate with a secret that nobody else knows. Raises KeyTrouble."""
    try:
        why = loose_secret(path)
    except OSError as error:
        raise KeyTrouble(f"{path}: {error.strerror}") from None
    if why:
        raise KeyTrouble(f"{path}: {why}")
    found = read_certificate(path)
    if len(found.get("secret-key", "")) != 40:
        raise KeyTrouble(f"{path}: no secret key of 40 characters")
    return found


def write_pair(directory: Path, name: str) -> tuple[Path, Path]:
    """A new pair as NAME.key and NAME.key_secret (mode 0600). Raises KeyTrouble where one exists."""
    public, secret = zmq.curve_keypair()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    paths = directory / f"{name}.key", directory / f"{name}.key_secret"
    for path, with_secret in zip(paths, (False, True), strict=True):
        lines = ["metadata", "curve", f'    public-key = "{public.decode()}"']
        if with_secret:
            lines.append(f'    secret-key = "{secret.decode()}"')
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if with_secret else 0o644)
        except FileExistsError:
            raise KeyTrouble(f"{path} exists already") from None
        with open(descriptor, "w") as file:
            file.write("\n".join(lines) + "\n")
    return paths


class Keys:
    """What the sockets of one daemon need: nothing for ipc, a server's keys and a list of clients for TCP."""

    def __init__(self, secret: str = "", public: str = "", clients: frozenset[bytes] = frozenset()) -> None:
        self._secret, self._public, self._clients = secret, public, clients

    @classmethod
    def for_daemon(cls, directory: str, wanted: Sequence[str]) -> Keys:
        """Raises KeyTrouble when an endpoint is TCP and the keys are not all there."""
        over_network = [endpoint for endpoint in wanted if endpoints.is_tcp(endpoint)]
        if not over_network:
            return cls()
        if not directory:
            raise KeyTrouble(f"{over_network[0]}: a TCP endpoint needs CURVE keys: make them with `hearthctl keys DIR`")
        own = read_secret(Path(directory) / "server.key_secret")
        admitted = Path(directory) / "clients"
        if admitted.is_dir() and admitted.stat().st_mode & 0o002:
            raise KeyTrouble(f"{admitted}: everybody may admit clients there (chmod o-w it)")
        clients = sorted(admitted.glob("*.key"))
        if not clients:
            raise KeyTrouble(f"{directory}/clients: no client's .key: nobody could connect")
        known = frozenset(zmq.utils.z85.decode(read_certificate(path)["public-key"].encode()) for path in clients)
        return cls(own["secret-key"], own["public-key"], known)

    def secure(self, raw: zmq.Socket[bytes]) -> None:
        """Before bind. A secured socket has no clear-text endpoint beside it."""
        if self._secret:
            raw.curve_secretkey = self._secret.encode()
            raw.curve_publickey = self._public.encode()
            raw.curve_server = True
            raw.zap_domain = b"hearthd"

    @asynccontextmanager
    async def answering(self, context: zmq.Context[Any]) -> AsyncIterator[None]:
        """Answers libzmq's questions about clients for the body."""
        if not self._secret:
            yield
            return
        raw = make(context, zmq.ROUTER, linger=0)
        raw.bind(ZAP)
        async with pumping(raw) as socket, trio.open_nursery() as nursery:
            nursery.start_soon(self._answer, socket)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()

    async def _answer(self, socket: Socket) -> None:
        while True:
            frames = [frame.bytes for frame in await socket.recv()]
            # peer, empty, version, request, domain, address, identity, mechanism, credentials...
            peer, version, request = frames[0], frames[2], frames[3]
            known = frames[7] == b"CURVE" and len(frames) > 8 and frames[8] in self._clients
            if not known:
                where = frames[5].decode(errors="replace")
                log.warning("refused a client from %s: its key is not among the clients'", where)
            code, text = (b"200", b"OK") if known else (b"400", b"unknown key")
            socket.send_nowait([peer, b"", version, request, code, text, b"", b""])


def secure_client(raw: zmq.Socket[bytes], endpoint: str, keys: str) -> None:
    """Before connect. `keys` names a client's .key_secret, beside which `server.key` lies. Raises KeyTrouble."""
    if not endpoints.is_tcp(endpoint):
        return
    if not keys:
        raise KeyTrouble(f"{endpoint}: a TCP endpoint needs keys: --keys CLIENT.key_secret")
    own = read_secret(Path(keys))
    server = read_certificate(Path(keys).with_name("server.key"))
    raw.curve_secretkey = own["secret-key"].encode()
    raw.curve_publickey = own["public-key"].encode()
    raw.curve_serverkey = server["public-key"].encode()
