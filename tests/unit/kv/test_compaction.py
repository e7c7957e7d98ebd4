"""Scores against the formulas of their papers, moves of keys against fresh rotations, and when tokens leave."""

from __future__ import annotations

from array import array
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kvtrove import kernels
from kvtrove.attention.backend import AttentionLayer
from kvtrove.attention.cpu import CpuBackend, CpuTokens
from kvtrove.attention.reference import window_probabilities
from kvtrove.evaluate.calibrate import write
from kvtrove.kv.arena import Arena
from kvtrove.kv.cells import head_tables, read_counts
from kvtrove.kv.chain import KeyChain
from kvtrove.kv.compaction.budgets import AdaKV, Everywhere, Pyramid, in_blocks
from kvtrove.kv.compaction.compactor import NEVER, AfterPrompt, Compactor, Rolling, context_shift, streaming
from kvtrove.kv.compaction.decoding import WhileDecoding, triattention
from kvtrove.kv.compaction.reconstruct import Probe, reconstruction
from kvtrove.kv.compaction.scores import Seen, expected, finch, keydiff, snapkv, tova
from kvtrove.kv.compaction.words import COMPACTORS
from kvtrove.kv.formats.calibration import read_calibration
from kvtrove.kv.formats.dense import dense
from kvtrove.kv.formats.int8 import int8
from kvtrove.kv.recipe import recipe
from kvtrove.kv.rows import Gather
from kvtrove.kv.spec import KVCacheSpec, KVFormat, LayerKV
from kvtrove.kv.values import read_values, write_values
from kvtrove.models.layers.rope import RotaryEmbedding
from kvtrove.plan.gathering import gathering_bytes
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
    found = snapkv(Seen(k, partial(window_probabilities, q, k, layer)))
    before = attention(q, k)[..., : HELD - WINDOW].mean(1)
    pooled = F.avg_pool1d(before, kernel_size=5, stride=1, padding=2)
    expected = pooled.view(KV_HEADS, SHARED, -1).mean(1)
    torch.testing.assert_close(found[:, : HELD - WINDOW].double(), expected, atol=1e-6, rtol=1e-5)
    keep = recipe("snapkv=33")(spec(dense("float32")))
    assert keep.compactor is not None
    places = keep.compactor.keep(Seen(torch.cat([k, k, k]), lambda: torch.rand(KV_HEADS, SHARED, 32, 3 * HELD)))
    assert places.shape == (KV_HEADS, 33)
    assert places[:, -32:].tolist() == [list(range(3 * HELD - 32, 3 * HELD))] * KV_HEADS, "its window stays"


def test_finch_weighs_each_query_by_what_it_sees(k: Tensor, q: Tensor, layer: AttentionLayer) -> None:
    rows = attention(q, k)
    for i in range(WINDOW):
        rows[:, i] *= HELD - WINDOW + i + 1
    expected = rows.mean(1).view(KV_HEADS, SHARED, -1).mean(1)
    torch.testing.assert_close(
        finch(Seen(k, partial(window_probabilities, q, k, layer))).double(), expected, atol=1e-5, rtol=1e-5
    )


