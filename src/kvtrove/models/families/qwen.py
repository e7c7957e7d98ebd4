"""Qwen 2 (bias on q, k, v), Qwen 3 (norm on q, k) and Qwen 3 MoE. arXiv 2407.10671, 2505.09388."""

from __future__ import annotations

from typing import Any

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import (
    FULL,
    SLIDING,
    Family,
    Heads,
    build_layers,
    build_spec,
    layer_types,
    read_heads,
    sliding_window,
)
from kvtrove.models.rope_config import read_rope
from kvtrove.models.spec import LayerSpec, ModelSpec, MoESpec


def read_qwen2(view: ConfigView) -> ModelSpec:
    heads = read_heads(view)
    return build_spec(view, "qwen2", heads, _dense_layers(view, heads), attention_bias=True)


def read_qwen3(view: ConfigView) -> ModelSpec:
    heads = read_heads(view, head_dim=128)
    return build_spec(view, "qwen3", heads, _dense_layers(view, heads), **_qwen3_attention(view))


def read_qwen3_moe(view: ConfigView) -> ModelSpec:
    heads = read_heads(view)
    moe = MoESpec(
        num_experts=view.size("num_experts", view.size("num_local_experts", 128)),
        top_k=view.size("num_experts_per_tok", 8),
        intermediate_size=view.size("moe_intermediate_size", 768),
        norm_topk=view.flag("norm_topk_prob", False),
    )
    step, dense = view.size("decoder_sparse_step", 1), set(view.get("mlp_only_layers", []))
    window = _window(view)
    types = [FULL if window is None else SLIDING] * view.size("num_hidden_layers")
    rope = read_rope(view, heads.dim)
    layers = build_layers(
        view,
        heads,
        types,
        {FULL: rope, SLIDING: rope},
        window,
        lambda i: moe if i not in dense and (i + 1) % step == 0 else None,
    )
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


FAMILIES = {
    "Qwen2ForCausalLM": Family(read_qwen2),
    "Qwen3ForCausalLM": Family(read_qwen3),
    "Qwen3MoeForCausalLM": Family(read_qwen3_moe),
}
