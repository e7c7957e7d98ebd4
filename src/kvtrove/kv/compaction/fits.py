"""Which caches can drop tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvtrove.kv.compaction.compactor import Compactor
from kvtrove.kv.compaction.decoding import WhileDecoding
from kvtrove.kv.compaction.surrogate import CONSTANT, gate_name
from kvtrove.kv.formats.calibration import Calibration, calibrations
from kvtrove.kv.retention import Full

if TYPE_CHECKING:
    from kvtrove.kv.spec import KVCacheSpec


LESS = "so it drops no tokens: take quest=1024, which selects in the other layers, or int8"


def reasons_against(compactor: Compactor, cache: KVCacheSpec) -> list[str]:
    """Why sequences of this cache cannot give up tokens so; empty when they can."""
    reasons = compactor.problems(cache.block_size)
    if cache.states:
        reasons.append(f"layer {cache.states[0].layer} keeps a state of all tokens together, {LESS}")
    if compactor.calibration is not None:
        untold = _no_queries if isinstance(compactor, WhileDecoding) else _no_gate
        reasons += untold(compactor.calibration, cache)
    for layer in cache.layers:
        where, stored = f"layer {layer.layer}", cache.storage(layer.layer).format
        if layer.retention != Full():
            reasons.append(f"{where} reads {layer.retention.id} and not everything, {LESS}")
        elif len(stored.sides) < 2:
            reasons.append(
                f"{where} stores one latent vector for keys and values, whose tokens are not dropped: leave it out"
            )
        elif cache.storage(layer.layer).first is not None:
            reasons.append(f"{where} stores first tokens otherwise, and kept tokens have new places")
        elif stored.select:
            reasons.append(f"{where} selects blocks by bounds of keys, which kept tokens would not have")
        elif stored.whole_block:
            reasons.append(f"{where} stores {stored.name}, which encodes whole blocks: take int8 or int4r")
        elif stored.rope == "pre" and not compactor.contiguous:
            reasons.append(
                f"{where} stores keys before their rotation, which must keep their order: take int8 or streaming"
            )
    return reasons + _unequal_heads(cache) if compactor.unequal else reasons


def _no_queries(calibration: Calibration, cache: KVCacheSpec) -> list[str]:
    """Why a calibration does not tell what queries of these layers are like."""
    again = f"make {calibration.path} again with `kvtrove calibrate`, from this model"
    for layer in cache.layers:
        shape = calibration.shapes.get(f"q.{layer.layer}.mean")
        if shape is None:
            return [f"the calibration says nothing of the queries of layer {layer.layer}; {again}"]
        if shape[1] != layer.k_dim or shape[0] % layer.heads:
            return [f"the calibration has queries {list(shape)} in layer {layer.layer}, of another model; {again}"]
    return []


def _no_gate(calibration: Calibration, cache: KVCacheSpec) -> list[str]:
    """Why a calibration does not tell which tokens of these layers matter."""
    again = f"make {calibration.path} again with `kvtrove calibrate MODEL --surrogate --out FILE`, from this model"
    for layer in cache.layers:
        shape = calibration.shapes.get(gate_name(layer.layer))
        if shape is None:
            return [f"the calibration has no gate of layer {layer.layer}; {again}"]
        if shape != (layer.heads, layer.k_dim + layer.v_dim + CONSTANT):
            return [f"the calibration has a gate {list(shape)} of layer {layer.layer}, of another model; {again}"]
    return []


def _unequal_heads(cache: KVCacheSpec) -> list[str]:
    """Why the heads of its layers cannot keep different numbers of tokens, which lie in cells of one shape."""
    first, reasons = cache.layers[0], []
    for layer in cache.layers:
        stored = layer.format
        if layer.source is not None:
            reasons.append(f"layer {layer.layer} reads the keys and values of layer {layer.source}")
        elif stored.select:
            continue  # refused for that
        elif (layer.k_dim, layer.v_dim, stored.id) != (first.k_dim, first.v_dim, first.format.id):
            reasons.append(f"layer {layer.layer} stores other keys and values than layer {first.layer}")
        elif stored.rope == "pre":
            reasons.append(f"layer {layer.layer} stores keys before their rotation")
        elif calibrations(stored.sides):
            reasons.append(f"layer {layer.layer} stores {stored.name}, calibrated for all heads together")
    return [
        f"{reason}: its heads cannot keep different numbers of tokens; take snapkv or keydiff" for reason in reasons
    ]
