"""One request's way from a prompt to tokens and text: the rows that it wants of the next step, and what comes of them.

A job knows the tokens that are wanted so far, its prompt and what was chosen, and how many of them are computed; a step
lets the second catch up with the first. There is no other state: a prompt in chunks and an answer token by token are
the same thing. Nothing here talks to a socket, decides an order, or runs a step.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import trio
from numpy.typing import NDArray

from . import protocol
from .model.sampling import Choice, Sampler, StopMatcher, score
from .model.turn import Outcome, Part, SessionView, Want
from .protocol import Body

Tokens = Sequence[int] | NDArray[np.int32]  # ids [n]; an int32 array is taken as it is

JOB_BYTES = 2048  # of a request beside its prompt


class Room(Protocol):
    """Bytes set aside for a reply that is being made."""

    def release(self) -> None: ...


class Way(Protocol):
    """The way back to the client."""

    def reply(self, reply: protocol.Reply, body: Body | None = None) -> bool:
        """Never waits; False when the client takes no more."""

    def forget_request(self) -> None:
        """What is left to do needs no more than the way back."""


class TextStream(Protocol):
    """Whole characters of tokens that come one by one."""

    def push(self, token: int) -> str: ...

    def flush(self) -> str: ...


class Tokenizer(Protocol):
    """What a job needs of the model's tokenizer."""

    n_vocab: int

    @property
    def end_of_generation(self) -> Collection[int]: ...

    def stream(self) -> TextStream: ...


class Job(ABC):
    """What the scheduler orders: a session, and how far it has come."""

    op = ""
    ready = True  # to have rows in steps
    want: Want = "last"  # of the rows of its prompt

    def __init__(self, name: str, id: protocol.Id, peer: bytes, tokens: Tokens, owner: str = "") -> None:
        self.name = name  # shown in status, a target of cancel
        self.id = id  # echoed in every reply
        self.peer = peer  # the connection
        self.owner = owner  # whose connection it is: who shares what there is with other clients
        self.call: Way | None = None  # the way back, for whoever delivers
        self.prompt = np.asarray(tokens, dtype=np.int32)
        self.computed = 0  # tokens of those wanted that the session holds
        self.arrived = time.monotonic()
        self.started = 0.0  # first step
        self.first = 0.0  # first result
        self.last = 0.0
        self.session: SessionView | None = None
        self.ended = ""  # reason, once it has one
        self.stop_reason = ""  # set by the event loop: it has no rows in further steps and ends with this reason

    @property
    def nbytes(self) -> int:
        """What it takes while it waits."""
        return JOB_BYTES + self.prompt.nbytes

    @property
    def prompt_done(self) -> int:
        return min(self.computed, len(self.prompt))

    @property
    def in_prompt(self) -> bool:
        return self.computed < len(self.prompt)

    @property
    def wanted(self) -> int:
        """Tokens that its session is to hold, as far as they are known."""
        return len(self.prompt) + self.generated

    @property
    def generated(self) -> int:
        return 0

    @property
    def max_tokens(self) -> int:
        return 0

    @abstractmethod
    def rows(self, room: int) -> Part | None:
        """What it wants of the next step, at most `room` rows. The session is open."""

    @abstractmethod
    def take(self, outcome: Outcome) -> list[protocol.Reply]:
        """What came of the rows, without an error; replies for the client. Called by whoever ran the step, once for
        each part."""

    def rest(self) -> list[protocol.Reply]:
        """What the end alone completes, before the last reply. Once."""
        return []

    @abstractmethod
    def finish(self, reason: str) -> tuple[protocol.Reply, Body | None]:
        """The last reply, and its second frame if it has one."""

    def close_session(self) -> None:
        """Its keys and values go back to the pool: not for the event loop."""
        if self.session is not None:
            self.session.close()
            self.session = None

    def close(self) -> None:
        """What it holds beside its session is given back; nothing follows."""
        self.call = None

    def timings(self) -> protocol.Timings:
        return protocol.Timings(
            prompt_tokens=len(self.prompt),
            queue_seconds=max(0.0, self.started - self.arrived) if self.started else 0.0,
            ttft_seconds=max(0.0, self.first - self.arrived) if self.first else 0.0,
            prompt_seconds=max(0.0, self.first - self.started) if self.first else 0.0,
            generated=self.generated,
            generate_seconds=max(0.0, self.last - self.first) if self.last else 0.0,
        )

    def row(self, now: float) -> protocol.RequestRow:
        """This request as the monitor shows it."""
        phase = "queued" if not self.started else "prompt" if self.in_prompt or not self.first else "generate"
        if phase == "generate":
            seconds, count = now - self.first, self.generated - 1
        else:
            seconds, count = (now - self.started if self.started else 0.0), self.prompt_done
        return protocol.RequestRow(
            id=self.name,
            op=self.op,
            phase=phase,
            prompt_tokens=len(self.prompt),
            prompt_done=self.prompt_done,
            generated=self.generated,
            max_tokens=self.max_tokens,
            seconds=now - self.arrived,
            rate=count / seconds if seconds > 0 and count > 0 else 0.0,
        )


