"""YOCO, "you only cache once" (arXiv 2405.05254): a self-decoder with windows, then layers that all read one cache.

layers  0 .. s - 1   attention in a window (`sliding_window`; without it, full attention)
        s            stores keys and values of what the self-decoder gives, and reads them
        s + 1 ..     queries alone: they read what layer s has stored

Keys of config.json are Llama's, and `num_self_decoder_layers`, s; half of the layers without it. Tensors have Llama's
names, and layers behind s have neither `k_proj` nor `v_proj`. Of a prompt, the last token alone passes what follows the
cache of s.
"""

from __future__ import annotations

from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import (
    FULL,
    SLIDING,
    Family,
    biases,
    build_layers,
    build_spec,
    read_heads,
    reading,
    sliding_window,
)
from kvtrove.models.rope_config import read_rope
from kvtrove.models.spec import ModelSpec


def read(view: ConfigView) -> ModelSpec:
    heads, count, window = read_heads(view), view.size("num_hidden_layers"), sliding_window(view)
    first = view.size("num_self_decoder_layers", max(1, count // 2))
    if first >= count:
        raise view.error(f"'num_self_decoder_layers' {first} leaves none of {count} layers to read the cache they make")
    types = [SLIDING if window and i < first else FULL for i in range(count)]
    rope = read_rope(view, heads.dim)
    layers = build_layers(view, heads, types, dict.fromkeys(types, rope), window)
    shared = reading(layers, [first if i > first else None for i in range(count)])
    return build_spec(view, "yoco", heads, shared, **biases(view))


FAMILIES = {"YocoForCausalLM": Family(read)}
