"""What each operation of the control socket does. Knows requests and the parts of the daemon; no sockets.

A handler answers through its call, or raises Refused. Those that compute hand over to the scheduler or to a thread.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import trio

from . import protocol
from .control import Call, Handler, Refused
from .generation import Arrival, GenerateJob, Job, ScoreJob
from .model.sampling import SamplingError
from .protocol import Body
from .scheduler import Busy, Scheduler
from .telemetry import Telemetry
from .threads import in_thread

if TYPE_CHECKING:
    from array import array

    from numpy.typing import NDArray

    from .config import Config
    from .model.template import Prompt
    from .parts import Engine, Hearth

THREADS = 2  # for tokenizing and the like
LONG = 4096  # characters or tokens that may be read and written on the event loop's thread
COUNTED_CONTEXTS = 4  # tokens of a prompt that is too long are counted up to so many contexts, and no further
OWN_IDS = 256  # of a connection's last requests: a `cancel` of one of them means no other client's
SCORE_BYTES = 96  # of a scored token in the reply, beside its logits


class Operations:
    """The table of handlers. `hearth` is the opened model with its parts; `stop` ends the daemon."""

    def __init__(
        self,
        hearth: Hearth,
        config: Config,
        scheduler: Scheduler,
        telemetry: Telemetry,
        *,
        stop: Callable[[str], None],
        status: Callable[[], protocol.StatusData],
    ) -> None:
        self._hearth = hearth
        self._config = config
        self._scheduler = scheduler
        self._telemetry = telemetry
        self._stop = stop
        self._status = status
        self._numbers = itertools.count(1)
        self._threads = trio.CapacityLimiter(THREADS)
        self._own: dict[bytes, deque[str]] = {}  # what each connection called its last requests
        self.stopping = False

    @property
    def _engine(self) -> Engine:
        """Once the hearth has been prepared."""
        assert self._hearth.engine is not None
        return self._hearth.engine

    def table(self) -> dict[type, Handler]:
        return {
            protocol.Status: self.status,
            protocol.Generate: self.generate,
            protocol.Chat: self.chat,
            protocol.Tokenize: self.tokenize,
            protocol.Detokenize: self.detokenize,
            protocol.Score: self.score,
            protocol.Residency: self.residency,
            protocol.Experts: self.experts,
            protocol.Plan: self.plan,
            protocol.Warm: self.warm,
            protocol.Defer: self.defer,
            protocol.Pin: self.pin,
            protocol.Cancel: self.cancel,
            protocol.Shutdown: self.shutdown,
        }

    # -- answers of the model ----------------------------------------------------------------------------------------

    async def generate(self, call: Call[protocol.Generate]) -> None:
        request = call.request
        self._check_open()
        with self._queued(call) as arrival:
            await self._hearth.prepared()
            field = "prompt" if request.tokens is None else "tokens"
            self._start_generation(call, arrival, await self._prompt(request, field), field)

    async def chat(self, call: Call[protocol.Chat]) -> None:
        request = call.request
        self._check_open()
        with self._queued(call) as arrival:
            await self._hearth.prepared()
            prompt = await self._render(request)
            tokens = await self._encode(prompt.text, bos=False, field="messages")
            self._check_text(tokens, "messages")
            self._start_generation(call, arrival, tokens, "messages", prompt.warnings)

    async def score(self, call: Call[protocol.Score]) -> None:
        request = call.request
        self._check_open()
        with self._queued(call) as arrival:
            await self._hearth.prepared()
            field = "text" if request.tokens is None else "tokens"
            tokens = await self._prompt(request, field)
            if not len(tokens):
                raise Refused("bad-field", f"{field}: empty, there is nothing to score", field)
            room = call.reserve(self._logits_bytes(request, len(tokens)) + SCORE_BYTES * len(tokens))
            job = ScoreJob(
                request, name=arrival.name, peer=call.peer, tokens=tokens, owner=call.owner, room=room
            )
            self._submit(job, arrival, call)

    def _logits_bytes(self, request: protocol.Score, tokens: int) -> int:
        """Of the reply's second frame. Raises Refused."""
        if not request.logits:
            return 0
        if request.logits_from >= tokens:
            message = f"logits_from: {request.logits_from} is none of {tokens} positions"
            raise Refused("bad-field", message, "logits_from")
        row, wanted = 4 * self._engine.hyper.n_vocab, tokens - request.logits_from
        if (size := row * wanted) > protocol.LOGITS_LIMIT:
            most = max(protocol.LOGITS_LIMIT // row, 1)
            message = f"the logits of {wanted} positions have {size} bytes, a reply may have {protocol.LOGITS_LIMIT}"
            raise Refused("too-long", f"{message}: ask for {most} at a time, with logits_from", "logits")
        return size

    async def tokenize(self, call: Call[protocol.Tokenize]) -> None:
        request = call.request
        await self._prepared(call)
        text, special, bos = request.text, request.special, request.bos
        call.forget_request()
        del request  # the text is not needed beside the reply
        tokens = await self._encode(text, special=special, bos=bos)
        del text
        if len(tokens) > protocol.TOKENS_LIMIT:
            message = f"text: {len(tokens)} tokens, a reply may have {protocol.TOKENS_LIMIT}"
            raise Refused("too-long", message, "text")
        if len(tokens) <= LONG:
            call.result({"tokens": tokens.tolist(), "count": len(tokens)})
        else:
            call.result(await in_thread(partial(_tokens_json, tokens), self._threads))

    async def detokenize(self, call: Call[protocol.Detokenize]) -> None:
        await self._prepared(call)
        tokens = self._checked(call.request, self._hearth.tokenizer.n_vocab)

        def decode() -> str:
            starts = range(0, len(tokens), LONG)  # as Python's numbers a million of them would take the GIL for 50 ms
            ids = itertools.chain.from_iterable(tokens[start : start + LONG].tolist() for start in starts)
            return str(self._hearth.tokenizer.decode(ids))

        text = decode() if len(tokens) <= LONG else await in_thread(decode, self._threads)
        if len(text) > protocol.TEXT_LIMIT:
            message = f"tokens: their text has {len(text)} characters, a reply may have {protocol.TEXT_LIMIT}"
            raise Refused("too-long", message, "tokens")
        call.result(await self._ready({"text": text}, len(text)))

    @contextmanager
    def _queued(self, call: Call[protocol.Generate] | Call[protocol.Chat] | Call[protocol.Score]) -> Iterator[Arrival]:
        """A place in the scheduler's queue while a request's job is being made: there it is seen, counted and ended.

        The body ends by `_submit`, by Refused, or in the middle when the request is ended (the client knows by then).
        """
        if call.gone:
            raise Refused("gone", "the client went away")
        arrival = Arrival(
            call.request, name=self._name(call.request), peer=call.peer, owner=call.owner, nbytes=call.nbytes
        )
        arrival.call = call
        self._own.setdefault(call.peer, deque(maxlen=OWN_IDS)).append(arrival.name)
        try:
            self._scheduler.submit(arrival)
        except Busy as error:
            raise Refused("busy", str(error)) from None
        call.waits_in_queue()
        try:
            with arrival.scope:
                yield arrival
        except Refused:
            if not arrival.ended:
                raise
        finally:
            self._scheduler.withdraw(arrival)

    async def _render(self, request: protocol.Chat) -> Prompt:
        from .model.conversation import Unfit

        template = self._hearth.template
        if template is None:
            raise Refused("no-template", "the model's metadata has no chat template: use generate")

        def render() -> Prompt:
            return template.prompt(
                request.messages, request.tools, request.template_arguments, continue_last=request.continue_last
            )

        try:
            return await in_thread(render, self._threads)
        except Unfit as error:
            raise Refused("bad-field", f"{error.field}: {error}", error.field) from None
        except Exception as error:  # a template is the model's program: whatever it raises is the answer
            raise Refused("template", f"the chat template refused the messages: {error}", "messages") from None

    def _start_generation(
        self,
        call: Call[protocol.Generate] | Call[protocol.Chat],
        arrival: Arrival,
        tokens: Sequence[int] | NDArray[np.int32],
        field: str,
        warnings: Sequence[tuple[str, str]] = (),
    ) -> None:
        request = call.request
        if not len(tokens):
            bos = self._hearth.tokenizer.bos
            if bos is None:
                raise Refused("bad-field", f"{field}: empty, and the model has no token to begin with", field)
            tokens = [bos]
        tokenizer = self._hearth.tokenizer
        try:
            sampler = self._hearth.new_sampler(request.sampling)
        except SamplingError as error:
            raise Refused("bad-field", f"sampling.{error}", f"sampling.{error.field}") from None
        job = GenerateJob(
            request,
            name=arrival.name,
            peer=arrival.peer,
            tokens=tokens,
            tokenizer=tokenizer,
            sampler=sampler,
            owner=arrival.owner,
        )
        job.warnings = [protocol.Warning_(code=code, message=message) for code, message in warnings]
        self._submit(job, arrival, call)

    def _submit(self, job: Job, arrival: Arrival, call: Call[Any]) -> None:
        if arrival.ended:  # while a thread was at work for it
            job.close()
            return
        self._check_open()
        job.call = call
        call.forget_request()
        self._scheduler.submit(job, arrival)

    def _name(self, request: protocol.Request) -> str:
        """The id, or what no client calls a request of its own just now."""
        if given := str(request.id):
            return given
        taken = {job.name for job in self._scheduler.jobs()}
        return next(name for number in self._numbers if (name := f"r{number}") not in taken)

    def _check_open(self) -> None:
        if self.stopping:
            raise Refused("stopping", "the daemon is stopping")

    def _check_length(self, tokens: Sequence[int], field: str) -> None:
        limit = self._engine.context
        if len(tokens) > limit:
            raise Refused("too-long", f"the prompt has {len(tokens)} tokens, the context holds {limit}", field)

    def _check_text(self, tokens: Sequence[int], field: str) -> None:
        """The tokens of a text."""
        self._check_length(tokens, field)
        rows = self._engine.hyper.n_vocab
        if self._hearth.tokenizer.n_vocab > rows and (last := max(tokens, default=0)) >= rows:  # a warning told it
            message = f"{field}: token {last} of its text is not among the {rows} that the model has"
            raise Refused("bad-field", message, field)

    async def _prompt(
        self, request: protocol.Generate | protocol.Score, field: str
    ) -> Sequence[int] | NDArray[np.int32]:
        """Token ids [n] of a request's `tokens` or text, at most as many as the context holds."""
        if field == "tokens":
            self._check_length(request.tokens or (), field)
            return self._checked(request, self._engine.hyper.n_vocab)
        tokens = await self._encode(getattr(request, field), field=field)
        self._check_text(tokens, field)
        return tokens

    def _checked(
        self, request: protocol.Generate | protocol.Score | protocol.Detokenize, vocabulary: int
    ) -> NDArray[np.int32]:
        """The request's token ids [n], which it keeps no longer. Raises Refused naming one that is none."""
        given, request.tokens = request.tokens or [], []
        tokens = np.asarray(given, dtype=np.int32)
        if (wrong := np.flatnonzero(tokens >= vocabulary)).size:
            field = f"tokens[{wrong[0]}]"
            message = f"{field}: {tokens[wrong[0]]} is no token of a vocabulary of {vocabulary}"
            raise Refused("bad-field", message, field)
        return tokens

    async def _encode(
        self, text: str, *, special: bool = True, bos: bool | None = None, field: str = ""
    ) -> array[int]:
        """Token ids (int32); of a prompt (`field` names it) that is far beyond the context no more than need be."""
        from .model.tokenizer import TextTooLong

        context = self._engine.context
        limit = COUNTED_CONTEXTS * context if field else protocol.TOKENS_LIMIT
        read = partial(self._hearth.tokenizer.ids, text, special=special, bos=bos, limit=limit)
        try:
            return read() if len(text) <= LONG else await in_thread(read, self._threads)
        except TextTooLong as error:
            message = str(error).replace("the text", "the prompt") + f", the context holds {context}" * bool(field)
            raise Refused("too-long", message, field or "text") from None

    async def _ready(self, data: dict[str, Any], length: int) -> dict[str, Any] | msgspec.Raw:
        """A result's data, as JSON already where it is long."""
        if length <= LONG:
            return data
        return await in_thread(lambda: msgspec.Raw(msgspec.json.encode(data)), self._threads)

    # -- state of the daemon -----------------------------------------------------------------------------------------

    async def status(self, call: Call[protocol.Status]) -> None:
        call.result(self._status())

    async def residency(self, call: Call[protocol.Residency]) -> None:
        call.result(await self._hearth.residency_by(call.request.by))

    async def experts(self, call: Call[protocol.Experts]) -> None:
        layer = call.request.layer
        info = self._hearth.info
        if layer is not None and layer >= info.layers:
            raise Refused("bad-field", f"layer: {layer} is none of {info.layers} layers", "layer")
        await self._prepared(call)
        call.result(await self._hearth.experts(layer))

    async def plan(self, call: Call[protocol.Plan]) -> None:
        call.result(await in_thread(self._hearth.plan, self._threads))

    # -- actions -----------------------------------------------------------------------------------------------------

    async def warm(self, call: Call[protocol.Warm]) -> None:
        request = call.request
        self._check_open()
        self._check_selection(request.select)
        await self._prepared(call)

        def progress(done: int, total: int, what: str = "bytes") -> None:
            if request.stream:
                call.reply(protocol.Progress(id=request.id, done=done, total=total, what=what))

        if request.wait or request.stream:
            with call.waiting(), call.scope:  # the order stands, the waiting for it ends with the client
                call.result(await self._hearth.warm(request.select, wait=True, progress=progress))
        else:
            call.result(await self._hearth.warm(request.select, wait=False, progress=progress))

    async def _prepared(self, call: Call[Any]) -> None:
        """Until there is what answers need."""
        with call.waiting():
            await self._hearth.prepared()

    async def defer(self, call: Call[protocol.Defer]) -> None:
        self._check_selection(call.request.select)
        await self._prepared(call)
        call.result(await self._hearth.defer(call.request.select))

    async def pin(self, call: Call[protocol.Pin]) -> None:
        request = call.request
        self._check_selection(request.select)
        await self._prepared(call)
        call.result(await self._hearth.pin(request.select, release=request.release))

    def _check_selection(self, select: protocol.Selection) -> None:
        info = self._hearth.info
        for field, values, limit in (
            ("layers", select.layers, info.layers),
            ("experts", select.experts, info.experts),
        ):
            for value in values or ():
                if value >= limit:
                    raise Refused("bad-field", f"select.{field}: {value} is none of {limit}", f"select.{field}")

    async def cancel(self, call: Call[protocol.Cancel]) -> None:
        """A client's own request; of an id that it has not used itself, whoever's that is. When its own has ended just
        now, another client's request of the same id goes on. One in progress ends before the next step; what the
        running step computes for others is theirs."""
        target = str(call.request.target)
        own = target in self._own.get(call.peer, ())
        chosen = [job for job in self._scheduler.jobs() if job.name == target and (job.peer == call.peer or not own)]
        if not chosen:
            raise Refused("unknown-request", f"no request {target!r:.80} is in progress or waiting", "target")
        for job in chosen:
            self._scheduler.end(job, "cancelled")
        call.result({"cancelled": len(chosen)})

    async def shutdown(self, call: Call[protocol.Shutdown]) -> None:
        call.result({"stopping": True, "pid": os.getpid()})
        self._stop("asked by a client")

    # -- clients -----------------------------------------------------------------------------------------------------

    def deliver(self, job: Job, reply: protocol.Reply, body: Body | None) -> bool:
        return job.call is not None and job.call.reply(reply, body)

    def client_gone(self, peer: bytes) -> None:
        self._own.pop(peer, None)
        if count := self._scheduler.end_all("gone", lambda job: job.peer == peer and not job.stop_reason):
            noun = "request" if count == 1 else "requests"
            self._telemetry.say("client-gone", f"a client went away: {count} {noun} dropped")


def _tokens_json(tokens: array[int]) -> msgspec.Raw:
    """The data of a reply to `tokenize`, made piece by piece: Python's numbers take ten times the memory."""
    pieces = (tokens[start : start + LONG].tolist() for start in range(0, len(tokens), LONG))
    text = b",".join(msgspec.json.encode(piece)[1:-1] for piece in pieces)
    return msgspec.Raw(b'{"tokens":[%b],"count":%d}' % (text, len(tokens)))
