"""Tokenizers against their makers' ids, round trips of any text, and what a reader sees while tokens stream."""

import dataclasses
import json
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import regex
from hearthd.cyext import bpe, gguf_header, names
from hearthd.daemon.model import pretokenizers
from hearthd.daemon.model.composition import composed
from hearthd.daemon.model.pretokenizers import KNOWN, PreTokenizer
from hearthd.daemon.model.tokenizer import TextTooLong, Tokenizer, TokenizerError, check
from hypothesis import given, settings
from hypothesis import strategies as st

from .plain_merges import NEVER, merge

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
        ("seed-coder", "a 12 !!\n\nb", ["a", " ", "1", "2", " !!", "\n\n", "b"]),
        ("superbpe", "in 1234567, x123y", ["in ", "1", "234", "567", ", x", "123", "y"]),
        ("viking", "Hei (maailma) 12!", ["Hei", " (", "maailma", ")", " ", "1", "2", "!"]),
        ("falcon", "a`b 12345 x", ["a", "`", "b", " ", "123", "45", " x"]),
        ("bailingmoe", "I'LL\n\n 12!!\n", ["I", "'LL", "\n\n", " ", "1", "2", "!!\n"]),
        ("laguna", "a\n\n b 12", ["a", "\n\n", " b", " ", "1", "2"]),
        ("exaone", "a 12", ["a", " ", "1", "2"]),
        ("exaone-moe", "two words, 12!//\n", ["two words", ",", " ", "1", "2", "!//\n"]),
        ("cohere2moe", "1234 1234a Ab", ["1", "234", " ", "123", "4", "a", " Ab"]),
        ("afmoe", "x1234567 中a!", ["x", "1", "234", "567", " ", "中", "a", "!"]),
        ("minicpm5", "x1234", ["x", "123", "4"]),
        ("chameleon", "IMGIMGABZ  12.", ["IMGIMGABZ", "  ", "1", "2", "."]),
        ("youtu", "한글Ab1", ["한글", "Ab", "1"]),
        ("ufakzeka", "Ankara'da 12", ["Ankara", "'da", " ", "1", "2"]),
        ("spark2_5", "!\n\n1234", ["!", "\n", "\n", "1", "2", "3", "4"]),
        ("jais-2", "a     b", ["a", "    ", " b"]),
    ],
)
def test_cut(pre, text, words):
    assert KNOWN[pre].split()(text) == words


@pytest.mark.parametrize("pre", ["superbpe", "cohere2moe", "afmoe"])
def test_numbers_are_divided_as_the_patterns_say(pre):
    """The published look-aheads, which take quadratic time, against the division that stands for them."""
    pattern = next(pattern for pattern in KNOWN[pre].patterns if pattern in pretokenizers._DIVIDED)
    divided, published = PreTokenizer((pattern,)).split(), pretokenizers._isolation(regex.compile(pattern))

    @settings(max_examples=150, deadline=None)
    @given(st.text("12½٣a_é .", max_size=30))
    def alike(text):
        assert divided(text) == [word for word in published(text) if word]

    alike()


@pytest.mark.parametrize("pre", ["qwen2", "kimi-k2", "deepseek-llm", "superbpe", "gpt-2"])
def test_long_text_is_cut_as_short_text_is(pre, monkeypatch):
    text = "I'll go 1234 中文\n\n  (Ab½) " * 40
    short = KNOWN[pre].split()(text)
    monkeypatch.setattr(pretokenizers, "_LONG", 16)
    assert list(KNOWN[pre].split()(text)) == short


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
    "pre",
    """
    gpt-2 qwen2 llama-bpe gpt-4o deepseek-v3 deepseek-llm kimi-k2 qwen35
    seed-coder superbpe bailingmoe laguna falcon viking exaone-moe cohere2moe
    """.split(),  # noqa: SIM905
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


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.text("ab▁é", min_size=1, max_size=5), st.sampled_from([-3.0, -2.0, -1.0, 0.0, 5.0]))),
    st.text("ab cé", max_size=90),
)
def test_sentence_piece_merges_in_order(pieces, text):
    """The C merge (cut, scan and heap) against the plain one, with equal scores and tokens that no merge makes."""
    scores = dict(pieces)
    tokenizer = sentence_piece(list(scores.items()), add_space_prefix=False)
    expected = []
    costs = {piece: -score for piece, score in scores.items()}
    for symbol in merge(text.replace(" ", "▁"), lambda left, right: costs.get(left + right, NEVER)):
        expected += [symbol] if symbol in scores else [f"<0x{byte:02X}>" for byte in symbol.encode()]
    assert spelled(tokenizer, text, bos=False) == expected


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
    expected = merge(text, lambda left, right: ranks.get((left, right), NEVER))
    assert [tokens[token] for token in np.frombuffer(vocabulary.encode([text], False), np.int32)] == expected
    assert vocabulary.skipped == 0


def test_compact_vocabulary_bounds():
    vocabulary = bpe.Vocabulary([b"a", b"b", b"a", b"\xff"], [b"a b", b"a", b"", b"a a a", b" "])
    assert vocabulary.skipped == 5
    assert (vocabulary.find("a"), vocabulary.find(""), vocabulary.find("no")) == (0, None, None)
    assert vocabulary.encode(["", "ab", "a" * 9000], True) == np.array([0, 1] + [0] * 9000, np.int32).tobytes()
    assert vocabulary.encode(["ab", "ab"], True, 4) == np.array([0, 1, 0, 1], np.int32).tobytes()
    assert vocabulary.encode(["ab", "ab"], True, 3) is None
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


