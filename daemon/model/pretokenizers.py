"""How a byte-level BPE cuts text into words before it merges: one entry per value of `tokenizer.ggml.pre`.

Owns the patterns and the cutting; knows nothing of tokens. It does not guess: an unknown name is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import regex

Split = Callable[[str], Iterable[str]]
_LONG = 1 << 20  # characters; longer text is cut while its words are taken, at half the speed


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """Patterns are applied one after the other; each isolates its matches, what lies between them stays whole.

    `ignore_merges`: a word that is itself a token is taken as it is. `add_bos`: what holds when the metadata is silent.
    `composed`: text is brought into Unicode's form NFC first (é as one character, however it was typed).
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    composed: bool = False

    def split(self) -> Split:
        """The compiled cut: text -> words, whose concatenation is the text. Words of long text come as they are found.

        Matching runs without the GIL (regex releases it for every match), and in time that grows as the text does.
        """
        return _compile(self.patterns)


# Building blocks. `(?i:…)` folds as Unicode does (U+017F counts as s), which is what the published patterns say.
_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_OTHER = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_QWEN2 = rf"{_SUFFIX}|{_WORD}|\p{{N}}|{_OTHER}|{_SPACE}"
_LLAMA3 = rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_OTHER}|{_SPACE}"
_QWEN35 = rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACE}"


def _cased(suffix: str, *, without: str = "") -> str:
    """Words as o200k cuts them: capitals then small letters, so that CamelCase falls apart."""
    upper = rf"(?:{without}[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}])"
    lower = rf"(?:{without}[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}])"
    lead = r"[^\r\n\p{L}\p{N}]?"
    return rf"{lead}{upper}*{lower}+{suffix}|{lead}{upper}+{lower}*{suffix}"


_O200K = rf"{_cased(_SUFFIX + '?')}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACE}"
_TEKKEN = rf"{_cased('')}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACE}"
_NOT_HAN = r"(?!\p{Han})"
_KIMI = rf"\p{{Han}}+|{_cased(_SUFFIX + '?', without=_NOT_HAN)}|\p{{N}}{{1,3}}|{_OTHER}|{_SPACE}"

