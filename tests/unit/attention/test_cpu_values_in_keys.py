"""Layers whose values are the first elements of their keys (latents, keys that are values), beside the reference."""

from __future__ import annotations

import math

import pytest
import torch

from kvtrove import kernels
from kvtrove.attention.backend import AttentionBatch, AttentionLayer, GroupTables
from kvtrove.attention.cpu import CpuBackend
from kvtrove.attention.reference import ReferenceBackend
from kvtrove.kv.formats.dense import Dense
from kvtrove.kv.retention import Full
from kvtrove.kv.spec import KVFormat, LayerKV

LEVELS = ("portable", "avx2", "avx512", "amx")
HERE = LEVELS[: LEVELS.index(kernels.isa()) + 1]
STEPS = [([40, 3], [0, 0]), ([1, 9], [40, 3]), ([1, 1], [41, 12])]
"""New tokens of two sequences, and how many each has before them."""


def blocks_for(block_size: int) -> int:
    """Of two sequences."""
    return 2 * (42 // block_size + 1)


def layer(heads: int, kv_heads: int, k_dim: int, v_dim: int, block_size: int, dtype: str) -> AttentionLayer:
    kept = LayerKV(0, kv_heads, k_dim, v_dim, KVFormat(Dense("k", dtype), None))
    planes = kept.format.planes(kept, block_size)
    blocks = blocks_for(block_size)
    view = {p.name: torch.full((blocks, *p.shape), math.nan, dtype=getattr(torch, p.dtype)) for p in planes}
    shape = {"num_heads": heads, "kv_heads": kv_heads, "k_dim": k_dim, "v_dim": v_dim, "scale": k_dim**-0.5}
    return AttentionLayer(
        index=0, **shape, retention=Full(), format=kept.format, group=0, view=view, block_size=block_size
    )


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "k_dim", "v_dim", "block_size", "dtype"),
    [
        (6, 2, 40, 32, 4, "float32"),
        (6, 2, 40, 24, 16, "float32"),
        (16, 1, 576, 512, 16, "bfloat16"),  # DeepSeek
        (4, 2, 640, 512, 32, "bfloat16"),  # Gemma 4
        (2, 1, 48, 48, 5, "float16"),
    ],
)
def test_values_in_keys(
    isa: str, heads: int, kv_heads: int, k_dim: int, v_dim: int, block_size: int, dtype: str
) -> None:
    """Both store once and read what they stored; blocks hold NaN wherever nothing was."""
    generator = torch.Generator().manual_seed(0)
    backends = CpuBackend(isa), ReferenceBackend()
    layers = [layer(heads, kv_heads, k_dim, v_dim, block_size, dtype) for _ in backends]
    table = torch.randperm(blocks_for(block_size), generator=generator).int().view(2, -1)
    for counts, starts in STEPS:
        query_start = [0, *torch.tensor(counts).cumsum(0).tolist()]
        places = [(s, start + i) for s, (n, start) in enumerate(zip(counts, starts, strict=True)) for i in range(n)]
        slots = torch.tensor([int(table[s, p // block_size]) * block_size + p % block_size for s, p in places])
        batch = AttentionBatch(query_start, starts, (GroupTables(slots, table),))
        q, k = (
            torch.randn(len(places), n, k_dim, generator=generator).to(getattr(torch, dtype)) for n in (heads, kv_heads)
        )
        v = k[..., :v_dim]
        found, expected = (
            one.run(q.clone(), k, v, of, one.plan(batch)) for one, of in zip(backends, layers, strict=True)
        )
        near = {"float32": 1e-5, "float16": 2**-10, "bfloat16": 2**-7}[dtype]  # half a step of the result, and sums
        torch.testing.assert_close(found.float(), expected.float(), atol=near, rtol=near)
    assert torch.equal(layers[0].view["k"].nan_to_num(7), layers[1].view["k"].nan_to_num(7))
