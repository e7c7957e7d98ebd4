"""Granite 3 and 4: a Llama whose embeddings, scores, residuals and logits are scaled. arXiv 2408.13359 (muP)."""

from __future__ import annotations

from typing import Any

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import (
    FULL,
    Family,
    Source,
    build_layers,
    build_spec,
    first_experts,
    fused_expert,
    fused_gate,
    read_heads,
    rotated_where,
)
from kvtrove.models.rope_config import read_rope
from kvtrove.models.spec import ModelSpec, MoESpec


def read(view: ConfigView) -> ModelSpec:
    return _read(view, "granite", None)


def read_moe(view: ConfigView) -> ModelSpec:
    """Granite 3 MoE, and those whose tokens all visit a network beside the experts."""
    moe = MoESpec(
        num_experts=view.size("num_local_experts", 8),
        top_k=view.size("num_experts_per_tok", 2),
        intermediate_size=view.size("intermediate_size"),
        norm_topk=True,  # softmax over the chosen alone
        shared_size=view.size("shared_intermediate_size", 0, least=0),
    )
    return _read(view, "granitemoe", moe)


def _read(view: ConfigView, family: str, moe: MoESpec | None) -> ModelSpec:
    heads = read_heads(view)
    types = [FULL] * view.size("num_hidden_layers")
    layers = build_layers(view, heads, types, {FULL: read_rope(view, heads.dim)}, None, lambda i: moe)
    turned = view.get("position_embedding_type", "rope") == "rope"
    layers = rotated_where(layers, [turned] * len(layers))
    bias = view.flag("attention_bias", False)
    return build_spec(
        view,
        family,
        heads,
        layers,
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=view.flag("mlp_bias", False),
        **multipliers(view),
    )


def multipliers(view: ConfigView) -> dict[str, Any]:
    return {
        "query_scale": view.number("attention_multiplier", 1.0),
        "embed_scale": view.number("embedding_multiplier", 1.0),
        "residual_scale": view.number("residual_multiplier", 1.0),
        "logit_scale": 1.0 / view.number("logits_scaling", 1.0),
    }


def locate(name: str, spec: ModelSpec) -> Source:
    """layers.0.mlp.experts.3.up_proj.weight -> the second half of number 3 of block_sparse_moe.input_linear.weight"""
    head, _, part = name.partition(".mlp.")
    if part.startswith("experts."):
        stacks = f"{head}.block_sparse_moe.input_linear.weight", f"{head}.block_sparse_moe.output_linear.weight"
        return fused_expert(part.removeprefix("experts."), spec, *stacks)
    if part.startswith("shared_experts."):
        _, part, _ = part.split(".")
        if part == "down_proj":
            return Source(f"{head}.shared_mlp.output_linear.weight")
        return fused_gate(part, f"{head}.shared_mlp.input_linear.weight", first_experts(spec).shared_size)
    return Source(name.replace(".mlp.gate.", ".block_sparse_moe.router.layer."))


FAMILIES = {
    "GraniteForCausalLM": Family(read),
    "GraniteMoeForCausalLM": Family(read_moe, locate),
    "GraniteMoeSharedForCausalLM": Family(read_moe, locate),
}