class Arrival(Job):
    """The place in the queue of a request whose job cannot be made yet: there is no engine, or its text is being read.

    Whoever makes the job does so in `scope`, which ends when the request does.
    """

    ready = False

    def __init__(
        self,
        request: protocol.Generation | protocol.Score,
        *,
        name: str,
        peer: bytes,
        owner: str = "",
        nbytes: int = 0,
    ) -> None:
        super().__init__(name, request.id, peer, [], owner)
        self._nbytes = nbytes  # of its message
        self.op = str(request.__struct_config__.tag)
        self.scope = trio.CancelScope()
        self._limit = 0 if isinstance(request, protocol.Score) else request.max_tokens

    @property
    def nbytes(self) -> int:
        return JOB_BYTES + self._nbytes

    @property
    def max_tokens(self) -> int:
        return self._limit

    def rows(self, room: int) -> Part | None:
        return None

    def take(self, outcome: Outcome) -> list[protocol.Reply]:
        raise AssertionError("what is not ready has no rows")

    def finish(self, reason: str) -> tuple[protocol.Reply, Body | None]:
        if self.op == "score":
            return protocol.Error(id=self.id, code=reason, message=f"ended before it began: {reason}"), None
        return protocol.Done(id=self.id, reason=reason, timings=self.timings()), None

    def close(self) -> None:
        super().close()
        self.scope.cancel()


class GenerateJob(Job):
    """A prompt, then tokens, each chosen within the step that computes the one before."""

    def __init__(
        self,
        request: protocol.Generation,
        *,
        name: str,
        peer: bytes,
        tokens: Tokens,
        tokenizer: Tokenizer,
        sampler: Sampler,
        owner: str = "",
    ) -> None:
        super().__init__(name, request.id, peer, tokens, owner)
        self.op = "chat" if isinstance(request, protocol.Chat) else "generate"
        self.stream = request.stream
        self._limit = request.max_tokens
        # An end that is ignored is a token like any other: it is shown and the next one follows.
        self._ends: Collection[int] = frozenset() if request.ignore_eos else tokenizer.end_of_generation
        self._want_logprobs = request.sampling.logprobs > 0
        self._sampler = sampler
        self._detokenizer = tokenizer.stream()
        self._vocabulary = tokenizer.n_vocab
        self._until = StopMatcher(request.stop)
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self.warnings: list[protocol.Warning_] = []
        sampler.begin(self.prompt)

    @property
    def generated(self) -> int:
        return len(self._tokens)

    @property
    def max_tokens(self) -> int:
        return self._limit

    def rows(self, room: int) -> Part | None:
        assert self.session is not None
        start, n = self.computed, len(self.prompt)
        if start < n:
            tokens = self.prompt[start : start + room]
        else:
            tokens = np.asarray(self._tokens[start - n : start - n + room], dtype=np.int32)
        if not len(tokens):
            return None
        if start + len(tokens) < self.wanted or self._limit <= 0:
            return Part(self.session, tokens, "none")
        return Part(self.session, tokens, "last", self._sampler)

    def take(self, outcome: Outcome) -> list[protocol.Reply]:
        assert self.session is not None
        self.computed = self.session.length
        if self.computed < self.wanted:
            return []
        self.last = time.monotonic()
        self.first = self.first or self.last
        if outcome.choice is None:
            self.ended = "length"  # nothing was to be chosen
            return []
        return self._chosen(outcome.choice)

    def _chosen(self, choice: Choice) -> list[protocol.Reply]:
        token = int(choice.token)
        if token in self._ends:
            self.ended = "stop"
            return []
        self._sampler.accept(token)
        self._tokens.append(token)
        if self._want_logprobs:
            self._logprobs.append(float(choice.logprob or 0.0))
        # A padded embedding has more rows than the tokenizer has tokens; those have no text.
        events = self._show(choice, self._detokenizer.push(token) if token < self._vocabulary else "")
        if self._until.found is not None:
            self.ended = "stop-string"
        elif len(self._tokens) >= self._limit:
            self.ended = "length"
        return events

    def _show(self, choice: Choice, text: str) -> list[protocol.Reply]:
        shown = self._until.push(text)
        self._text.append(shown)
        if not self.stream:
            return []
        event = protocol.TokenEvent(id=self.id, token=int(choice.token), text=shown)
        if self._want_logprobs:
            event.logprob = float(choice.logprob or 0.0)
            event.alternatives = [(int(token), float(logprob)) for token, logprob in choice.alternatives]
        return [event]

    def rest(self) -> list[protocol.Reply]:
        if self._until.found is not None:
            return []
        rest = self._until.push(self._detokenizer.flush())
        rest += self._until.flush()
        self._text.append(rest)
        return [protocol.TokenEvent(id=self.id, token=None, text=rest)] if rest and self.stream else []

    def finish(self, reason: str) -> tuple[protocol.Reply, Body | None]:
        done = protocol.Done(
            id=self.id,
            reason=reason,
            text="".join(self._text),
            tokens=self._tokens,
            logprobs=self._logprobs,
            warnings=self.warnings,
            timings=self.timings(),
        )
        return done, None


