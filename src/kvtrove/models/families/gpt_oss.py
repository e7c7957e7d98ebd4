"""gpt-oss: a learned sink a head, a window in every other layer, experts in MXFP4. arXiv 2508.10925."""

from __future__ import annotations

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import (
    FULL,
    SLIDING,
    Family,
    Source,
    build_layers,
    build_spec,
    first_experts,
    layer_types,
    quantisation,
    read_heads,
    sliding_window,
)
from kvtrove.models.rope_config import ORIGINAL, RopeDefaults, read_rope
from kvtrove.models.spec import ClampedGate, ModelSpec, MoESpec

MXFP4 = "mxfp4"
_ROPE = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False, ORIGINAL: 4096}
_DEFAULTS = {
    **{"num_local_experts": 128, "num_experts_per_tok": 4, "swiglu_limit": 7.0, "swiglu_alpha": 1.702},
    **{"sliding_window": 128, "max_position_embeddings": 131_072, "attention_bias": True, "rms_norm_eps": 1e-5},
}


def read(view: ConfigView) -> ModelSpec:
    if not (view.has("rope_parameters") or view.has("rope_scaling")):
        view = ConfigView({**view.values, "rope_scaling": _ROPE}, view.where)
    if quantisation(view) == MXFP4 and not view.has("torch_dtype"):
        view = view.over({"dtype": "bfloat16"})
    view = view.over(_DEFAULTS)
    heads = read_heads(view, head_dim=64)
    types = layer_types(view, lambda i: FULL if i % 2 else SLIDING)
    rope = read_rope(view, heads.dim, by=RopeDefaults(theta=150_000.0))
    moe = MoESpec(
        num_experts=view.size("num_local_experts"),
        top_k=view.size("num_experts_per_tok"),
        intermediate_size=view.size("intermediate_size"),
        norm_topk=True,  # softmax over the chosen scores alone is softmax over all, summing to 1
        bias=True,
        clamped=ClampedGate(view.number("swiglu_limit"), view.number("swiglu_alpha")),
    )
    layers = build_layers(view, heads, types, {FULL: rope, SLIDING: rope}, sliding_window(view), moe=lambda index: moe)
    bias = view.flag("attention_bias", True)
    return build_spec(
        view,
        "gpt_oss",
        heads,
        layers,
        attention_bias=bias,
        output_bias=bias,
        wide_norms=True,
        attention_sinks=True,
    )


def locate(name: str, spec: ModelSpec) -> Source:
    """layers.0.mlp.experts.3.up_proj.weight -> every second column of number 3 of layers.0.mlp.experts.gate_up_proj

    Gate and up take turns, and matrices are [inputs, outputs]; biases are behind `_bias`.
    """
    head, _, tail = name.partition(".experts.")
    if not tail:
        return Source(name.replace(".mlp.gate.", ".mlp.router."))
    number, part, kind = tail.split(".")
    moe = first_experts(spec)
    stack, fused = (int(number), moe.num_experts), part != "down_proj"
    return Source(
        f"{head}.experts.{'gate_up_proj' if fused else part}{'_bias' if kind == 'bias' else ''}",
        start=int(part == "up_proj"),
        total=2 * moe.intermediate_size if fused else None,
        step=2 if fused else 1,
        stack=stack,
        transposed=kind == "weight",
    )


FAMILIES = {"GptOssForCausalLM": Family(read, locate, quantised=(MXFP4,))}
