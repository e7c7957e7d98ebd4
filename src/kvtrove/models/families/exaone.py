"""EXAONE 4: norms of what attention and MLP add; no positions in full layers. arXiv 2507.11407."""

from __future__ import annotations

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import (
    FULL,
    SLIDING,
    Family,
    build_layers,
    build_spec,
    layer_types,
    read_heads,
    rotated_where,
    sliding_window,
)
from kvtrove.models.rope_config import read_rope
from kvtrove.models.spec import ModelSpec


def read(view: ConfigView) -> ModelSpec:
    heads = read_heads(view)
    window = sliding_window(view)
    types = layer_types(view, lambda i: _type(view, i, window))
    rope = read_rope(view, heads.dim)
    layers = build_layers(view, heads, types, {FULL: rope, SLIDING: rope}, window)
    if window is not None:
        layers = rotated_where(layers, (kind == SLIDING for kind in types))
    return build_spec(
        view, "exaone4", heads, layers, norms="post", qk_norm="head", norm_eps=view.number("rms_norm_eps", 1e-5)
    )


def _type(view: ConfigView, index: int, window: int | None) -> str:
    """`sliding_window_pattern`: "LLLG" (local or global; the last layer is global), or every n-th layer is full."""
    pattern = view.get("sliding_window_pattern", 4)
    if window is None or not pattern:
        return FULL
    if isinstance(pattern, str):
        last = index == view.size("num_hidden_layers") - 1
        return SLIDING if pattern[index % len(pattern)] == "L" and not last else FULL
    return SLIDING if (index + 1) % view.size("sliding_window_pattern", 4) else FULL


FAMILIES = {"Exaone4ForCausalLM": Family(read)}
