"""Llama 2 and 3: the plain decoder, and those that hardly differ. arXiv 2307.09288, 2407.21783."""

from __future__ import annotations

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import FULL, Family, biases, build_layers, build_spec, read_heads
from kvtrove.models.rope_config import RopeDefaults, read_rope
from kvtrove.models.spec import ModelSpec


def read(view: ConfigView) -> ModelSpec:
    heads = read_heads(view)
    types = [FULL] * view.size("num_hidden_layers")
    layers = build_layers(view, heads, types, {FULL: read_rope(view, heads.dim)}, None)
    return build_spec(view, "llama", heads, layers, **biases(view))


def read_seed_oss(view: ConfigView) -> ModelSpec:
    """Seed-OSS: a Llama with biases of q, k and v."""
    heads = read_heads(view, head_dim=128)
    types = [FULL] * view.size("num_hidden_layers")
    layers = build_layers(view, heads, types, {FULL: read_rope(view, heads.dim)}, None)
    return build_spec(
        view,
        "seed_oss",
        heads,
        layers,
        attention_bias=view.flag("attention_bias", True),
        output_bias=view.flag("attention_out_bias", False),
        mlp_bias=view.flag("mlp_bias", False),
    )


def read_ernie(view: ConfigView) -> ModelSpec:
    """ERNIE 4.5: a Llama in which neighbours rotate together."""
    heads = read_heads(view.over({"num_key_value_heads": 2}), head_dim=128)
    types = [FULL] * view.size("num_hidden_layers")
    rope = read_rope(view, heads.dim, by=RopeDefaults(theta=500_000.0))
    bias = view.flag("use_bias", False)
    layers = build_layers(view, heads, types, {FULL: rope}, None)
    eps, tied = view.number("rms_norm_eps", 1e-5), view.flag("tie_word_embeddings", True)
    return build_spec(
        view,
        "ernie4_5",
        heads,
        layers,
        attention_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        interleaved_rope=True,
        norm_eps=eps,
        tie_embeddings=tied,
    )


FAMILIES = {
    "LlamaForCausalLM": Family(read),
    "SeedOssForCausalLM": Family(read_seed_oss),
    "Ernie4_5ForCausalLM": Family(read_ernie),
}
