"""Shapes of real models by name: their hyperparameters as GGUF metadata keys, without weights or vocabulary.

Owns the numbers; layouts.py turns them into tensors. Every number was compared with the model's published config.json
(most as NVIDIA's aiconfigurator-core 0.12 carries them), the sum with the published total of parameters; where it was
a copy elsewhere, a sibling's file or a part only, `source` says so. A key that starts with "_" shapes tensors and is no
metadata.
"""
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from .layouts import tensor_list


@dataclass(frozen=True)
class Shape:
    """A model without weights. `hyper` has the metadata keys without the architecture's prefix; `parameters` is the
    published total in billions, for comparison."""

    name: str
    title: str
    architecture: str
    hyper: Mapping[str, Any]
    vocabulary: int
    source: str
    parameters: float = 0.0
    tied: bool = False

    @property
    def n_layer(self) -> int:
        return int(self.hyper["block_count"])

    @property
    def n_expert(self) -> int:
        return int(self.hyper.get("expert_count", 0))

    @property
    def n_expert_used(self) -> int:
        return int(self.hyper.get("expert_used_count", 0))

    @property
    def lead(self) -> int:
        """Leading layers without experts."""
        return int(self.hyper.get("leading_dense_block_count", 0))

    @property
    def n_parameters(self) -> int:
        """Values in all tensors."""
        return sum(prod(shape) for _, shape in self.tensors())

    def tensors(self) -> list[tuple[str, tuple[int, ...]]]:
        """(name, shape with columns first) of every tensor, in the order of the file."""
        return tensor_list(self.architecture, self.hyper, self.vocabulary, self.tied)

    def metadata(self) -> dict[str, Any]:
        """The metadata about the architecture, with prefixes."""
        return {f"{self.architecture}.{key}": value for key, value in self.hyper.items() if not key.startswith("_")}

    def cut(self, layers: int, experts: int | None = None) -> "Shape":
        """The same model with its first `layers` layers only, and perhaps fewer experts. Layers that only predict
        further tokens go first."""
        hyper = dict(self.hyper)
        if layers < self.n_layer:
            hyper.pop("nextn_predict_layers", None)
        for key, value in hyper.items():
            if isinstance(value, list) and len(value) == self.n_layer:
                hyper[key] = value[:layers]
        hyper["block_count"] = layers
        if experts is not None and self.n_expert:
            hyper["expert_count"] = experts
        return replace(self, hyper=hyper)


def _base(*numbers: float, epsilon: float = 1e-6, rope: int | None = None) -> dict[str, Any]:
    """numbers: layers, width, heads, heads of keys and values, values in a head, context, base of the rotation."""
    layers, n, heads, kv, head, context, theta = numbers
    return {
        "block_count": layers, "context_length": context, "embedding_length": n, "attention.head_count": heads,
        "attention.head_count_kv": kv, "attention.key_length": head, "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": epsilon, "rope.freq_base": theta, "rope.dimension_count": rope or head,
    }


def _experts(count: int, used: int, ff: int, *, shared: int = 0, **more: object) -> dict[str, Any]:
    keys = {"expert_count": count, "expert_used_count": used, "expert_feed_forward_length": ff}
    if shared:
        keys["expert_shared_feed_forward_length"] = shared
    return {**keys, **more}


def _qwen3moe() -> list[Shape]:
    rows = [
        ("qwen3-30b-a3b", "Qwen3-30B-A3B", 30.5, _base(48, 2048, 32, 4, 128, 40960, 1e6), 6144, _experts(128, 8, 768)),
        ("qwen3-235b-a22b", "Qwen3-235B-A22B", 235.1, _base(94, 4096, 64, 4, 128, 40960, 1e6), 12288,
         _experts(128, 8, 1536)),
        ("qwen3-coder-480b-a35b", "Qwen3-Coder-480B-A35B", 480.2, _base(62, 6144, 96, 8, 128, 262144, 1e7), 8192,
         _experts(160, 8, 2560)),
    ]
    made = [Shape(name, title, "qwen3moe", {**base, "feed_forward_length": ff, **experts}, 151936, "config.json", total)
            for name, title, total, base, ff, experts in rows]
    tiny = {**_base(2, 256, 4, 2, 64, 4096, 1e6), "feed_forward_length": 256, **_experts(16, 4, 256)}
    return [*made, Shape("tiny-moe", "Tiny MoE", "qwen3moe", tiny, 1024, "made up, to try things out quickly")]


