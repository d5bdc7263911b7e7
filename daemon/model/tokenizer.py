"""Text to token ids and back, from GGUF metadata: byte-level BPE and SentencePiece.

Owns vocabularies, special tokens and streaming detokenisation. It changes text only where the model's own tokenizer
does (NFC, see pretokenizers.py) and knows nothing of chats; its tables are made when first needed, so that opening a
model does not wait for them.
"""

from __future__ import annotations

import codecs
import re
from array import array
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from sys import maxsize
from typing import TYPE_CHECKING, Any

from hearthd.cyext.bpe import Vocabulary
from hearthd.cyext.names import Names
from hearthd.cyext.sentence import SentenceVocabulary

from .composition import composed
from .pretokenizers import KNOWN, PreTokenizer
from .vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    Declared,
    TokenizerError,
    check,
)

if TYPE_CHECKING:
    from .hyper import Array, Metadata

__all__ = ["Detokenizer", "TextTooLong", "Tokenizer", "TokenizerError", "check"]

# Names that end an answer whatever the metadata says; the list follows llama.cpp's llama-vocab.cpp.
_END_NAMES = frozenset(
    """
    <|im_end|> <|eot_id|> <|eom_id|> <|endoftext|> <|end_of_text|> <|end|> <|return|> <|call|> <|calls|> <|flush|>
    <end_of_turn> <end_of_utterance> <eos> </s> <EOT> [EOT] [EOS] [e~[ <｜end▁of▁sentence｜>
    <|fim_pad|> <|repo_name|> <|fim_repo|> <|file_sep|> <fim_pad> <reponame>
    """.split()  # noqa: SIM905
)
# A GLM model ends its turn by naming who speaks next.
_END_NAMES_GLM = frozenset(("<|user|>", "<|observation|>"))
# What tells thoughts and calls of tools from the answer's text. Some vocabularies have these as control tokens (Kimi
# K2 even <think>), yet a reader cannot do without them.
_SHOWN_NAMES = frozenset(
    """
    <|channel|> <|message|> <|start|> <|constrain|> <|end|>
    <think> </think> <tool_call> </tool_call> <|python_tag|> [THINK] [/THINK] [TOOL_CALLS] [CALL_ID] [ARGS]
    <|tool_calls_section_begin|> <|tool_calls_section_end|> <|tool_call_begin|> <|tool_call_argument_begin|>
    <|tool_call_end|>
    <｜tool▁calls▁begin｜> <｜tool▁calls▁end｜> <｜tool▁call▁begin｜> <｜tool▁call▁end｜> <｜tool▁sep｜>
    """.split()  # noqa: SIM905
)

_BYTE_NAME = re.compile("<0x([0-9A-Fa-f]{2})>")  # how SentencePiece spells a byte

_PIECE = 1 << 14  # characters, words or tokens that one uninterruptible call handles: some milliseconds of the GIL


class TextTooLong(TokenizerError):
    """Text of more tokens than the caller has room for: that much is certain, how many there are is not known.

    Also text of which more than eight million bytes would have to be merged as one word, whatever the room.
    """


class Detokenizer:
    """Turns a stream of token ids into text, whole characters at a time."""

    def __init__(self, tokenizer: Tokenizer, special: bool) -> None:
        self._tokenizer = tokenizer
        self._hidden = frozenset() if special else tokenizer.hidden
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The characters that `token` completes; often all of its text, sometimes none.

        Bytes that can never become a character are given as U+FFFD at once. Raises TokenizerError for an id outside
        the vocabulary.
        """
        piece = self._tokenizer.piece(token)
        return "" if token in self._hidden else self._decoder.decode(piece)

    def flush(self) -> str:
        """What is left: U+FFFD for a character that never became whole. The detokenizer can be used again."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


