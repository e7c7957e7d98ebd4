"""Mistral and Ministral: sliding windows; Mixtral with a mixture of experts. arXiv 2310.06825, 2401.04088."""

from __future__ import annotations

from dataclasses import replace

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
    text_part,
)
from kvtrove.models.rope_config import ORIGINAL, RopeDefaults, read_rope
from kvtrove.models.spec import LayerSpec, ModelSpec, MoESpec, Temperature

_MINISTRAL3_ROPE = {
    **{"rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 16.0, ORIGINAL: 16_384, "beta_fast": 32.0},
    **{"beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
}
_EXPERT_NAMES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def read_mistral(view: ConfigView) -> ModelSpec:
    return build_spec(view, "mistral", read_heads(view), _layers(view, 4096, RopeDefaults()))


def read_ministral3(view: ConfigView) -> ModelSpec:
    """Queries grow with their position: `llama_4_scaling_beta` of the rope's parameters."""
    if not (view.has("rope_parameters") or view.has("rope_scaling")):
        view = ConfigView({**view.values, "rope_parameters": _MINISTRAL3_ROPE}, view.where)
    view = view.over({"max_position_embeddings": 262_144})
    heads, eps = read_heads(view, head_dim=128), view.number("rms_norm_eps", 1e-5)
    rope, window = read_rope(view, heads.dim, by=RopeDefaults(theta=1_000_000.0)), sliding_window(view)
    given = view.section("rope_parameters" if view.has("rope_parameters") else "rope_scaling")
    if given.has("llama_4_scaling_beta"):
        scale = given.number("llama_4_scaling_beta")
        rope = replace(rope, temperature=Temperature(scale, given.size(ORIGINAL)))
    types = [FULL if window is None else SLIDING] * view.size("num_hidden_layers")
    layers = build_layers(view, heads, types, {FULL: rope, SLIDING: rope}, window)
    return build_spec(view, "ministral3", heads, layers, norm_eps=eps)


def read_mistral3(view: ConfigView) -> ModelSpec:
    """The language model of a checkpoint that also sees, which is one of two."""
    text = text_part(view)
    kind = text.get("model_type", "mistral")
    readers = {"mistral": read_mistral, "ministral3": read_ministral3}
    if kind not in readers:
        raise text.error(f"'model_type' {kind!r} is not supported; supported: {', '.join(readers)}")
    return readers[kind](text)


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
    "MinistralForCausalLM": Family(read_mistral),
    "Ministral3ForCausalLM": Family(read_ministral3),
    "Mistral3ForConditionalGeneration": Family(
        read_mistral3, prefixes=("model.language_model.", "language_model.model.")
    ),
    "MixtralForCausalLM": Family(read_mixtral, locate_mixtral),
}
