"""Tokenizers against their makers' ids, round trips of any text, and what a reader sees while tokens stream."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hearthd.cyext import bpe, gguf_header
from hearthd.daemon.model import merges
from hearthd.daemon.model.pretokenizers import KNOWN
from hearthd.daemon.model.tokenizer import Tokenizer, TokenizerError
from hypothesis import given, settings
from hypothesis import strategies as st

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# Lone surrogates are no text; the tokenizer replaces them.
TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=80)


def byte_level(pre="gpt-2", merged=(), special=(), **more):
    """A vocabulary of all bytes, the given merges and special tokens (text, type)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    tokens = [chr(c) for c in printable] + [chr(0x100 + i) for i in range(256 - len(printable))]
    tokens += [pair.replace(" ", "") for pair in merged]
    types = [NORMAL] * len(tokens) + [kind for _, kind in special]
    tokens += [text for text, _ in special]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": list(merged),
    }
    return Tokenizer.from_metadata(metadata | {f"tokenizer.ggml.{name}": value for name, value in more.items()})


def sentence_piece(pieces, special=(), **more):
    entries = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    entries += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    entries += [(text, score, NORMAL) for text, score in pieces] + [(text, 0.0, kind) for text, kind in special]
    texts, scores, types = zip(*entries, strict=True)
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(texts),
        "tokenizer.ggml.scores": list(scores),
        "tokenizer.ggml.token_type": list(types),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    return Tokenizer.from_metadata(metadata | {f"tokenizer.ggml.{name}": value for name, value in more.items()})


LLAMA = [("▁", -50.0), ("▁▁", -5.0), ("▁h", -1.0), ("el", -2.0), ("lo", -3.0), ("▁hel", -4.0), ("▁hello", -6.0)]
LLAMA += [(letter, -100.0) for letter in "helowrd,"]


def spelled(tokenizer, text, **options):
    return [tokenizer.text(token) for token in tokenizer.encode(text, **options)]


@pytest.mark.parametrize("name", ["gpt-2", "qwen2", "llama-bpe"])
def test_published_ids(models_dir, name):
    path = models_dir / "vocab" / f"ggml-vocab-{name}.gguf"
    if not path.exists():
        pytest.skip(f"no {path}")
    tokenizer = Tokenizer.from_metadata(gguf_header.parse(path).metadata)
    inputs, outputs = (path.with_name(path.name + end) for end in (".inp", ".out"))
    # newline="" keeps the carriage returns that some texts hold.
    with inputs.open(encoding="utf-8", newline="") as file:
        texts = file.read().split("\n__ggml_vocab_test__\n")
    expected = [[int(token) for token in line.split()] for line in outputs.read_text().splitlines()]
    got = [tokenizer.encode(text, bos=False) for text in texts[: len(expected)]]
    assert got == expected
    assert [tokenizer.decode(ids) for ids in got] == texts[: len(expected)]


def test_trained_model_prompts(models_dir):
    path = models_dir / "tinystories" / "tinystories-moe-Q4_K_M.gguf"
    if not path.exists():
        pytest.skip(f"no {path}")
    tokenizer = Tokenizer.from_metadata(gguf_header.parse(path).metadata)
    for prompt in json.loads((path.parent / "reference.json").read_text(encoding="utf-8"))["prompts"]:
        assert tokenizer.encode(prompt["prompt"]) == prompt["tokens"]


@pytest.mark.parametrize("pre", sorted({kind.patterns: name for name, kind in KNOWN.items()}.values()))
def test_cut_of_any_text_loses_nothing(pre):
    split = KNOWN[pre].split()

    @settings(max_examples=40, deadline=None)
    @given(TEXT)
    def whole(text):
        assert "".join(split(text)) == text

    whole()


@pytest.mark.parametrize(
    ("pre", "text", "words"),
    [
        ("gpt-2", "I'll go  2 12345!", ["I", "'ll", " go", " ", " 2", " 12345", "!"]),
        ("qwen2", "I'LL go  2 12\n\n x", ["I", "'LL", " go", " ", " ", "2", " ", "1", "2", "\n\n", " x"]),
        ("llama-bpe", "We'Ve 12345\r\n", ["We", "'Ve", " ", "123", "45", "\r\n"]),
        ("glm4", "We'Ve 12345\r\n", ["We", "'Ve", " ", "123", "45", "\r\n"]),
        ("qwen35", "aि bि12", ["aि", " bि", "1", "2"]),
        ("gpt-4o", "CamelCase don't 1234 a//\n", ["Camel", "Case", " don't", " ", "123", "4", " a", "//\n"]),
        ("tekken", "CamelCase 12", ["Camel", "Case", " ", "1", "2"]),
        ("kimi-k2", "abc中文abc 12", ["abc", "中文", "abc", " ", "12"]),
        ("deepseek-v3", "(abc 中文かな 1234 ok.", ["(abc", " ", "中文かな", " ", "123", "4", " ok", "."]),
        ("deepseek-llm", "abc, 中文 12\n", ["abc", ",", " ", "中文", " ", "12", "\n"]),
    ],
)
def test_cut(pre, text, words):
    assert KNOWN[pre].split()(text) == words


