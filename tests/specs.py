"""Layers of small models, for tests that need no config.json."""

from __future__ import annotations

from dataclasses import replace

from kvtrove.kv.formats.dense import dense
from kvtrove.kv.retention import Full, SlidingWindow
from kvtrove.kv.spec import LayerKV
from kvtrove.models.spec import LayerSpec, MoESpec, RopeSpec


def layer_spec(
    heads: int,
    dim: int,
    rope: RopeSpec,
    window: int | None = None,
    source: int | None = None,
    moe: MoESpec | None = None,
) -> LayerSpec:
    """heads: of keys and values. source: the layer whose storage it reads."""
    rule = Full() if window is None else SlidingWindow(window)
    return LayerSpec(LayerKV(0, heads, dim, dim, dense("bfloat16"), rule, source), rope, moe)


def numbered(*layers: LayerSpec) -> tuple[LayerSpec, ...]:
    """Layers in the order of a model."""
    return tuple(replace(one, cache=replace(one.kv, layer=index)) for index, one in enumerate(layers))
