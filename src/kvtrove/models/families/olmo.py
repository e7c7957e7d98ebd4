"""Olmo 2 and 3: norms of what attention and MLP add, and of whole projections; Olmo 3 slides in three of four layers.

arXiv 2501.00656, 2512.13961.
"""

from __future__ import annotations

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
)
from kvtrove.models.rope_config import RopeDefaults, read_rope
from kvtrove.models.spec import LayerSpec, ModelSpec, MoESpec

_LOCAL = RopeDefaults(scaling_key="")
"""Olmo 3 stretches the full layers alone, in the layout of old configs."""


def read_olmo2(view: ConfigView) -> ModelSpec:
    heads = read_heads(view)
    types = [FULL] * view.size("num_hidden_layers")
    return _spec(view, "olmo2", build_layers(view, heads, types, {FULL: read_rope(view, heads.dim)}, None))


def read_olmo3(view: ConfigView) -> ModelSpec:
    heads = read_heads(view)
    types = layer_types(view, lambda i: SLIDING if (i + 1) % 4 else FULL)
    ropes = {FULL: read_rope(view, heads.dim, FULL), SLIDING: read_rope(view, heads.dim, SLIDING, _LOCAL)}
    return _spec(view, "olmo3", build_layers(view, heads, types, ropes, sliding_window(view, 4096)))


def _spec(view: ConfigView, family: str, layers: tuple[LayerSpec, ...]) -> ModelSpec:
    bias = view.flag("attention_bias", False)
    return build_spec(
        view,
        family,
        read_heads(view),
        layers,
        attention_bias=bias,
        output_bias=bias,
        norms="post",
        wide_norms=True,
        qk_norm="projection",
        norm_eps=view.number("rms_norm_eps", 1e-5),
    )


def read_olmoe(view: ConfigView) -> ModelSpec:
    """OLMoE (arXiv 2409.02060): norms in front, as most have them."""
    if view.has("clip_qkv"):
        raise view.error("'clip_qkv' is not supported: queries, keys and values would be clamped")
    heads = read_heads(view)
    moe = MoESpec(
        num_experts=view.size("num_experts", 64),
        top_k=view.size("num_experts_per_tok", 8),
        intermediate_size=view.size("intermediate_size"),
        norm_topk=view.flag("norm_topk_prob", False),
    )
    types, rope = [FULL] * view.size("num_hidden_layers"), read_rope(view, heads.dim)
    layers = build_layers(view, heads, types, {FULL: rope}, None, lambda i: moe)
    eps = view.number("rms_norm_eps", 1e-5)
    bias = view.flag("attention_bias", False)
    return build_spec(
        view, "olmoe", heads, layers, attention_bias=bias, output_bias=bias, qk_norm="projection", norm_eps=eps
    )


FAMILIES = {
    "OlmoeForCausalLM": Family(read_olmoe),
    "Olmo2ForCausalLM": Family(read_olmo2),
    "Olmo3ForCausalLM": Family(read_olmo3),
}