class Tokenizer:
    """One model's tokenizer. Made by `from_metadata`; safe to share between threads after `prepare`."""

    def __init__(self, declared: Declared, *, add_bos: bool) -> None:
        self._declared = declared
        self._tokens = declared.tokens
        self.n_vocab = len(self._tokens)
        self._ids = declared.ids
        self.bos: int | None = self._ids["bos"]
        self.eos: int | None = self._ids["eos"]
        self.add_bos = (add_bos if declared.add_bos is None else declared.add_bos) and self.bos is not None
        self._end_names = _END_NAMES
        self._pieces: dict[int, bytes] = {}
        self.warnings: tuple[str, ...] = ()  # what a user should be told about this tokenizer; all after `prepare`

    @staticmethod
    def from_metadata(metadata: Metadata) -> Tokenizer:
        """Make the tokenizer that `tokenizer.ggml.model` and `tokenizer.ggml.pre` name.

        Arrays may be lists or objects with `tolist()`; strings are read when first needed. Raises TokenizerError.
        """
        declared = Declared.read(metadata)
        return ByteLevelBPE(declared) if declared.model == "gpt2" else SentencePiece(declared)

    # --- text to ids

    def encode(
        self, text: str, special: bool = True, bos: bool | None = None, limit: int | None = None
    ) -> list[int]:
        """The token ids of `text`. A lone surrogate counts as U+FFFD; a byte that no token spells is left out.

        `special`: names of control tokens in the text become these tokens (user-defined tokens always do).
        `bos`: True puts the BOS token in front, False does not; None does what the metadata says, but never doubles one
        with which the text itself begins.
        `limit`: TextTooLong is raised as soon as it is certain that there are more ids than that.
        """
        return self.ids(text, special, bos, limit).tolist()

    def ids(
        self, text: str, special: bool = True, bos: bool | None = None, limit: int | None = None
    ) -> array[int]:
        """As `encode`, in an array of int32: a million of Python's numbers would take ten times the memory."""
        if bos and self.bos is None:
            raise TokenizerError("this model has no BOS token")
        most = maxsize if limit is None else limit
        ids = array("i")
        raw = _utf8(text)
        names = self._special_names if special else self._user_names
        end, whole = 0, True
        while whole and (found := names.find(raw, end)) is not None:
            if found[0] > end:
                whole = self._encode_text(raw[end : found[0]].decode(), ids, most - len(ids))
            ids.append(found[2])
            whole = whole and len(ids) <= most
            end = found[1]
        if whole and end < len(raw):
            whole = self._encode_text(raw[end:].decode() if end else raw.decode(), ids, most - len(ids))
        if self.bos is not None and (bos or (bos is None and self.add_bos and not (ids and ids[0] == self.bos))):
            ids.insert(0, self.bos)
        if not whole or len(ids) > most:
            more = f"more than {limit} tokens" if limit is not None else "a word of millions of letters"
            raise TextTooLong(f"the text has {more}")
        return ids

    def _encode_text(self, text: str, ids: array[int], limit: int) -> bool:
        """Append the ids of text without special tokens; False as soon as they are known to be more than `limit`."""
        raise TypeError("made by Tokenizer.from_metadata")

    # --- ids to text

    def decode(self, ids: Iterable[int], special: bool = True) -> str:
        """The text of `ids`, U+FFFD for what is not UTF-8. `special`: show control tokens by their names."""
        hidden = frozenset() if special else self.hidden
        return _text(self._shown(ids, hidden))

    def _shown(self, ids: Iterable[int], hidden: frozenset[int]) -> Iterator[bytes]:
        return (self.piece(token) for token in ids if token not in hidden)

    def stream(self, special: bool = False) -> Detokenizer:
        """A detokenizer for ids that come one by one; control tokens are left out unless `special`."""
        return Detokenizer(self, special)

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for. Raises TokenizerError outside the vocabulary."""
        found = self._pieces.get(token)
        if found is None:
            found = self._pieces[token] = self._make_piece(self.text(token), self.types[token])
        return found

    def _make_piece(self, text: str, kind: int) -> bytes:
        raise TypeError("made by Tokenizer.from_metadata")

    def text(self, token: int) -> str:
        """A token as the vocabulary spells it. Raises TokenizerError outside the vocabulary."""
        if not 0 <= token < self.n_vocab:
            raise TokenizerError(f"token {token} is outside the vocabulary of {self.n_vocab}")
        return str(self._tokens[token])

    def find(self, text: str) -> int | None:
        """The id of a token as the vocabulary spells it, or None."""
        raise TypeError("made by Tokenizer.from_metadata")

    # --- tables, made when first needed

    def prepare(self) -> None:
        """Make every table now (in a worker thread, say) instead of at the first request."""
        self.encode("prepare 1", bos=False)
        _ = self.end_of_generation, self.hidden, self._user_names

    @cached_property
    def types(self) -> list[int]:
        if self._declared.types is None:
            return [NORMAL] * self.n_vocab
        types = [kind or NORMAL for kind in _as_list(self._declared.types)]
        # Some converters forget the type of an end token; as a normal token a chat would never end.
        for name in self._end_names:
            token = self.find(name)
            if token is not None and types[token] == NORMAL and name.startswith("<|"):
                types[token] = CONTROL
        return types

    @cached_property
    def _unusual(self) -> list[tuple[int, int]]:
        """Token and type of all that are not normal: a few hundred of some 150,000."""
        return [(token, kind) for token, kind in enumerate(self.types) if kind != NORMAL]

    @cached_property
    def hidden(self) -> frozenset[int]:
        """Tokens that are no part of an answer's text: control, unknown and unused ones."""
        shown = {self.find(name) for name in _SHOWN_NAMES} - self.end_of_generation
        return frozenset(
            token for token, kind in self._unusual if kind in (CONTROL, UNKNOWN, UNUSED) and token not in shown
        )

    @cached_property
    def end_of_generation(self) -> frozenset[int]:
        """Tokens that end an answer: those that the metadata names, and the usual ones by name."""
        named = {name: token for name in self._end_names if (token := self.find(name)) is not None}
        if self._declared.types is not None:
            named = {name: token for name, token in named.items() if self.types[token] != NORMAL}
        if {"<|return|>", "<|call|>"} <= named.keys() or {"<|calls|>", "<|flush|>"} <= named.keys():
            named.pop("<|end|>", None)  # there it ends a message, not the turn
        declared = (self._ids[role] for role in ("eos", "eot", "eom"))
        return frozenset(named.values()) | {token for token in declared if token is not None}

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        kinds = (CONTROL, USER_DEFINED, UNKNOWN)
        special = {self.text(token): token for token, kind in self._unusual if kind in kinds}
        special.pop("", None)
        return special

    @cached_property
    def _special_names(self) -> Names:
        return Names([(_utf8(name), token) for name, token in self._special_ids.items()])

    @cached_property
    def _user_names(self) -> Names:
        chosen = (entry for entry in self._special_ids.items() if self.types[entry[1]] == USER_DEFINED)
        return Names([(_utf8(name), token) for name, token in chosen])


