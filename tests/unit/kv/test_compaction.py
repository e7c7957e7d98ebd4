"""Scores against the formulas of their papers, moves of keys against fresh rotations, and when tokens leave."""

from __future__ import annotations

from array import array
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from kvtrove.attention.backend import AttentionLayer
from kvtrove.attention.reference import window_probabilities
from kvtrove.kv.arena import Arena
from kvtrove.kv.chain import KeyChain
from kvtrove.kv.compaction.compactor import NEVER, AfterPrompt, Compactor, Rolling, context_shift, streaming
from kvtrove.kv.compaction.scores import Seen, finch, keydiff, snapkv, tova
from kvtrove.kv.compaction.words import COMPACTORS
from kvtrove.kv.formats.dense import dense
from kvtrove.kv.formats.int8 import int8
from kvtrove.kv.recipe import recipe
from kvtrove.kv.rows import Gather
from kvtrove.kv.spec import KVCacheSpec, KVFormat, LayerKV
from kvtrove.models.layers.rope import RotaryEmbedding
from kvtrove.runner.gather import Gatherer
from tests.steps import attention_layer

HELD, KV_HEADS, HEADS, DIM, WINDOW = 50, 2, 6, 8, 7
SHARED = HEADS // KV_HEADS


@pytest.fixture
def k() -> Tensor:
    return torch.randn(HELD, KV_HEADS, DIM, generator=torch.Generator().manual_seed(1)) + 0.3


@pytest.fixture
def q() -> Tensor:
    return torch.randn(WINDOW, HEADS, DIM, generator=torch.Generator().manual_seed(2))


def spec(stored: KVFormat, *layers: int) -> KVCacheSpec:
    return KVCacheSpec(tuple(LayerKV(i, KV_HEADS, DIM, DIM, stored) for i in layers or (0,)), 16)


@pytest.fixture
def layer() -> AttentionLayer:
    cache = spec(dense("float32"))
    return attention_layer(cache, Arena(cache, 1), cache.layers[0], HEADS)


