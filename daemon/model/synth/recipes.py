"""Which type each tensor of a made-up or planned model has: recipes as llama.cpp's quantiser names them.

Owns the choice per tensor name and the way out when a row does not divide into blocks; refuses unknown recipes.
Source of the choices: llama.cpp's llama-quant.cpp (router, norms and biases stay F32; fallback types), simplified:
_M recipes give every down projection and the output the better type, where llama.cpp does so for half the layers.
"""
import re

from ..gguf import TYPE_BLOCKS, TYPE_NAMES

NUMBERS = {name: number for number, name in TYPE_NAMES.items()}
F32 = NUMBERS["F32"]

# recipe: (type, of down projections and values, of the output, of experts, general.file_type)
_RECIPES: dict[str, tuple[str, str, str, str, int]] = {
    "F32": ("F32", "F32", "F32", "F32", 0),
    "F16": ("F16", "F16", "F16", "F16", 1),
    "BF16": ("BF16", "BF16", "BF16", "BF16", 32),
    "Q4_0": ("Q4_0", "Q4_0", "Q6_K", "Q4_0", 2),
    "Q4_1": ("Q4_1", "Q4_1", "Q6_K", "Q4_1", 3),
    "Q5_0": ("Q5_0", "Q5_0", "Q6_K", "Q5_0", 8),
    "Q5_1": ("Q5_1", "Q5_1", "Q6_K", "Q5_1", 9),
    "Q8_0": ("Q8_0", "Q8_0", "Q8_0", "Q8_0", 7),
    "Q2_K": ("Q2_K", "Q3_K", "Q6_K", "Q2_K", 10),
    "Q3_K": ("Q3_K", "Q3_K", "Q6_K", "Q3_K", 11),
    "Q4_K": ("Q4_K", "Q4_K", "Q6_K", "Q4_K", 14),
    "Q4_K_M": ("Q4_K", "Q6_K", "Q6_K", "Q4_K", 15),
    "Q5_K": ("Q5_K", "Q5_K", "Q6_K", "Q5_K", 16),
    "Q5_K_M": ("Q5_K", "Q6_K", "Q6_K", "Q5_K", 17),
    "Q6_K": ("Q6_K", "Q6_K", "Q6_K", "Q6_K", 18),
    "IQ1_S": ("IQ1_S", "IQ1_S", "Q6_K", "IQ1_S", 24),
    "IQ2_XXS": ("IQ2_XXS", "IQ2_XXS", "Q6_K", "IQ2_XXS", 19),
    "IQ2_XS": ("IQ2_XS", "IQ2_XS", "Q6_K", "IQ2_XS", 20),
    "IQ2_S": ("IQ2_S", "IQ2_S", "Q6_K", "IQ2_S", 28),
    "IQ3_XXS": ("IQ3_XXS", "IQ3_XXS", "Q6_K", "IQ3_XXS", 23),
    "IQ3_S": ("IQ3_S", "IQ3_S", "Q6_K", "IQ3_S", 26),
    "TQ1_0": ("TQ1_0", "TQ1_0", "Q6_K", "TQ1_0", 36),
    "TQ2_0": ("TQ2_0", "TQ2_0", "Q6_K", "TQ2_0", 37),
    "IQ4_NL": ("IQ4_NL", "IQ4_NL", "Q6_K", "IQ4_NL", 25),
    "IQ4_XS": ("IQ4_XS", "IQ4_XS", "Q6_K", "IQ4_XS", 30),
    "MXFP4": ("Q8_0", "Q8_0", "Q8_0", "MXFP4", 38),
}

# What a type gives way to when a row is no whole number of its blocks (llama-quant.cpp, tensor_type_fallback).
_FALLBACK = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
             **dict.fromkeys(("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), "IQ4_NL"),
             **dict.fromkeys(("TQ1_0", "TQ2_0"), "Q4_0")}  # fmt: skip

_PLAIN = re.compile(r"(_norm|\.bias|ffn_gate_inp(_shexp)?|ssm_conv1d|sinks|rope_freqs|(enorm|hnorm))(\.weight)?$")
_DOWN = re.compile(r"\.(ffn_down(_exps|_shexp|\.\d+)?|attn_v|attn_v_b)\.weight$")
_EXPERT = re.compile(r"_exps\.weight$|\.ffn_(gate|up|down)\.\d+\.weight$")


def recipes() -> list[str]:
    return list(_RECIPES)


def file_type(recipe: str) -> int:
    """The number that general.file_type has for a recipe (llama.h, enum llama_ftype)."""
    return _entry(recipe)[4]


def tensor_type(recipe: str, name: str, shape: tuple[int, ...]) -> int:
    """Type number of the tensor `name` with `shape` (columns first). ValueError for an unknown recipe."""
    base, down, output, expert, _ = _entry(recipe)
    if len(shape) == 1 or _PLAIN.search(name):
        return F32
    if name == "output.weight":
        wanted = output
    elif _DOWN.search(name) and down != base:
        wanted = down
    else:
        wanted = expert if _EXPERT.search(name) else base
    while shape[0] % TYPE_BLOCKS[NUMBERS[wanted]][0]:
        wanted = _FALLBACK.get(wanted, "F16")
    return NUMBERS[wanted]


def tensor_bytes(type_: int, shape: tuple[int, ...]) -> int:
    block, size = TYPE_BLOCKS[type_]
    total = shape[0] // block * size
    for n in shape[1:]:
        total *= n
    return total


def _entry(recipe: str) -> tuple[str, str, str, str, int]:
    entry = _RECIPES.get(recipe.upper())
    if entry is None:
        raise ValueError(f"no such type: {recipe}; known are {', '.join(_RECIPES)}")
    return entry
