"""LFM2: gated short convolutions, and attention in some layers. arXiv 2511.23404."""

from __future__ import annotations

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import (
    FULL,
    Family,
    Source,
    build_layers,
    build_spec,
    layer_types,
    read_heads,
    with_states,
)
from kvtrove.models.rope_config import RopeDefaults, read_rope
from kvtrove.models.spec import ModelSpec
from kvtrove.models.state_spec import ConvSpec

CONV = "conv"
_DEFAULTS = {
    **{"vocab_size": 65_536, "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"num_key_value_heads": 8, "max_position_embeddings": 128_000, "bos_token_id": 1, "eos_token_id": 2},
}
_NAMES = {
    **{"input_layernorm": "operator_norm", "post_attention_layernorm": "ffn_norm", "q_norm": "q_layernorm"},
    **{"k_norm": "k_layernorm", "o_proj": "out_proj", "mlp": "feed_forward"},
    **{"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
}
"""Parts of the decoder's names of a layer's parameters, and what they are here."""


def read(view: ConfigView) -> ModelSpec:
    view = view.over(_DEFAULTS)
    view = ConfigView({**view.values, "intermediate_size": _inner(view)}, view.where)
    heads = read_heads(view)
    attends = set(view.get("full_attn_idxs") or range(view.size("num_hidden_layers")))
    types = layer_types(view, lambda i: FULL if i in attends else CONV, (FULL, CONV))
    conv = ConvSpec(view.size("hidden_size"), view.size("conv_L_cache", 3, least=2), view.flag("conv_bias", False))
    rope = read_rope(view, heads.dim, by=RopeDefaults(theta=1_000_000.0))
    layers = build_layers(view, heads, types, {FULL: rope, CONV: rope}, None)
    return build_spec(
        view,
        "lfm2",
        heads,
        with_states(layers, [conv if kind == CONV else None for kind in types]),
        qk_norm="head",
        norm_eps=view.number("norm_eps", 1e-5),
        tie_embeddings=view.flag("tie_embedding", view.flag("tie_word_embeddings", True)),
    )


def _inner(view: ConfigView) -> int:
    """Width of the MLP: two thirds of what the config says, as a gate takes a third, in whole multiples."""
    inner = view.size("block_ff_dim", view.size("intermediate_size", 12_288))
    if not view.flag("block_auto_adjust_ff_dim", True):
        return inner
    multiple = view.size("block_multiple_of", 256)
    inner = int(int(2 * inner / 3) * view.number("block_ffn_dim_multiplier", 1.0))
    return -(-inner // multiple) * multiple


def locate(name: str, spec: ModelSpec) -> Source:
    if name == "norm.weight":
        return Source("embedding_norm.weight")
    return Source(".".join(_NAMES.get(part, part) for part in name.split(".")))


FAMILIES = {"Lfm2ForCausalLM": Family(read, locate)}