class ScoreJob(Job):
    """The log-probability of each given token after those before it, and the logits if wanted.

    room: what was set aside for the reply; it is given back when the reply is made.
    """

    op = "score"
    want: Want = "all"

    def __init__(
        self,
        request: protocol.Score,
        *,
        name: str,
        peer: bytes,
        tokens: Tokens,
        owner: str = "",
        room: Room | None = None,
    ) -> None:
        super().__init__(name, request.id, peer, tokens, owner)
        self._logprobs: list[float | None] = [None]  # nothing comes before the first
        self._keep = request.logits
        self._from = request.logits_from
        self._logits: NDArray[np.float32] | None = None  # float32 [positions from `logits_from` on, vocabulary]
        self._vocabulary = 0
        self._room = room
        self._data: Any = None  # msgspec.Raw, which the message's type does not know

    def rows(self, room: int) -> Part | None:
        assert self.session is not None
        tokens = self.prompt[self.computed : self.computed + room]
        return Part(self.session, tokens, "all") if len(tokens) else None

    def take(self, outcome: Outcome) -> list[protocol.Reply]:
        logits = outcome.rows()
        start, end = self.computed, self.computed + len(logits)
        self._vocabulary = logits.shape[1]
        following = self.prompt[start + 1 : end + 1].tolist()
        self._logprobs += score(logits, following)
        if self._keep and end > self._from:
            if self._logits is None:  # whole at once, so that the reply is not a second copy
                self._logits = np.empty((len(self.prompt) - self._from, self._vocabulary), "<f4")
            first = max(start, self._from)
            self._logits[first - self._from : end - self._from] = logits[first - start :]
        self.computed = end
        self.first = self.last = time.monotonic()
        if not self.in_prompt:
            self._data = self._numbers()
            self.ended = "stop"
        return []

    def _numbers(self) -> msgspec.Raw:
        """The reply's data, as JSON already: of many tokens it takes its time, and this is the step's thread."""
        known = [value for value in self._logprobs if value is not None]
        data = {
            "tokens": self.prompt.tolist(),
            "logprobs": self._logprobs,
            "sum": sum(known),
            "perplexity": float(np.exp(-sum(known) / len(known))) if known else None,
            "shape": [len(self.prompt) - self._from, self._vocabulary],
            "seconds": self.last - self.started,
        }
        return msgspec.Raw(msgspec.json.encode(data))

    def finish(self, reason: str) -> tuple[protocol.Reply, Body | None]:
        self._release()
        if reason != "stop":
            message = f"scored {self.prompt_done} of {len(self.prompt)} tokens, then ended: {reason}"
            return protocol.Error(id=self.id, code=reason, message=message), None
        body = self._logits.reshape(-1).view(np.uint8).data if self._logits is not None else None
        return protocol.Result(id=self.id, data=self._data), body

    def close(self) -> None:
        super().close()
        self._release()
        self._logits = None

    def _release(self) -> None:
        if self._room is not None:
            self._room.release()
            self._room = None
