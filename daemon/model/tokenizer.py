"""Text to token ids and back, from GGUF metadata: byte-level BPE and SentencePiece.

Owns vocabularies, special tokens and streaming detokenisation. It changes text only where the model's own tokenizer
does (NFC, see pretokenizers.py) and knows nothing of chats; its tables are made when first needed, so that opening a
model does not wait for them.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any
from unicodedata import normalize

from hearthd.cyext.bpe import MissingByte, Vocabulary

from .merges import NEVER, merge
from .pretokenizers import KNOWN, PreTokenizer

# Values of tokenizer.ggml.token_type (gguf's TokenType).
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

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
_CACHED_WORDS = 1 << 16
_CACHED_LENGTH = 48


class TokenizerError(ValueError):
    """Metadata that makes no tokenizer, a token id outside the vocabulary, or text that it cannot express."""


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

    def __init__(self, metadata: Mapping[str, Any], *, add_bos: bool) -> None:
        self._tokens = _array(metadata, "tokens", 0)
        self.n_vocab = len(self._tokens)
        self._types = _array(metadata, "token_type", self.n_vocab) if "tokenizer.ggml.token_type" in metadata else None
        self._ids = {
            role: self._special_id(metadata, role) for role in ("bos", "eos", "eot", "eom", "unknown", "padding")
        }
        self.bos: int | None = self._ids["bos"]
        self.eos: int | None = self._ids["eos"]
        self.add_bos = bool(metadata.get("tokenizer.ggml.add_bos_token", add_bos)) and self.bos is not None
        self._end_names = _END_NAMES
        self._pieces: dict[int, bytes] = {}
        self.warnings: tuple[str, ...] = ()  # what a user should be told about this tokenizer

    @staticmethod
    def from_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
        """Make the tokenizer that `tokenizer.ggml.model` and `tokenizer.ggml.pre` name.

        Arrays may be lists or objects with `tolist()`; they are read when first needed. Raises TokenizerError.
        """
        model = metadata.get("tokenizer.ggml.model")
        if model == "gpt2":
            return ByteLevelBPE(metadata)
        if model == "llama":
            return SentencePiece(metadata)
        raise TokenizerError(f"tokenizer.ggml.model is {model!r}; known: gpt2 (byte-level BPE), llama (SentencePiece)")

    # --- text to ids

    def encode(self, text: str, special: bool = True, bos: bool | None = None) -> list[int]:
        """The token ids of `text`. A lone surrogate counts as U+FFFD.

        `special`: names of control tokens in the text become these tokens (user-defined tokens always do).
        `bos`: True puts the BOS token in front, False does not; None does what the metadata says, but never doubles one
        with which the text itself begins.
        """
        text = _without_surrogates(text)
        ids: list[int] = []
        pattern = self._special_pattern if special else self._user_pattern
        end = 0
        if pattern is not None:
            for match in pattern.finditer(text):
                if match.start() > end:
                    self._encode_text(text[end : match.start()], ids)
                ids.append(self._special_ids[match.group()])
                end = match.end()
        if end < len(text):
            self._encode_text(text[end:], ids)
        if bos is None:
            bos = self.add_bos and ids[:1] != [self.bos]
        if bos:
            if self.bos is None:
                raise TokenizerError("this model has no BOS token")
            ids.insert(0, self.bos)
        return ids

    def _encode_text(self, text: str, ids: list[int]) -> None:
        raise TypeError("made by Tokenizer.from_metadata")

    # --- ids to text

    def decode(self, ids: Iterable[int], special: bool = True) -> str:
        """The text of `ids`, U+FFFD for what is not UTF-8. `special`: show control tokens by their names."""
        hidden = frozenset() if special else self.hidden
        return b"".join(self.piece(token) for token in ids if token not in hidden).decode("utf-8", "replace")

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
        _ = self.end_of_generation, self.hidden

    @cached_property
    def types(self) -> list[int]:
        if self._types is None:
            return [NORMAL] * self.n_vocab
        types = _as_list(self._types)
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
        if self._types is not None:
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
    def _special_pattern(self) -> re.Pattern[str] | None:
        return _any_of(self._special_ids)

    @cached_property
    def _user_pattern(self) -> re.Pattern[str] | None:
        return _any_of(text for text, token in self._special_ids.items() if self.types[token] == USER_DEFINED)

    def _special_id(self, metadata: Mapping[str, Any], role: str) -> int | None:
        token = metadata.get(f"tokenizer.ggml.{role}_token_id")
        # 0xFFFFFFFF is how some files say that there is none.
        return token if isinstance(token, int) and 0 <= token < self.n_vocab else None


class ByteLevelBPE(Tokenizer):
    """tokenizer.ggml.model = gpt2: words, then bytes as printable characters, then merges by rank."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        name = metadata.get("tokenizer.ggml.pre")
        if name is not None and name not in KNOWN:
            raise TokenizerError(
                f"unknown pre-tokenizer tokenizer.ggml.pre = {name!r}; known: {', '.join(sorted(KNOWN))}"
            )
        self.pre: PreTokenizer = KNOWN[name or "default"]
        super().__init__(metadata, add_bos=self.pre.add_bos)
        if name is None:
            self.warnings = ("no tokenizer.ggml.pre in the metadata: text is cut by a default, answers may be worse",)
        if name in ("glm4", "glm5", "chatglm-bpe"):
            self._end_names = _END_NAMES | _END_NAMES_GLM
        self._merges = _array(metadata, "merges", 0)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(_as_bytes(self._tokens), _as_bytes(self._merges))

    def find(self, text: str) -> int | None:
        return self._vocabulary.find(text)

    def _encode_text(self, text: str, ids: list[int]) -> None:
        if self.pre.composed:
            text = normalize("NFC", text)
        words = self.pre.split()(text)
        try:
            ids += self._vocabulary.encode(words, self.pre.ignore_merges, self._ids["unknown"])
        except MissingByte as error:
            raise TokenizerError(f"the vocabulary has no token for byte {error.byte:#04x} of the text") from None

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

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        super().__init__(metadata, add_bos=True)
        self._scores = _array(metadata, "scores", self.n_vocab)
        self._space_prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
        self._words: dict[str, tuple[int, ...]] = {}

    @cached_property
    def _known(self) -> dict[str, int]:
        return dict(zip(_as_list(self._tokens), range(self.n_vocab), strict=True))

    def find(self, text: str) -> int | None:
        return self._known.get(text)

    @cached_property
    def _costs(self) -> dict[str, float]:
        kinds = (NORMAL, USER_DEFINED)  # text never turns into the others by merging
        entries = zip(_as_list(self._tokens), self.types, _as_list(self._scores), strict=False)
        return {text: -score for text, kind, score in entries if kind in kinds}

    def _cost(self, left: str, right: str) -> float:
        return self._costs.get(left + right, NEVER)

    @cached_property
    def _cut(self) -> re.Pattern[str] | None:
        """Cuts text before each run of spaces, if no token reaches over such a place: then merges cannot either."""
        inside = re.compile("[^▁]▁")
        return None if any(map(inside.search, self._costs)) else re.compile("▁*[^▁]+|▁+")

    def _encode_text(self, text: str, ids: list[int]) -> None:
        text = text.replace(" ", "▁")
        if self._space_prefix:  # a piece of text always stands at the start or after a special token
            text = "▁" + text
        for word in self._cut.findall(text) if self._cut is not None else [text]:
            found = self._words.get(word)
            if found is None:
                found = self._encode_word(word)
                if len(word) <= _CACHED_LENGTH:
                    if len(self._words) >= _CACHED_WORDS:
                        self._words.clear()
                    self._words[word] = found
            ids += found

    def _encode_word(self, word: str) -> tuple[int, ...]:
        ids: list[int] = []
        for symbol in merge(list(word), self._cost):
            if symbol in self._costs:
                ids.append(self._known[symbol])
                continue
            for byte in symbol.encode():
                token = self._known.get(f"<0x{byte:02X}>", self._ids["unknown"])
                if token is None:
                    raise TokenizerError(f"the vocabulary has no token for {symbol!r}")
                ids.append(token)
        return tuple(ids)

    def decode(self, ids: Iterable[int], special: bool = True) -> str:
        hidden = frozenset() if special else self.hidden
        prefix = self._space_prefix
        parts = []
        for token in ids:
            piece = self.piece(token)
            named = self.types[token] in (CONTROL, USER_DEFINED)
            if prefix and not named and piece.startswith(b" "):
                piece = piece[1:]
            prefix = self._space_prefix and named
            if token not in hidden:
                parts.append(piece)
        return b"".join(parts).decode("utf-8", "replace")

    def _make_piece(self, text: str, kind: int) -> bytes:
        if kind == BYTE and (match := _BYTE_NAME.fullmatch(text)):
            return bytes.fromhex(match[1])
        return (text.replace("▁", " ") if kind == NORMAL else text).encode()


def _array(metadata: Mapping[str, Any], name: str, least: int) -> Any:
    """An array of the metadata with at least so many elements."""
    array: Any = metadata.get(f"tokenizer.ggml.{name}")
    if not hasattr(array, "__len__") or isinstance(array, str | bytes):
        raise TokenizerError(f"the metadata holds no array tokenizer.ggml.{name}")
    if len(array) < least:
        raise TokenizerError(f"tokenizer.ggml.{name} has {len(array)} elements for {least} tokens")
    return array


def _as_list(array: Any) -> list[Any]:
    return array.tolist() if hasattr(array, "tolist") else list(array)


def _as_bytes(array: Any) -> list[bytes]:
    """Strings as the file has them, from an array that can tell, else encoded."""
    return array.bytes() if hasattr(array, "bytes") else [text.encode() for text in _as_list(array)]


def _any_of(texts: Iterable[str]) -> re.Pattern[str] | None:
    """Matches any of `texts`, of several that begin at one place the longest."""
    ordered: Sequence[str] = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered))) if ordered else None


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _spelled_bytes() -> dict[str, int]:
    """Character -> the byte that it spells, as in GPT-2's encoder.py: itself where it prints, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = sorted(set(range(256)).difference(printable))
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTES = _spelled_bytes()