class ByteLevelBPE(Tokenizer):
    """tokenizer.ggml.model = gpt2: words, then bytes as printable characters, then merges by rank."""

    def __init__(self, declared: Declared) -> None:
        name = declared.pre
        self.pre: PreTokenizer = KNOWN[name or "default"]
        super().__init__(declared, add_bos=self.pre.add_bos)
        if name is None:
            self.warnings = ("no tokenizer.ggml.pre in the metadata: text is cut by a default, answers may be worse",)
        if name in ("glm4", "glm5", "chatglm-bpe"):
            self._end_names = _END_NAMES | _END_NAMES_GLM

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(_as_bytes(self._tokens), _as_bytes(self._declared.merges))

    def prepare(self) -> None:
        super().prepare()
        merges = len(self._declared.merges)
        if self._vocabulary.skipped * 2 > merges:
            text = f"{self._vocabulary.skipped} of {merges} in tokenizer.ggml.merges join no tokens: prompts get long"
            self.warnings += (text,)

    def find(self, text: str) -> int | None:
        return self._vocabulary.find(text)

    def _encode_text(self, text: str, ids: array[int], limit: int) -> bool:
        if self.pre.composed:
            text = composed(text)
        if limit < maxsize and len(text) // self._vocabulary.reach > limit:
            return False
        words = self.pre.split()(text)
        room = limit
        for batch in _batches(words):
            found = self._vocabulary.encode(batch, self.pre.ignore_merges, room)
            if found is None:
                return False
            ids.frombytes(found)
            room -= len(found) // ids.itemsize
        return True

    def _make_piece(self, text: str, kind: int) -> bytes:
        if kind in (NORMAL, BYTE):
            try:
                return bytes(map(_BYTES.__getitem__, text))
            except KeyError:  # an added token that was written as plain text
                pass
        return text.encode()


