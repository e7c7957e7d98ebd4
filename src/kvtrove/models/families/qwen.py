"""Qwen 2 (bias on q, k, v) and 3 (norm on q, k), with experts, and the text parts of those that see.

arXiv 2407.10671, 2505.09388, 2502.13923, 2511.21631.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import (
    FULL,
    SLIDING,
    Family,
    Heads,
    Source,
    build_layers,
    build_spec,
    fused_expert,
    layer_types,
    read_heads,
    sliding_window,
    text_part,
    with_experts,
)
from kvtrove.models.rope_config import read_rope
from kvtrove.models.spec import LayerSpec, ModelSpec, MoESpec


def read_qwen2(view: ConfigView) -> ModelSpec:
    heads = read_heads(view)
    return build_spec(view, "qwen2", heads, _dense_layers(view, heads), attention_bias=True)


def read_qwen3(view: ConfigView) -> ModelSpec:
    heads = read_heads(view, head_dim=128)
    return build_spec(view, "qwen3", heads, _dense_layers(view, heads), **_qwen3_attention(view))


def read_qwen2_moe(view: ConfigView) -> ModelSpec:
    heads = read_heads(view)
    moe = MoESpec(
        num_experts=view.size("num_experts", 60),
        top_k=view.size("num_experts_per_tok", 4),
        intermediate_size=view.size("moe_intermediate_size", 1408),
        norm_topk=view.flag("norm_topk_prob", False),
        shared_size=view.size("shared_expert_intermediate_size", 5632),
        shared_gate=True,
    )
    bias = view.flag("qkv_bias", True)
    layers = with_experts(_dense_layers(view, heads), lambda i: moe if _is_sparse(view, i) else None)
    return build_spec(view, "qwen2_moe", heads, layers, attention_bias=bias)


def _is_sparse(view: ConfigView, index: int) -> bool:
    """Whether a layer has experts."""
    return index not in view.get("mlp_only_layers", []) and (index + 1) % view.size("decoder_sparse_step", 1) == 0


def locate_qwen2_moe(name: str, spec: ModelSpec) -> Source:
    return Source(name.replace(".mlp.shared_experts.", ".mlp.shared_expert."))


def read_qwen3_moe(view: ConfigView) -> ModelSpec:
    heads = read_heads(view)
    moe = MoESpec(
        num_experts=view.size("num_experts", view.size("num_local_experts", 128)),
        top_k=view.size("num_experts_per_tok", 8),
        intermediate_size=view.size("moe_intermediate_size", 768),
        norm_topk=view.flag("norm_topk_prob", False),
    )
    window = _window(view)
    types, rope = [FULL if window is None else SLIDING] * view.size("num_hidden_layers"), read_rope(view, heads.dim)
    ropes = {FULL: rope, SLIDING: rope}
    layers = build_layers(view, heads, types, ropes, window, lambda i: moe if _is_sparse(view, i) else None)
    return build_spec(view, "qwen3_moe", heads, layers, **_qwen3_attention(view))


def _qwen3_attention(view: ConfigView) -> dict[str, Any]:
    bias = view.flag("attention_bias", False)
    return {"qk_norm": "head", "attention_bias": bias, "output_bias": bias}


def _dense_layers(view: ConfigView, heads: Heads) -> tuple[LayerSpec, ...]:
    """Layers from `max_window_layers` on slide, when windows are switched on."""
    window = _window(view)
    first = view.size("max_window_layers", 28, least=0)
    types = layer_types(view, lambda i: SLIDING if window is not None and i >= first else FULL)
    ropes = {kind: read_rope(view, heads.dim, kind) for kind in sorted(set(types))}
    return build_layers(view, heads, types, ropes, window)


def _window(view: ConfigView) -> int | None:
    return sliding_window(view, 4096) if view.flag("use_sliding_window", False) else None


def locate_vl_moe(name: str, spec: ModelSpec) -> Source:
    """layers.0.mlp.experts.3.up_proj.weight -> the second half of number 3 of layers.0.mlp.experts.gate_up_proj"""
    head, _, tail = name.partition(".experts.")
    if not tail:
        return Source(name)
    return fused_expert(tail, spec, f"{head}.experts.gate_up_proj", f"{head}.experts.down_proj", transposed=True)


def of_text(read: Callable[[ConfigView], ModelSpec]) -> Callable[[ConfigView], ModelSpec]:
    """The language model of a checkpoint that also sees: without images, the three axes of its positions are one."""

    def reader(view: ConfigView) -> ModelSpec:
        text = text_part(view) if view.has("text_config") else view
        for key in ("rope_scaling", "rope_parameters"):
            if text.has(key) and "mrope_section" in (scaling := text.section(key).values):
                plain = {name: value for name, value in scaling.items() if "mrope" not in (name.split("_")[0], value)}
                text = ConfigView({**text.values, key: plain}, text.where)
        return read(text)

    return reader


_SEES = ("model.language_model.", "language_model.model.", "model.")
FAMILIES = {
    "Qwen2_5_VLForConditionalGeneration": Family(of_text(read_qwen2), prefixes=_SEES),
    "Qwen3VLForConditionalGeneration": Family(of_text(read_qwen3), prefixes=_SEES),
    "Qwen3VLMoeForConditionalGeneration": Family(of_text(read_qwen3_moe), locate_vl_moe, prefixes=_SEES),
    "Qwen2MoeForCausalLM": Family(read_qwen2_moe, locate_qwen2_moe),
    "Qwen2ForCausalLM": Family(read_qwen2),
    "Qwen3ForCausalLM": Family(read_qwen3),
    "Qwen3MoeForCausalLM": Family(read_qwen3_moe),
}
