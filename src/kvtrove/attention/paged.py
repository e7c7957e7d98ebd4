"""What the CPU kernels are told of a layer, and why they do not serve it."""

from __future__ import annotations

from typing import Any

import torch

from kvtrove.attention.backend import AttentionLayer
from kvtrove.kernels.attention import HEAD_DIM_STEP, MAX_HEAD_DIM, PagedSelection, PagedShape, PagedSide
from kvtrove.kv.formats.dense import Dense
from kvtrove.kv.formats.fp8 import Fp8
from kvtrove.kv.formats.int4 import GROUP, Int4, Int4Rotated
from kvtrove.kv.formats.int8 import Int8
from kvtrove.kv.formats.kivi import Kivi
from kvtrove.kv.formats.layout import TILE
from kvtrove.kv.formats.lowrank import LowRank
from kvtrove.kv.formats.oscar import Oscar
from kvtrove.kv.retention import ChunkedLocal, Full, Retention, SinksAndWindow, SlidingWindow
from kvtrove.kv.selection.double_sparsity import LABELS, DoubleSparsity
from kvtrove.kv.selection.quest import BOUNDS, Quest
from kvtrove.kv.spec import Codec, KVFormat, Planes

DENSE = ("float32", "float16", "bfloat16")
TILED_ALONE = (Fp8, Int4, Int4Rotated, Kivi, Oscar)
KNOWN = (Dense, Int8, *TILED_ALONE)


def shape_of(layer: AttentionLayer) -> PagedShape:
    """Sinks that lie before the layer's begin are read where first tokens are."""
    is_last, reach = not layer.format.whole_block and layer.first is None, reach_of(layer.retention) or {}
    return PagedShape(
        num_heads=layer.num_heads,
        kv_heads=layer.kv_heads,
        block_size=layer.block_size,
        scale=layer.scale,
        softcap=layer.softcap or 0.0,
        sink_logits=layer.sink_logits if is_last else None,
        sealed=layer.block_size if layer.reads.older else 0,
        begin=layer.reach.begin,
        limit=layer.reach.limit or 0,
        **(reach | {"sinks": 0} if layer.reach.begin else reach),
    )


def of_values(stored: KVFormat) -> Codec | None:
    """What values are read from: the codec of keys where they are a part of them, as they were computed."""
    return stored.k if stored.v is None and isinstance(stored.k, Dense) else stored.v


def paged_side(codec: Codec, dim: int, planes: Planes) -> PagedSide:
    """What kernels are told of a side that they read; of low rank, of its coefficients."""
    data, scale, zero = planes["data"], planes.get("scale"), planes.get("zero")
    tiled = data.dim() > 4
    match codec:
        case LowRank():
            return paged_side(codec.inner, codec.rank, planes)
        case Fp8():
            return PagedSide("float8_e4m3fn", tiled, dim, data.view(torch.uint8), scale)
        case Int4():
            return PagedSide("int4", tiled, dim, data, scale, zero, group=GROUP)
        case Int4Rotated():
            return PagedSide("int4", tiled, dim, data, scale, zero, turned=True)
        case Kivi():
            return PagedSide(f"int{codec.bits}", tiled, dim, data, scale, zero, channels=codec.side == "k")
        case Oscar():
            return PagedSide("int2", tiled, dim, data, scale, zero)
    return PagedSide(str(data.dtype).removeprefix("torch."), tiled, dim, data, scale)


def paged_selection(layer: AttentionLayer) -> PagedSelection | None:
    """What kernels are told of how a layer's queries choose blocks; None where they read all."""
    match layer.format.select:
        case Quest(tokens):
            return PagedSelection(tokens // layer.block_size - 1, bounds=layer.view[BOUNDS])
        case DoubleSparsity() as select:
            labels = layer.view[LABELS]
            channels = select.channels(labels).int().contiguous()
            return PagedSelection(select.least(layer.block_size), select.part, labels=labels, channels=channels)
    return None


def reasons_against_selection(layer: AttentionLayer) -> list[str]:
    select, reasons = layer.format.select, []
    if select is not None and not isinstance(select, (Quest, DoubleSparsity)):
        reasons.append(f"{select.word} has no CPU kernel")
    if layer.block_size % TILE or layer.retention != Full():
        reasons.append(f"blocks of {layer.block_size} tokens are not selected: take a multiple of {TILE}")
    return reasons


def reasons_against_side(codec: Codec | None, dim: int, block_size: int) -> list[str]:
    """Why kernels do not read a side. Subclasses of a codec may store anything."""
    reasons = []
    if codec is None:
        reasons.append("a side that lies in the other one has no CPU kernel")
    elif isinstance(codec, LowRank):
        return reasons_against_side(codec.inner, codec.rank, block_size)
    elif type(codec) not in KNOWN or (isinstance(codec, Dense) and codec.dtype not in DENSE):
        reasons.append(f"format {codec.id.partition('/')[0]} has no CPU kernel")
    elif type(codec) in TILED_ALONE and len(codec.planes(1, dim, block_size)[0].shape) < 4:
        word = codec.id.partition("/")[0]
        reasons.append(
            f"format {word} has a CPU kernel for tiled blocks of a multiple of 16 tokens, not of {block_size}"
        )
    if dim % HEAD_DIM_STEP or dim > MAX_HEAD_DIM:
        reasons.append(f"head_dim {dim} is not a multiple of {HEAD_DIM_STEP} up to {MAX_HEAD_DIM}")
    return reasons


def reads_own_block(rule: Retention, block_size: int) -> bool:
    """Whether every token reads all of its own block before it."""
    match rule:
        case SlidingWindow(window) | SinksAndWindow(_, window):
            return window >= block_size
        case ChunkedLocal(chunk):
            return chunk % block_size == 0
    return True


def reach_of(rule: Retention) -> dict[str, Any] | None:
    """A rule in the numbers that kernels know, None when they cannot say it."""
    match rule:
        case Full():
            return {}
        case SlidingWindow(window):
            return {"window": window}
        case SinksAndWindow(sinks, window):
            return {"sinks": sinks, "window": window}
        case ChunkedLocal(chunk):
            return {"chunk": chunk}
    return None
