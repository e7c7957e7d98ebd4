"""Peak memory of a step beside weights and cache, derived from the decoder and the reference attention, tensor by tensor.

A step of T tokens passes three places where most is alive at once; the largest decides:

    attention    hidden states, queries, keys, values  + keys and values of a tile in float32 + scores, twice
    MLP          hidden states, four times             + gate, up and their product
    sampling     final hidden states                   + logits of every sequence, ranked in full

The warm-up at start measures the same peak; a measured figure replaces this one (`Ledger`).
"""

from __future__ import annotations

from dataclasses import dataclass

from kvtrove.kv.spec import DTYPE_BYTES
from kvtrove.plan.kv import kept_tokens, shard
from kvtrove.plan.model import LayerGeometry, PlanModel

FLOAT32 = 4
MAX_SCORES = 1 << 24
"""Scores that the reference attention computes at a time (kvtrove.attention.reference)."""
MAX_KEYS = 1 << 16
"""Keys that it gathers for several decoding sequences at a time (kvtrove.attention.tiles)."""
RANKED_LOGIT = 44
"""Bytes per logit while the sampler sorts whole rows: values, ids, float64 weights and their sums."""


@dataclass(frozen=True)
class StepLimits:
    """The largest step.

    tokens: in all. sequences: that sample. context: longest of one sequence. cached: most tokens that all of them have
    together; None where each may have `context`.
    """

    tokens: int
    sequences: int
    context: int
    cached: int | None = None


def activation_bytes(model: PlanModel, limits: StepLimits, tensor_parallel: int = 1, block_size: int = 32) -> int:
    """Most bytes alive at once in any step within `limits`, on one rank.

    On a GPU the allocator rounds up to its segments; the planner's reserve covers that.
    """
    at_once = [_sampling(model, limits), _mlp(model, limits, tensor_parallel)]
    at_once += [_attention(model, shard(layer, tensor_parallel), limits, tensor_parallel) for layer in model.kinds]
    return max(at_once) + _shared(model, limits, block_size)


def _shared(model: PlanModel, limits: StepLimits, block_size: int) -> int:
    """Alive through the whole step: token ids, positions, slots, rotations, which key is where (once per kind of layer)."""
    rules = {layer.retention: layer for layer in model.kinds}.values()
    most = limits.sequences * limits.context if limits.cached is None else limits.cached
    keys = sum(min(most, limits.sequences * _keys(layer, limits, 1)) for layer in rules)
    rotation = max(layer.k_dim for layer in model.kinds) * DTYPE_BYTES[model.dtype]
    return limits.tokens * (40 + 2 * rotation) + keys * 9 + keys // block_size * 16


def _attention(model: PlanModel, layer: LayerGeometry, limits: StepLimits, ranks: int) -> int:
    element = DTYPE_BYTES[model.dtype]
    heads = -(-model.num_heads // ranks)
    width = max(layer.k_dim, layer.v_dim)
    projected = (3 * heads + 3 * layer.kv_heads) * width  # q and k before and after rotation, v, the output
    held = limits.tokens * element * (2 * model.hidden_size + projected)
    return held + max(_prefill_tile(layer, limits, heads, width), _decode_tile(layer, limits, heads, width))


def _prefill_tile(layer: LayerGeometry, limits: StepLimits, heads: int, width: int) -> int:
    """One sequence with all new tokens of the step, at the end of the longest context."""
    length = _keys(layer, limits, limits.tokens)
    gathered = length * layer.kv_heads * width * FLOAT32
    queries = min(limits.tokens, max(1, MAX_SCORES // heads // length))
    scores = queries * length * heads * FLOAT32
    masks = 2 * queries * length
    before = 2 * gathered if limits.sequences > 1 else 0  # the tile before this one is let go after it is gathered
    return max(3 * gathered + before, 2 * gathered + 2 * scores + masks + 3 * queries * heads * width * FLOAT32)


def _decode_tile(layer: LayerGeometry, limits: StepLimits, heads: int, width: int) -> int:
    """Several sequences with one new token each; a batched product copies its keys or values once more."""
    length = _keys(layer, limits, 1)
    sequences = max(1, min(limits.sequences, MAX_KEYS // length))
    gathered = sequences * length * layer.kv_heads * width * FLOAT32
    before = 2 * gathered if limits.sequences > sequences else 0
    scores = sequences * length * heads * FLOAT32
    return max(3 * gathered + before, 3 * gathered + 2 * scores + 2 * sequences * length)


def _keys(layer: LayerGeometry, limits: StepLimits, new_tokens: int) -> int:
    """Keys that the queries of `new_tokens` tokens of one sequence read together."""
    kept = kept_tokens(layer)
    return max(1, limits.context if kept is None else min(limits.context, kept + new_tokens))


def _mlp(model: PlanModel, limits: StepLimits, ranks: int) -> int:
    element = DTYPE_BYTES[model.dtype]
    inner = -(-model.ffn // ranks)
    per_token = element * (4 * model.hidden_size + 3 * inner)
    if model.num_experts:  # the worst case: one expert gets every token
        per_token += 2 * element * model.hidden_size + FLOAT32 * (model.hidden_size + model.num_experts) + 24 * model.top_k
    return limits.tokens * max(per_token, _norm(model))


def _norm(model: PlanModel) -> int:
    """Per token: hidden states three times, and a norm that computes in float32."""
    return model.hidden_size * (5 * DTYPE_BYTES[model.dtype] + 2 * FLOAT32)


def _sampling(model: PlanModel, limits: StepLimits) -> int:
    element = DTYPE_BYTES[model.dtype]
    logits = limits.sequences * model.vocab_size
    return limits.tokens * element * model.hidden_size + logits * (FLOAT32 + max(element, RANKED_LOGIT - FLOAT32))