def _qwen35() -> list[Shape]:
    """Gated delta nets with full attention in every fourth layer."""

    def hyper(layers: int, n: int, heads: int, values: int, experts: dict[str, Any]) -> dict[str, Any]:
        return {
            **_base(layers, n, heads, 2, 256, 262144, 1e7, rope=64), **experts, "full_attention_interval": 4,
            "ssm.conv_kernel": 4, "ssm.state_size": 128, "ssm.group_count": 16, "ssm.time_step_rank": values,
            "ssm.inner_size": 128 * values,
        }

    sections = {"rope.dimension_sections": [11, 11, 10, 0]}
    rows = [
        ("qwen3-next-80b-a3b", "Qwen3-Next-80B-A3B", "qwen3next", 79.7, 151936,
         hyper(48, 2048, 16, 32, _experts(512, 10, 512, shared=512))),
        ("qwen3.5-35b-a3b", "Qwen3.5-35B-A3B", "qwen35moe", 35.0, 248320,
         {**hyper(40, 2048, 16, 32, _experts(256, 8, 512, shared=512)), **sections}),
        ("qwen3.5-122b-a10b", "Qwen3.5-122B-A10B", "qwen35moe", 122.0, 248320,
         {**hyper(48, 3072, 32, 64, _experts(256, 8, 1024, shared=1024)), **sections}),
        ("qwen3.5-397b-a17b", "Qwen3.5-397B-A17B", "qwen35moe", 397.0, 248320,
         {**hyper(60, 4096, 32, 64, _experts(512, 10, 1024, shared=1024)), **sections}),
    ]
    sources = {"qwen3next": "config.json's numbers in slime's and other projects' recipes for it"}
    return [Shape(name, title, architecture, keys, vocabulary,
                  sources.get(architecture, "config.json, language part only"), total)
            for name, title, architecture, total, vocabulary, keys in rows]


def _gpt_oss() -> list[Shape]:
    def hyper(layers: int, experts: int) -> dict[str, Any]:
        return {
            **_base(layers, 2880, 64, 8, 64, 131072, 150000.0, epsilon=1e-5), **_experts(experts, 4, 2880),
            "feed_forward_length": 2880, "attention.sliding_window": 128, "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0, "rope.scaling.original_context_length": 4096,
        }

    return [Shape("gpt-oss-20b", "gpt-oss-20b", "gpt-oss", hyper(24, 32), 201088, "config.json", 20.9),
            Shape("gpt-oss-120b", "gpt-oss-120b", "gpt-oss", hyper(36, 128), 201088, "config.json", 116.8)]


