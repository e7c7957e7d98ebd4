"""Llama 4 (text): chunks of local attention, layers without positions, experts beside a network for every token."""

from __future__ import annotations

from dataclasses import replace

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import (
    CHUNKED,
    FULL,
    Family,
    Source,
    build_layers,
    build_spec,
    fused_expert,
    layer_types,
    read_heads,
    rotated_where,
    text_part,
    with_experts,
)
from kvtrove.models.rope_config import RopeDefaults, read_rope
from kvtrove.models.spec import LayerSpec, ModelSpec, MoESpec, Temperature

_DEFAULTS = {
    **{"vocab_size": 202_048, "hidden_size": 5120, "intermediate_size": 8192, "intermediate_size_mlp": 16_384},
    **{"num_hidden_layers": 48, "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128},
    **{"max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "num_local_experts": 16, "num_experts_per_tok": 1},
    **{"interleave_moe_layer_step": 1, "attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1},
    **{"bos_token_id": 1, "eos_token_id": 2},
}
_NAMES = {".mlp.": ".feed_forward.", ".gate.": ".router.", ".shared_experts.": ".shared_expert."}


def read(view: ConfigView) -> ModelSpec:
    view = view.over(_DEFAULTS)
    heads, count = read_heads(view), view.size("num_hidden_layers")
    rotated = view.get("no_rope_layers") or [(i + 1) % view.size("no_rope_layer_interval", 4) for i in range(count)]
    if not isinstance(rotated, list) or len(rotated) != count:
        raise view.error(f"'no_rope_layers' is {rotated!r}, expected {count} zeros and ones, one a layer")
    types = layer_types(view, lambda i: CHUNKED if rotated[i] else FULL, (FULL, CHUNKED))
    rope = read_rope(view, heads.dim, by=RopeDefaults(theta=500_000.0))
    layers = build_layers(view, heads, types, {FULL: rope, CHUNKED: rope}, None)
    layers = tuple(_tuned(view, layer) for layer in rotated_where(layers, rotated))
    moe, step = _experts(view), view.size("interleave_moe_layer_step")
    sparse = set(view.get("moe_layers", range(step - 1, count, step)))
    bias = view.flag("attention_bias", False)
    return build_spec(
        view,
        "llama4",
        heads,
        with_experts(layers, lambda i: moe if i in sparse else None, dense=view.size("intermediate_size_mlp")),
        attention_bias=bias,
        output_bias=bias,
        interleaved_rope=True,
        qk_norm="unweighted" if view.flag("use_qk_norm", True) else None,
    )


def _tuned(view: ConfigView, layer: LayerSpec) -> LayerSpec:
    """Queries without positions grow with theirs, so that softmax stays as sharp over many keys."""
    if layer.rope.rotary_dim or not view.flag("attn_temperature_tuning", True):
        return layer
    heat = Temperature(view.number("attn_scale"), view.size("floor_scale"), first=1)
    return replace(layer, rope=replace(layer.rope, temperature=heat))


def _experts(view: ConfigView) -> MoESpec:
    return MoESpec(
        num_experts=view.size("num_local_experts"),
        top_k=view.size("num_experts_per_tok"),
        intermediate_size=view.size("intermediate_size"),
        norm_topk=False,
        scoring="sigmoid",
        shared_size=view.size("intermediate_size"),
        scales_input=True,
    )


def locate(name: str, spec: ModelSpec) -> Source:
    """layers.0.mlp.experts.3.up_proj.weight -> columns of number 3 of layers.0.feed_forward.experts.gate_up_proj"""
    head, _, tail = name.partition(".mlp.experts.")
    if tail:
        stacks = f"{head}.feed_forward.experts.gate_up_proj", f"{head}.feed_forward.experts.down_proj"
        return fused_expert(tail, spec, *stacks, transposed=True)
    if ".mlp." in name:
        for ours, theirs in _NAMES.items():
            name = name.replace(ours, theirs)
    return Source(name)


FAMILIES = {
    "Llama4ForCausalLM": Family(read, locate),
    "Llama4ForConditionalGeneration": Family(
        lambda view: read(text_part(view)), locate, prefixes=("language_model.model.", "model.language_model.")
    ),
}
