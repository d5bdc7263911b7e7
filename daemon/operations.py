"""What each operation of the control socket does. Knows requests and the parts of the daemon; no sockets.

A handler answers through its call, or raises Refused. Those that compute hand over to the scheduler or to a thread.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from . import protocol
from .control import Call, Handler, Refused
from .generation import Arrival, Body, GenerateJob, Job, ScoreJob
from .scheduler import Busy, Scheduler
from .telemetry import Telemetry

if TYPE_CHECKING:
    from .config import Config
    from .model.template import Prompt

THREADS = 2  # for tokenizing and the like
LONG_TEXT = 4096  # characters that may be tokenized on the event loop's thread
COUNTED_CONTEXTS = 4  # tokens of a prompt that is too long are counted up to so many contexts, and no further
SCORE_BYTES = 96  # of a scored token in the reply, beside its logits
STOPS_LIMIT = 64


class Operations:
    """The table of handlers. `hearth` is the opened model with its parts; `stop` ends the daemon."""

    def __init__(
        self,
        hearth: Any,
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
        self.stopping = False

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

    async def generate(self, call: Call) -> None:
        request: protocol.Generate = call.request
        self._check_open()
        check_sampling(request)
        with self._queued(call) as arrival:
            await self._hearth.prepared()
            if request.tokens is not None:
                tokens = self._checked(request.tokens, "tokens")
            else:
                tokens = await self._encode(request.prompt, field="prompt")
            self._start_generation(arrival, tokens, "tokens" if request.tokens is not None else "prompt")

    async def chat(self, call: Call) -> None:
        request: protocol.Chat = call.request
        self._check_open()
        check_sampling(request)
        if not request.messages:
            raise Refused("bad-field", "messages: there are none", "messages")
        with self._queued(call) as arrival:
            await self._hearth.prepared()
            prompt = await self._render(request)
            tokens = await self._encode(prompt.text, bos=False, field="messages")
            self._start_generation(arrival, tokens, "messages", prompt.warnings)

    async def score(self, call: Call) -> None:
        request: protocol.Score = call.request
        self._check_open()
        with self._queued(call) as arrival:
            await self._hearth.prepared()
            if request.tokens:
                tokens = self._checked(request.tokens, "tokens")
            else:
                tokens = await self._encode(request.text, field="text")
            if not tokens:
                raise Refused("bad-field", "text: empty, there is nothing to score", "text")
            self._check_length(tokens, "tokens" if request.tokens else "text")
            room = call.reserve(self._logits_bytes(request, len(tokens)) + SCORE_BYTES * len(tokens))
            job = ScoreJob(
                request, name=arrival.name, peer=call.peer, tokens=tokens, owner=call.owner, room=room
            )
            self._submit(job, arrival)

    def _logits_bytes(self, request: protocol.Score, tokens: int) -> int:
        """Of the reply's second frame. Raises Refused."""
        if not request.logits:
            return 0
        if not 0 <= request.logits_from < tokens:
            message = f"logits_from: {request.logits_from} is none of {tokens} positions"
            raise Refused("bad-field", message, "logits_from")
        row, wanted = 4 * self._hearth.engine.hyper.n_vocab, tokens - request.logits_from
        if (size := row * wanted) > protocol.LOGITS_LIMIT:
            most = max(protocol.LOGITS_LIMIT // row, 1)
            message = f"the logits of {wanted} positions have {size} bytes, a reply may have {protocol.LOGITS_LIMIT}"
            raise Refused("too-long", f"{message}: ask for {most} at a time, with logits_from", "logits")
        return size

    async def tokenize(self, call: Call) -> None:
        request: protocol.Tokenize = call.request
        await self._prepared(call)
        tokens = await self._encode(request.text, special=request.special, bos=request.bos)
        call.result({"tokens": tokens, "count": len(tokens)})

    async def detokenize(self, call: Call) -> None:
        await self._prepared(call)
        tokens = self._checked(call.request.tokens, "tokens", self._hearth.tokenizer.n_vocab)
        call.result({"text": await trio.to_thread.run_sync(self._hearth.tokenizer.decode, tokens)})

    @contextmanager
    def _queued(self, call: Call) -> Iterator[Arrival]:
        """A place in the scheduler's queue while a request's job is being made: there it is seen, counted and ended.

        The body ends by `_submit`, by Refused, or in the middle when the request is ended (the client knows by then).
        """
        if call.gone:
            raise Refused("gone", "the client went away")
        arrival = Arrival(
            call.request, name=self._name(call.request), peer=call.peer, owner=call.owner, nbytes=call.nbytes
        )
        arrival.call = call
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
            return await trio.to_thread.run_sync(render, limiter=self._threads)
        except Unfit as error:
            raise Refused("bad-field", f"{error.field}: {error}", error.field) from None
        except Exception as error:  # a template is the model's program: whatever it raises is the answer
            raise Refused("template", f"the chat template refused the messages: {error}", "messages") from None

    def _start_generation(
        self, arrival: Arrival, tokens: list[int], field: str, warnings: Sequence[tuple[str, str]] = ()
    ) -> None:
        request = arrival.call.request
        if not tokens:
            bos = self._hearth.tokenizer.bos
            if bos is None:
                raise Refused("bad-field", f"{field}: empty, and the model has no token to begin with", field)
            tokens = [bos]
        self._check_length(tokens, field)
        tokenizer = self._hearth.tokenizer
        try:
            sampler = self._hearth.new_sampler(request.sampling)
        except ValueError as error:
            raise Refused("bad-field", str(error), "sampling") from None
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
        self._submit(job, arrival)

    def _submit(self, job: Job, arrival: Arrival) -> None:
        if arrival.ended:  # while a thread was at work for it
            job.close()
            return
        self._check_open()
        job.call = arrival.call
        job.call.forget_request()
        self._scheduler.submit(job, arrival)

    def _name(self, request: Any) -> str:
        return request.id or f"r{next(self._numbers)}"

    def _check_open(self) -> None:
        if self.stopping:
            raise Refused("stopping", "the daemon is stopping")

    def _check_length(self, tokens: Sequence[int], field: str) -> None:
        limit = self._hearth.engine.context
        if len(tokens) > limit:
            raise Refused("too-long", f"the prompt has {len(tokens)} tokens, the context holds {limit}", field)
        rows = self._hearth.engine.hyper.n_vocab
        if self._hearth.tokenizer.n_vocab > rows and max(tokens) >= rows:  # told as a warning when it was opened
            message = f"{field}: token {max(tokens)} of its text is not among the {rows} that the model has"
            raise Refused("bad-field", message, field)

    def _checked(self, tokens: list[int], field: str, limit: int = 0) -> list[int]:
        vocabulary = limit or self._hearth.engine.hyper.n_vocab
        for place, token in enumerate(tokens):
            if not 0 <= token < vocabulary:
                message = f"{field}[{place}]: {token} is no token of a vocabulary of {vocabulary}"
                raise Refused("bad-field", message, f"{field}[{place}]")
        return tokens

    async def _encode(
        self, text: str, *, special: bool = True, bos: bool | None = None, field: str = ""
    ) -> list[int]:
        """Token ids; of a prompt (`field` names it) that is far beyond the context no more than need be."""
        from .model.tokenizer import TextTooLong

        context = self._hearth.engine.context
        options = {"special": special, "bos": bos, "limit": COUNTED_CONTEXTS * context if field else None}
        encode = self._hearth.tokenizer.encode
        try:
            if len(text) <= LONG_TEXT:
                return list(encode(text, **options))
            return list(await trio.to_thread.run_sync(lambda: encode(text, **options), limiter=self._threads))
        except TextTooLong as error:
            message = str(error).replace("the text", "the prompt") + f", the context holds {context}" * bool(field)
            raise Refused("too-long", message, field or "text") from None

    # -- state of the daemon -----------------------------------------------------------------------------------------

    async def status(self, call: Call) -> None:
        call.result(self._status())

    async def residency(self, call: Call) -> None:
        call.result(await self._hearth.residency_by(call.request.by))

    async def experts(self, call: Call) -> None:
        layer = call.request.layer
        info = self._hearth.info
        if layer is not None and not 0 <= layer < info.layers:
            raise Refused("bad-field", f"layer: {layer} is none of {info.layers} layers", "layer")
        await self._prepared(call)
        call.result(await self._hearth.experts(layer))

    async def plan(self, call: Call) -> None:
        call.result(await trio.to_thread.run_sync(self._hearth.plan, limiter=self._threads))

    # -- actions -----------------------------------------------------------------------------------------------------

    async def warm(self, call: Call) -> None:
        request: protocol.Warm = call.request
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

    async def _prepared(self, call: Call) -> None:
        """Until there is what answers need."""
        with call.waiting():
            await self._hearth.prepared()

    async def defer(self, call: Call) -> None:
        self._check_selection(call.request.select)
        await self._prepared(call)
        call.result(await self._hearth.defer(call.request.select))

    async def pin(self, call: Call) -> None:
        request: protocol.Pin = call.request
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
                if not 0 <= value < limit:
                    raise Refused("bad-field", f"select.{field}: {value} is none of {limit}", f"select.{field}")
        if select.hottest is not None and select.hottest < 0:
            raise Refused("bad-field", "select.hottest: negative", "select.hottest")

    async def cancel(self, call: Call) -> None:
        target = call.request.target
        jobs = [job for job in self._scheduler.jobs() if job.name == target]
        chosen = [job for job in jobs if job.peer == call.peer] or jobs
        if not chosen:
            raise Refused("unknown-request", f"no request {target!r:.80} is in progress or waiting", "target")
        for job in chosen:
            self._scheduler.end(job, "cancelled")
        call.result({"cancelled": len(chosen)})

    async def shutdown(self, call: Call) -> None:
        call.result({"stopping": True, "pid": os.getpid()})
        self._stop("asked by a client")

    # -- clients -----------------------------------------------------------------------------------------------------

    def deliver(self, job: Job, reply: protocol.Reply, body: Body | None) -> bool:
        return job.call.reply(reply, body)

    def client_gone(self, peer: bytes) -> None:
        if count := self._scheduler.end_all("gone", lambda job: job.peer == peer and not job.stop_reason):
            noun = "request" if count == 1 else "requests"
            self._telemetry.say("client-gone", f"a client went away: {count} {noun} dropped")


def check_sampling(request: protocol.Generate | protocol.Chat) -> None:
    """Raises Refused naming the field that is out of its range."""
    sampling = request.sampling
    ranges: tuple[tuple[str, float, float, float], ...] = (
        ("max_tokens", request.max_tokens, 0, 1 << 24),
        ("sampling.temperature", sampling.temperature, 0, 1e6),
        ("sampling.top_k", sampling.top_k, 0, 1 << 31),
        ("sampling.top_p", sampling.top_p, 0, 1),
        ("sampling.min_p", sampling.min_p, 0, 1),
        ("sampling.repeat_penalty", sampling.repeat_penalty, 0.01, 100),
        ("sampling.repeat_last", sampling.repeat_last, -1, 1 << 24),
        ("sampling.logprobs", sampling.logprobs, 0, 100),
        ("sampling.seed", sampling.seed or 0, -(1 << 63), (1 << 64) - 1),
        ("stop", len(request.stop), 0, STOPS_LIMIT),
    )
    for field, value, low, high in ranges:
        if not low <= value <= high:
            raise Refused("bad-field", f"{field}: {value} is not between {low} and {high}", field)