def _deepseek2() -> list[Shape]:
    """Latent attention: the cache holds 512 + 64 values per token and layer."""

    def hyper(*, heads: int, lead: int, experts: int, groups: tuple[int, int], scale: float, theta: float,
              factor: float, context: int, **more: object) -> dict[str, Any]:
        return {
            **_base(61, 7168, heads, 1, 576, context, theta, rope=64), "attention.value_length": 512,
            "attention.key_length_mla": 192, "attention.value_length_mla": 128, "attention.q_lora_rank": 1536,
            "attention.kv_lora_rank": 512, "feed_forward_length": 18432, "leading_dense_block_count": lead,
            **_experts(experts, 8, 2048), "expert_shared_count": 1, "expert_weights_scale": scale,
            "expert_weights_norm": True, "expert_gating_func": 2, "expert_group_count": groups[0],
            "expert_group_used_count": groups[1], "rope.scaling.type": "yarn", "rope.scaling.factor": factor,
            "rope.scaling.original_context_length": 4096, "rope.scaling.yarn_log_multiplier": 0.1, **more,
        }

    v3 = hyper(heads=128, lead=3, experts=256, groups=(8, 4), scale=2.5, theta=10000.0, factor=40.0, context=163840)
    k2 = hyper(heads=64, lead=1, experts=384, groups=(1, 1), scale=2.827, theta=50000.0, factor=32.0, context=131072,
               **{"rope.scaling.yarn_beta_fast": 1.0, "rope.scaling.yarn_beta_slow": 1.0})
    return [Shape("deepseek-v3", "DeepSeek-V3", "deepseek2", v3, 129280, "config.json", 671.0),
            Shape("deepseek-r1", "DeepSeek-R1", "deepseek2", v3, 129280, "config.json", 671.0),
            Shape("kimi-k2", "Kimi-K2", "deepseek2", k2, 163840, "config.json of Kimi-K2-Instruct", 1026.4)]


def _glm4moe() -> list[Shape]:
    """The last layer only predicts further tokens."""

    def hyper(layers: int, n: int, ff: int, experts: dict[str, Any], *, lead: int, scale: float, context: int,
              norms: bool) -> dict[str, Any]:
        return {
            **_base(layers, n, 96, 8, 128, context, 1e6, epsilon=1e-5, rope=64), "feed_forward_length": ff,
            "leading_dense_block_count": lead, **experts, "expert_shared_count": 1, "expert_weights_scale": scale,
            "expert_weights_norm": True, "expert_gating_func": 2, "nextn_predict_layers": 1, "_qk_norm": norms,
        }

    large = hyper(93, 5120, 12288, _experts(160, 8, 1536), lead=3, scale=2.5, context=202752, norms=True)
    air = hyper(47, 4096, 10944, _experts(128, 8, 1408), lead=1, scale=1.0, context=131072, norms=False)
    return [Shape("glm-4.7", "GLM-4.7", "glm4moe", large, 151552,
                  "config.json as a converter's test copies it; GLM-4.6 is the same", 358.0),
            Shape("glm-4.5-air", "GLM-4.5-Air", "glm4moe", air, 151552,
                  "config.json as transformers printed it", 110.5)]


def _step35() -> Shape:
    """Full attention in layers 0, 4, 8 …, which have 64 heads; the windowed ones have 96. The three layers that predict
    further tokens are not in the file."""
    windowed = [i % 4 != 0 for i in range(45)]
    hyper = {
        **_base(45, 4096, 64, 8, 128, 262144, 5e6, epsilon=1e-5),
        "attention.head_count": [96 if window else 64 for window in windowed], "attention.head_count_kv": [8] * 45,
        "rope.freq_base_swa": 10000.0, "feed_forward_length": 11264, **_experts(288, 8, 1280, shared=1280),
        "expert_gating_func": 2, "expert_weights_scale": 3.0, "expert_weights_norm": True,
        "leading_dense_block_count": 3, "moe_every_n_layers": 1, "attention.sliding_window": 512,
        "attention.sliding_window_pattern": windowed, "swiglu_clamp_exp": [0.0] * 43 + [7.0, 7.0],
        "swiglu_clamp_shexp": [0.0] * 44 + [16.0], "_rope_frequencies": 64,
        "_rope_scaling": (2.0, 1.0, 32.0, 131072),
    }
    return Shape("step-3.5-flash", "Step-3.5-Flash", "step35", hyper, 128896,
                 "config.json as copied into Megatron-Bridge's tests", 196.0)


