"""SmolLM3: a Llama in which every fourth layer has no positions (NoPE, arXiv 2305.19466, 2501.18795)."""

from __future__ import annotations

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import (
    FULL,
    SLIDING,
    Family,
    biases,
    build_layers,
    build_spec,
    layer_types,
    read_heads,
    rotated_where,
    sliding_window,
)
from kvtrove.models.rope_config import RopeDefaults, read_rope
from kvtrove.models.spec import ModelSpec


def read(view: ConfigView) -> ModelSpec:
    view = view.over({"tie_word_embeddings": True})
    heads = read_heads(view)
    count = view.size("num_hidden_layers")
    rotated = view.get("no_rope_layers") or [(i + 1) % view.size("no_rope_layer_interval", 4) for i in range(count)]
    if not isinstance(rotated, list) or len(rotated) < count:
        raise view.error(f"'no_rope_layers' is {rotated!r}, expected {count} zeros and ones, one a layer")
    window = sliding_window(view) if view.flag("use_sliding_window", False) else None
    types = layer_types(view, lambda i: FULL if window is None or rotated[i] else SLIDING)
    rope = read_rope(view, heads.dim, by=RopeDefaults(theta=2_000_000.0))
    layers = rotated_where(build_layers(view, heads, types, {FULL: rope, SLIDING: rope}, window), rotated[:count])
    return build_spec(view, "smollm3", heads, layers, **biases(view))


FAMILIES = {"SmolLM3ForCausalLM": Family(read)}
