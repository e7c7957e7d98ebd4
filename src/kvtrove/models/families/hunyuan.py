"""Hunyuan V1: norms of heads behind the rotation, layers that read another's cache (CLA), experts.

arXiv 2411.02265; cross-layer attention: arXiv 2405.12981.
"""

from __future__ import annotations

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import (
    FULL,
    Family,
    Source,
    build_layers,
    build_spec,
    read_heads,
    sharing_in_runs,
    with_experts,
)
from kvtrove.models.rope_config import read_rope
from kvtrove.models.spec import LayerSpec, ModelSpec, MoESpec, RopeSpec

_NAMES = {
    **{".q_norm.": ".query_layernorm.", ".k_norm.": ".key_layernorm."},
    **{".mlp.gate.": ".mlp.gate.wg.", ".mlp.shared_experts.": ".mlp.shared_mlp."},
}


def read(view: ConfigView) -> ModelSpec:
    return _read(view, "hunyuan_v1", None)


def read_moe(view: ConfigView) -> ModelSpec:
    """Some configs give one number a layer where all are the same."""
    moe = MoESpec(
        num_experts=_same(view, "num_experts"),
        top_k=_same(view, "moe_topk"),
        intermediate_size=_same(view, "moe_intermediate_size", view.size("intermediate_size")),
        norm_topk=True,
        shared_size=_same(view, "num_shared_expert", 1) * view.size("intermediate_size"),
    )
    return _read(view, "hunyuan_v1_moe", moe)


def _read(view: ConfigView, family: str, moe: MoESpec | None) -> ModelSpec:
    heads = read_heads(view)
    types = [FULL] * view.size("num_hidden_layers")
    layers = build_layers(view, heads, types, {FULL: _rope(view, heads.dim)}, None)
    bias = view.flag("attention_bias", False)
    return build_spec(
        view,
        family,
        heads,
        with_experts(_shared(view, layers), lambda index: moe),
        attention_bias=bias,
        output_bias=bias,
        qk_norm="rotated" if view.flag("use_qk_norm", True) else None,
        norm_eps=view.number("rms_norm_eps", 1e-5),
    )


def _shared(view: ConfigView, layers: tuple[LayerSpec, ...]) -> tuple[LayerSpec, ...]:
    """Cross-layer attention: of `cla_share_factor` layers in turn, the first stores what all of them read."""
    factor = view.size("cla_share_factor", 2) if view.flag("use_cla", False) else 1
    return sharing_in_runs(layers, factor)


def _same(view: ConfigView, key: str, default: int | None = None) -> int:
    value = view.get(key, default)
    if isinstance(value, list) and len(set(value)) == 1:
        return ConfigView({key: value[0]}, view.where).size(key)
    return view.size(key, default)


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


FAMILIES = {
    "HunYuanDenseV1ForCausalLM": Family(read, locate),
    "HunYuanMoEV1ForCausalLM": Family(read_moe, locate),
}
