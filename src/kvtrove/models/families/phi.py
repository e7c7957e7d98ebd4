"""Phi-3, Phi-3.5 mini and Phi-4: fused projections, LongRoPE. arXiv 2404.14219, 2402.13753."""

from __future__ import annotations

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import (
    FULL,
    SLIDING,
    Family,
    Source,
    build_layers,
    build_spec,
    read_heads,
    sliding_window,
)
from kvtrove.models.rope_config import ORIGINAL, RopeDefaults, read_rope
from kvtrove.models.spec import ModelSpec

_ROPE = RopeDefaults(aliases={"su": "longrope", "yarn": "longrope"}, partial=True)


def read(view: ConfigView) -> ModelSpec:
    view = view.over({ORIGINAL: 4096})
    heads = read_heads(view)
    window = sliding_window(view)
    types = [FULL if window is None else SLIDING] * view.size("num_hidden_layers")
    rope = read_rope(view, heads.dim, by=_ROPE)
    layers = build_layers(view, heads, types, {FULL: rope, SLIDING: rope}, window)
    return build_spec(view, "phi3", heads, layers, norm_eps=view.number("rms_norm_eps", 1e-5))


def locate(name: str, spec: ModelSpec) -> Source:
    """Rows of a fused tensor: qkv_proj = q | k | v, gate_up_proj = gate | up.

    layers.3.self_attn.k_proj.weight -> rows [q, q + kv) of layers.3.self_attn.qkv_proj.weight
    """
    layer = spec.layers[0].kv
    q, kv = spec.num_heads * layer.k_dim, layer.heads * layer.k_dim
    fused = {
        "self_attn.qkv_proj": {"q_proj": q, "k_proj": kv, "v_proj": kv},
        "mlp.gate_up_proj": {"gate_proj": spec.intermediate_size, "up_proj": spec.intermediate_size},
    }
    for target, parts in fused.items():
        start = 0
        for part, rows in parts.items():
            if f".{part}." in name:
                module = f"{target.split('.')[0]}.{part}"
                return Source(name.replace(module, target), start, start + rows, sum(parts.values()))
            start += rows
    return Source(name)


FAMILIES = {"Phi3ForCausalLM": Family(read, locate)}
