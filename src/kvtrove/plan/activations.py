"""Peak memory of a step beside weights and cache, derived from decoder, attention and sampler tensor by tensor.

A step of T tokens passes three places where most is alive at once; the largest decides:

    attention    hidden states, queries, keys, values  + keys and values of a tile in float32 + scores, twice
    MLP          hidden states, four times             + gate, up and their product
    sampling     final hidden states                   + logits of every sequence, four times; some of them ranked

The warm-up at start runs and measures such steps (kvtrove.warmup); its figure replaces this one (`Ledger`).
"""

from __future__ import annotations

from dataclasses import dataclass

from kvtrove.config import EngineConfig
from kvtrove.kv.plane import DTYPE_BYTES, LayerState
from kvtrove.kv.spec import LayerKV
from kvtrove.plan.kv import shard
from kvtrove.plan.model import PlanModel

FLOAT32 = 4
MAX_SCORES = 1 << 22
"""Scores that the reference attention computes at a time (kvtrove.attention.reference)."""
MAX_KEYS = 1 << 13
"""Keys that it gathers for several decoding sequences at a time (kvtrove.attention.tiles)."""
DRAWN_LOGIT = 4 * FLOAT32
"""Bytes per logit in the sampler: as it is, adjusted, scaled, and as a weight."""
RANKED_LOGIT, RANKED_AT_ONCE = 38, 1 << 20
"""More bytes per logit while rows are sorted: values, ids, float64 weights and their sums, three masks. So many logits
are ranked together (kvtrove.runner.ranking)."""


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


def activation_bytes(
    model: PlanModel, limits: StepLimits, tensor_parallel: int = 1, block_size: int = EngineConfig.block_size
) -> int:
    """Most bytes alive at once in any step within `limits`, on one rank.

    On a GPU the allocator rounds up to its segments; the planner's reserve covers that.
    """
    at_once = [_sampling(model, limits), _mlp(model, limits, tensor_parallel)]
    at_once += [_attention(model, shard(layer, tensor_parallel), limits, tensor_parallel) for layer in model.kinds]
    at_once += [_mixing(model, state, limits) for state in model.states[:1]]
    return max(at_once) + _shared(model, limits, block_size)


def _shared(model: PlanModel, limits: StepLimits, block_size: int) -> int:
    """Alive through the whole step: token ids, positions, slots, rotations; per kind of layer which key is where."""
    rules = {layer.retention: layer for layer in model.kinds}.values()
    most = limits.sequences * limits.context if limits.cached is None else limits.cached
    keys = sum(min(most, limits.sequences * _keys(layer, limits, 1)) for layer in rules)
    rotation = max(layer.k_dim for layer in model.kinds) * DTYPE_BYTES[model.activations]
    return limits.tokens * (40 + 2 * rotation) + keys * 9 + keys // block_size * 16


def _attention(model: PlanModel, layer: LayerKV, limits: StepLimits, ranks: int) -> int:
    element, stored = DTYPE_BYTES[model.activations], DTYPE_BYTES[model.dtype]
    heads, width = -(-model.num_heads // ranks), max(layer.k_dim, layer.v_dim)
    projected = (3 * heads + 3 * layer.heads) * width  # q and k before and after rotation, v, the output
    held = limits.tokens * element * (2 * model.hidden_size + projected)
    key = layer.heads * width
    return held + max(
        _prefill_tile(layer, limits, heads, width, stored), _decode_tile(layer, limits, heads, key, stored)
    )


def _mixing(model: PlanModel, state: LayerState, limits: StepLimits) -> int:
    """A layer with a running state: inputs and outputs of its convolution in float32, three at a time; the matrices of
    all sequences that the reference computes at once, three times."""
    width = max(plane.shape[-1] for plane in state.planes if plane.name == "conv")
    matrices = sum(plane.nbytes for plane in state.planes if plane.name != "conv")
    per_token = DTYPE_BYTES[model.activations] * (2 * model.hidden_size + 3 * width) + 4 * FLOAT32 * width
    return limits.tokens * per_token + 3 * matrices * limits.sequences


def _prefill_tile(layer: LayerKV, limits: StepLimits, heads: int, width: int, element: int) -> int:
    """One sequence with all new tokens of the step.

    While the context is short, all queries share one product; from `full` on, they are cut into runs of MAX_SCORES
    scores. Memory is convex in the length from there, so the largest is at one of the two ends.
    """
    longest = _keys(layer, limits, limits.tokens)
    full = MAX_SCORES // heads // limits.tokens

    def at(length: int) -> int:
        elements = length * layer.heads * width
        pairs = min(limits.tokens * length, max(MAX_SCORES // heads, length))
        queries = min(limits.tokens, pairs // length + 1)
        products = pairs * (2 * heads * FLOAT32 + 2) + 3 * queries * heads * width * FLOAT32
        return max(_gathering(elements, element, limits.sequences > 1), 2 * elements * FLOAT32 + products)

    return max(at(longest), at(max(1, min(longest, full))))


def _decode_tile(layer: LayerKV, limits: StepLimits, heads: int, key_elements: int, element: int) -> int:
    """Several sequences with one new token each."""
    length = _keys(layer, limits, 1)
    all_keys = limits.sequences * length
    keys = min(all_keys, max(MAX_KEYS, length))
    elements = keys * key_elements
    products = keys * (2 * heads * FLOAT32 + 2)
    return max(_gathering(elements, element, all_keys > keys), 2 * elements * FLOAT32 + products)


def _gathering(elements: int, element: int, others: bool) -> int:
    """K and V as stored, reordered, and in float32; the tile before is let go only when the next one is there."""
    reordered = element if element < FLOAT32 else 0
    return elements * (2 * element + reordered + 2 * FLOAT32 + (2 * FLOAT32 if others else 0))


def _keys(layer: LayerKV, limits: StepLimits, new_tokens: int) -> int:
    """Keys that the queries of `new_tokens` tokens of one sequence read together."""
    kept = layer.retention.kept()
    return max(1, limits.context if kept is None else min(limits.context, kept + new_tokens))


def _mlp(model: PlanModel, limits: StepLimits, ranks: int) -> int:
    element = DTYPE_BYTES[model.activations]
    inner = -(-model.ffn // ranks)
    per_token = element * (4 * model.hidden_size + 3 * inner)
    if model.num_experts:  # the worst case: one expert gets every token
        per_token += (
            2 * element * model.hidden_size + FLOAT32 * (model.hidden_size + model.num_experts) + 24 * model.top_k
        )
    return limits.tokens * max(per_token, _norm(model))


def _norm(model: PlanModel) -> int:
    """Per token: hidden states twice, and a norm that computes in float32.

    CPUs need no more than the hidden states, in float32 and bfloat16: their norm is one pass (kernels/rows.py).
    """
    return model.hidden_size * (4 * DTYPE_BYTES[model.activations] + 2 * FLOAT32)


def _sampling(model: PlanModel, limits: StepLimits) -> int:
    element = DTYPE_BYTES[model.activations]
    logits = limits.sequences * model.vocab_size
    ranked = min(logits, max(RANKED_AT_ONCE, model.vocab_size)) * RANKED_LOGIT
    return limits.tokens * element * model.hidden_size + logits * max(element + FLOAT32, DRAWN_LOGIT) + ranked
