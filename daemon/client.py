"""Clients of a daemon for Python: `Client` blocks and needs pyzmq only, `AsyncClient` is for trio. They print nothing.

For people who write their own:

    from hearthd.daemon.client import Client

    with Client() as hearth:                          # or Client("ipc:///run/hearthd/default.control")
        print(hearth.status().stats.state)
        stream = hearth.generate("Once upon a time", max_tokens=64)
        for event in stream:                          # TokenEvent: .text, .token (None: only the end completed it)
            print(event.text, end="", flush=True)
        print(stream.done.reason, stream.done.timings.generated)

Leaving a stream before its end (break, an exception, `stream.cancel()`) ends the request in the daemon. Several streams
may be open on one client. What can go wrong is a `ClientError`: `Unreachable` (nobody answers there), `TimedOut`,
`RequestError` (the daemon's answer is an error: `.code`, `.message`, `.field`).
"""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import zmq

from . import asking, endpoints, protocol, security
from .asking import (
    CONNECT_SECONDS,
    SLICE,
    Answer,
    ClientError,
    Question,
    RequestError,
    TimedOut,
    TooBig,
    Unreachable,
    connected,
    data_of,
    frames_of,
    open_socket,
    reply_of,
    sampling_of,
    silence,
)

if TYPE_CHECKING:
    import trio

    from .sockets import Socket

__all__ = [
    "AsyncClient", "Client", "ClientError", "RequestError", "Stream", "TimedOut", "TooBig", "Unreachable", "connect",
    "security",
]  # fmt: skip


class _Named:
    """Requests without an id get one, no two of a process the same: `cancel` and hearthtop tell them apart."""

    endpoint: str
    _ids: Iterator[int] = itertools.count(1)

    def _name(self, request: protocol.Request) -> protocol.Id:
        if request.id == "":
            request.id = f"{os.getpid()}-{next(self._ids)}"
        return request.id


