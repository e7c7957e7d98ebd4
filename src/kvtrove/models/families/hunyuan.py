"""Hunyuan V1 dense: norms of heads behind the rotation. arXiv 2411.02265."""

from __future__ import annotations

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import FULL, Family, Source, build_layers, build_spec, read_heads
from kvtrove.models.rope_config import read_rope
from kvtrove.models.spec import ModelSpec, RopeSpec

_NAMES = {".q_norm.": ".query_layernorm.", ".k_norm.": ".key_layernorm."}


def read(view: ConfigView) -> ModelSpec:
    heads = read_heads(view)
    types = [FULL] * view.size("num_hidden_layers")
    layers = build_layers(view, heads, types, {FULL: _rope(view, heads.dim)}, None)
    bias = view.flag("attention_bias", False)
    return build_spec(
        view,
        "hunyuan_v1",
        heads,
        layers,
        attention_bias=bias,
        output_bias=bias,
        qk_norm="rotated",
        norm_eps=view.number("rms_norm_eps", 1e-5),
    )


def _rope(view: ConfigView, dim: int) -> RopeSpec:
    """ "dynamic" with an `alpha` stretches the base by a constant, whatever the length (NTK-aware scaling)."""
    key = "rope_parameters" if view.has("rope_parameters") else "rope_scaling"
    section = view.section(key) if view.has(key) else view
    if section.get("rope_type", section.get("type")) != "dynamic" or not section.get("alpha"):
        return read_rope(view, dim)
    base = section.number("rope_theta", view.number("rope_theta", 10_000.0))
    return RopeSpec(
        base * section.number("alpha") ** (dim / (dim - 2)), dim, max_position=view.size("max_position_embeddings")
    )


def locate(name: str, spec: ModelSpec) -> Source:
    """layers.0.self_attn.q_norm.weight -> layers.0.self_attn.query_layernorm.weight"""
    for ours, theirs in _NAMES.items():
        name = name.replace(ours, theirs)
    return Source(name)


FAMILIES = {"HunYuanDenseV1ForCausalLM": Family(read, locate)}