def _others() -> list[Shape]:
    minimax = {**_base(62, 3072, 48, 8, 128, 196608, 5e6, rope=64), "feed_forward_length": 1536,
               **_experts(256, 8, 1536), "expert_gating_func": 2}
    mixtral = {**_base(32, 4096, 32, 8, 128, 32768, 1e6, epsilon=1e-5), "feed_forward_length": 14336,
               "expert_count": 8, "expert_used_count": 2}
    olmoe = {**_base(16, 2048, 16, 16, 128, 4096, 10000.0, epsilon=1e-5), "feed_forward_length": 1024,
             "expert_count": 64, "expert_used_count": 8}
    small = {**_base(24, 2048, 16, 16, 128, 8192, 1e6), "feed_forward_length": 5632,
             **_experts(60, 4, 1408, shared=5632)}
    large = {**_base(28, 3584, 28, 4, 128, 131072, 1e6), "feed_forward_length": 18944,
             **_experts(64, 8, 2560, shared=20480)}
    return [
        Shape("minimax-m2", "MiniMax-M2", "minimax-m2", minimax, 200064,
              "config.json of MiniMax-M2.5, and the defaults of transformers' MiniMaxM2Config", 228.7),
        Shape("mixtral-8x7b", "Mixtral-8x7B", "llama", mixtral, 32000, "config.json", 46.7),
        Shape("olmoe-1b-7b", "OLMoE-1B-7B", "olmoe", olmoe, 50304, "config.json of OLMoE-1B-7B-0125-Instruct", 6.92),
        Shape("qwen1.5-moe-a2.7b", "Qwen1.5-MoE-A2.7B", "qwen2moe", small, 151936,
              "the defaults of transformers' Qwen2MoeConfig, made for it; its context was not found", 14.3),
        Shape("qwen2-57b-a14b", "Qwen2-57B-A14B", "qwen2moe", large, 151936,
              "config.json as copied into TensorRT-LLM's tests", 57.4),
    ]


def _dense() -> list[Shape]:
    def hyper(ff: int, *base: float, epsilon: float = 1e-6, **more: object) -> dict[str, Any]:
        return {**_base(*base, epsilon=epsilon), "feed_forward_length": ff, **more}

    llama3: dict[str, Any] = {"epsilon": 1e-5, "_rope_frequencies": 64, "_rope_scaling": (8.0, 1.0, 4.0, 8192)}
    return [
        Shape("qwen3-0.6b", "Qwen3-0.6B", "qwen3", hyper(3072, 28, 1024, 16, 8, 128, 40960, 1e6), 151936,
              "config.json", 0.6, tied=True),
        Shape("qwen3-8b", "Qwen3-8B", "qwen3", hyper(12288, 36, 4096, 32, 8, 128, 40960, 1e6), 151936,
              "config.json", 8.19),
        Shape("qwen3-32b", "Qwen3-32B", "qwen3", hyper(25600, 64, 5120, 64, 8, 128, 40960, 1e6), 151936,
              "config.json", 32.8),
        Shape("qwen2.5-7b", "Qwen2.5-7B", "qwen2", hyper(18944, 28, 3584, 28, 4, 128, 32768, 1e6), 152064,
              "config.json of Qwen2.5-7B-Instruct", 7.62),
        Shape("llama-3.1-8b", "Llama-3.1-8B", "llama", hyper(14336, 32, 4096, 32, 8, 128, 131072, 500000.0, **llama3),
              128256, "config.json", 8.03),
        Shape("llama-3.1-70b", "Llama-3.1-70B", "llama", hyper(28672, 80, 8192, 64, 8, 128, 131072, 500000.0, **llama3),
              128256, "config.json", 70.6),
    ]


SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (*_qwen3moe(), *_qwen35(), *_gpt_oss(), *_deepseek2(), *_glm4moe(), _step35(), *_others(), *_dense())
}


def find_shape(name: str) -> Shape:
    """The shape called `name`, whatever its capitals and a maker's prefix. KeyError with the known names."""
    wanted = name.lower().rsplit("/", 1)[-1].removesuffix(".gguf").replace("_", "-").replace(" ", "-")
    for suffix in ("", "-instruct", "-thinking", "-base", "-gguf"):
        if wanted.removesuffix(suffix) in SHAPES:
            return SHAPES[wanted.removesuffix(suffix)]
    raise KeyError(f"no shape called {name}; known are {', '.join(SHAPES)}")