class SentencePiece(Tokenizer):
    """tokenizer.ggml.model = llama: characters merged by score, bytes for what the vocabulary lacks.

    A space is spelled U+2581, and one is put in front of text (at the start, and after a special token) unless
    tokenizer.ggml.add_space_prefix says no; `decode` takes it away again. Source: sentencepiece's BPE model and
    llama.cpp's llama-vocab.cpp.
    """

    def __init__(self, declared: Declared) -> None:
        super().__init__(declared, add_bos=True)
        self._space_prefix = declared.space_prefix

    @cached_property
    def _known(self) -> dict[str, int]:
        return dict(zip(_as_list(self._tokens), range(self.n_vocab), strict=True))

    def find(self, text: str) -> int | None:
        return self._known.get(text)

    @cached_property
    def _vocabulary(self) -> SentenceVocabulary:
        kinds = (NORMAL, USER_DEFINED)  # text never turns into the others by merging
        entries = zip(_as_bytes(self._tokens), self.types, _as_list(self._declared.scores), strict=True)
        tokens = [(text, token, score) for token, (text, kind, score) in enumerate(entries) if kind in kinds]
        spelled = {byte: token for byte in range(256) if (token := self.find(f"<0x{byte:02X}>")) is not None}
        return SentenceVocabulary(tokens, spelled, self._ids["unknown"])

    def _encode_text(self, text: str, ids: array[int], limit: int) -> bool:
        text = text.replace(" ", "▁")
        if self._space_prefix:  # a piece of text always stands at the start or after a special token
            text = "▁" + text
        found = self._vocabulary.encode(text.encode(), limit)
        if found is None:
            return False
        ids.frombytes(found)
        return True

    def decode(self, ids: Iterable[int], special: bool = True) -> str:
        hidden = frozenset() if special else self.hidden
        return _text(self._without_prefixes(ids, hidden))

    def _without_prefixes(self, ids: Iterable[int], hidden: frozenset[int]) -> Iterator[bytes]:
        prefix = self._space_prefix
        for token in ids:
            piece = self.piece(token)
            named = self.types[token] in (CONTROL, USER_DEFINED)
            if prefix and not named and piece.startswith(b" "):
                piece = piece[1:]
            prefix = self._space_prefix and named
            if token not in hidden:
                yield piece

    def _make_piece(self, text: str, kind: int) -> bytes:
        if kind == BYTE and (match := _BYTE_NAME.fullmatch(text)):
            return bytes.fromhex(match[1])
        return (text.replace("▁", " ") if kind == NORMAL else text).encode()


def _as_list(given: Array) -> list[Any]:
    return given.tolist() if hasattr(given, "tolist") else list(given)


def _as_bytes(given: Array) -> list[bytes]:
    """Strings as the file has them, from an array that can tell, else encoded."""
    return given.bytes() if hasattr(given, "bytes") else [_utf8(text) for text in _as_list(given)]


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:  # lone surrogates
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _text(pieces: Iterator[bytes]) -> str:
    """The text of bytes, a part at a time: others have a turn between the parts."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    parts = []
    while batch := list(islice(pieces, _PIECE)):
        parts.append(decoder.decode(b"".join(batch)))
    return "".join(parts) + decoder.decode(b"", final=True)


def _batches(words: Iterable[str]) -> Iterator[list[str]]:
    """Words together, and no more of them than there need be when they come one by one."""
    if isinstance(words, list):
        yield words
        return
    found = iter(words)
    while batch := list(islice(found, _PIECE)):
        yield batch


def _spelled_bytes() -> dict[str, int]:
    """Character -> the byte that it spells, as in GPT-2's encoder.py: itself where it prints, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)).difference(printable))
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTES = _spelled_bytes()
