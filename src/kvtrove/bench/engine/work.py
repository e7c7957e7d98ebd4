"""Bytes that a step must read and products that it must compute: what its time is compared with."""

from __future__ import annotations

from collections.abc import Iterable

from kvtrove.kv.retention import Retention
from kvtrove.kv.spec import KVCacheSpec
from kvtrove.plan.model import PlanModel
from kvtrove.scheduler.output import ScheduledSequence


def keys_read(rule: Retention, position: int) -> int:
    """Keys that the token at `position` reads, its own included."""
    return 1 + sum(map(len, rule.live(position)))


def kv_bytes_read(cache: KVCacheSpec, positions: Iterable[int]) -> int:
    """Bytes of K/V that one new token at each of `positions` reads, in every layer, scales included.

    A layer that uses another's storage reads it once more.
    """
    rules = {layer.retention for layer in cache.layers}
    keys = {rule: sum(keys_read(rule, position) for position in positions) for rule in rules}
    nbytes = sum(
        keys[layer.retention] * sum(plane.nbytes for plane in cache.planes(layer)) / cache.block_size
        for layer in cache.layers
    )
    return round(nbytes)


def state_bytes_moved(cache: KVCacheSpec, sequences: int) -> int:
    """Bytes of running states that a step of so many sequences reads and writes back."""
    return 2 * cache.mark_bytes * sequences


def weight_bytes_read(model: PlanModel, num_tokens: int) -> int:
    """Bytes of weights that a step of `num_tokens` tokens reads once: of experts, those that some token visits."""
    return round(model.active_weight_bytes(num_tokens))


def prefill_flops(model: PlanModel, sequences: Iterable[ScheduledSequence]) -> float:
    """Floating-point operations of a step: two per weight and token (the output matrix only where a token is drawn),
    and two per element of a key and of a value for every (query, key) pair."""
    steps = list(sequences)
    head = model.vocab_size * model.hidden_size
    tokens, drawn = sum(len(s.tokens) for s in steps), sum(s.sample is not None for s in steps)
    products = 2.0 * ((model.active_parameters() - head) * tokens + head * drawn)
    pairs = {
        rule: sum(keys_read(rule, s.start + i) for s in steps for i in range(len(s.tokens)))
        for rule in {layer.retention for layer in model.layers}
    }
    attention = sum(
        2.0 * model.num_heads * (layer.k_dim + layer.v_dim) * pairs[layer.retention] for layer in model.layers
    )
    return products + attention
