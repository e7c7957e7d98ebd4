"""Qwen3-Next and Qwen 3.5 (text): Gated DeltaNet in three of four layers, gated attention in the others."""

from __future__ import annotations

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import (
    FULL,
    Family,
    Source,
    build_layers,
    build_spec,
    fused_expert,
    layer_types,
    read_heads,
    text_part,
    with_states,
)
from kvtrove.models.rope_config import RopeDefaults, read_rope
from kvtrove.models.spec import ModelSpec, MoESpec
from kvtrove.models.state_spec import DeltaSpec

LINEAR = "linear_attention"
_DELTA = {
    **{"linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128},
    **{"linear_value_head_dim": 128, "linear_conv_kernel_dim": 4, "head_dim": 256, "partial_rotary_factor": 0.25},
    **{"max_position_embeddings": 32_768, "intermediate_size": 5632},
}
_EXPERTS = {"num_experts_per_tok": 10, "num_experts": 512}
_EXPERTS_35 = {"num_experts_per_tok": 8, "num_experts": 256, "norm_topk_prob": True}


def read_next(view: ConfigView) -> ModelSpec:
    return _read(view.over(_EXPERTS), "qwen3_next")


def read_dense(view: ConfigView) -> ModelSpec:
    return _read(view, "qwen3_5")


def read_moe(view: ConfigView) -> ModelSpec:
    return _read(view.over(_EXPERTS_35), "qwen3_5_moe")


def _read(view: ConfigView, family: str) -> ModelSpec:
    view = view.over(_DELTA)
    heads = read_heads(view)
    interval = view.size("full_attention_interval", 4)
    types = layer_types(view, lambda i: LINEAR if (i + 1) % interval else FULL, (FULL, LINEAR))
    delta = DeltaSpec(
        key_heads=view.size("linear_num_key_heads"),
        value_heads=view.size("linear_num_value_heads"),
        k_dim=view.size("linear_key_head_dim"),
        v_dim=view.size("linear_value_head_dim"),
        kernel=view.size("linear_conv_kernel_dim", least=2),
    )
    if delta.value_heads % delta.key_heads:
        raise view.error(
            f"'linear_num_value_heads' {delta.value_heads} is not a multiple of 'linear_num_key_heads' "
            f"{delta.key_heads}"
        )
    rope = read_rope(view, heads.dim, by=RopeDefaults(partial=True))
    moe = _moe(view) if view.has("num_experts") and view.size("num_experts", least=0) else None
    step, dense = view.size("decoder_sparse_step", 1), set(view.get("mlp_only_layers", []))
    layers = build_layers(
        view,
        heads,
        types,
        {FULL: rope, LINEAR: rope},
        None,
        lambda i: moe if i not in dense and (i + 1) % step == 0 else None,
    )
    bias = view.flag("attention_bias", False)
    return build_spec(
        view,
        family,
        heads,
        with_states(layers, [delta if kind == LINEAR else None for kind in types]),
        qk_norm="head",
        norm_offset=1.0,
        wide_norms=True,
        output_gate=True,
        attention_bias=bias,
        output_bias=bias,
    )


def _moe(view: ConfigView) -> MoESpec:
    return MoESpec(
        num_experts=view.size("num_experts"),
        top_k=view.size("num_experts_per_tok"),
        intermediate_size=view.size("moe_intermediate_size", 512),
        norm_topk=view.flag("norm_topk_prob", True),
        shared_size=view.size("shared_expert_intermediate_size", 512),
        shared_gate=True,
    )


def locate_next(name: str, spec: ModelSpec) -> Source:
    """Rows of two projections, in which each key head has its own query, key, values, gates side by side."""
    name = name.replace("shared_experts", "shared_expert")
    delta = next((layer.state for layer in spec.layers if isinstance(layer.state, DeltaSpec)), None)
    if delta is None or ".linear_attn.in_proj_" not in name:
        return Source(name)
    each = delta.value_heads // delta.key_heads
    values, both = each * delta.v_dim, 2 * (delta.k_dim + each * delta.v_dim)
    start, part = name.split("in_proj_")
    where = {
        "q": (0, delta.k_dim),
        "k": (delta.k_dim, 2 * delta.k_dim),
        "v": (2 * delta.k_dim, 2 * delta.k_dim + values),
        "z": (2 * delta.k_dim + values, both),
    }
    letter = part.partition(".")[0]
    if letter in where:
        return Source(f"{start}in_proj_qkvz.weight", *where[letter], delta.key_heads * both, every=both)
    first = 0 if letter == "b" else each
    return Source(f"{start}in_proj_ba.weight", first, first + each, 2 * delta.value_heads, every=2 * each)


def locate_35(name: str, spec: ModelSpec) -> Source:
    """q, k and v are one tensor; experts are stacked, gate above up."""
    name = name.replace("shared_experts", "shared_expert")
    delta = next((layer.state for layer in spec.layers if isinstance(layer.state, DeltaSpec)), None)
    if delta is not None and ".linear_attn.in_proj_" in name:
        start, part = name.split("in_proj_")
        rows = {"q": (0, delta.keys), "k": (delta.keys, 2 * delta.keys), "v": (2 * delta.keys, delta.width)}
        if (letter := part.partition(".")[0]) in rows:
            return Source(f"{start}in_proj_qkv.weight", *rows[letter], delta.width)
    start, found, rest = name.partition(".experts.")
    if not found:
        return Source(name)
    return fused_expert(rest, spec, f"{start}.experts.gate_up_proj", f"{start}.experts.down_proj")


_VISION = ("model.language_model.", "language_model.model.", "model.")
FAMILIES = {
    "Qwen3NextForCausalLM": Family(read_next, locate_next),
    "Qwen3_5ForCausalLM": Family(read_dense, locate_35),
    "Qwen3_5MoeForCausalLM": Family(read_moe, locate_35),
    "Qwen3_5ForConditionalGeneration": Family(lambda view: read_dense(text_part(view)), locate_35, _VISION),
    "Qwen3_5MoeForConditionalGeneration": Family(lambda view: read_moe(text_part(view)), locate_35, _VISION),
}