def test_tova_is_the_last_query_over_all_heads(k: Tensor, q: Tensor, layer: AttentionLayer) -> None:
    found = tova(Seen(k, partial(window_probabilities, q, k, layer)))
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


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("stored", [dense("float32"), int8()], ids=["dense", "int8"])
def test_every_head_of_every_layer_keeps_its_own_tokens(stored: KVFormat, native: bool) -> None:
    """Gathered into rows of which some are sources, too. Kernels move what is stored, torch decodes and encodes it.

    The first head keeps its first block as a whole.
    """

    def score(seen: Seen) -> Tensor:
        found = keydiff(seen)
        found[0, : cache.block_size] += 10
        return found

    if native and not kernels.available():
        pytest.skip("the extension is not built")
    cache = spec(stored, 0, 1)
    arena, generator = Arena(cache, 8), torch.Generator().manual_seed(4)
    content = {}
    for layer in cache.layers:
        rows, slots = torch.arange(4), torch.arange(HELD)
        k, v = (torch.randn(HELD, KV_HEADS, DIM, generator=generator) for _ in "kv")
        layer.format.encode(k, v, arena.views(layer.layer), slots)
        content[layer.layer] = [x[:HELD].clone() for x in layer.format.decode(arena.views(layer.layer), rows)]
    compactor = AfterPrompt("keydiff", 0.5, score)
    of = {layer.layer: attention_layer(cache, arena, layer, HEADS) for layer in cache.layers}
    gatherer = Gatherer(arena, tokens=lambda layer: CpuTokens(CpuBackend(), of[layer])) if native else Gatherer(arena)
    gatherer(Gather(((0, 1, 2, 3),), ((1, 5),), HELD, compactor))
    chosen = set()
    for layer in cache.layers:
        k, v = content[layer.layer]
        places = score(Seen(k)).sort(dim=-1, descending=True, stable=True).indices[:, :25].sort(-1).values
        found = layer.format.decode(arena.views(layer.layer), torch.tensor([1, 5]))
        for head in range(KV_HEADS):
            chosen.add(tuple(places[head].tolist()))
            for was, now in zip((k, v), found, strict=True):
                # Torch encodes int8 again from what it decodes to: its scale may move by its rounding, 2^-10 of it.
                atol = 0 if native else 4 * 2**-10
                torch.testing.assert_close(now[:25, head], was[places[head], head], atol=atol, rtol=0)
    assert len(chosen) == 2 * KV_HEADS


