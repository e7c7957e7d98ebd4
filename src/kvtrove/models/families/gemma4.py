"""Gemma 4 (text): layers that share caches, per-layer inputs, keys that are values, two shapes of heads."""

from __future__ import annotations

from kvtrove.kv.formats.dense import Dense, dense
from kvtrove.kv.retention import Retention
from kvtrove.kv.spec import KVFormat, LayerKV
from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import (
    FULL,
    SLIDING,
    Family,
    Heads,
    Source,
    build_spec,
    fused_expert,
    layer_types,
    retentions,
    shared_sources,
    sliding_window,
    stored_dtype,
    text_part,
)
from kvtrove.models.rope_config import read_rope
from kvtrove.models.spec import LayerSpec, ModelSpec, MoESpec, PerLayerSpec, RopeSpec

_ROPES = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
_DEFAULTS = {
    **{"vocab_size": 262_144, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30},
    **{"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "global_head_dim": 512},
    **{"max_position_embeddings": 131_072, "sliding_window": 512, "hidden_activation": "gelu_pytorch_tanh"},
    **{"hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 262_144, "rope_parameters": _ROPES},
    **{"tie_word_embeddings": True, "bos_token_id": 2, "eos_token_id": 1},
}
_ROUTER = {"mlp.gate.weight": "router.proj.weight", "mlp.gate.scale": "router.scale"}
_ROUTER |= {"mlp.gate.expert_scale": "router.per_expert_scale"}


def read(view: ConfigView) -> ModelSpec:
    view = view.over(_DEFAULTS)
    if view.get("use_bidirectional_attention") not in (None, False, "vision"):
        raise view.error("'use_bidirectional_attention' is not supported: every token would see later ones")
    types = layer_types(view, lambda i: SLIDING if (i + 1) % 6 else FULL)
    types[-1] = FULL
    shared = view.size("num_kv_shared_layers", 0, least=0)
    heads = [_heads(view, index, kind) for index, kind in enumerate(types)]
    ropes = {kind: read_rope(view, heads[types.index(kind)].dim, kind) for kind in sorted(set(types))}
    rules = retentions(view, types, view.size("max_position_embeddings"), sliding_window(view))
    tied, inner = view.flag("attention_k_eq_v", False), view.size("intermediate_size")
    doubled, moe = view.flag("use_double_wide_mlp", False), _experts(view)
    sources = shared_sources(view, types, shared)
    layers = tuple(
        LayerSpec(
            _cache(view, index, heads[index], rules[kind], source, ropes[kind], tied and kind == FULL),
            ropes[kind],
            moe,
            2 * inner if doubled and source is not None else None,
            tied and kind == FULL,
        )
        for index, (kind, source) in enumerate(zip(types, sources, strict=True))
    )
    bias, size = view.flag("attention_bias", False), view.size("hidden_size_per_layer_input", 0, least=0)
    return build_spec(
        view,
        "gemma4",
        heads[0],
        layers,
        "hidden_activation",
        attention_bias=bias,
        output_bias=bias,
        norms="sandwich",
        wide_norms=True,
        qk_norm="head",
        value_norm=True,
        layer_scalars=True,
        query_scale=1.0,
        logit_softcap=view.optional_number("final_logit_softcapping"),
        embed_scale=view.size("hidden_size") ** 0.5,
        max_position=view.size("max_position_embeddings"),
        per_layer=PerLayerSpec(size, view.size("vocab_size_per_layer_input")) if size else None,
    )


def _heads(view: ConfigView, index: int, kind: str) -> Heads:
    """Of one layer: full ones have heads of their own, said for all of them or layer by layer."""
    query, kv, dim = (view.size(key) for key in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    if view.has("per_layer_config"):
        own = view.section("per_layer_config")
        own = own.section(str(index)) if own.has(str(index)) else own
        kv, dim = own.size("num_key_value_heads", kv), own.size("head_dim", dim)
    elif kind == FULL:
        dim = view.size("global_head_dim")
        kv = view.size("num_global_key_value_heads", kv) if view.flag("attention_k_eq_v", False) else kv
    if query % kv:
        raise view.error(f"layer {index}: 'num_attention_heads' {query} is not a multiple of its {kv} heads of keys")
    return Heads(query, kv, dim)


def _cache(
    view: ConfigView, index: int, heads: Heads, rule: Retention, source: int | None, rope: RopeSpec, tied: bool
) -> LayerKV:
    dtype = stored_dtype(view)
    if not tied:
        return LayerKV(index, heads.kv, heads.dim, heads.dim, dense(dtype), rule, source)
    rotated = 2 * int(rope.param("partial_rotary_factor", 1.0) * heads.dim // 2)
    return LayerKV(index, heads.kv, heads.dim + rotated, heads.dim, KVFormat(Dense("k", dtype), None), rule, source)


def _experts(view: ConfigView) -> MoESpec | None:
    if not view.flag("enable_moe_block", False):
        return None
    return MoESpec(
        num_experts=view.size("num_experts"),
        top_k=view.size("top_k_experts"),
        intermediate_size=view.size("moe_intermediate_size"),
        norm_topk=True,
        beside=True,
    )


def locate(name: str, spec: ModelSpec) -> Source:
    """layers.0.mlp.experts.3.up_proj.weight -> the second half of number 3 of layers.0.experts.gate_up_proj"""
    head, _, tail = name.partition(".mlp.experts.")
    if tail:
        return fused_expert(tail, spec, f"{head}.experts.gate_up_proj", f"{head}.experts.down_proj")
    for ours, theirs in _ROUTER.items():
        name = name.replace(ours, theirs)
    return Source(name)


FAMILIES = {
    "Gemma4ForCausalLM": Family(read, locate),
    "Gemma4ForConditionalGeneration": Family(
        lambda view: read(text_part(view)), locate, prefixes=("model.language_model.", "language_model.model.")
    ),
}
