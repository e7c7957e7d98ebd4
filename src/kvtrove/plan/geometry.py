"""config.json of an architecture that the engine does not run -> what each of its layers caches.

Rules of sharing (which layer reads whose keys and values):

    Gemma 3n, Gemma 4   the last `num_kv_shared_layers` read the last earlier layer of their own kind
    Hunyuan             layer i reads layer i - i % cla_share_factor          (cross-layer attention, arXiv 2405.12981)
    Apple AFM           the last `num_kv_reuse_layers` all read the layer before them
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from kvtrove.kv.formats.dense import dense
from kvtrove.kv.retention import ChunkedLocal, Full, Retention, SlidingWindow
from kvtrove.kv.spec import LayerKV
from kvtrove.models.config_view import ConfigView
from kvtrove.models.families.common import sliding_window
from kvtrove.plan.config_names import refuse_states, refuse_unknown_patterns

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
_LETTERS = {"L": SLIDING, "G": FULL, "S": SLIDING, "F": FULL}
"""A pattern of layers in letters: local or sliding, global or full."""


def read_layers(view: ConfigView) -> tuple[LayerKV, ...]:
    """view: from `canonical`. ModelError naming the key when one is missing or a layer keeps something else."""
    refuse_states(view)
    reader = READERS.get(str(view.get("model_type", "")).removesuffix("_text"))
    if reader is None:
        refuse_unknown_patterns(view)
    layers = _plain(view) if reader is None else reader(view)
    return tuple(replace(layer, layer=index) for index, layer in enumerate(layers))


def _layer(heads: int, k_dim: int, v_dim: int, retention: Retention | None = None) -> LayerKV:
    """As the checkpoint computes it; `read_layers` counts layers."""
    return LayerKV(0, heads, k_dim, v_dim, dense("bfloat16"), retention or Full())


def _plain(view: ConfigView) -> tuple[LayerKV, ...]:
    """Full, sliding and chunked layers as `layer_types` says, or MLA."""
    if view.has("kv_lora_rank"):
        return _latent(view)
    if view.has("block_configs"):
        return _searched(view)
    query = view.size("num_attention_heads")
    dim = view.size("head_dim", max(1, view.size("hidden_size") // query))
    values = view.size("v_head_dim", dim)
    rules = _rules(view)
    return tuple(
        _layer(heads, dim, values, rules[kind])
        for heads, kind in zip(_kv_heads(view, query), _kinds(view), strict=True)
    )


def _kv_heads(view: ConfigView, query: int) -> Sequence[int]:
    """Per layer; a list where the config has one, 1 for multi-query attention."""
    count = view.size("num_hidden_layers")
    heads = view.get("num_key_value_heads")
    if isinstance(heads, list):
        if len(heads) != count:
            raise view.error(f"'num_key_value_heads' has {len(heads)} entries, expected {count}")
        return heads
    if view.flag("multi_query", False) and not view.flag("new_decoder_architecture", False):
        return [1] * count
    return [view.size("num_key_value_heads", query)] * count


def _rules(view: ConfigView) -> dict[str, Retention]:
    """What each kind of layer keeps. A window that no context can reach changes nothing."""
    longest = view.size("max_position_embeddings", 2**31 - 1)
    window, chunk = _window(view), view.optional_size("attention_chunk_size")
    return {
        FULL: Full(),
        SLIDING: SlidingWindow(window) if window is not None and window < longest else Full(),
        CHUNKED: ChunkedLocal(chunk) if chunk is not None and chunk < longest else Full(),
    }


def _window(view: ConfigView) -> int | None:
    return sliding_window(view) if view.flag("use_sliding_window", True) else None


def _kinds(view: ConfigView) -> list[str]:
    """Kind of each layer: `layer_types`, or what the other keys imply."""
    count = view.size("num_hidden_layers")
    kinds = [str(kind) for kind in view.get("layer_types", [])] or _implied_kinds(view, count)
    if len(kinds) != count:
        raise view.error(f"'layer_types' has {len(kinds)} entries, expected 'num_hidden_layers' = {count}")
    planned = (FULL, SLIDING, CHUNKED)
    unknown = sorted(set(kinds) - set(planned))
    if unknown:
        raise view.error(f"layer type {unknown[0]!r} keeps a state that is not planned; planned: {', '.join(planned)}")
    return kinds


def _implied_kinds(view: ConfigView, count: int) -> list[str]:
    if view.has("attention_chunk_size"):  # Llama 4: layers without rotation see everything
        rotated = view.get("no_rope_layers") or [(i + 1) % view.size("no_rope_layer_interval", 4) for i in range(count)]
        return [CHUNKED if rotates else FULL for rotates in rotated]
    if _window(view) is None:
        return [FULL] * count
    letters = view.get("sliding_window_pattern")
    if isinstance(letters, str):  # EXAONE 4: "LLLG"
        if not letters or set(letters) - set(_LETTERS):
            raise view.error(f"'sliding_window_pattern' is {letters!r}, expected letters of {', '.join(_LETTERS)}")
        return [_LETTERS[letters[i % len(letters)]] for i in range(count)]
    if view.has("max_window_layers"):
        return [SLIDING if i >= view.size("max_window_layers", least=0) else FULL for i in range(count)]
    if view.has("global_attn_every_n_layers"):  # ModernBERT counts from the first layer
        return [SLIDING if i % view.size("global_attn_every_n_layers") else FULL for i in range(count)]
    pattern = view.size("sliding_window_pattern", 0, least=0)
    return [FULL if pattern and (i + 1) % pattern == 0 else SLIDING for i in range(count)]


def _latent(view: ConfigView) -> tuple[LayerKV, ...]:
    """MLA (DeepSeek-V2, arXiv 2405.04434): one latent and one rotated key for all heads, equal on every rank.

    Sparse attention (DeepSeek-V3.2) adds an fp8 index key per token with a float32 scale per 128 elements. Values
    are read out of the latent.
    """
    width = view.size("kv_lora_rank") + view.size("qk_rope_head_dim")
    index = view.size("index_head_dim", 0, least=0)
    extra = index + -(-index // 128) * 4
    stored = replace(dense("bfloat16"), v=None, extra_bytes=extra)
    latent = replace(_layer(1, width, view.size("kv_lora_rank")), format=stored)
    return (latent,) * view.size("num_hidden_layers")


def _searched(view: ConfigView) -> tuple[LayerKV, ...]:
    """Puzzle (arXiv 2411.19146): every layer has its own number of KV heads, or no attention at all."""
    query, count = view.size("num_attention_heads"), view.size("num_hidden_layers")
    dim = view.size("head_dim", max(1, view.size("hidden_size") // query))
    blocks = view.get("block_configs")
    if not isinstance(blocks, list) or len(blocks) != count:
        raise view.error(f"'block_configs' must be a list of 'num_hidden_layers' = {count} objects")
    layers = []
    for index, block in enumerate(blocks):
        attention = ConfigView(block, f"{view.where}: block_configs[{index}]").section("attention")
        none = attention.flag("no_op", False) or attention.flag("replace_with_linear", False)
        layers.append(_layer(0 if none else query // attention.size("n_heads_in_group"), dim, dim))
    return tuple(layers)


def _mimo(view: ConfigView) -> tuple[LayerKV, ...]:
    """MiMo-V2: 1 in `hybrid_layer_pattern` is a layer with a window and heads of its own."""
    pattern, window = view.get("hybrid_layer_pattern"), view.size("sliding_window")
    count, heads, dim = (view.size(key) for key in ("num_hidden_layers", "num_key_value_heads", "head_dim"))
    if not isinstance(pattern, list) or len(pattern) != count:
        raise view.error(f"'hybrid_layer_pattern' must be a list of 'num_hidden_layers' = {count} numbers")
    full = _layer(heads, dim, view.size("v_head_dim", dim))
    inner = view.size("swa_head_dim", dim)
    slides = _layer(
        view.size("swa_num_key_value_heads", heads), inner, view.size("swa_v_head_dim", inner), SlidingWindow(window)
    )
    return tuple(slides if kind else full for kind in pattern)


def _gemma(view: ConfigView) -> tuple[LayerKV, ...]:
    fourth = str(view.get("model_type", "")).startswith("gemma4")
    view = view.over({"sliding_window": 512, "sliding_window_pattern": 6 if fourth else 5, "head_dim": 256})
    kinds, rules = _kinds(view), _rules(view)
    heads, dim = view.size("num_key_value_heads"), view.size("head_dim")
    full_heads = view.size("num_global_key_value_heads", heads) if view.flag("attention_k_eq_v", False) else heads
    full_dim = view.size("global_head_dim", 512) if fourth else dim
    shapes = {FULL: (full_heads, full_dim), SLIDING: (heads, dim)}
    own = [_layer(shapes[kind][0], shapes[kind][1], shapes[kind][1], rules[kind]) for kind in kinds]
    first_shared = len(own) - view.size("num_kv_shared_layers", 0, least=0)
    earlier = kinds[:first_shared]
    missing = sorted(set(kinds[first_shared:]) - set(earlier))
    if missing:
        raise view.error(
            f"'num_kv_shared_layers' leaves no {missing[0]} layer whose keys and values the others could read"
        )
    last = {kind: first_shared - 1 - earlier[::-1].index(kind) for kind in set(earlier)}
    return tuple(layer if i < first_shared else _shared(layer, last[kinds[i]]) for i, layer in enumerate(own))


def _hunyuan(view: ConfigView) -> tuple[LayerKV, ...]:
    own = _plain(view)
    factor = view.size("cla_share_factor", 1) if view.flag("use_cla", False) else 1
    return tuple(layer if i % factor == 0 else _shared(layer, i - i % factor) for i, layer in enumerate(own))


def _afm(view: ConfigView) -> tuple[LayerKV, ...]:
    own = _plain(view)
    first_shared = len(own) - view.size("num_kv_reuse_layers", 0, least=0)
    if first_shared < 1:
        raise view.error("'num_kv_reuse_layers' leaves no layer whose keys and values the others could read")
    return tuple(layer if i < first_shared else _shared(layer, first_shared - 1) for i, layer in enumerate(own))


def _shared(layer: LayerKV, source: int) -> LayerKV:
    return replace(layer, source=source)


READERS: Mapping[str, Callable[[ConfigView], tuple[LayerKV, ...]]] = {
    "gemma3n": _gemma,
    "gemma4": _gemma,
    "hunyuan": _hunyuan,
    "hunyuan_v1_dense": _hunyuan,
    "hunyuan_v1_moe": _hunyuan,
    "afm7": _afm,
    "mimo_v2_flash": _mimo,
    "mimo_v2": _mimo,
}