def test_expected_attention_is_the_mean_over_queries_drawn_from_their_distribution(k: Tensor, q: Tensor) -> None:
    """Against the formula of the paper in float64, and against what it approximates: 20,000 queries and a softmax."""
    rope = RotaryEmbedding(10_000.0 ** -(torch.arange(0, DIM, 2) / DIM))
    positions, v = torch.arange(HELD - WINDOW, HELD), torch.randn(HELD, KV_HEADS, DIM)
    seen = Seen(k, v=v, queries=rope.at(positions, torch.float32)(q), turn=rope.turned, scale=DIM**-0.5)
    found = expected(seen)
    angles = torch.outer(torch.arange(HELD, HELD + 512).double(), 10_000.0 ** -(torch.arange(0, DIM, 2) / DIM).double())
    half = DIM // 2
    rotation = torch.zeros(DIM, DIM, dtype=torch.float64)
    for i in range(half):
        cos, sin = angles[:, i].cos().mean(), angles[:, i].sin().mean()
        rotation[i, i] = rotation[i + half, i + half] = cos
        rotation[i, i + half], rotation[i + half, i] = -sin, sin
    formula = torch.empty(HEADS, HELD - 4, dtype=torch.float64)
    for head in range(HEADS):
        x, keys = q[:, head].double(), k[4:, head // SHARED].double()
        mean, covariance = rotation @ x.mean(0), rotation @ torch.cov(x.T, correction=0) @ rotation.T
        logits = keys @ mean / DIM**0.5 + torch.einsum("ni,ij,nj->n", keys, covariance, keys) / (2 * DIM)
        formula[head] = logits.softmax(-1)
    wanted = formula.view(KV_HEADS, SHARED, -1).mean(1) + 1e-2
    wanted = wanted * v[4:].double().norm(dim=-1).T
    torch.testing.assert_close(found[:, 4:].double(), wanted, atol=1e-5, rtol=1e-4)
    assert (found[:, :4] == found[:, 4:].max()).all(), "sinks stay"


def test_h2o_adds_up_what_every_query_has_read(k: Tensor, q: Tensor, layer: AttentionLayer) -> None:
    """Also what was read before the last compaction, of what that kept."""
    made = COMPACTORS["h2o"].make("0.5")
    assert isinstance(made, WhileDecoding)
    expected = attention(q, k).view(KV_HEADS, SHARED, WINDOW, HELD).sum((1, 2))
    before = torch.rand(KV_HEADS, 40)
    found = made.scores(Seen(k, partial(window_probabilities, q, k, layer), given=before))
    torch.testing.assert_close(found[:, 40:].double(), expected[:, 40:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, :40].double(), expected[:, :40] + before, atol=1e-5, rtol=1e-5)
    places = made.best(torch.arange(100.0).flip(0).expand(2, -1), again=False)
    assert places.tolist() == [[*range(25), *range(75, 100)]] * 2, "half of them the best, half the last"


def test_triattention_is_the_mean_query_seen_from_afar(k: Tensor, tmp_path: Path) -> None:
    """The sums of the paper, in complex numbers: one pair, one offset at a time."""
    half, generator = DIM // 2, torch.Generator().manual_seed(6)
    mean = torch.randn(HEADS, DIM, generator=generator)
    lengths = torch.complex(mean[:, :half], mean[:, half:]).abs() + torch.rand(HEADS, half, generator=generator)
    longer = lengths - torch.complex(mean[:, :half], mean[:, half:]).abs()
    write({"q.3.mean": mean, "q.3.length": longer}, str(tmp_path / "table"))
    calibration = read_calibration(str(tmp_path / "table"))
    rope = RotaryEmbedding(10_000.0 ** -(torch.arange(0, DIM, 2) / DIM))
    now = 70  # the position of the last token; 20 have left before
    positions = torch.arange(HELD) + (now - HELD + 1)
    rotated = rope.at(positions, torch.float32)(k)
    found = triattention(Seen(rotated, turn=rope.turned, layer=3, shift=now - HELD + 1), calibration)
    frequency = (10_000.0 ** -(torch.arange(0, DIM, 2) / DIM)).double()
    keys = torch.complex(k[..., :half].double(), k[..., half:].double())
    asked = torch.complex(mean[:, :half].double(), mean[:, half:].double())
    scores = torch.zeros(HEADS, HELD, dtype=torch.float64)
    for head in range(HEADS):
        key = keys[:, head // SHARED]
        phase = (asked[head] * key.conj()).angle()
        for offset in (2**i for i in range(17)):
            angle = frequency * (now - positions[:, None] + offset) + phase
            scores[head] += (asked[head].abs() * key.abs() * angle.cos()).sum(1) / 17
        scores[head] += ((lengths[head].double() - asked[head].abs()) * key.abs()).sum(1)
    normal = (scores - scores.mean(1, keepdim=True)) / scores.std(1, keepdim=True)
    # float32 angles of up to 65,600 radians are off by 2^-8; the mean over 17 offsets makes it less.
    torch.testing.assert_close(found.double(), normal.view(KV_HEADS, SHARED, -1).amax(1), atol=5e-3, rtol=0)
    kept = WhileDecoding("t", 64, keydiff, keeps_prompt=True).best(torch.rand(1, 10 + 64 + 64), False)
    assert kept[0, :10].tolist() == [*range(10)], "the prompt stays"
    assert kept.shape == (1, 74)


def test_budgets_are_those_of_the_papers() -> None:
    scores = [torch.rand(3, 400, generator=torch.Generator().manual_seed(layer)) ** (1 + layer) for layer in range(4)]
    pyramid = [heads[0] for heads in Pyramid().wanted(scores, 120, 32)]
    low, high = 88 / 20, 2 * 88 - 88 / 20
    assert pyramid == pytest.approx([32 + high - i * (high - low) / 3 for i in range(4)])
    assert Pyramid().wanted(scores, 300, 32)[0][0] == pytest.approx(400), "no layer keeps more than there is"
    assert sum(heads[0] for heads in Pyramid().wanted(scores, 300, 32)) == pytest.approx(4 * 300)
    for layer, found in zip(scores, AdaKV(0.5).wanted(scores, 120, 0), strict=True):
        boosted = layer.clone()
        for head in range(3):
            boosted[head, layer[head].topk(60).indices] += 10
        chosen = torch.zeros(3 * 400).index_fill(0, boosted.flatten().topk(360).indices, 1).view(3, 400)
        assert found == chosen.sum(1).tolist()
    together = torch.cat(scores)
    best = torch.zeros(12 * 400).index_fill(0, together.flatten().topk(12 * 120).indices, 1).view(12, 400)
    assert [n for heads in Everywhere().wanted(scores, 120, 0) for n in heads] == best.sum(1).tolist()


@settings(max_examples=30)
@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=9).filter(any),
    st.integers(1, 2),
    st.integers(2, 30),
    st.randoms(use_true_random=False),
)
def test_blocks_add_up_within_their_bounds(wanted: list[float], least: int, most: int, draw: Random) -> None:
    total = draw.randint(least * len(wanted), most * len(wanted))
    parts = in_blocks(wanted, total, least, most)
    assert sum(parts) == total
    assert all(least <= part <= most for part in parts)
    ideal = [part * total / sum(wanted) for part in wanted]
    if all(least <= part <= most for part in ideal):
        assert all(abs(part - share) < 1 for part, share in zip(parts, ideal, strict=True))


