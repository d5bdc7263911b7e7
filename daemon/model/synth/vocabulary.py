"""A byte-level BPE vocabulary of any size whose merges really work, for models without a trained tokenizer.

Owns the made-up tokens: 256 bytes, pairs of letters by frequency, pairs of those pairs (so that ordinary text takes
about as many tokens as with a real vocabulary), then special tokens of the model's family and padding up to the size.
"""
from dataclasses import dataclass
from itertools import product

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # tokenizer.ggml.token_type: ggml/docs/gguf.md

# Letters by their frequency in English running text, per mille; the space before a word counts as one.
_LETTERS = {
    "e": 102, "t": 75, "a": 65, "o": 62, "i": 57, "n": 57, "s": 53, "r": 50, "h": 50, "d": 34, "l": 33, "u": 23,
    "c": 22, "m": 20, "f": 18, "w": 17, "g": 16, "p": 15, "y": 15, "b": 12, "v": 8, "k": 6, "x": 1.4, "j": 1,
    "q": 0.8, "z": 0.5,
}
_WORD_START = 180.0

# In the order of their numbers, which come last in a vocabulary. Qwen: tokenizer_config.json of Qwen3.
QWEN = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>", "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>",
    "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>",
    "</think>",
)
QWEN_TEXTUAL = frozenset({"<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",
                          "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>",
                          "<think>", "</think>"})
QWEN_PADDING = 267  # of 151,936 numbers the last 267 stand for nothing

CHATML = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


@dataclass(frozen=True)
class Vocabulary:
    tokens: list[str]
    types: list[int]
    merges: list[str]
    bos: int
    eos: int
    padding: int


def byte_letters() -> list[str]:
    """The printable letter that stands for each byte value (the table of GPT-2's encoder)."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + len(letters) - len(plain))
    return [letters[byte] for byte in range(256)]


def make_vocabulary(size: int) -> Vocabulary:
    """A vocabulary of `size` tokens. ValueError below 300, where the bytes and the special tokens do not fit."""
    if size < 300:
        raise ValueError(f"a vocabulary needs at least 300 tokens, not {size}")
    padding = QWEN_PADDING if size >= 100_000 else 0
    tokens = byte_letters()
    merges: list[str] = []
    for left, right in _pairs(size - len(tokens) - len(QWEN) - padding):
        tokens.append(left + right)
        merges.append(f"{left} {right}")
    types = [NORMAL] * len(tokens)
    first = len(tokens)
    tokens += QWEN
    types += [USER_DEFINED if token in QWEN_TEXTUAL else CONTROL for token in QWEN]
    fill = size - len(tokens)
    tokens += [f"[PAD{len(tokens) + i}]" for i in range(fill)]
    types += [UNUSED] * fill
    return Vocabulary(tokens, types, merges, bos=first, eos=first + 2, padding=first)


def _pairs(count: int) -> list[tuple[str, str]]:
    """Merges, most frequent first: pairs of single letters, then pairs of such pairs."""
    single = dict(_LETTERS)
    for letter, frequency in _LETTERS.items():
        single[letter.upper()] = frequency / 40
    starts = {"Ġ": _WORD_START, **single}
    weight = {left + right: a * b for (left, a), (right, b) in product(starts.items(), single.items())}
    first = sorted(weight, key=lambda pair: -weight[pair])[: max(count, 0)]
    chosen = [(pair[0], pair[1]) for pair in first]
    left_over = count - len(chosen)
    if left_over <= 0:
        return chosen
    # A word's start stands only at the left, so at the right pairs of letters alone.
    inner = [pair for pair in first if pair[0] != "Ġ"]
    reach = next(n for n in range(16, len(first) + 1) if n * min(n, len(inner)) >= 2 * left_over or n == len(first))
    scored = [(weight[a] * weight[b], a, b) for a in first[:reach] for b in inner[:reach]]
    scored.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
    chosen += [(a, b) for _, a, b in scored[:left_over]]
    return chosen