def attention(q: Tensor, k: Tensor) -> Tensor:
    """[heads, w, held], one product at a time: float64."""
    rows = torch.full((HEADS, WINDOW, HELD), float("-inf"), dtype=torch.float64)
    for head in range(HEADS):
        for i in range(WINDOW):
            for j in range(HELD - WINDOW + i + 1):
                rows[head, i, j] = q[i, head].double() @ k[j, head // SHARED].double() / DIM**0.5
    return rows.softmax(-1)


def test_keydiff_is_minus_the_cosine_to_the_mean_direction(k: Tensor) -> None:
    expected = torch.empty(KV_HEADS, HELD)
    for head in range(KV_HEADS):
        anchor = torch.stack([key / key.norm() for key in k[:, head]]).mean(0)
        expected[head] = torch.stack([-F.cosine_similarity(key, anchor, dim=0) for key in k[:, head]])
    torch.testing.assert_close(keydiff(Seen(k)), expected)


def test_snapkv_pools_the_mean_attention_of_the_window(k: Tensor, q: Tensor, layer: AttentionLayer) -> None:
    found = snapkv(Seen(k, window_probabilities(q, k, layer)))
    before = attention(q, k)[..., : HELD - WINDOW].mean(1)
    pooled = F.avg_pool1d(before, kernel_size=5, stride=1, padding=2)
    expected = pooled.view(KV_HEADS, SHARED, -1).mean(1)
    torch.testing.assert_close(found[:, : HELD - WINDOW].double(), expected, atol=1e-6, rtol=1e-5)
    keep = recipe("snapkv=33")(spec(dense("float32")))
    assert keep.compactor is not None
    places = keep.compactor.keep(Seen(torch.cat([k, k, k]), torch.rand(KV_HEADS, SHARED, 32, 3 * HELD)))
    assert places.shape == (KV_HEADS, 33)
    assert places[:, -32:].tolist() == [list(range(3 * HELD - 32, 3 * HELD))] * KV_HEADS, "its window stays"


def test_finch_weighs_each_query_by_what_it_sees(k: Tensor, q: Tensor, layer: AttentionLayer) -> None:
    rows = attention(q, k)
    for i in range(WINDOW):
        rows[:, i] *= HELD - WINDOW + i + 1
    expected = rows.mean(1).view(KV_HEADS, SHARED, -1).mean(1)
    torch.testing.assert_close(
        finch(Seen(k, window_probabilities(q, k, layer))).double(), expected, atol=1e-5, rtol=1e-5
    )


def test_tova_is_the_last_query_over_all_heads(k: Tensor, q: Tensor, layer: AttentionLayer) -> None:
    found = tova(Seen(k, window_probabilities(q, k, layer)))
    expected = attention(q, k)[:, -1].mean(0)
    torch.testing.assert_close(found.double(), expected.expand(KV_HEADS, -1), atol=1e-6, rtol=1e-5)


def test_the_best_stay_in_their_order_and_of_equals_the_first() -> None:
    places = COMPACTORS["keydiff"].make("0.5").keep(Seen(torch.ones(70, 1, 4)))
    assert places.tolist() == [[0, 1, 2, *range(38, 70)]], "and the last 32 whatever they are"


@pytest.mark.parametrize("by", [-300, -1, 0, 4000])
def test_a_turn_is_a_fresh_rotation_at_the_new_position_and_can_be_undone(k: Tensor, by: int) -> None:
    """Also with YaRN's scale, which a turn must not apply a second time."""
    rope = RotaryEmbedding(10_000.0 ** -(torch.arange(0, DIM, 2) / DIM), scale=1.3)
    positions = torch.arange(HELD) + 5000
    here, there = rope.at(positions, torch.float32)(k), rope.at(positions + by, torch.float32)(k)
    moves = torch.full((HELD, KV_HEADS), by)
    # An angle of up to 9,000 radians has an error of 2^-11 in float32, for keys of size 4.
    torch.testing.assert_close(rope.turned(here, moves), there, atol=4 * 2**-10, rtol=0)
    torch.testing.assert_close(rope.turned(rope.turned(here, moves), -moves), here, atol=1e-5, rtol=0)


@pytest.mark.parametrize("stored", [dense("float32"), int8()], ids=["dense", "int8"])
def test_every_head_of_every_layer_keeps_its_own_tokens(stored: KVFormat) -> None:
    """Gathered into rows of which some are sources, too."""
    cache = spec(stored, 0, 1)
    arena, generator = Arena(cache, 8), torch.Generator().manual_seed(4)
    content = {}
    for layer in cache.layers:
        rows, slots = torch.arange(4), torch.arange(HELD)
        k, v = (torch.randn(HELD, KV_HEADS, DIM, generator=generator) for _ in "kv")
        layer.format.encode(k, v, arena.views(layer.layer), slots)
        content[layer.layer] = [x[:HELD].clone() for x in layer.format.decode(arena.views(layer.layer), rows)]
    compactor = AfterPrompt("keydiff", 0.5, keydiff)
    Gatherer(arena)(Gather(((0, 1, 2, 3),), ((1, 5),), HELD, compactor))
    chosen = set()
    for layer in cache.layers:
        k, v = content[layer.layer]
        places = keydiff(Seen(k)).sort(dim=-1, descending=True, stable=True).indices[:, :25].sort(-1).values
        found = layer.format.decode(arena.views(layer.layer), torch.tensor([1, 5]))
        for head in range(KV_HEADS):
            chosen.add(tuple(places[head].tolist()))
            for was, now in zip((k, v), found, strict=True):
                # int8 is encoded again from what it decodes to: its scale may move by its rounding, 2^-10 of it.
                torch.testing.assert_close(now[:25, head], was[places[head], head], atol=4 * 2**-10, rtol=0)
    assert len(chosen) == 2 * KV_HEADS


def lengths(compactor: Compactor, num_prompt: int, num_tokens: int) -> tuple[list[int], int]:
    """Numbers of computed tokens at which some leave, and most that are held."""
    dropped, at, most = 0, [], 0
    for computed in range(num_tokens + 1):
        most = max(most, computed - dropped)
        if computed == compactor.due(num_prompt, dropped):
            at.append(computed)
            dropped += computed - dropped - compactor.kept(computed - dropped)
    return at, most


def test_when_tokens_leave() -> None:
    assert lengths(COMPACTORS["keydiff"].make("0.5"), 100, 150) == ([100], 100)
    assert lengths(COMPACTORS["keydiff"].make("1.0"), 100, 150) == ([], 150)
    assert lengths(COMPACTORS["snapkv"].make("200"), 100, 150) == ([], 150)
    at, most = lengths(streaming(4, 64), 10, 200)
    assert at[0] == most == 68
    assert {b - a for a, b in pairwise(at)} == {8}
    at, most = lengths(context_shift(8, 128), 10, 400)
    assert at[0] == most == 128
    assert {b - a for a, b in pairwise(at)} == {60}, "llama.cpp: n_left / 2"
    assert Rolling(0, 32, 8).due(10, NEVER - NEVER) == 32


def test_a_derived_chain_has_no_key_of_another() -> None:
    tokens = array("i", range(200))

    def chain(num: int = 0, what: bytes = b"a", held: int = 100, kept: int = 50) -> list[bytes]:
        exact = KeyChain(b"root", 16)
        exact.extend(tokens, 6)
        if not num:
            return exact.keys
        derived = exact.derive(what, tokens, held, kept)
        derived.extend(tokens, num)
        return derived.keys

    kinds = [chain(), chain(9), chain(9, b"b"), chain(9, held=101), chain(9, kept=49)]
    assert len({key for keys in kinds for key in keys}) == sum(map(len, kinds))
    once = KeyChain(b"root", 16).derive(b"a", tokens, 100, 50)
    twice = once.derive(b"a", tokens, 80, 40)  # of tokens 0 .. 129, the last 30 are behind the first derivation
    assert (twice.dropped, twice.origin) == (90, b"root")
    twice.extend(tokens, 3)
    assert array("i", twice.tokens[2]).tolist() == [-1] * 8 + list(range(130, 138))
    with pytest.raises(ValueError, match="more than the 200 tokens"):
        twice.extend(tokens, 7)