def test_cuts_as_the_models_own_tokenizers_cut():
    """pretokens.json: lengths of the words into which the published pre-tokenizers (tokenizer.json of DeepSeek-V3,
    gpt-oss, Llama 3, Qwen3, OLMo and OLMo 2, tekken.json of Mistral Nemo, Kimi K2's tokenization_kimi.py, GLM 4's
    and Command R's) cut hard texts."""
    published = json.loads((Path(__file__).parent / "pretokens.json").read_text(encoding="utf-8"))
    for pre, rows in published["lengths"].items():
        split = KNOWN[pre].split()
        for text, lengths in zip(published["texts"], rows, strict=True):
            assert [len(word) for word in split(text)] == lengths, (pre, text, split(text))


@pytest.mark.parametrize(
    "pre", ["gpt-2", "qwen2", "llama-bpe", "gpt-4o", "deepseek-v3", "deepseek-llm", "kimi-k2", "qwen35"]
)
def test_agrees_with_the_tokenizers_package(pre):
    package = pytest.importorskip("tokenizers")
    merged = ["h e", "he l", "Ġ t", "l o", "Ġt he", "1 2", "Ċ Ċ", "e r", "' s"]
    tokenizer = byte_level(pre, merged)
    model = package.models.BPE(
        {tokenizer.text(token): token for token in range(tokenizer.n_vocab)},
        [tuple(pair.split()) for pair in merged],
        ignore_merges=KNOWN[pre].ignore_merges,
    )
    other = package.Tokenizer(model)
    cuts = [
        package.pre_tokenizers.Split(package.Regex(pattern), behavior="isolated") for pattern in KNOWN[pre].patterns
    ]
    byte_level_step = package.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    other.pre_tokenizer = package.pre_tokenizers.Sequence([*cuts, byte_level_step])

    @settings(max_examples=100, deadline=None)
    @given(st.text(alphabet="hel tor's12\n\r.,/AÉß中か ि\t🦙", max_size=40))
    def agree(text):
        assert tokenizer.encode(text, bos=False) == other.encode(text).ids

    agree()


@settings(max_examples=200, deadline=None)
@given(TEXT | st.text(alphabet="ab<|im_endx>  \n's"), st.booleans())
def test_byte_level_round_trip(text, special):
    tokenizer = byte_level("gpt-4o", ["a b", "Ġ a"], [("<|im_end|>", CONTROL), ("  ", USER_DEFINED)])
    ids = tokenizer.encode(text, special=special)
    assert tokenizer.decode(ids) == text
    stream = tokenizer.stream(special=True)
    assert "".join(map(stream.push, ids)) + stream.flush() == text


@settings(max_examples=200, deadline=None)
@given(TEXT.filter(lambda text: "▁" not in text) | st.text(alphabet="helo wrd,</s>é"))
def test_sentence_piece_round_trip(text):
    tokenizer = sentence_piece(LLAMA)
    assert tokenizer.decode(tokenizer.encode(text, bos=False)) == text


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="abc", max_size=300))
def test_scan_and_queue_merge_alike(text):
    costs = {"ab": 1, "bc": 1, "abc": 3, "ca": 2, "cab": 0, "abab": 4, "aa": 5, "aaaa": 5}

    def cost(left, right):
        return costs.get(left + right, merges.NEVER)

    assert merges._scan(list(text), cost) == merges._queue(list(text), cost)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), max_size=12), st.text("abcd", max_size=120)
)
def test_compact_vocabulary_merges_in_order(joins, text):
    """The C merge (scan and heap) against the plain one, with merges of merges."""
    tokens, pairs = list("abcd"), []
    for left, right in joins:
        # Grow: the newest token that ends like `left`, so that merges build on merges.
        first = next(token for token in reversed(tokens) if token.endswith(left))
        if first + right not in tokens:
            pairs.append((first, right))
            tokens.append(first + right)
    vocabulary = bpe.Vocabulary([token.encode() for token in tokens], [f"{a} {b}".encode() for a, b in pairs])
    ranks = {pair: rank for rank, pair in reversed(list(enumerate(pairs)))}
    expected = merges.merge(list(text), lambda left, right: ranks.get((left, right), merges.NEVER))
    assert [tokens[token] for token in vocabulary.encode([text], False)] == expected
    assert vocabulary.skipped == 0


