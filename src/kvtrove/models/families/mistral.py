"""Mistral and Mixtral: sliding windows; Mixtral with a mixture of experts. arXiv 2310.06825, 2401.04088."""

from __future__ import annotations

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import (
    FULL,
    SLIDING,
    Family,
    Source,
    build_layers,
    build_spec,
    layer_types,
    read_heads,
    sliding_window,
)
from kvtrove.models.rope_config import RopeDefaults, read_rope
from kvtrove.models.spec import LayerSpec, ModelSpec, MoESpec

_EXPERT_NAMES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def read_mistral(view: ConfigView) -> ModelSpec:
    return build_spec(view, "mistral", read_heads(view), _layers(view, 4096, RopeDefaults()))


def read_mixtral(view: ConfigView) -> ModelSpec:
    moe = MoESpec(
        num_experts=view.size("num_local_experts", 8),
        top_k=view.size("num_experts_per_tok", 2),
        intermediate_size=view.size("intermediate_size"),
        norm_topk=True,
    )
    layers = _layers(view, None, RopeDefaults(theta=1_000_000.0), moe)
    return build_spec(view, "mixtral", read_heads(view), layers, norm_eps=view.number("rms_norm_eps", 1e-5))


def _layers(
    view: ConfigView, window: int | None, defaults: RopeDefaults, moe: MoESpec | None = None
) -> tuple[LayerSpec, ...]:
    """All layers slide when there is a window, unless the config tells them apart."""
    heads = read_heads(view)
    window = sliding_window(view, window)
    types = layer_types(view, lambda i: FULL if window is None else SLIDING)
    rope = read_rope(view, heads.dim, by=defaults)
    return build_layers(view, heads, types, {FULL: rope, SLIDING: rope}, window, lambda i: moe)


def locate_mixtral(name: str, spec: ModelSpec) -> Source:
    """layers.0.mlp.experts.3.gate_proj.weight -> layers.0.block_sparse_moe.experts.3.w1.weight"""
    if ".mlp." not in name:
        return Source(name)
    parts = name.replace(".mlp.", ".block_sparse_moe.").split(".")
    return Source(".".join(_EXPERT_NAMES.get(part, part) for part in parts))


FAMILIES = {
    "MistralForCausalLM": Family(read_mistral),
    "MixtralForCausalLM": Family(read_mixtral, locate_mixtral),
}