GPT2 = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["a", "b", "ab"],
    "tokenizer.ggml.token_type": [1, 1, 1],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 2,
}
SENTENCE = {
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["a", "b"],
    "tokenizer.ggml.scores": [0.0, -1.0],
}


@pytest.mark.parametrize(
    ("metadata", "key", "value"),
    [
        (GPT2, "model", "bert"),
        (GPT2, "model", None),
        (GPT2, "model", ["gpt2"]),
        (GPT2, "pre", "no-such"),
        (GPT2, "pre", [1]),
        (GPT2, "tokens", None),
        (GPT2, "tokens", []),
        (GPT2, "tokens", "ab"),
        (GPT2, "tokens", [1, 2, 3]),
        (GPT2, "token_type", [1, 1]),
        (GPT2, "token_type", [1, 1, 1, 1]),
        (GPT2, "token_type", [1, 1, 9]),
        (GPT2, "token_type", np.ones(3, np.float32)),
        (GPT2, "token_type", 1),
        (GPT2, "merges", None),
        (GPT2, "merges", [0.5]),
        (GPT2, "eos_token_id", 3),
        (GPT2, "eos_token_id", -2),
        (GPT2, "eos_token_id", "b"),
        (GPT2, "bos_token_id", 1.0),
        (GPT2, "add_bos_token", "yes"),
        (SENTENCE, "scores", None),
        (SENTENCE, "scores", [0.0]),
        (SENTENCE, "scores", [0.0, float("nan")]),
        (SENTENCE, "scores", ["a", "b"]),
        (SENTENCE, "add_space_prefix", 2),
    ],
)
def test_metadata_that_makes_no_tokenizer_is_refused_by_its_key(metadata, key, value):
    check(metadata)
    broken = {**metadata, f"tokenizer.ggml.{key}": value}
    if value is None:
        del broken[f"tokenizer.ggml.{key}"]
    for make in (check, Tokenizer.from_metadata):
        with pytest.raises(TokenizerError, match=rf"tokenizer\.ggml\.{key}\b"):
            make(broken)


def test_what_metadata_may_leave_open():
    assert Tokenizer.from_metadata(GPT2 | {"tokenizer.ggml.bos_token_id": 0xFFFFFFFF}).bos is None
    useless = Tokenizer.from_metadata(GPT2 | {"tokenizer.ggml.merges": ["a c", "d", ""]})
    useless.prepare()
    assert "3 of 3" in useless.warnings[0]
    for token in (-1, 256):
        with pytest.raises(TokenizerError, match="outside the vocabulary"):
            byte_level().decode([token])


def test_a_byte_without_a_token_is_left_out():
    """As Hugging Face's tokenizers do: the unknown token of SmolLM2 is the end of a text."""
    tokenizer = Tokenizer.from_metadata(GPT2 | {"tokenizer.ggml.unknown_token_id": 1})
    assert spelled(tokenizer, "éaéb\nb") == ["ab", "b"]
    assert tokenizer.encode("é") == []


def test_unknown_characters_of_sentence_piece():
    assert spelled(Tokenizer.from_metadata(SENTENCE), "aéb", bos=False) == ["a", "b"]
    told = Tokenizer.from_metadata(SENTENCE | {"tokenizer.ggml.unknown_token_id": 1})
    assert told.encode("aéa", bos=False) == [1, 0, 1, 0]  # the space in front is unknown, too


LIMITED = [
    (byte_level("gpt-2", ["a a"], [("<x>", CONTROL)]), "ab 12 " * 9 + "<x>" + "a" * 40),
    (byte_level("qwen2", ["a a"], [("<x>", CONTROL)]), "a" * 9000),
    (sentence_piece(LLAMA, [("<x>", CONTROL)]), "hello world<x>hel" + "o" * 80),
]


@pytest.mark.parametrize(("tokenizer", "text"), LIMITED, ids=["words", "one word", "sentence"])
def test_encoding_stops_at_a_limit(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.encode(text, limit=len(ids)) == ids
    for limit in (len(ids) - 1, len(ids) // 2, 3, 0):
        with pytest.raises(TextTooLong, match=f"more than {limit} tokens"):
            tokenizer.encode(text, limit=limit)


def test_a_word_of_millions_of_letters_is_refused():
    with pytest.raises(TextTooLong, match="millions"):
        byte_level().encode("a" * (8 << 20) + "a")


def test_names_in_text():
    found = names.Names([(b"<a>", 1), (b"<a>>", 2), (b"<", 3), (b"", 4), ("é".encode(), 5)])
    text = "x<a>><a<a>é".encode()
    places, end = [], 0
    while (place := found.find(text, end)) is not None:
        places.append(place)
        end = place[1]
    assert places == [(1, 5, 2), (5, 6, 3), (7, 10, 1), (10, 12, 5)]
    assert names.Names([]).find(text) is None


@settings(max_examples=200, deadline=None)
@given(
    st.text("aeé\u0301\u0316\u0344\u0345\u05b0\u1161\u11a8\uac00\u0958\u3099か中🦙x ", max_size=150)
    | st.text("\u0301\u0316\u0344\u0488\u1dce", min_size=30, max_size=90)
)
def test_composed_is_nfc(text):
    assert composed("a" + text) == normalize("NFC", "a" + text)


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
    assert tokenizer.encode("\ud800a".replace("\ud800", "")) == tokenizer.encode("a")