class Client(_Named):
    """Blocking; one thread. `timeout` is the longest silence in seconds before TimedOut (None: wait)."""

    def __init__(
        self, endpoint: str = "", *, keys: str = "", timeout: float | None = None, connect: float = CONNECT_SECONDS
    ) -> None:
        self.endpoint = endpoints.control_to_connect(endpoint)
        self.timeout = timeout
        self._waiting: dict[protocol.Id, deque[asking.Received]] = {}
        self._context: asking.Context = zmq.Context()
        try:
            self._raw = open_socket(self._context, self.endpoint, keys or os.environ.get("HEARTHD_KEYS", ""))
        except BaseException:
            self._context.term()
            raise
        if not self._raw.poll(int(connect * 1000), zmq.POLLOUT):
            self.close()
            raise Unreachable(silence(self.endpoint))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Requests that are still open are dropped by the daemon."""
        if not self._raw.closed:
            self._raw.close()
            self._context.term()

    # -- questions ---------------------------------------------------------------------------------------------------

    def status(self) -> protocol.StatusData:
        """Model, options in effect, state, warnings, last numbers, telemetry endpoint."""
        return self._ask(asking.status())

    def tokenize(self, text: str, *, special: bool = True, bos: bool | None = None) -> list[int]:
        """Token ids."""
        return self._ask(asking.tokenize(text, special, bos))

    def detokenize(self, tokens: list[int]) -> str:
        """Text of token ids."""
        return self._ask(asking.detokenize(tokens))

    def residency(self, by: asking.By = "role") -> dict[str, Any]:
        """Bytes mapped, cached, deferred and unknown; a dict as `hearthctl residency --json` prints it."""
        return self._ask(asking.residency(by))

    def experts(self, layer: int | None = None) -> dict[str, Any]:
        """Per layer: how often each expert was routed to, and how much of it is resident."""
        return self._ask(asking.experts(layer))

    def plan(self) -> dict[str, Any]:
        """Bytes per role and type, what the budget admits, what each option would do."""
        return self._ask(asking.plan())

    def defer(self, select: protocol.Selection | None = None) -> dict[str, Any]:
        """Give the selected experts' pages back (default: all experts)."""
        return self._ask(asking.defer(select))

    def pin(self, select: protocol.Selection | None = None, *, release: bool = False) -> dict[str, Any]:
        """Lock the selected spans into memory, or release them."""
        return self._ask(asking.pin(select, release))

    def cancel(self, target: protocol.Id) -> dict[str, Any]:
        """End a request by its id."""
        return self._ask(asking.cancel(target))

    def shutdown(self) -> dict[str, Any]:
        """Ask the daemon to drain and exit."""
        return self._ask(asking.shutdown())

    # -- answers of the model ----------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | None = None,
        *,
        tokens: list[int] | None = None,
        max_tokens: int = 256,
        stop: list[str] | None = None,
        ignore_eos: bool = False,
        **sampling: object,
    ) -> Stream:
        """Continue text or token ids. `sampling`: the fields of `protocol.Sampling` (temperature, top_k, seed, ...)."""
        return self.stream(
            protocol.Generate(
                prompt=prompt,
                tokens=tokens,
                max_tokens=max_tokens,
                stop=stop or [],
                ignore_eos=ignore_eos,
                sampling=sampling_of(sampling),
            )
        )

    def chat(
        self, messages: list[dict[str, Any]], *, max_tokens: int = 256, continue_last: bool = False, **fields: object
    ) -> Stream:
        """Answer a conversation of `{"role": ..., "content": ...}` through the model's template.

        `continue_last`: the last message is the assistant's, and the answer goes on where it ends. `fields`: those of
        `protocol.Sampling` and of `protocol.Chat`. `done.warnings` says what the template left out.
        """
        names = set(protocol.Sampling.__struct_fields__)
        sampling = sampling_of({name: fields.pop(name) for name in list(fields) if name in names})
        rest: dict[str, Any] = fields
        request = protocol.Chat(
            messages=messages, max_tokens=max_tokens, continue_last=continue_last, sampling=sampling, **rest
        )
        return self.stream(request)

    def score(
        self, tokens: list[int] | None = None, *, text: str | None = None, logits: bool = False, logits_from: int = 0
    ) -> tuple[dict[str, Any], bytes | None]:
        """Log-probabilities of the given tokens; with `logits` also float32 bytes, little endian, of `shape`: of the
        positions from `logits_from` on. A reply holds `protocol.LOGITS_LIMIT` bytes of them."""
        request = protocol.Score(tokens=tokens, text=text, logits=logits, logits_from=logits_from)
        reply, body = self._one(self._send(request))
        return data_of(reply), body

    def warm(
        self,
        select: protocol.Selection | None = None,
        *,
        wait: bool = False,
        progress: Callable[[protocol.Progress], None] | None = None,
    ) -> dict[str, Any]:
        """Populate the selected spans (default: all experts); `progress` is called while they are."""
        request = protocol.Warm(select=select or protocol.Selection(), wait=wait, stream=progress is not None)
        id = self._send(request)
        while True:
            reply, _ = self._next(id)
            if isinstance(reply, protocol.Progress):
                if progress is not None:
                    progress(reply)
                continue
            del self._waiting[id]
            return data_of(reply)

    def stream(self, request: protocol.Generation) -> Stream:
        """Send a generation of one's own making; its events."""
        request.stream = True
        return Stream(self, self._send(request))

    def request(self, request: protocol.Request) -> protocol.AnyReply:
        """Any request that has one reply; the reply, errors too."""
        return self._one(self._send(request))[0]

    # -- the way there and back --------------------------------------------------------------------------------------

    def _ask(self, question: Question[Answer]) -> Answer:
        return question.answer(self._one(self._send(question.request))[0])

    def _send(self, request: protocol.Request) -> protocol.Id:
        id = self._name(request)
        frames = frames_of(request)
        self._waiting[id] = deque()
        while True:
            try:
                self._raw.send_multipart(frames, zmq.DONTWAIT)
                return id
            except zmq.Again:
                if not self._raw.poll(int(CONNECT_SECONDS * 1000), zmq.POLLOUT):
                    self._waiting.pop(id, None)
                    raise Unreachable(f"the daemon at {self.endpoint} went away") from None

    def _one(self, id: protocol.Id) -> asking.Received:
        try:
            return self._next(id)
        finally:
            self._waiting.pop(id, None)

    def _next(self, id: protocol.Id) -> asking.Received:
        """The next reply to this request; replies to others are kept for them."""
        deadline = time.monotonic() + self.timeout if self.timeout is not None else None
        mine = self._waiting[id]
        while not mine:
            pause = SLICE if deadline is None else min(SLICE, max(0.0, deadline - time.monotonic()))
            if self._raw.poll(int(pause * 1000) + 1):
                reply, body = reply_of(self._raw.recv_multipart())
                if reply.id in self._waiting:
                    self._waiting[reply.id].append((reply, body))
                elif reply.id == "":  # the daemon could not even read the id
                    mine.append((reply, body))
            elif not self._raw.poll(0, zmq.POLLOUT):
                raise Unreachable(f"the daemon at {self.endpoint} went away")
            elif deadline is not None and time.monotonic() >= deadline:
                raise TimedOut(f"no answer from {self.endpoint} in {self.timeout:g} s")
        return mine.popleft()

    def _forget(self, id: protocol.Id, *, cancel: bool) -> None:
        if self._waiting.pop(id, None) is not None and cancel and not self._raw.closed:
            with suppress(zmq.ZMQError):
                self._raw.send_multipart(frames_of(protocol.Cancel(id=f"{id}/cancel", target=id)), zmq.DONTWAIT)


