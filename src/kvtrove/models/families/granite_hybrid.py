"""Granite 4 hybrid: Mamba2 in most layers, attention in a few, experts beside a network for every token."""

from __future__ import annotations

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families import granite
from kvtrove.models.families.common import (
    FULL,
    Family,
    Source,
    build_layers,
    build_spec,
    fused_gate,
    layer_types,
    read_heads,
    rotated_where,
    with_states,
)
from kvtrove.models.rope_config import read_rope
from kvtrove.models.spec import ModelSpec, MoESpec
from kvtrove.models.state_spec import MambaSpec

MAMBA = ("mamba", "linear_attention")
ATTENTION = (FULL, "attention")


def read(view: ConfigView) -> ModelSpec:
    view = view.over({"layer_types": view.get("layers_block_type"), "num_local_experts": 8, "num_experts_per_tok": 2})
    experts, inner = view.size("num_local_experts", least=0), view.size("intermediate_size", 11_008)
    view = ConfigView({**view.values, "intermediate_size": view.size("shared_intermediate_size", 1024)}, view.where)
    heads = read_heads(view)
    kinds = layer_types(view, lambda i: MAMBA[0], (*MAMBA, *ATTENTION))
    rope = read_rope(view, heads.dim)
    moe = None
    if experts:
        moe = MoESpec(
            experts,
            view.size("num_experts_per_tok"),
            inner,
            norm_topk=True,
            shared_size=view.size("intermediate_size"),
        )
    layers = build_layers(view, heads, kinds, dict.fromkeys(kinds, rope), None, lambda i: moe)
    turned = view.get("position_embedding_type") == "rope"
    layers = rotated_where(layers, [turned] * len(layers))
    mamba = _mamba(view)
    bias = view.flag("attention_bias", False)
    return build_spec(
        view,
        "granitemoehybrid",
        heads,
        with_states(layers, [mamba if kind in MAMBA else None for kind in kinds]),
        attention_bias=bias,
        output_bias=bias,
        **granite.multipliers(view),
    )


def _mamba(view: ConfigView) -> MambaSpec:
    inner = view.size("mamba_expand", 2) * view.size("hidden_size")
    heads = view.size("mamba_n_heads", 128)
    dim = inner // heads if view.get("mamba_d_head", "auto") == "auto" else view.size("mamba_d_head")
    groups = view.size("mamba_n_groups", 1)
    if heads * dim != inner or heads % groups:
        raise view.error(
            f"'mamba_n_heads' {heads} of 'mamba_d_head' {dim} are not 'mamba_expand' times 'hidden_size' = {inner}, or "
            f"not a multiple of 'mamba_n_groups' {groups}"
        )
    return MambaSpec(
        heads,
        dim,
        state=view.size("mamba_d_state", 256),
        groups=groups,
        kernel=view.size("mamba_d_conv", 4, least=2),
        conv_bias=view.flag("mamba_conv_bias", True),
        bias=view.flag("mamba_proj_bias", False),
        limits=_limits(view),
    )


def _limits(view: ConfigView) -> tuple[float, float]:
    """A JSON number cannot be infinite: transformers writes an object instead, others Infinity or null."""
    given = view.get("time_step_limit", [0.0, None])
    if not isinstance(given, list) or len(given) != 2 or not isinstance(given[0], int | float):
        raise view.error(f"'time_step_limit' is {given!r}, expected the smallest and the largest time step")
    return float(given[0]), float(given[1]) if isinstance(given[1], int | float) else float("inf")


def locate(name: str, spec: ModelSpec) -> Source:
    """As in Granite's experts; without them, the network that all tokens visit is the layer's own."""
    start, found, part = name.partition(".mlp.")
    if not found or part.startswith(("experts.", "shared_experts.", "gate.")):
        return granite.locate(name, spec)
    if part.startswith("down_proj"):
        return Source(f"{start}.shared_mlp.output_linear.weight")
    return fused_gate(part.partition(".")[0], f"{start}.shared_mlp.input_linear.weight", spec.intermediate_size)


FAMILIES = {"GraniteMoeHybridForCausalLM": Family(read, locate)}
