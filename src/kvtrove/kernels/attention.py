"""Attention over a paged cache, and storing into it: the Python face of cpu/attention.

    kernel = AttentionKernel()                  one an engine: its level, its threads, and memory that calls reuse
    layer = paged_layer(k, v, shape)            one a layer: where its planes lie and how they are read
    batch = paged_batch(...)                    one a step and group of layers: new tokens and held blocks
    kernel.run(layer, batch, q, k, v, out)      store, rotate and attend in one call

Arrays that change from call to call pass as addresses, which is the quickest way, after their dtype, shape and layout
were looked at here.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from kvtrove.kernels import _extension

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_HEAD_DIM, HEAD_DIM_STEP = 1024, 8


@dataclass(frozen=True)
class PagedSide:
    """Keys or values as blocks hold them.

    stored: "float32", "float16", "bfloat16", "int8", "float8_e4m3fn", "int4" or "int2", of which each vector has `dim`.
    tiled: whether they lie in tiles (kvtrove.kv.formats.layout), as the last three must. data: [num_blocks, ...], bytes
    for the last three. The last four have a scale, int4 and int2 a zero as well, for each vector or for each `group`
    elements of it: float16 [num_blocks, kv_heads, dim / group, block_size]; with `channels` (keys in int4 or int2) for
    each element of all tokens of a block: [num_blocks, kv_heads, dim]. Each block of a plane is contiguous. turned:
    vectors were turned before they became codes (kvtrove.kv.formats.codes). Sides with channels and int2 are read, and
    stored by their codec. row: of values that are the first elements of keys, elements of a key, and then `in_tiles` is
    `tiled` of the keys; they are read where keys lie, and not stored again.
    """

    stored: str
    tiled: bool
    dim: int
    data: Tensor
    scale: Tensor | None = None
    zero: Tensor | None = None
    turned: bool = False
    group: int = 0
    channels: bool = False
    row: int = 0
    in_tiles: bool = False


@dataclass(frozen=True)
class PagedShape:
    """How queries read a layer. window, chunk: 0 is unlimited. softcap: 0 is none.

    sealed: 0, or a block size: a query at position p reads only what lies before p // sealed * sealed. `chunk` of the
    same size reads the rest, so that both, merged by `attend(earlier=)`, read everything once.

    sink_logits: float32 [num_heads], or None: a score that a query has beside those of its keys, of value zero.

    A query at position p reads itself, [first, p) and [0, sinks), with first = p - window + 1, or the start of its
    chunk of `chunk` positions, or 0; of these, and of itself, only what lies from `begin` on (sinks apart) and, unless
    it is 0, before `limit`.
    """

    num_heads: int
    kv_heads: int
    block_size: int
    scale: float
    softcap: float = 0.0
    sink_logits: Tensor | None = None
    sinks: int = 0
    window: int = 0
    chunk: int = 0
    sealed: int = 0
    begin: int = 0
    limit: int = 0


@dataclass(frozen=True)
class PagedSelection:
    """Which blocks queries read in place of all before their own: those that promise most, by summaries of their keys
    that are written when a block is full.

    bounds: bfloat16 [num_blocks, kv_heads, 2, k_dim], smallest and largest elements. Or labels: bfloat16 [num_blocks,
    kv_heads, n, block_size], some elements of every key: channels, int32 [kv_heads, n].
    least, part: a query reads its own block and as many others, or one of `part` blocks before it where that is more;
    part 0: never. Blocks are a multiple of 16 tokens, and the layer reads everything.
    """

    least: int
    part: int = 0
    bounds: Tensor | None = None
    labels: Tensor | None = None
    channels: Tensor | None = None


@dataclass(frozen=True)
class PagedLayer:
    """A layer as the extension knows it, and what calls are checked against."""

    handle: Any
    shape: PagedShape
    k_dim: int
    v_dim: int

    def queries(self, tokens: int) -> tuple[int, int, int]:
        return tokens, self.shape.num_heads, self.k_dim

    def keys(self, tokens: int) -> tuple[int, int, int]:
        return tokens, self.shape.kv_heads, self.k_dim

    def values(self, tokens: int) -> tuple[int, int, int]:
        return tokens, self.shape.kv_heads, self.v_dim

    def results(self, tokens: int) -> tuple[int, int, int]:
        return tokens, self.shape.num_heads, self.v_dim


@dataclass(frozen=True)
class PagedBatch:
    """A step as the extension knows it. num_tokens: rows of q, k and v."""

    handle: Any
    num_tokens: int


def paged_layer(k: PagedSide, v: PagedSide, shape: PagedShape, select: PagedSelection | None = None) -> PagedLayer:
    """Raises ValueError for shapes that the kernels cannot serve."""
    parts = ({f.name: getattr(x, f.name) for f in fields(x)} if x else None for x in (k, v, shape, select))
    handle = _extension().AttentionLayer(*parts)
    return PagedLayer(handle, shape, k.dim, v.dim)


def paged_batch(
    query_start: list[int], start: list[int], block_table: NDArray[np.int32], slots: NDArray[np.int64]
) -> PagedBatch:
    """query_start: S + 1 row numbers. start: S positions. block_table: [S, max_blocks], -1 is not held. slots: [T]."""
    extents = (np.array(query_start, dtype=np.int64), np.array(start, dtype=np.int64))
    return PagedBatch(_extension().AttentionBatch(*extents, block_table, slots), query_start[-1])


class AttentionKernel:
    """isa: as `kvtrove.kernels.isa`. num_threads: 0 takes `kvtrove.kernels.threads()`."""

    def __init__(self, isa: str = "auto", num_threads: int = 0) -> None:
        self.handle = _extension().AttentionKernel(isa, num_threads)

    @property
    def scratch_bytes(self) -> int:
        """Memory that calls reuse; it stops growing once the largest step was seen."""
        return int(self.handle.scratch_bytes)

    def run(
        self,
        layer: PagedLayer,
        batch: PagedBatch,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        out: Tensor,
        angles: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """`store` of k and v, if they are there, `rotate` of q, if there are angles, and `attend`: one call a layer."""
        tokens = batch.num_tokens
        self.handle.run(
            layer.handle,
            batch.handle,
            _address("q", q, layer.queries(tokens)),
            None if k is None else _address("k", k, layer.keys(tokens)),
            None if v is None else _address("v", v, layer.values(tokens)),
            _address("out", out, layer.results(tokens)),
            None if angles is None else angles_of(angles, q, tokens, layer.k_dim),
        )

    def store(
        self, layer: PagedLayer, batch: PagedBatch, k: Tensor, v: Tensor, angles: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Write k, v [T, kv_heads, dim] into the batch's slots, k rotated by angles (see `rotate`) on the way.

        Raises IndexError when a slot does not exist, TypeError for another shape, layout, dtype or device.
        """
        tokens = batch.num_tokens
        turn = None if angles is None else angles_of(angles, k, tokens, layer.k_dim)
        keys, values = _address("k", k, layer.keys(tokens)), _address("v", v, layer.values(tokens))
        self.handle.store(layer.handle, batch.handle, keys, values, turn)

    def rotate(self, layer: PagedLayer, batch: PagedBatch, q: Tensor, angles: tuple[Tensor, Tensor]) -> None:
        """Rotate q [T, num_heads, dim] in place; element i of a head pairs with i + half (arXiv 2104.09864).

        angles: cos and sin, each [T, 1, half] in q's dtype. The bits are those of torch, which rounds every product and
        sum to that dtype. Raises TypeError for another shape, layout, dtype or device.
        """
        turn = angles_of(angles, q, batch.num_tokens, layer.k_dim)
        self.handle.rotate(layer.handle, batch.handle, _address("q", q, layer.queries(batch.num_tokens)), turn)

    def attend(
        self,
        layer: PagedLayer,
        batch: PagedBatch,
        q: Tensor,
        out: Tensor,
        lse: Tensor | None = None,
        earlier: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """out = softmax(q.k * scale) . v over what each query reads; q, out: [T, num_heads, dim of k, of v].

        lse: float32 [T, num_heads], receives the logarithm of the sum of exponentials; minus infinity, beside an out of
        zeros, where a query reads nothing. earlier: out and lse of other keys, both float32, merged into the results.
        The bits of a token's result depend on its own sequence alone. Raises IndexError when a block that is read is
        not held, TypeError as above.
        """
        results = layer.results(batch.num_tokens)
        addresses = _address("q", q, layer.queries(batch.num_tokens)), _address("out", out, results)
        into = 0 if lse is None else _exact("lse", lse, results[:2])
        merged = None
        if earlier is not None:
            merged = _exact("earlier out", earlier[0], results), _exact("earlier lse", earlier[1], results[:2])
        self.handle.attend(layer.handle, batch.handle, *addresses, into, merged)

    def read(self, layer: PagedLayer, keys: bool, slots: Tensor, out: Tensor) -> Tensor:
        """out: float32 [kv_heads, n, dim] of the keys, or the values, in slots int64 [n], as numbers.

        IndexError when a slot does not exist, ValueError where blocks are encoded as a whole.
        """
        dim = layer.k_dim if keys else layer.v_dim
        to = _exact("out", out, (layer.shape.kv_heads, len(slots), dim))
        self.handle.read(layer.handle, keys, slots.contiguous().numpy(), to)
        return out

    def move(self, layer: PagedLayer, sources: Tensor, targets: Tensor) -> None:
        """Tokens of each kv head, K and V as they are stored: slots int64 [kv_heads, n] to slots int64 [n].

        All are read before any is written. Errors as of `read`.
        """
        self.handle.move(layer.handle, sources.flatten().contiguous().numpy(), targets.contiguous().numpy())


def _exact(name: str, x: Tensor, shape: tuple[int, ...]) -> int:
    """Address of x, float32 of that shape without gaps."""
    if str(x.dtype) != "torch.float32" or x.shape != shape or not x.is_contiguous() or not x.is_cpu:
        raise TypeError(f"{name}: float32 {shape}, contiguous, is needed; got {x.dtype} {tuple(x.shape)}")
    return x.data_ptr()


def angles_of(angles: tuple[Tensor, Tensor], x: Tensor, tokens: int, head_dim: int) -> tuple[int, int, int, str]:
    """Addresses of cos and sin, elements of each per token, and their dtype, which must be that of x.

    TypeError when they are not [tokens, 1, half] with 2 * half <= head_dim, contiguous, on the CPU.
    """
    cos, sin = angles
    half = cos.shape[-1]
    fits = cos.shape == sin.shape == (tokens, 1, half) and 0 <= 2 * half <= head_dim
    alike = cos.dtype == sin.dtype == x.dtype and cos.is_contiguous() and sin.is_contiguous() and cos.is_cpu
    if not fits or not alike:
        raise TypeError(
            f"cos, sin: contiguous [{tokens}, 1, up to {head_dim // 2}] of {x.dtype} on the CPU are needed; got "
            f"{list(cos.shape)} and {list(sin.shape)} of {cos.dtype}"
        )
    return cos.data_ptr(), sin.data_ptr(), half, _name(cos.dtype)


@functools.cache
def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _address(name: str, x: Tensor, shape: tuple[int, int, int]) -> tuple[int, int, str]:
    """Address, bytes from row to row and dtype of x [T, heads, head_dim]; rows are contiguous."""
    dtype, fits, step = _name(x.dtype), x.shape == shape, 0
    if fits:
        step, across, along = x.stride()
        fits = along == 1 and (across == shape[2] or shape[1] == 1)
    if not fits or not x.is_cpu or dtype not in ("float32", "float16", "bfloat16"):
        raise TypeError(
            f"{name}: {shape} of float32, float16 or bfloat16 with contiguous rows on the CPU is needed; "
            f"got {tuple(x.shape)} of {dtype} with strides {x.stride()} on {x.device}"
        )
    return x.data_ptr(), step * x.element_size(), dtype
