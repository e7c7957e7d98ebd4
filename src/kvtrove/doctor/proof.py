"""The CPU kernels of a level beside plain arithmetic, in some milliseconds: is what this processor computes right?

A processor, a hypervisor or a compiler that gets one instruction wrong gives fluent nonsense instead of an error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kvtrove.attention.backend import AttentionBackend, AttentionBatch, AttentionLayer, GroupTables
from kvtrove.attention.cpu import CpuBackend
from kvtrove.attention.reference import ReferenceBackend
from kvtrove.kernels.linear import Kind, PackedWeights
from kvtrove.kv.formats.dense import dense
from kvtrove.kv.recipe import recipe
from kvtrove.kv.spec import KVCacheSpec, LayerKV

KINDS: tuple[Kind, ...] = ("bf16", "int8", "int4")
CACHES = ("bf16", "int8", "fp8", "int4")
OUTPUTS, INPUTS = 67, 321  # odd, so that panels, stretches and tiles have a remainder
ROWS = (1, 5, 33)  # a decode, a few, a prompt
TOKENS, BLOCK, HEADS, KV_HEADS, DIM = 45, 16, 4, 2, 64
STEPS = 127 * 128
"""Steps of 16-bit integers that rows of x become beside int8 and int4 weights: the fewer of both ways."""
ATTENTION = 2.0**-8
"""Of the largest value: weights of keys in bfloat16 on tiles (2^-9), queries and weights as 15 bits beside integers."""


def problems(level: str) -> list[str]:
    """What a level gets wrong, in words; empty when products and attention agree with the reference."""
    found = [f"products with {kind} weights" for kind in KINDS if not _multiplies(kind, level)]
    return found + [f"attention over a cache of {cache}" for cache in CACHES if not _attends(cache, level)]


def _random(*shape: int, seed: int) -> Tensor:
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed))


def _multiplies(kind: Kind, level: str) -> bool:
    """Against float64, with the bound of `kernels.linear`: float32 sums, and rows rounded to steps beside integers."""
    weights = PackedWeights(OUTPUTS, INPUTS, kind, level)
    weights.fill(0, _random(OUTPUTS, INPUTS, seed=1))
    stored = weights.gather(torch.arange(OUTPUTS), torch.empty(OUTPUTS, INPUTS)).double()
    # an int4 number is scale * code + minimum, and the two may nearly cancel: each is up to twice the row's largest
    terms = stored.abs() + (2 * stored.abs().amax(1, keepdim=True) if kind == "int4" else 0)
    for rows in ROWS:
        x = _random(rows, INPUTS, seed=2)
        bound = (INPUTS + 2) * 2.0**-24 * (x.abs().double() @ terms.T)
        if kind != "bf16":
            bound += x.abs().double().amax(1, keepdim=True) / (2 * STEPS) * 1.001 * stored.abs().sum(1)
        if not bool(((weights.multiply(x).double() - x.double() @ stored.T).abs() <= bound).all()):
            return False
    return True


def _attends(cache: str, level: str) -> bool:
    """A prompt and its next token, each stored and read back, against the reference over a cache of its own."""
    exact = KVCacheSpec((LayerKV(0, KV_HEADS, DIM, DIM, dense("bfloat16")),), BLOCK)
    spec = recipe(cache)(exact)
    q, k, v = (_random(TOKENS + 1, heads, DIM, seed=seed) for heads, seed in ((HEADS, 3), (KV_HEADS, 4), (KV_HEADS, 5)))
    own, expected = (_answers(backend, spec, q, k, v) for backend in (CpuBackend(level), ReferenceBackend()))
    return bool(((own - expected).abs() <= ATTENTION * v.abs().max()).all())


def _answers(backend: AttentionBackend, spec: KVCacheSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    [kept] = spec.layers
    blocks = -(-len(q) // BLOCK)
    view = {
        plane.name: torch.zeros((blocks, *plane.shape), dtype=getattr(torch, plane.dtype))
        for plane in spec.planes(kept)
    }
    layer = AttentionLayer(0, HEADS, KV_HEADS, DIM, DIM, DIM**-0.5, kept.retention, kept.format, 0, view, BLOCK)
    table = torch.arange(blocks, dtype=torch.int32)[None]
    outs = []
    for start, end in ((0, TOKENS), (TOKENS, TOKENS + 1)):
        batch = AttentionBatch([0, end - start], [start], (GroupTables(torch.arange(start, end), table),))
        part = slice(start, end)
        outs.append(backend.run(q[part].clone(), k[part], v[part], layer, backend.plan(batch)))
    return torch.cat(outs)
