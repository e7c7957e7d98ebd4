"""Gemma 3n (text): several hidden states a token, per-layer inputs, sparse gates, layers that share caches."""

from __future__ import annotations

from dataclasses import replace

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import (
    FULL,
    SLIDING,
    Family,
    build_layers,
    build_spec,
    layer_types,
    read_heads,
    shared_sources,
    sliding_window,
    text_part,
)
from kvtrove.models.families.gemma import ropes_by_type
from kvtrove.models.spec import AltUpSpec, ModelSpec, PerLayerSpec

_DEFAULTS = {
    **{"vocab_size": 262_400, "hidden_size": 2048, "intermediate_size": 16_384, "num_hidden_layers": 35},
    **{"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "max_position_embeddings": 32_768},
    **{"hidden_activation": "gelu_pytorch_tanh", "sliding_window": 512, "final_logit_softcapping": 30.0},
    **{"vocab_size_per_layer_input": 262_144, "hidden_size_per_layer_input": 256, "num_kv_shared_layers": 15},
    **{"altup_num_inputs": 4, "altup_active_idx": 0, "altup_correct_scale": True, "laurel_rank": 64},
    **{"tie_word_embeddings": True, "bos_token_id": 2, "eos_token_id": 1},
}
_SPARSE_LAYERS, _SPARSITY = 10, 0.95


def read(view: ConfigView) -> ModelSpec:
    view = view.over(_DEFAULTS)
    count = view.size("num_hidden_layers")
    sizes, sparse = _each(view, "intermediate_size", count), _sparsities(view, count)
    view = ConfigView({**view.values, "intermediate_size": max(sizes)}, view.where)
    heads = read_heads(view)
    types = layer_types(view, lambda i: SLIDING if (i + 1) % 5 else FULL)
    ropes = ropes_by_type(view, heads.dim)
    layers = build_layers(view, heads, types, ropes, sliding_window(view))
    sources = shared_sources(view, types, view.size("num_kv_shared_layers", least=0))
    bias = view.flag("attention_bias", False)
    altup = AltUpSpec(
        states=view.size("altup_num_inputs"),
        active=view.size("altup_active_idx", least=0),
        scaled=view.flag("altup_correct_scale", True),
        rank=view.size("laurel_rank"),
    )
    if altup.active >= altup.states:
        raise view.error(f"'altup_active_idx' {altup.active} is none of 'altup_num_inputs' {altup.states}")
    return build_spec(
        view,
        "gemma3n",
        heads,
        tuple(
            replace(layer, cache=replace(layer.kv, source=source), intermediate_size=int(size), sparsity=sparsity)
            for layer, source, size, sparsity in zip(layers, sources, sizes, sparse, strict=True)
        ),
        "hidden_activation",
        attention_bias=bias,
        output_bias=bias,
        norms="sandwich",
        wide_norms=True,
        qk_norm="head",
        value_norm=True,
        query_scale=1.0,
        logit_softcap=view.optional_number("final_logit_softcapping"),
        embed_scale=view.size("hidden_size") ** 0.5,
        max_position=view.size("max_position_embeddings"),
        per_layer=PerLayerSpec(view.size("hidden_size_per_layer_input"), view.size("vocab_size_per_layer_input")),
        altup=altup,
    )


def _sparsities(view: ConfigView, count: int) -> list[float]:
    if view.has("activation_sparsity_pattern"):
        return _each(view, "activation_sparsity_pattern", count)
    sparse = _SPARSE_LAYERS if count > _SPARSE_LAYERS else 0
    return [_SPARSITY if i < sparse else 0.0 for i in range(count)]


def _each(view: ConfigView, key: str, count: int) -> list[float]:
    """One number a layer, where one may stand for all of them."""
    value = view.get(key)
    numbers = value if isinstance(value, list) else [value] * count
    if len(numbers) != count or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers):
        raise view.error(f"{key!r} is {value!r}, expected a number or a list of 'num_hidden_layers' = {count} numbers")
    return numbers


_VISION = ("model.language_model.", "language_model.model.")
FAMILIES = {
    "Gemma3nForCausalLM": Family(read),
    "Gemma3nForConditionalGeneration": Family(lambda view: read(text_part(view)), prefixes=_VISION),
}
