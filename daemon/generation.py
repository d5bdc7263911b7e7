"""One request's way from a prompt to tokens and text: a turn at a time, in a worker thread. Decides no order.

A turn is one step of the engine with its sampling: one hop into the worker. What it returns is for the event loop to
send. Nothing here talks to a socket.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import trio

from . import protocol
from .model.sampling import StopMatcher, score
from .model.turn import Part
from .protocol import Body

Tokens = Sequence[int] | np.ndarray  # ids [n]; an int32 array is taken as it is

TURN_BYTES = 64 << 20  # logits of one scoring turn
JOB_BYTES = 2048  # of a request beside its prompt


class Room(Protocol):
    """Bytes set aside for a reply that is being made."""

    def release(self) -> None: ...


class Job(ABC):
    """What the scheduler turns: a session, and where it stands."""

    op = ""
    ready = True  # to take turns

    def __init__(self, name: str, id: protocol.Id, peer: bytes, tokens: Tokens, owner: str = "") -> None:
        self.name = name  # shown in status, a target of cancel
        self.id = id  # echoed in every reply
        self.peer = peer  # the connection
        self.owner = owner  # whose connection it is: who shares what there is with other clients
        self.call: Any = None  # the way back to the client, for whoever delivers
        self.prompt = np.asarray(tokens, dtype=np.int32)
        self.prompt_done = 0
        self.arrived = time.monotonic()
        self.started = 0.0  # first turn
        self.first = 0.0  # first result
        self.last = 0.0
        self.session: Any = None
        self.ended = ""  # reason, once it has one
        self.stop_reason = ""  # set by the event loop: end at the next turn with this reason

    @property
    def nbytes(self) -> int:
        """What it takes while it waits."""
        return JOB_BYTES + self.prompt.nbytes

    @property
    def in_prompt(self) -> bool:
        return self.prompt_done < len(self.prompt)

    @property
    def generated(self) -> int:
        return 0

    @property
    def max_tokens(self) -> int:
        return 0

    @abstractmethod
    def turn(self, engine: Any) -> list[protocol.Reply]:
        """One step. Raises an outcome's error; the job is unchanged then."""

    def rest(self) -> list[protocol.Reply]:
        """What the end alone completes, before the last reply. Once."""
        return []

    @abstractmethod
    def finish(self, reason: str) -> tuple[protocol.Reply, Body | None]:
        """The last reply, and its second frame if it has one."""

    def close(self) -> None:
        if self.session is not None:
            self.session.close()
            self.session = None

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

    def turn(self, engine: Any) -> list[protocol.Reply]:
        raise AssertionError("what is not ready takes no turn")

    def finish(self, reason: str) -> tuple[protocol.Reply, Body | None]:
        if self.op == "score":
            return protocol.Error(id=self.id, code=reason, message=f"ended before it began: {reason}"), None
        return protocol.Done(id=self.id, reason=reason, timings=self.timings()), None

    def close(self) -> None:
        self.scope.cancel()


class GenerateJob(Job):
    """Prompt in chunks of `engine.batch`, then one token per turn."""

    def __init__(
        self,
        request: protocol.Generation,
        *,
        name: str,
        peer: bytes,
        tokens: Tokens,
        tokenizer: Any,
        sampler: Any,
        owner: str = "",
    ) -> None:
        super().__init__(name, request.id, peer, tokens, owner)
        self.op = "chat" if isinstance(request, protocol.Chat) else "generate"
        self.stream = request.stream
        self._limit = request.max_tokens
        # An end that is ignored is a token like any other: it is shown and the next one follows.
        self._ends = frozenset() if request.ignore_eos else tokenizer.end_of_generation
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

    def turn(self, engine: Any) -> list[protocol.Reply]:
        if self.in_prompt:
            chunk = self.prompt[self.prompt_done : self.prompt_done + engine.batch]
            whole = self.prompt_done + len(chunk) == len(self.prompt)
            wanted = whole and self._limit > 0
            part = Part(self.session, chunk, "last" if wanted else "none", self._sampler if wanted else None)
            (outcome,) = engine.step([part])
            if outcome.error:
                raise outcome.error
            self.prompt_done += len(chunk)
            if not whole:
                return []
            if self._limit <= 0:
                self.first = time.monotonic()
                self.ended = "length"
                return []
        else:
            chunk = np.asarray(self._tokens[-1:], dtype=np.int32)
            (outcome,) = engine.step([Part(self.session, chunk, "last", self._sampler)])
            if outcome.error:
                raise outcome.error
        choice = outcome.choice
        token = int(choice.token)
        self.last = time.monotonic()
        self.first = self.first or self.last
        if token in self._ends:
            self.ended = "stop"
            return []
        self._sampler.accept(token)
        self._tokens.append(token)
        if self._want_logprobs:
            self._logprobs.append(float(choice.logprob))
        # A padded embedding has more rows than the tokenizer has tokens; those have no text.
        events = self._show(choice, self._detokenizer.push(token) if token < self._vocabulary else "")
        if self._until.found is not None:
            self.ended = "stop-string"
        elif len(self._tokens) >= self._limit:
            self.ended = "length"
        return events

    def _show(self, choice: Any, text: str) -> list[protocol.Reply]:
        shown = self._until.push(text)
        self._text.append(shown)
        if not self.stream:
            return []
        event = protocol.TokenEvent(id=self.id, token=int(choice.token), text=shown)
        if self._want_logprobs:
            event.logprob = float(choice.logprob)
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
        self._logits: np.ndarray | None = None  # float32 [positions from `logits_from` on, vocabulary]
        self._vocabulary = 0
        self._room = room
        self._data: Any = None

    def turn(self, engine: Any) -> list[protocol.Reply]:
        vocabulary = self._vocabulary = engine.hyper.n_vocab
        size = max(1, min(engine.batch, TURN_BYTES // (4 * vocabulary)))
        start = self.prompt_done
        chunk = self.prompt[start : start + size]
        end = start + len(chunk)
        logits = engine.step([Part(self.session, chunk, "all")])[0].rows()
        following = self.prompt[start + 1 : end + 1].tolist()
        self._logprobs += score(logits, following)
        if self._keep and end > self._from:
            if self._logits is None:  # whole at once, so that the reply is not a second copy
                self._logits = np.empty((len(self.prompt) - self._from, vocabulary), "<f4")
            first = max(start, self._from)
            self._logits[first - self._from : end - self._from] = logits[first - start :]
        self.prompt_done = end
        self.first = self.last = time.monotonic()
        if not self.in_prompt:
            self._data = self._numbers()
            self.ended = "stop"
        return []

    def _numbers(self) -> Any:
        """The reply's data, as JSON already: of many tokens it takes its time, and this is the worker's thread."""
        known = [value for value in self._logprobs if value is not None]
        data: dict[str, Any] = {
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
