"""What no family of today needs but the decoder promises."""

from __future__ import annotations

import torch
from torch import Tensor

from kvtrove.kv.retention import Full, SlidingWindow
from kvtrove.models.cache import cache_spec
from kvtrove.models.decoder import Model
from kvtrove.models.layers.linear import Weights
from kvtrove.models.layers.rope import Rotation
from kvtrove.models.spec import ModelSpec, RopeSpec
from tests.specs import layer_spec, numbered

ROPE = RopeSpec(10_000.0, 8, max_position=64)
LAYER = layer_spec(1, 8, ROPE)
SPEC = ModelSpec(
    family="llama",
    architecture="LlamaForCausalLM",
    vocab_size=11,
    hidden_size=16,
    intermediate_size=24,
    num_heads=2,
    layers=numbered(LAYER, layer_spec(1, 8, ROPE, window=4), layer_spec(1, 8, ROPE, window=4, source=1)),
    max_position=64,
    norm_eps=1e-6,
    activation="silu",
    dtype="float32",
    query_scale=8**-0.5,
    qk_norm="head",
)


def test_a_layer_that_reads_anothers_storage_has_no_keys_of_its_own() -> None:
    asked: list[str] = []
    calls: list[tuple[int, tuple[int, ...], tuple[int, ...] | None, tuple[int, ...] | None]] = []

    def take(name: str, shape: tuple[int, ...]) -> Tensor:
        asked.append(name)
        return torch.ones(shape)

    def attend(layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, rotate: Rotation | None) -> Tensor:
        shapes = [None if x is None else tuple(x.shape) for x in (k, v)]
        calls.append((layer, tuple(q.shape), shapes[0], shapes[1]))
        return q

    model = Model.load(Weights(take), lambda embedding: embedding, SPEC, 64, lambda layers: None)
    hidden = model(torch.tensor([1, 2, 3]), torch.tensor([0, 1, 0]), attend)
    assert hidden.shape == (3, 16)
    assert model.logits(hidden[:1]).shape == (1, 11)
    own = (3, 1, 8)
    assert calls == [(0, (3, 2, 8), own, own), (1, (3, 2, 8), own, own), (2, (3, 2, 8), None, None)]
    projections = {name for name in asked if name.startswith("layers.2.self_attn.")}
    assert projections == {f"layers.2.self_attn.{part}.weight" for part in ("q_proj", "o_proj", "q_norm")}


def test_the_cache_follows_windows_and_sources() -> None:
    cache = cache_spec(SPEC, "float32", block_size=4)
    assert cache.check() == []
    assert [layer.retention for layer in cache.layers] == [Full(), SlidingWindow(4), SlidingWindow(4)]
    assert cache.group_of[1] == cache.group_of[2] != cache.group_of[0]