# Characters beyond ASCII are written as escapes: an editor that normalises text would silently change the ranges.
_CJK = "\u4e00-\u9fa5"
_CJK_KANA = f"[{_CJK}\u3040-\u309f\u30a0-\u30ff]+"
_CJK_HANGUL = f"[{_CJK}\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    _CJK_KANA,
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACE}",
)
# The cased letters of Unicode 11, less a few scripts, as deepseek-llm's tokenizer.json lists them.
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_LLM = (
    r"[\r\n]",
    rf"\s?[{_DEEPSEEK_LETTERS}]+",
    "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
    r"\s+$",
    _CJK_HANGUL,
    r"\p{N}+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_HANGUL, r"\p{N}")
# What llama.cpp does with files from before `tokenizer.ggml.pre` existed.
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")

# Groups of three digits counted from the right, as thousands are. SuperBPE cuts where a group begins; Tiny Aya takes
# out the groups of a number that ends at the end of a word; AFMoE those of any number.
_BEFORE_THREES = r"(?=(?:\d{3})+(?!\d))"
_THREES_OF_WORDS = r"\d{1,3}(?=(?:\d{3})*\b)"
_THREES = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"

_FALCON = (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")
_DIGITS_GPT2 = (r"\p{N}", _GPT2)
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_JAIS2_SPACE = "|".join([r"\s*[\r\n]+", *(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)),
                         r"\s{1,2}(?!\S)", r"\s{1}"])  # fmt: skip
_JAIS2 = rf"{_SUFFIX}|{_WORD}|\p{{N}}{{1,3}}|{_OTHER}|{_JAIS2_SPACE}"
_BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_SEED_CODER = rf"{_SUFFIX}|{_WORD}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACE}"
_UFAKZEKA = rf"{_WORD}|\p{{N}}|{_OTHER}|{_SPACE}"  # Turkish suffixes stay with their apostrophe
_EXAONE_MOE = (
    rf"{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
_MINICPM5 = (r"\p{N}{1,3}", rf"{_SUFFIX}|{_WORD}|\p{{N}}+|{_OTHER}|{_SPACE}")
_SPARK25 = (
    *_DEEPSEEK3[:2],
    _DEEPSEEK3[2].replace(rf"[\r\n]*|{_SPACE}", r"|[\r\n]|\s+(?!\S)|\s+"),
    r"\p{N}",
)
_YOUTU = (
    "[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    f"|[\u3105-\u312f]+|{_CJK_KANA}",
    rf"{_cased(_SUFFIX + '?')}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACE}",
)
_CHAMELEON = (
    r"<sentinel:[0-9]+>",
    r"IMGIMG[A-I]{1,4}Z",
    r"[\t\n]|    |  ",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
    _GPT2,
)
_AFMOE_SCRIPTS = (
    "[\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e00-\u0e7f\u0e80-\u0eff"
    "\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)

_gpt2 = PreTokenizer((_GPT2,))
_neox = PreTokenizer((_GPT2,), composed=True)
_qwen2 = PreTokenizer((_QWEN2,))
_llama3 = PreTokenizer((_LLAMA3,), ignore_merges=True, add_bos=True)
_o200k = PreTokenizer((_O200K,))
_cl100k = PreTokenizer((_LLAMA3,))
_glm4 = PreTokenizer((_LLAMA3,), ignore_merges=True)  # hundreds of its tokens no merge makes
_deepseek3 = PreTokenizer(_DEEPSEEK3)
_bloom = PreTokenizer((_BLOOM,))
_bailing = PreTokenizer((_BAILING,))
_aya = PreTokenizer((_THREES_OF_WORDS, _O200K))

# Names and their meaning as in llama.cpp's src/llama-vocab.cpp; patterns, and what comes before and after them, as in
# the models' own tokenizer.json (Kimi: tokenization_kimi.py), of which llama.cpp quotes the patterns.
KNOWN: dict[str, PreTokenizer] = {
    "default": PreTokenizer(_DEFAULT),
    "gpt-2": _gpt2,
    "phi-2": _gpt2,
    "exaone4": _gpt2,
    "gigachat": _gpt2,
    "mellum": _gpt2,
    "trillion": _gpt2,
    "a.x-4.0": _gpt2,
    "jais": _gpt2,
    "granite-docling": _gpt2,
    "jina-es": _gpt2,
    "jina-de": _gpt2,
    "jina-v2-es": _gpt2,
    "jina-v2-de": _gpt2,
    "modern-bert": _gpt2,
    "olmo": _neox,  # also OLMoE
    "mpt": _neox,
    "starcoder": PreTokenizer(_DIGITS_GPT2),
    "smollm": PreTokenizer(_DIGITS_GPT2),
    "refact": PreTokenizer(_DIGITS_GPT2),
    "command-r": PreTokenizer(_DIGITS_GPT2, composed=True),
    "minerva-7b": PreTokenizer(_DIGITS_GPT2),
    "codeshell": PreTokenizer(_DIGITS_GPT2),
    "exaone": PreTokenizer(_DIGITS_GPT2),
    "mellum2": PreTokenizer(_DIGITS_GPT2),
    "falcon": PreTokenizer(_FALCON),
    "bloom": _bloom,
    "poro-chat": _bloom,
    "gpt3-finnish": _bloom,
    "viking": PreTokenizer((_BLOOM, r"\p{N}")),
    "chameleon": PreTokenizer(_CHAMELEON, add_bos=True),
    "qwen2": PreTokenizer((_QWEN2,), composed=True),
    "f2llmv2": PreTokenizer((_QWEN2,), composed=True),
    "kormo": _qwen2,
    "deepseek-r1-qwen": _qwen2,
    "stablelm2": _qwen2,
    "megrez": _qwen2,
    "hunyuan": _qwen2,
    "solar-open": _qwen2,
    "grok-2": _qwen2,
    "laguna": PreTokenizer((r"[^\n]+|[\n]+", _QWEN2)),
    "seed-coder": PreTokenizer((_SEED_CODER,)),
    "ufakzeka": PreTokenizer((_UFAKZEKA,)),
    "bailingmoe": _bailing,
    "bailingmoe2": _bailing,
    "llada-moe": _bailing,
    "exaone-moe": PreTokenizer((_EXAONE_MOE,)),
    "superbpe": PreTokenizer((r"\p{N}+", _BEFORE_THREES)),
    "qwen35": PreTokenizer((_QWEN35,), composed=True),
    "llama-bpe": _llama3,
    "llama3": _llama3,
    "llama-v3": _llama3,
    "pixtral": _llama3,
    "falcon3": _llama3,
    "falcon-h1": _llama3,
    "jina-v5-nano": _llama3,
    "jais-2": PreTokenizer((_JAIS2,)),
    "minicpm5": PreTokenizer(_MINICPM5, ignore_merges=True),
    "lfm2": _llama3,
    "midm-2.0": _llama3,
    "dbrx": _cl100k,  # also OLMo 2
    "smaug-bpe": _cl100k,
    "glm4": _glm4,
    "glm5": _glm4,
    "chatglm-bpe": _glm4,
    "gpt-4o": _o200k,  # gpt-oss
    "llama4": _o200k,
    "kanana2": _o200k,
    "talkie": _o200k,
    "granite-embed-multi-97m": PreTokenizer((_O200K,), ignore_merges=True),
    "tiny_aya": _aya,
    "cohere2moe": _aya,
    "youtu": PreTokenizer(_YOUTU, ignore_merges=True),
    "minimax-m2": PreTokenizer((_O200K,), composed=True),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    "kimi-k2": PreTokenizer((_KIMI,)),
    "deepseek-v3": _deepseek3,  # also Step 3.5
    "joyai-llm": _deepseek3,
    "hunyuan-dense": _deepseek3,
    "hy_v4": _deepseek3,
    "spark2_5": PreTokenizer(_SPARK25),
    "afmoe": PreTokenizer((_THREES, _AFMOE_SCRIPTS, _DEEPSEEK3[2])),
    "deepseek-llm": PreTokenizer(_DEEPSEEK_LLM),
    "deepseek-coder": PreTokenizer(_DEEPSEEK_CODER),
}


# A number of n digits costs these patterns n^2 steps: every place looks ahead to the number's end. Here the number is
# found first, (pattern that finds it, whether a word must end there, whether the text before it is cut off), and then
# divided.
_DIVIDED = {
    _BEFORE_THREES: (r"\d++", False, False),
    _THREES_OF_WORDS: (r"\d++", True, True),
    _THREES: (r"\p{N}++", False, True),
}


@lru_cache(maxsize=8)
def _compile(patterns: tuple[str, ...]) -> Split:
    # Only when text is first encoded: some 30 ms that a start does not have.
    import regex

    cuts = [_division(*_DIVIDED[pattern]) if pattern in _DIVIDED else _isolation(regex.compile(pattern))
            for pattern in patterns]  # fmt: skip

    def split(text: str) -> Iterable[str]:
        words: Iterable[str] = [text]
        for cut in cuts:
            words = _each(cut, words)
        return words if len(text) > _LONG else list(words)

    return split


def _each(cut: Split, words: Iterable[str]) -> Iterator[str]:
    for word in words:
        if len(word) > 1:
            yield from filter(None, cut(word))
        elif word:
            yield word


def _isolation(pattern: regex.Pattern[str]) -> Split:
    """Matches and what lies between them."""

    def gaps(text: str) -> Iterator[str]:
        end = 0
        for match in pattern.finditer(text):
            start, stop = match.span()
            yield text[end:start]
            yield text[start:stop]
            end = stop
        yield text[end:]

    def isolate(text: str) -> Iterable[str]:
        if len(text) > _LONG:
            return gaps(text)
        words: list[str] = pattern.findall(text)
        return words if sum(map(len, words)) == len(text) else gaps(text)

    return isolate


def _division(number: str, word_end: bool, apart: bool) -> Split:
    """Numbers in groups of three digits from the right; `apart`: the first group does not stay with what is before."""
    import regex

    found, boundary = regex.compile(number), regex.compile(r"\b")

    def divide(text: str) -> Iterator[str]:
        end = 0
        for match in found.finditer(text):
            start, stop = match.span()
            if word_end and boundary.match(text, stop) is None:
                continue
            first = start + (stop - start) % 3
            if apart:
                yield text[end:start]
                end = start
            for at in range(first, stop, 3):
                yield text[end:at]
                end = at
            if apart:
                yield text[end:stop]
                end = stop
        yield text[end:]

    return divide
