"""Layers that read the keys and values of an earlier layer, in its format and out of its blocks.

    LayerKV(5, ..., source=3)                          all of its heads: CLA, YOCO (arXiv 2405.12981, 2405.05254)
    LayerKV(5, ..., source=3, source_heads=(2, 4))     two of them: heads that layers share, MLKV (arXiv 2406.09297)

A reader may keep less in view than its source does: a window within what that one reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtrove.kv.formats.calibration import calibrations
from kvtrove.kv.retention import is_within

if TYPE_CHECKING:
    from kvtrove.kv.spec import LayerKV


def reasons_against_reading(layer: LayerKV, source: LayerKV) -> list[str]:
    """Why `layer` cannot read what `source` stores; empty when it can."""
    first, stop = layer.source_heads or (0, source.heads)
    if not 0 <= first < stop <= source.heads:
        return [f"reads heads {first} to {stop - 1} of its source {source.layer}, which has {source.heads}"]
    same = (layer.heads, layer.k_dim, layer.v_dim) == (stop - first, source.k_dim, source.v_dim)
    if not same or not is_within(layer.retention, source.retention):
        return [f"differs in heads or retention from its source {source.layer}"]
    if layer.source_heads and calibrations(source.format.sides):
        return [f"reads some heads alone, and {source.format.name} has matrices for all of them together"]
    return []
