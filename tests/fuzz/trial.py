"""One file put before the daemon's own code, in this process: it is refused in good form, or answers alike three times.

Owns what is a fault and what is none. Goes the way of the daemon: the model is opened, prepared, asked, closed.
"""

from __future__ import annotations

import contextlib
import os
import re
import traceback
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import trio
from hearthd.daemon.config import Config, ConfigError
from hearthd.daemon.hearth import Hearth
from hearthd.daemon.model import architectures
from hearthd.daemon.model.gguf import ModelError

from tests.opened import stepped

PROMPT = np.array([5, 6, 7, 8, 9], np.int32)
OTHER = np.array([11, 3, 12, 4, 10, 2, 1], np.int32)
TOKENS = 4  # of an answer
CONTEXT = 64
TEXT = "Once upon a time 123 \u65e5\u672c <x> \n\n  end."

Kind = Literal["served", "refused", "unnamed", "unequal", "not finite", "traceback", "signal", "slow", "memory"]
GOOD = ("served", "refused")

# What names a key or a tensor: a refusal has to have one of them, or say of a key's name itself that it cannot be read.
_KEY = re.compile(
    r"\b(?:general|tokenizer|split|quantize|(?:" + "|".join(map(re.escape, architectures.KNOWN)) + r"))\.[a-z][\w.]*",
    re.IGNORECASE,  # a mutation changes the case of a key's name
)
_TENSOR = re.compile(
    r"\bkey's name\b|\btensor \S+|\bblk\.\d+\.\w+|\b(?:token_embd|output|output_norm|rope_\w+)\.weight"
)


class Outcome(NamedTuple):
    """What became of a file; `where` is the same for faults that look the same."""

    kind: Kind
    text: str = ""
    where: str = ""


class Wrong(Exception):
    """An answer that is none."""

    def __init__(self, kind: Kind, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def trial(path: Path, *, isa: str | None = None) -> Outcome:
    """Open the model, ask it, close it."""
    try:
        ask_all(path, isa)
    except (ModelError, ConfigError) as error:
        return refusal(str(error), path)
    except Wrong as error:
        return Outcome(error.kind, str(error))
    except Exception as error:
        first: BaseException = error
        while isinstance(first, BaseExceptionGroup):  # a nursery's
            first = first.exceptions[0]
        return refusal(str(first), path) if isinstance(first, ModelError | ConfigError) else fault(first)
    return Outcome("served")


def refusal(text: str, path: Path) -> Outcome:
    """Good, if the text has the name of a key or tensor beside the file's."""
    text = text.replace(os.fspath(path.parent), "")
    if _KEY.search(text) or _TENSOR.search(text):
        return Outcome("refused", text)
    return Outcome("unnamed", text, re.sub(r"\d+|'[^']*'|/\S+", "_", text)[:100])


def fault(error: BaseException) -> Outcome:
    """An exception that nobody should see, and the last place of ours that it came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "fuzz/trial.py" not in frame.filename]
    place = ([frame for frame in frames if ours(frame.filename)] or frames)[-1] if frames else None
    where = f"{type(error).__name__} {os.path.basename(place.filename)}:{place.name}" if place else type(error).__name__
    text = "".join(traceback.format_exception(error))
    return Outcome("traceback", f"{type(error).__name__}: {error}"[:300] + "\n" + text[-3000:], where)


def ours(filename: str) -> bool:
    """Whether a stack's file is hearthd's, wherever that is installed."""
    return "/daemon/" in filename or "hearthd/" in filename or filename.endswith(".pyx")


def ask_all(path: Path, isa: str | None) -> None:
    """Raises ModelError, ConfigError, Wrong; anything else is a fault."""
    state = os.fspath(path.parent / "state")
    config = Config(model=os.fspath(path), threads=1, context=CONTEXT, batch=16, sessions=1, state_directory=state)
    hearth = Hearth(config)
    try:
        trio.run(hearth.prepare)
        _ask_about(hearth)
        _ask(hearth)
    finally:
        hearth.close()


def _ask_about(hearth: Any) -> None:
    """What a client can ask without the engine."""
    tokenizer = hearth.tokenizer
    found = list(tokenizer.encode(TEXT))
    if not all(0 <= token < tokenizer.n_vocab for token in found):
        raise Wrong("unequal", f"the tokenizer made tokens beyond its vocabulary of {tokenizer.n_vocab}: {found}")
    if not isinstance(tokenizer.decode(found), str):
        raise Wrong("unequal", "decoded tokens are no text")
    if hearth.template is not None:
        with contextlib.suppress(Exception):  # a template is the model's program: a request that it fails is told so
            hearth.template.render([{"role": "user", "content": "hi"}], tools=None, add_generation_prompt=True)
    hearth.options()


def _ask(hearth: Any) -> None:
    """Three greedy answers: twice alike, bit for bit, with another between them that leaves its values behind; then
    with the prompt in two steps, which may differ as rounding does, but must be finite."""
    engine = hearth.engine
    vocabulary = engine.hyper.n_vocab
    prompt = PROMPT[: max(1, engine.context - TOKENS)] % vocabulary
    first = _answer(engine, prompt, len(prompt))
    _answer(engine, OTHER[: engine.context] % vocabulary, len(OTHER))
    again = _answer(engine, prompt, len(prompt))
    if not np.array_equal(first, again):
        raise Wrong("unequal", f"the same request was answered {_tokens(first)} and {_tokens(again)}, logits differ by "
                    f"{np.abs(first - again).max():g}")  # fmt: skip
    _answer(engine, prompt, 2)


def _answer(engine: Any, prompt: np.ndarray, chunk: int) -> np.ndarray:
    """Logits [n, n_vocab], each of the likeliest token before; n is TOKENS where the context has room for them."""
    session = engine.new_session()
    try:
        found = []
        step = None
        for at in range(0, len(prompt), chunk):
            (step,) = stepped(engine, (session, prompt[at : at + chunk], "last"))
        while True:
            assert step is not None
            if not np.isfinite(step).all():
                raise Wrong("not finite", f"logits after {session.length} tokens: {int((~np.isfinite(step)).sum())} of "
                            f"{step.size} are not finite")  # fmt: skip
            found.append(step[-1].copy())
            if len(found) == TOKENS or session.length == engine.context:
                return np.array(found)
            (step,) = stepped(engine, (session, np.array([step[-1].argmax()], np.int32), "last"))
    finally:
        session.close()


def _tokens(logits: np.ndarray) -> list[int]:
    return [int(token) for token in logits.argmax(axis=1)]