@pytest.mark.parametrize("stored", [dense("float32"), int8()], ids=["dense", "int8"])
def test_unequal_heads_fill_their_rows_to_the_last_cell(stored: KVFormat) -> None:
    """Gathered over their own sources; read through tables of heads, with tokens behind them."""
    cache = recipe("adakv=0.1+snapkv=0.6")(spec(stored, 0, 1))
    compactor, held = cache.compactor, 100
    assert isinstance(compactor, AfterPrompt)
    assert compactor.kept(held) == 5 * 16, "60 tokens are four blocks for each, and one says who has which"
    arena, generator = Arena(cache, 12), torch.Generator().manual_seed(4)
    content = {i: [torch.randn(7 * 16, KV_HEADS, DIM, generator=generator) for _ in "kv"] for i in (0, 1)}
    for i, (k, v) in content.items():
        write_values(arena, i, range(7), k, v)
        content[i] = [x[:held].clone() for x in read_values(arena, i, range(7))]
    chances = {i: torch.rand(KV_HEADS, 1, 32, held, generator=generator) for i in (0, 1)}
    chances[0][0] *= 3
    gatherer = Gatherer(arena, attention=lambda layer, q, k: chances[layer])
    gatherer(Gather((tuple(range(7)),), ((3, 5, 1, 0, 11),), held, compactor, [[torch.zeros(32, HEADS, DIM)] * 2]))
    counts = read_counts(arena, 3)
    assert counts.sum() == 4 * cache.cells
    assert counts[0] > counts[1], "a head with higher scores keeps more"
    tables = head_tables(
        np.array([[3, 5, 1, 0, 11, 9], [8, 2, -1, -1, -1, -1]], np.int32), [counts, None], [5, 0], cache.cells
    )
    scores = [compactor.scores(Seen(k, partial(chances.get, i))) for i, (k, v) in content.items()]  # type: ignore[arg-type]
    for cell, count in enumerate(counts):
        layer, head = divmod(cell, KV_HEADS)
        assert tables[cell, 0, count] == 9 * cache.cells + cell, "what follows"
        assert tables[cell, 1, :3].tolist() == [8 * cache.cells + cell, 2 * cache.cells + cell, -1]
        cells = torch.from_numpy(tables[cell, 0, :count]).long()
        places = scores[layer][head].topk(16 * int(count)).indices.sort().values
        found = stored.decode(arena.views(layer), cells)
        for was, now in zip(content[layer], found, strict=True):
            torch.testing.assert_close(now[:, 0], was[places, head], atol=4 * 2**-10, rtol=0)


@pytest.mark.parametrize(("words", "read"), [("keydiff=0.5", False), ("snapkv=0.5", False), ("expected=0.5", True)])
def test_values_are_read_where_tokens_are_scored_by_them(words: str, read: bool) -> None:
    """And the ledger counts what is read."""
    made = recipe(words)(spec(dense("float32")))
    assert isinstance(made.compactor, AfterPrompt)
    assert made.compactor.reads_values == read
    scored = replace(made, compactor=replace(made.compactor, reads_values=False))
    more = gathering_bytes(made, HEADS, 1000) - gathering_bytes(scored, HEADS, 1000)
    assert more >= (1000 * KV_HEADS * DIM * 4 if read else 0)
    assert (more > 0) == read


