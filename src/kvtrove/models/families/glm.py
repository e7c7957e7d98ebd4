"""GLM 4 dense, and GLM 4.5 to 4.7 with experts: half of a head rotates. arXiv 2406.12793, 2508.06471."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import (
    FULL,
    Family,
    Source,
    build_layers,
    build_spec,
    fused_gate,
    read_heads,
    with_experts,
)
from kvtrove.models.families.deepseek import shared_and_routed
from kvtrove.models.rope_config import RopeDefaults, read_rope
from kvtrove.models.spec import LayerSpec, ModelSpec

_ROPE = RopeDefaults(partial=True)
_MOE = {
    **{"n_routed_experts": 128, "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 1408},
    **{"routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "rms_norm_eps": 1e-5},
    **{"first_k_dense_replace": 1, "num_key_value_heads": 8, "partial_rotary_factor": 0.5},
}
_NORMS = {
    "post_attention_layernorm": "post_self_attn_layernorm",
    "pre_feedforward_layernorm": "post_attention_layernorm",
    "post_feedforward_layernorm": "post_mlp_layernorm",
}


def read_glm(view: ConfigView) -> ModelSpec:
    return _read(view, "glm")


def read_glm4(view: ConfigView) -> ModelSpec:
    return _read(view, "glm4", norms="sandwich")


def _read(view: ConfigView, family: str, **differences: Any) -> ModelSpec:
    view = view.over({"head_dim": 128, "num_key_value_heads": 2, "rms_norm_eps": 1.5625e-7})
    view = view.over({"partial_rotary_factor": 0.5, "attention_bias": True})
    layers, bias = _layers(view), view.flag("attention_bias", True)
    return build_spec(view, family, read_heads(view), layers, attention_bias=bias, interleaved_rope=True, **differences)


def _layers(view: ConfigView) -> tuple[LayerSpec, ...]:
    heads, types = read_heads(view), [FULL] * view.size("num_hidden_layers")
    return build_layers(view, heads, types, {FULL: read_rope(view, heads.dim, by=_ROPE)}, None)


def read_moe(view: ConfigView) -> ModelSpec:
    view = view.over(_MOE)
    moe, first = shared_and_routed(view), view.size("first_k_dense_replace", least=0)
    return build_spec(
        view,
        "glm4_moe",
        read_heads(view),
        with_experts(_layers(view), lambda index: moe if index >= first else None),
        attention_bias=view.flag("attention_bias", False),
        qk_norm="head" if view.flag("use_qk_norm", False) else None,
    )


def _located(name: str, spec: ModelSpec, norms: Mapping[str, str]) -> Source:
    head, _, part = name.partition(".mlp.")
    if part.startswith(("gate_proj", "up_proj")):
        return fused_gate(part.split(".")[0], f"{head}.mlp.gate_up_proj.weight", spec.intermediate_size)
    *front, module, _ = name.split(".")
    return Source(".".join((*front, norms[module], "weight")) if module in norms else name)


FAMILIES = {
    "GlmForCausalLM": Family(read_glm, lambda name, spec: _located(name, spec, {})),
    "Glm4ForCausalLM": Family(read_glm4, lambda name, spec: _located(name, spec, _NORMS)),
    "Glm4MoeForCausalLM": Family(read_moe),
}
