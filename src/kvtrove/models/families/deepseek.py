"""DeepSeek V2 and V3, GLM 4.7 Flash: latent attention, experts that all tokens share. arXiv 2405.04434, 2412.19437."""

from __future__ import annotations

import math
from typing import Any

from kvtrove.kv.formats.dense import Dense
from kvtrove.kv.spec import KVFormat, LayerKV
from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import Family, Heads, build_spec, stored_dtype
from kvtrove.models.rope_config import read_rope
from kvtrove.models.spec import LatentSpec, LayerSpec, ModelSpec, MoESpec, RopeSpec

_V3 = {
    **{"n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 2048},
    **{"routed_scaling_factor": 2.5, "n_group": 8, "topk_group": 4, "norm_topk_prob": True},
    **{"first_k_dense_replace": 3, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128},
    **{"v_head_dim": 128, "rope_interleave": True},
}
_GLM = {
    **_V3,
    **{"n_routed_experts": 64, "num_experts_per_tok": 4, "moe_intermediate_size": 1536, "routed_scaling_factor": 1.8},
    **{"n_group": 1, "topk_group": 1, "qk_nope_head_dim": 192, "v_head_dim": 256, "rms_norm_eps": 1e-5},
}
_V2 = {
    **_V3,
    **{"n_routed_experts": 64, "num_experts_per_tok": 6, "n_shared_experts": 2, "moe_intermediate_size": 1407},
    **{"routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1, "norm_topk_prob": False},
    **{"first_k_dense_replace": 0, "topk_method": "greedy"},
}


def read_v2(view: ConfigView) -> ModelSpec:
    view = view.over(_V2)
    method = view.get("topk_method")
    if method not in ("greedy", "group_limited_greedy"):
        raise view.error(f"'topk_method' {method!r} is not supported; supported: greedy, group_limited_greedy")
    limited = method == "group_limited_greedy"
    return _read(
        view,
        "deepseek_v2",
        scoring="softmax",
        norm_topk=False,  # a flag of the config that the model does not read
        groups=view.size("n_group") if limited else 1,
        top_groups=view.size("topk_group") if limited else 1,
    )


def read_v3(view: ConfigView) -> ModelSpec:
    view = view.over(_V3)
    return _read(view, "deepseek_v3", **_sigmoid(view))


def read_glm(view: ConfigView) -> ModelSpec:
    view = view.over(_GLM)
    kinds = view.get("mlp_layer_types")
    if kinds is not None:
        dense = next((i for i, kind in enumerate(kinds) if kind != "dense"), len(kinds))
        if set(kinds[dense:]) - {"sparse"}:
            raise view.error("'mlp_layer_types' must be dense layers followed by sparse ones")
        view = ConfigView({**view.values, "first_k_dense_replace": dense}, view.where)
    else:
        view = view.over({"first_k_dense_replace": 1})
    return _read(view, "glm4_moe_lite", **_sigmoid(view))


def _sigmoid(view: ConfigView) -> dict[str, Any]:
    """Routing of V3: sigmoid scores, chosen with a learned correction, the two best of each group deciding first."""
    return {
        "scoring": "sigmoid",
        "corrected": True,
        "norm_topk": view.flag("norm_topk_prob", True),
        "groups": view.size("n_group"),
        "top_groups": view.size("topk_group"),
    }


def shared_and_routed(view: ConfigView) -> MoESpec:
    """The experts of V3, which other families have taken over with its keys."""
    return _experts(view, **_sigmoid(view))


def _experts(view: ConfigView, **routing: Any) -> MoESpec:
    moe = MoESpec(
        num_experts=view.size("n_routed_experts"),
        top_k=view.size("num_experts_per_tok"),
        intermediate_size=view.size("moe_intermediate_size"),
        shared_size=view.size("moe_intermediate_size") * view.size("n_shared_experts", least=0),
        scale=view.number("routed_scaling_factor"),
        **routing,
    )
    if moe.num_experts % moe.groups:
        raise view.error(f"'n_routed_experts' {moe.num_experts} is not a multiple of 'n_group' {moe.groups}")
    return moe


def _read(view: ConfigView, family: str, **routing: Any) -> ModelSpec:
    for key in ("index_head_dim", "index_topk"):
        if view.has(key):
            raise view.error(f"{key!r}: sparse attention by an indexer is not supported")
    moe = _experts(view, **routing)
    rank, turned = view.size("kv_lora_rank"), view.size("qk_rope_head_dim")
    latent = LatentSpec(
        q_rank=view.optional_size("q_lora_rank", None),
        nope=view.size("qk_nope_head_dim"),
        rope=turned,
        v_dim=view.size("v_head_dim"),
        interleaved=view.flag("rope_interleave", True),
    )
    rope, stored = read_rope(view, turned), KVFormat(Dense("k", stored_dtype(view)), None)
    dense = view.size("first_k_dense_replace", least=0)
    layers = tuple(
        LayerSpec(LayerKV(i, 1, rank + turned, rank, stored), rope, None if i < dense else moe)
        for i in range(view.size("num_hidden_layers"))
    )
    bias = view.flag("attention_bias", False)
    return build_spec(
        view,
        family,
        Heads(view.size("num_attention_heads"), 1, rank + turned),
        layers,
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=view.flag("mlp_bias", False),
        latent=latent,
        query_scale=(latent.nope + latent.rope) ** -0.5 * _attention_factor(rope) ** 2,
    )


def _attention_factor(rope: RopeSpec) -> float:
    """YaRN's temperature of scores, which these models apply to the scale instead of to the rotation."""
    weight, factor = rope.param("mscale_all_dim", 0.0), rope.param("factor", 1.0)
    return 0.1 * weight * math.log(factor) + 1.0 if weight and factor > 1 else 1.0


FAMILIES = {
    "DeepseekV2ForCausalLM": Family(read_v2),
    "DeepseekV3ForCausalLM": Family(read_v3),
    "Glm4MoeLiteForCausalLM": Family(read_glm),
}