def test_the_last_head_may_keep_nothing() -> None:
    """`kvzip` gives blocks to the best heads of all layers, wherever they are."""
    table = np.array([[3, 5, 9]], np.int32)
    assert head_tables(table, [np.array([2, 0], np.int32)], [2], 2)[:, 0, :3].tolist() == [[10, 11, 18], [19, -1, -1]]


def test_windows_keep_their_tokens_in_bf16() -> None:
    """Places beyond 256 are no bf16 numbers."""
    places = streaming(4, 1024).keep(Seen(torch.zeros(1028, 1, 8, dtype=torch.bfloat16)))
    assert places.tolist() == [[*range(4), *range(132, 1028)]]


def lengths(compactor: Compactor, num_prompt: int, num_tokens: int) -> tuple[list[int], int]:
    """Numbers of computed tokens at which some leave, and most that are held."""
    dropped, at, most = 0, [], 0
    for computed in range(num_tokens + 1):
        most = max(most, computed - dropped)
        if computed == compactor.due(num_prompt, dropped):
            at.append(computed)
            dropped += computed - dropped - compactor.kept(computed - dropped, dropped)
    return at, most


def test_when_tokens_leave() -> None:
    assert lengths(COMPACTORS["keydiff"].make("0.5"), 100, 150) == ([100], 100)
    assert lengths(COMPACTORS["keydiff"].make("1.0"), 100, 150) == ([], 150)
    assert lengths(COMPACTORS["snapkv"].make("200"), 100, 150) == ([], 150)
    at, most = lengths(COMPACTORS["h2o"].make("0.2"), 100, 250)
    assert (at, most) == ([100, 164, 228], 100)
    assert lengths(COMPACTORS["h2o"].make("64"), 30, 250)[0] == [128, 192]
    assert lengths(COMPACTORS["h2o"].make("1.0"), 100, 250)[0] == []
    assert lengths(WhileDecoding("t", 64, keydiff, keeps_prompt=True), 10, 300) == ([138, 202, 266], 138)
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


def test_reconstruction_is_the_most_that_a_repetition_reads(
    k: Tensor, q: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KVzip, one query and key at a time: sinks, the piece, and the repetition up to the query."""
    start, stop, probe = 10, 30, range(HELD - WINDOW, HELD)
    monkeypatch.setattr("kvtrove.kv.compaction.reconstruct.PROBABILITIES", 3 * HEADS * HELD)  # of 3 queries at a time
    shown = Probe(lambda layer, seen: None, WINDOW, range(start, stop)).places(HELD)
    found = reconstruction(Seen(k[shown], queries=q, scale=DIM**-0.5), 4)
    expected = torch.zeros(KV_HEADS, stop - start, dtype=torch.float64)
    for head in range(HEADS):
        for i, position in enumerate(probe):
            keys = [*range(4), *range(start, stop), *range(probe.start, position + 1)]
            scores = torch.stack([q[i, head].double() @ k[j, head // SHARED].double() / DIM**0.5 for j in keys])
            read = scores.softmax(0)[4 : 4 + stop - start]
            expected[head // SHARED] = expected[head // SHARED].maximum(read)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)


def test_every_head_keeps_its_first_tokens_however_little_it_is_read() -> None:
    """Whole blocks are rounded, and attention leans on the first token of a head."""
    compactor = COMPACTORS["kvzip"].make("0.25").in_blocks_of(16)
    assert isinstance(compactor, AfterPrompt)
    scores = torch.rand(2, 2, 256)
    scores[0, 0] -= 1
    scores[:, :, :4] = float("inf")
    counts = compactor.blocks([*scores])
    assert counts[0][0] == 1
    assert sum(map(sum, counts)) == 4 * 4