class Stream:
    """The events of one generation: iterate for TokenEvents; `done` is there afterwards."""

    def __init__(self, client: Client, id: protocol.Id) -> None:
        self._client = client
        self.id = id
        self._done: protocol.Done | None = None

    def __iter__(self) -> Iterator[protocol.TokenEvent]:
        try:
            while self._done is None:
                reply, _ = self._client._next(self.id)
                if isinstance(reply, protocol.TokenEvent):
                    yield reply
                elif isinstance(reply, protocol.Done):
                    self._done = reply
                elif isinstance(reply, protocol.Error):
                    self._client._forget(self.id, cancel=False)
                    raise RequestError(reply)
        finally:
            self._client._forget(self.id, cancel=self._done is None)

    @property
    def done(self) -> protocol.Done:
        """Reason, whole text, all tokens and timings; reads on to the end when it has not come yet."""
        for _ in self if self._done is None else ():
            pass
        if self._done is None:
            raise ClientError("the stream was left before its end")
        return self._done

    def cancel(self) -> protocol.Done:
        """End the request in the daemon; what it had generated."""
        if self._done is None:
            self._client._send(protocol.Cancel(target=self.id))
        return self.done


class AsyncClient(_Named):
    """For trio: `async with connect(endpoint) as hearth: ...`. Any number of tasks may use one client."""

    def __init__(self, endpoint: str, socket: Socket) -> None:
        self.endpoint = endpoint
        self._socket = socket
        self._waiting: dict[protocol.Id, trio.MemorySendChannel[asking.Received]] = {}

    async def pump(self) -> None:
        """Hands every reply to whoever asked; runs while the client is used."""
        while True:
            reply, body = reply_of([frame.bytes for frame in await self._socket.recv()])
            if (channel := self._waiting.get(reply.id)) is not None:
                channel.send_nowait((reply, body))

    async def watch(self) -> None:
        """Ends every waiting request when the daemon went away."""
        import trio

        while True:
            await trio.sleep(SLICE)
            if self._waiting and not self._socket.writable():
                for channel in self._waiting.values():
                    channel.close()

    @asynccontextmanager
    async def _asked(self, request: protocol.Request) -> AsyncIterator[trio.MemoryReceiveChannel[asking.Received]]:
        import trio

        id = self._name(request)
        send, receive = trio.open_memory_channel[asking.Received](float("inf"))
        self._waiting[id] = send
        try:
            await self._socket.send(frames_of(request))
            yield receive
        finally:
            del self._waiting[id]

    async def _receive(self, channel: trio.MemoryReceiveChannel[asking.Received]) -> asking.Received:
        import trio

        try:
            return await channel.receive()
        except trio.EndOfChannel:
            raise Unreachable(f"the daemon at {self.endpoint} went away") from None

    async def _ask(self, question: Question[Answer]) -> Answer:
        async with self._asked(question.request) as channel:
            reply, _ = await self._receive(channel)
        return question.answer(reply)

    # -- questions, as of Client --------------------------------------------------------------------------------------

    async def status(self) -> protocol.StatusData:
        return await self._ask(asking.status())

    async def tokenize(self, text: str, *, special: bool = True, bos: bool | None = None) -> list[int]:
        return await self._ask(asking.tokenize(text, special, bos))

    async def detokenize(self, tokens: list[int]) -> str:
        return await self._ask(asking.detokenize(tokens))

    async def residency(self, by: asking.By = "role") -> dict[str, Any]:
        return await self._ask(asking.residency(by))

    async def experts(self, layer: int | None = None) -> dict[str, Any]:
        return await self._ask(asking.experts(layer))

    async def plan(self) -> dict[str, Any]:
        return await self._ask(asking.plan())

    async def defer(self, select: protocol.Selection | None = None) -> dict[str, Any]:
        return await self._ask(asking.defer(select))

    async def pin(self, select: protocol.Selection | None = None, *, release: bool = False) -> dict[str, Any]:
        return await self._ask(asking.pin(select, release))

    async def cancel(self, target: protocol.Id) -> dict[str, Any]:
        return await self._ask(asking.cancel(target))

    async def shutdown(self) -> dict[str, Any]:
        return await self._ask(asking.shutdown())

    # -- the rest ----------------------------------------------------------------------------------------------------

    async def request(self, request: protocol.Request) -> protocol.AnyReply:
        async with self._asked(request) as channel:
            return (await self._receive(channel))[0]

    async def score(
        self, tokens: list[int] | None = None, *, text: str | None = None, logits: bool = False, logits_from: int = 0
    ) -> tuple[dict[str, Any], bytes | None]:
        """As `Client.score`."""
        request = protocol.Score(tokens=tokens, text=text, logits=logits, logits_from=logits_from)
        async with self._asked(request) as channel:
            reply, body = await self._receive(channel)
        return data_of(reply), body

    async def warm(self, select: protocol.Selection | None = None, *, wait: bool = False) -> dict[str, Any]:
        """As `Client.warm`, without progress."""
        return await self._ask(asking.warm(select, wait))

    async def stream(
        self, request: protocol.Generation
    ) -> AsyncIterator[protocol.TokenEvent | protocol.Done]:
        """TokenEvents, then the Done. Leaving early (also by cancellation) ends the request in the daemon."""
        request.stream = True
        ended = False
        try:
            async with self._asked(request) as channel:
                while not ended:
                    reply, _ = await self._receive(channel)
                    ended = isinstance(reply, protocol.Done | protocol.Error)
                    if isinstance(reply, protocol.Error):
                        raise RequestError(reply)
                    if isinstance(reply, protocol.TokenEvent | protocol.Done):
                        yield reply
        finally:
            if not ended:
                with suppress(zmq.ZMQError):
                    self._socket.send_nowait(frames_of(protocol.Cancel(target=request.id)))


@asynccontextmanager
async def connect(
    endpoint: str = "", *, keys: str = "", patience: float = CONNECT_SECONDS
) -> AsyncIterator[AsyncClient]:
    """An AsyncClient for the body. Raises Unreachable."""
    import trio

    from .sockets import pumping

    endpoint = endpoints.control_to_connect(endpoint)
    context: asking.Context = zmq.Context()
    try:
        raw = open_socket(context, endpoint, keys or os.environ.get("HEARTHD_KEYS", ""))
        async with pumping(raw) as socket, trio.open_nursery() as nursery:
            with trio.move_on_after(patience):
                while not connected(raw):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            if not connected(raw):
                raise Unreachable(silence(endpoint))
            client = AsyncClient(endpoint, socket)
            nursery.start_soon(client.pump)
            nursery.start_soon(client.watch)
            try:
                yield client
            finally:
                nursery.cancel_scope.cancel()
    finally:
        context.destroy(linger=200)

