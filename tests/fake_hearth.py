"""A hearth without a model: one token per character, every step counts upwards. For tests of the service around it.

As a program it is a daemon: the same flags as hearthd, no MODEL.
"""

from __future__ import annotations

import threading
from array import array
from typing import Any

import numpy as np
import trio
from hearthd.daemon import protocol
from hearthd.daemon.config import Config
from hearthd.daemon.model.sampling import Choice
from hearthd.daemon.model.template import Prompt
from hearthd.daemon.model.turn import ContextFull, Interrupted, Outcome, Part, PoolUse, StepFailed

VOCABULARY = 256


class Session:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.tokens: list[int] = []
        self.length = 0
        engine.open_sessions += 1

    def truncate(self, length: int) -> None:
        del self.tokens[length:]
        self.length = length

    def close(self) -> None:
        self.engine.open_sessions -= 1


class Hyper:
    n_vocab = VOCABULARY


class Engine:
    """The next token is the last one plus one. `fail_token` makes a step fail; `pause` seconds per step."""

    isa = "fake"
    batch = 8
    hyper = Hyper()
    layer = -1
    fail_token = -1

    def __init__(self, context: int = 512, pause: float = 0.0) -> None:
        self.context = context
        self.pause = pause
        self.open_sessions = 0
        self.steps: list[tuple[int, int]] = []  # session's id, tokens
        self.lookahead: dict[str, Any] = {"recall": None, "wasted_bytes": 0, "reading": False, "reason": "fake"}
        self._stop = threading.Event()

    def new_session(self) -> Session:
        return Session(self)

    def trim(self) -> None:
        pass

    @property
    def pool(self) -> PoolUse:
        return PoolUse(blocks=0, used=0, warm=0, block_bytes=0, bytes=0)

    @property
    def n_vocab(self) -> int:
        return self.hyper.n_vocab

    def step(self, parts: list[Part]) -> list[Outcome]:
        if self._stop.wait(self.pause):
            raise Interrupted
        return [self._outcome(part) for part in parts]

    def _outcome(self, part: Part) -> Outcome:
        session = part.session
        self.steps.append((id(session), len(part.tokens)))
        if self.fail_token in part.tokens:
            return Outcome(error=StepFailed("span blk.0.ffn_gate_exps.weight[3] could not be read"))
        if len(session.tokens) + len(part.tokens) > self.context:
            return Outcome(error=ContextFull(f"the context holds {self.context}"))
        session.tokens += part.tokens.tolist()
        session.length = len(session.tokens)
        logits = np.full((len(part.tokens), VOCABULARY), -10.0, dtype=np.float32)
        logits[np.arange(len(part.tokens)), (part.tokens + 1) % VOCABULARY] = 10.0
        if part.sampler is not None:
            return Outcome(choice=Choice(int(logits[-1].argmax())))
        return Outcome(logits=None if part.want == "none" else logits if part.want == "all" else logits[-1:])

    def close(self) -> None:
        self._stop.set()


class Tokenizer:
    bos = 1
    eos = 0
    end_of_generation = frozenset({0})
    n_vocab = VOCABULARY

    def ids(self, text: str, special: bool = True, bos: bool | None = None, limit: int | None = None) -> array[int]:
        return array("i", [ord(character) % VOCABULARY for character in text])

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))

    def stream(self) -> Tokenizer:
        return self

    def push(self, token: int) -> str:
        return chr(token)

    def flush(self) -> str:
        return ""


class Sampler:
    """What is likeliest; there is nothing to remember."""

    def begin(self, prompt: np.ndarray) -> None:
        pass

    def accept(self, token: int) -> None:
        pass


class Template:
    def prompt(self, messages: list[dict[str, Any]], *_: Any, **__: Any) -> Prompt:
        return Prompt("".join(message["content"] for message in messages))


class Hearth:
    """What the service needs of an opened model (hearthd.daemon.hearth.Hearth)."""

    def __init__(self, config: Config, pause: float = 0.0, slow_start: float = 0.0) -> None:
        self.info = protocol.ModelInfo(name="fake", layers=2, experts=4, vocabulary=VOCABULARY)
        self.warnings = [protocol.Warning_(code="fake", message="nothing here is a model")]
        self.engine: Engine | None = None
        self.tokenizer = Tokenizer()
        self.template = Template()
        self.residency = None
        self.saved = 0
        self._made = Engine(config.context or 512, pause)
        self._slow_start = slow_start
        self.hurry = trio.Event()  # ends a slow start
        self._prepared = trio.Event()

    async def prepare(self) -> None:
        with trio.move_on_after(self._slow_start):
            await self.hurry.wait()
        self.engine = self._made
        self._prepared.set()

    async def prepared(self) -> None:
        await self._prepared.wait()

    async def follow(self, say: Any) -> None:
        pass

    def begin(self, on_event: Any) -> None:
        pass

    def step_begins(self, prompts: int, answers: int) -> None:
        pass

    def warmed(self) -> bool:
        return True

    def start_line(self) -> str:
        return "fake"

    def options(self) -> dict[str, Any]:
        return {"experts": "defer"}

    def bytes_read(self) -> int:
        return 0

    def new_sampler(self, sampling: protocol.Sampling) -> Sampler:
        return Sampler()

    async def residency_by(self, by: str) -> dict[str, Any]:
        return {"by": by, "rows": []}

    async def experts(self, layer: int | None) -> dict[str, Any]:
        return {"layers": []}

    async def warm(self, select: protocol.Selection, *, wait: bool, progress: Any) -> dict[str, Any]:
        progress(1, 1, "bytes")
        return {"spans": 0}

    async def defer(self, select: protocol.Selection) -> dict[str, Any]:
        return {"spans": 0}

    async def pin(self, select: protocol.Selection, *, release: bool) -> dict[str, Any]:
        return {"spans": 0}

    def plan(self) -> dict[str, Any]:
        return {"bytes": 0}

    def save(self) -> None:
        self.saved += 1

    def close(self) -> None:
        self._made.close()
        assert self._made.open_sessions == 0


if __name__ == "__main__":
    import os
    import sys

    from hearthd.daemon import cli

    pause = float(os.environ.get("FAKE_PAUSE", "0"))
    sys.exit(cli.main([*sys.argv[1:], "fake"], open_hearth=lambda config: Hearth(config, pause)))