def test_compact_vocabulary_bounds():
    vocabulary = bpe.Vocabulary([b"a", b"b", b"a", b"\xff"], [b"a b", b"a", b"", b"a a a", b" "])
    assert vocabulary.skipped == 5
    assert (vocabulary.find("a"), vocabulary.find(""), vocabulary.find("no")) == (0, None, None)
    assert vocabulary.encode(["", "ab", "a" * 9000], True) == [0, 1] + [0] * 9000
    with pytest.raises(bpe.MissingByte) as caught:
        vocabulary.encode(["aZ"], False)
    assert caught.value.byte == ord("Z")
    assert vocabulary.encode(["aZ"], False, 1) == [0, 1]
    assert bpe.Vocabulary([], []).find("a") is None


def test_long_runs_are_not_quadratic():
    tokenizer = byte_level("gpt-2", ["a a", "aa aa"])
    assert len(tokenizer.encode("a" * 40_000)) == 10_000


def test_special_tokens():
    special = [("<|im_end|>", CONTROL), ("<tool>", USER_DEFINED), ("<tool>>", USER_DEFINED), ("[PAD]", UNUSED)]
    tokenizer = byte_level("qwen2", [], special, eos_token_id=256)
    assert spelled(tokenizer, "a<|im_end|><tool>>") == ["a", "<|im_end|>", "<tool>>"]
    # A user-defined token is text; a control token is one only where the caller allows it.
    assert spelled(tokenizer, "<|im_end|><tool>", special=False)[-1] == "<tool>"
    assert 256 not in tokenizer.encode("<|im_end|>", special=False)
    ids = tokenizer.encode("a<|im_end|><tool>")
    assert tokenizer.decode(ids) == "a<|im_end|><tool>"
    assert tokenizer.decode(ids, special=False) == "a<tool>"
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) == "a<tool>"
    assert tokenizer.end_of_generation == {256}


def test_bos():
    special = [("<s>", CONTROL)]
    tokenizer = byte_level("llama-bpe", [], special, bos_token_id=256)
    assert tokenizer.encode("a") == [256, *tokenizer.encode("a", bos=False)]
    assert tokenizer.encode("<s>a") == tokenizer.encode("a")
    assert tokenizer.encode("<s>a", bos=True)[:2] == [256, 256]
    silent = byte_level("llama-bpe", [], special, bos_token_id=256, add_bos_token=False)
    assert 256 not in silent.encode("a")
    with pytest.raises(TokenizerError, match="no BOS"):
        byte_level("qwen2").encode("a", bos=True)


def test_ignore_merges_takes_a_whole_word():
    # "abc" is a token, yet merging by rank ends at a, bc.
    merged = ["b c", "a b", "ab c"]
    assert spelled(byte_level("qwen2", merged), "abc") == ["a", "bc"]
    assert spelled(byte_level("llama-bpe", merged), "abc") == ["abc"]


def test_words_that_no_merge_makes():
    # GLM 4 has hundreds of such tokens; its own tokenizer takes them whole.
    assert spelled(byte_level("glm4", ["b c", "a b", "ab c"]), "abc") == ["abc"]


@pytest.mark.parametrize("pre", ["qwen2", "qwen35", "minimax-m2", "olmo", "command-r"])
def test_composed_text(pre):
    """Tokenizers with Unicode's form NFC: é is one character, however it was typed; special tokens stay theirs."""
    tokenizer = byte_level(pre, ["Ã ©"], [("<|im_end|>", CONTROL)])
    typed = "Cafe\u0301<|im_end|>\u0301"
    assert spelled(tokenizer, typed) == ["C", "a", "f", "Ã©", "<|im_end|>", "Ì", "ģ"]
    assert tokenizer.decode(tokenizer.encode(typed)) == "Caf\u00e9<|im_end|>\u0301"
    assert spelled(byte_level("gpt-4o", ["Ã ©"]), "e\u0301") == ["e", "Ì", "ģ"]


