"""What the blocking client and trio's have in common: errors, the way to a daemon, questions that have one answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import msgspec
import zmq

from . import endpoints, protocol, security

if TYPE_CHECKING:
    Context = zmq.Context[zmq.Socket[bytes]]

Answer = TypeVar("Answer")
By = Literal["role", "layer", "node", "tensor"]  # what rows of residency are grouped by
Received = tuple[protocol.AnyReply, bytes | None]  # a reply and its second frame

CONNECT_SECONDS = 5.0
SLICE = 0.5  # how often a waiting client looks whether the daemon is still there


class ClientError(Exception):
    """Anything that keeps a client from its answer."""


class Unreachable(ClientError):
    """No daemon answers at the endpoint, or it went away."""


class TimedOut(ClientError):
    """The answer did not come in the time given."""


class TooBig(ClientError):
    """The request is longer than a message may be: the daemon would close the connection."""


class RequestError(ClientError):
    """The daemon answered with an error."""

    def __init__(self, error: protocol.Error) -> None:
        super().__init__(error.message)
        self.code, self.message, self.field = error.code, error.message, error.field


def open_socket(context: Context, endpoint: str, keys: str) -> zmq.Socket[bytes]:
    path = endpoints.ipc_path(endpoint)
    if path is not None and not path.exists():
        raise Unreachable(f"no daemon at {endpoint}")
    raw = context.socket(zmq.DEALER)
    raw.linger = 200
    raw.immediate = 1  # writable only while connected: how a client knows that the daemon is there
    raw.rcvhwm = 10000
    raw.heartbeat_ivl = 5000
    raw.heartbeat_timeout = 20000
    try:
        security.secure_client(raw, endpoint, keys)
        raw.connect(endpoint)
    except security.KeyTrouble:
        raw.close(0)
        raise
    except zmq.ZMQError as error:
        raw.close(0)
        raise Unreachable(f"{endpoint}: {error}") from None
    return raw


def silence(endpoint: str) -> str:
    """What may be said of an endpoint that no connection comes from: a refused key looks like nobody."""
    return f"no daemon answers at {endpoint}" + ", or it does not know this key" * endpoints.is_tcp(endpoint)


def connected(raw: zmq.Socket[bytes]) -> bool:
    return bool(int(raw.getsockopt(zmq.EVENTS)) & zmq.POLLOUT)


def frames_of(request: protocol.Request) -> list[bytes]:
    body = protocol.encode(request)
    if len(body) > protocol.MESSAGE_LIMIT:
        raise TooBig(f"the request has {len(body)} bytes, a daemon takes {protocol.MESSAGE_LIMIT}")
    return [b"", body]


def reply_of(frames: list[bytes]) -> Received:
    frames = frames[1:] if frames and not frames[0] else frames
    return protocol.decode_reply(frames[0]), frames[1] if len(frames) > 1 else None


def sampling_of(given: Mapping[str, object]) -> protocol.Sampling:
    fields: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return protocol.Sampling(**fields)


def data_of(reply: protocol.AnyReply) -> dict[str, Any]:
    if isinstance(reply, protocol.Error):
        raise RequestError(reply)
    if isinstance(reply, protocol.Result):
        return reply.data
    raise ClientError(f"unexpected reply: {type(reply).__name__}")


@dataclass(frozen=True)
class Question(Generic[Answer]):
    """A request that has one reply; read: what the reply's data means."""

    request: protocol.Request
    read: Callable[[dict[str, Any]], Answer]

    def answer(self, reply: protocol.AnyReply) -> Answer:
        """Raises RequestError."""
        return self.read(data_of(reply))


def _status(data: dict[str, Any]) -> protocol.StatusData:
    return msgspec.convert(data, protocol.StatusData)


def _tokens(data: dict[str, Any]) -> list[int]:
    return list(data["tokens"])


def _text(data: dict[str, Any]) -> str:
    return str(data["text"])


def status() -> Question[protocol.StatusData]:
    return Question(protocol.Status(), _status)


def tokenize(text: str, special: bool, bos: bool | None) -> Question[list[int]]:
    return Question(protocol.Tokenize(text=text, special=special, bos=bos), _tokens)


def detokenize(tokens: list[int]) -> Question[str]:
    return Question(protocol.Detokenize(tokens=tokens), _text)


def residency(by: By) -> Question[dict[str, Any]]:
    return Question(protocol.Residency(by=by), dict)


def experts(layer: int | None) -> Question[dict[str, Any]]:
    return Question(protocol.Experts(layer=layer), dict)


def plan() -> Question[dict[str, Any]]:
    return Question(protocol.Plan(), dict)


def warm(select: protocol.Selection | None, wait: bool) -> Question[dict[str, Any]]:
    return Question(protocol.Warm(select=select or protocol.Selection(), wait=wait), dict)


def defer(select: protocol.Selection | None) -> Question[dict[str, Any]]:
    return Question(protocol.Defer(select=select or protocol.Selection()), dict)


def pin(select: protocol.Selection | None, release: bool) -> Question[dict[str, Any]]:
    return Question(protocol.Pin(select=select or protocol.Selection(), release=release), dict)


def cancel(target: protocol.Id) -> Question[dict[str, Any]]:
    return Question(protocol.Cancel(target=target), dict)


def shutdown() -> Question[dict[str, Any]]:
    return Question(protocol.Shutdown(), dict)
