"""Gemma 2 and 3 (text): sliding and full layers in turn, norms on both sides. arXiv 2408.00118, 2503.19786."""

from __future__ import annotations

from typing import Any

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import (
    FULL,
    SLIDING,
    Family,
    build_layers,
    build_spec,
    layer_types,
    read_heads,
    sliding_window,
    text_part,
)
from kvtrove.models.rope_config import RopeDefaults, read_rope
from kvtrove.models.spec import ModelSpec, RopeSpec

_GEMMA2_DEFAULTS = {
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
# Text parts of the multimodal checkpoints leave out whatever equals these.
_GEMMA3_DEFAULTS = {
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "bos_token_id": 2,
    "eos_token_id": 1,
}
_GLOBAL = RopeDefaults(theta=1_000_000.0)
_LOCAL = RopeDefaults(theta=10_000.0, theta_key="rope_local_base_freq", scaling_key="")


def ropes_by_type(view: ConfigView, dim: int) -> dict[str, RopeSpec]:
    """Of Gemma 3 and 3n: windows turn faster, and are not scaled."""
    return {FULL: read_rope(view, dim, FULL, _GLOBAL), SLIDING: read_rope(view, dim, SLIDING, _LOCAL)}


def read_gemma2(view: ConfigView) -> ModelSpec:
    view = view.over(_GEMMA2_DEFAULTS)
    heads = read_heads(view, head_dim=256)
    types = layer_types(view, lambda i: FULL if i % 2 else SLIDING)
    ropes = {kind: read_rope(view, heads.dim, kind) for kind in sorted(set(types))}
    layers = build_layers(view, heads, types, ropes, sliding_window(view, 4096))
    return build_spec(view, "gemma2", heads, layers, "hidden_activation", **_gemma(view))


def read_gemma3(view: ConfigView) -> ModelSpec:
    view = view.over(_GEMMA3_DEFAULTS)
    heads = read_heads(view, head_dim=256)
    pattern = view.size("sliding_window_pattern", 6)
    types = layer_types(view, lambda i: SLIDING if (i + 1) % pattern else FULL)
    ropes = ropes_by_type(view, heads.dim)
    layers = build_layers(view, heads, types, ropes, sliding_window(view, 4096))
    limit = view.size("max_position_embeddings")
    return build_spec(
        view, "gemma3", heads, layers, "hidden_activation", qk_norm="head", max_position=limit, **_gemma(view)
    )


def read_gemma3_text_part(view: ConfigView) -> ModelSpec:
    """The language model of a checkpoint that also sees images; the vision tower stays on disk."""
    return read_gemma3(text_part(view))


def _gemma(view: ConfigView) -> dict[str, Any]:
    if view.flag("use_bidirectional_attention", False):
        raise view.error("'use_bidirectional_attention' is not supported: every token would see later ones")
    bias = view.flag("attention_bias", False)
    return {
        "attention_bias": bias,
        "output_bias": bias,
        "norms": "sandwich",
        "norm_offset": 1.0,
        "wide_norms": True,
        "query_scale": view.number("query_pre_attn_scalar", 256.0) ** -0.5,
        "attention_softcap": view.optional_number("attn_logit_softcapping"),
        "logit_softcap": view.optional_number("final_logit_softcapping"),
        "embed_scale": view.size("hidden_size") ** 0.5,
    }


FAMILIES = {
    "Gemma2ForCausalLM": Family(read_gemma2),
    "Gemma3ForCausalLM": Family(read_gemma3),
    "Gemma3ForConditionalGeneration": Family(
        read_gemma3_text_part, prefixes=("model.language_model.", "language_model.model.")
    ),
}