def test_end_of_generation():
    harmony = [(name, CONTROL) for name in ("<|return|>", "<|call|>", "<|end|>", "<|channel|>")]
    tokenizer = byte_level("gpt-4o", [], harmony, eos_token_id=256)
    assert {tokenizer.text(token) for token in tokenizer.end_of_generation} == {"<|return|>", "<|call|>"}
    assert tokenizer.decode([256, 258, 259], special=False) == "<|end|><|channel|>"
    kimi = byte_level("kimi-k2", [], [(name, CONTROL) for name in ("<think>", "<|tool_call_begin|>", "<|im_user|>")])
    assert kimi.decode([256, 257, 258], special=False) == "<think><|tool_call_begin|>"
    other = byte_level("llama-bpe", [], [("<|end|>", CONTROL)])
    assert (other.end_of_generation, other.decode([256], special=False)) == ({256}, "")
    glm = byte_level("glm4", [], [("<|user|>", CONTROL), ("<|endoftext|>", CONTROL)], eos_token_id=257)
    assert glm.end_of_generation == {256, 257}
    declared = byte_level("qwen2", [], [("<done>", CONTROL), ("<turn>", CONTROL)], eos_token_id=256, eot_token_id=257)
    assert declared.end_of_generation == {256, 257}
    # An end token whose type a converter forgot is still one; an ordinary word is not.
    assert byte_level("qwen2", [], [("<|im_end|>", NORMAL), ("</s>", NORMAL)]).end_of_generation == {256}


def test_streaming_gives_whole_characters():
    tokenizer = byte_level("gpt-2")
    ids = tokenizer.encode("é🦙")
    stream = tokenizer.stream()
    assert [stream.push(token) for token in ids] == ["", "é", "", "", "", "🦙"]
    assert stream.push(ids[0]) == ""
    assert stream.flush() == "\ufffd"
    assert stream.push(tokenizer.encode("a")[0]) == "a"


def test_sentence_piece():
    tokenizer = sentence_piece(LLAMA, [("[INST]", USER_DEFINED)])
    assert spelled(tokenizer, "hello world") == ["<s>", "▁hello", "▁", *"world"]
    assert spelled(tokenizer, "é", bos=False) == ["▁", "<0xC3>", "<0xA9>"]
    assert spelled(tokenizer, "[INST] hello</s>", bos=False) == ["[INST]", "▁", "▁hello", "</s>"]
    assert spelled(tokenizer, "</s>", special=False, bos=False)[0] != "</s>"
    # In a stream a leading space is part of the answer.
    assert tokenizer.stream().push(tokenizer.find("▁hello")) == " hello"
    assert spelled(sentence_piece(LLAMA, add_space_prefix=False), "hello", bos=False) == ["h", "el", "lo"]


def test_sentence_piece_merges_over_spaces_when_tokens_do():
    tokenizer = sentence_piece([*LLAMA, ("o▁", -0.5), ("lo▁", -0.4)])
    assert spelled(tokenizer, "lo lo", bos=False, special=False) == ["▁", "lo▁", "lo"]


def test_bad_metadata():
    with pytest.raises(TokenizerError, match=r"'no-such'.*gpt-2.*qwen2"):
        byte_level("no-such")
    with pytest.raises(TokenizerError, match="'bert'"):
        Tokenizer.from_metadata({"tokenizer.ggml.model": "bert"})
    with pytest.raises(TokenizerError, match="tokens"):
        Tokenizer.from_metadata({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2"})
    with pytest.raises(TokenizerError, match="token_type has 1 elements for 2"):
        Tokenizer.from_metadata(
            {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.tokens": ["a", "b"],
                "tokenizer.ggml.token_type": [1],
                "tokenizer.ggml.merges": [],
            }
        )
    for token in (-1, 256):
        with pytest.raises(TokenizerError, match="outside the vocabulary"):
            byte_level().decode([token])


def test_arrays_are_read_when_first_needed():
    @dataclasses.dataclass
    class Lazy:
        values: list
        read: int = 0

        def __len__(self):
            return len(self.values)

        def __getitem__(self, at):
            return self.values[at]

        def tolist(self):
            self.read += 1
            return self.values

    tokens, joins = Lazy([chr(c) for c in range(0x21, 0x7F)]), Lazy([])
    tokenizer = Tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": np.ones(0x7F - 0x21, np.int32),
            "tokenizer.ggml.merges": joins,
        }
    )
    assert tokenizer.n_vocab == 0x7F - 0x21
    assert tokens.read == joins.read == 0
    assert tokenizer.decode(tokenizer.encode("ab")) == "ab"
    assert tokens.read == joins.read == 1
    with pytest.raises(TokenizerError, match="no token for byte 0xc3"):
        tokenizer.encode("é")
    assert tokenizer.encode("\ud800a".replace("\ud800", "")) == tokenizer.encode("a")
