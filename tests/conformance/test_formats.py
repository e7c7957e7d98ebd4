"""Every recipe, whatever the history: what a query reads depends on its position alone.

The same tokens are computed one by one, in chunks, after a prefix hit, in a fork, after a truncate, after a preemption
and in a batch with others. K, V and queries of a token are fixed, so the bytes that are stored must be the same bits
each time, and so must results: to the bit where sums do not depend on the batch, else within rounding.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from kvtrove.attention.backend import AttentionBackend, AttentionLayer, Rotation
from kvtrove.attention.cpu import CpuBackend
from kvtrove.attention.reference import ReferenceBackend
from kvtrove.evaluate.calibrate import rotation, write
from kvtrove.kv.arena import Arena
from kvtrove.kv.formats.dense import dense
from kvtrove.kv.formats.words import examples
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.plane import LayerState
from kvtrove.kv.recipe import recipe
from kvtrove.kv.retention import Full, Retention, SlidingWindow
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.kv.table import SequenceKV
from kvtrove.models.layers.rope import RotaryEmbedding
from kvtrove.runner.batch import build_batch
from kvtrove.runner.rows import Rows
from kvtrove.scheduler.output import ScheduledSequence
from tests.steps import attention_layer

BLOCK, HEADS, KV_HEADS, DIM, VOCAB = 16, 4, 2, 32, 97
N = KV_HEADS * DIM
LENGTH = 75
ROPE = RotaryEmbedding(10_000.0 ** -(torch.arange(0, DIM, 2) / DIM))
RECIPES = [
    *(word for word in examples() if "FILE" not in word),
    *("kivi=4", "k=int8+v=int4r", "k=fp16+v=fp8", "k=kivi=2+v=int8", "k=int4r+v=kivi=4"),
    *("oscar=CALIBRATION", "k=oscar=CALIBRATION+v=int8"),
    *("lowrank=0.75@CALIBRATION", "lowrank=24,int8@CALIBRATION", "k=lowrank=0.5@CALIBRATION+v=kivi=2"),
    *(
        "layers=0:quest=48+int8",
        "layers=0:doublesparsity=1/2@CALIBRATION+int8",
        "layers=0:int8+kivi=2",
        "sinks=3+window=21+int4r",
        "chunk=24+kivi=2",
        "chunk=32+kivi=4",
        "sinks=3+window=21+kivi=2",
        "window=20+int8",
    ),
    *("first=32:fp16+int8", "first=16:int8+k=int8+v=oscar=CALIBRATION"),
    *("first=32:fp32+sinks=3+window=21+int4r", "first=16:fp32+lowrank=16,int8@CALIBRATION"),
]
Kept = tuple[Retention, int | None, tuple[int, int] | None]
LAYERS: list[Kept] = [(Full(), None, None), (SlidingWindow(23), None, None), (Full(), 0, None)]
"""What each keeps, whose storage it reads, and which of its heads."""
BACKENDS: dict[str, AttentionBackend] = {"reference": ReferenceBackend()}
with contextlib.suppress(ImportError):  # the extension is not built: the reference alone is left
    BACKENDS["cpu"] = CpuBackend()


class World:
    """A cache with its books and its bytes, over which tokens are computed without a model."""

    def __init__(
        self,
        words: str,
        backend: AttentionBackend,
        num_blocks: int = 60,
        kept: Sequence[Kept] = LAYERS,
        states: tuple[LayerState, ...] = (),
    ) -> None:
        layers = [
            LayerKV(
                i, KV_HEADS if heads is None else heads[1] - heads[0], DIM, DIM, dense("float32"), rule, source, heads
            )
            for i, (rule, source, heads) in enumerate(kept)
        ]
        self.spec = recipe(words)(KVCacheSpec(tuple(layers), BLOCK, "float32", states))
        self.arena = Arena(self.spec, num_blocks, num_seats=6)
        self.arena.rows.fill_(0xFF)
        self.arena.seats.fill_(0xFF)
        self.books = KVCacheManager(self.spec, num_blocks, num_seats=6, check=0)
        self.layers = [attention_layer(self.spec, self.arena, layer, HEADS) for layer in self.spec.layers]
        self.backend = backend
        generator = torch.Generator().manual_seed(3)
        shape = (len(layers), VOCAB, 2 * KV_HEADS + HEADS, DIM)
        self.vectors = torch.randn(shape, generator=generator) * (1 + 5 * (torch.arange(DIM) % 11 == 0))
        self.results: dict[tuple[int, int], Tensor] = {}

    def reasons(self) -> list[str]:
        return [reason for layer in self.layers for reason in self.backend.reasons_against(layer, "cpu")]

    def step(self, work: list[tuple[SequenceKV, array[int], int]]) -> None:
        """Compute the next tokens of some sequences; keeps the results by (handle, position)."""
        for kv, _, num in work:
            assert self.books.allocate(kv, num)
        scheduled = [
            ScheduledSequence(i, tokens[start : start + num], start, kv.block_ids(), seat=kv.seat)
            for i, (kv, tokens, num) in enumerate(work)
            for start in (kv.num_computed,)
        ]
        Rows(self.arena).execute(self.books.take_ops())
        batch = build_batch(scheduled, BLOCK, "cpu")
        plan, rotate = self.backend.plan(batch.attention), ROPE.at(batch.positions, torch.float32)
        found = torch.stack(
            [self._layer(i, layer, batch.tokens, plan, rotate) for i, layer in enumerate(self.layers)], 1
        )
        row = 0
        for kv, _, num in work:
            for p in range(kv.num_computed, kv.num_computed + num):
                self.results[id(kv), p] = found[row]
                row += 1
        self.follow(scheduled, [id(kv) for kv, _, _ in work])
        for kv, tokens, num in work:
            self.books.commit(kv, tokens, num)

    def follow(self, scheduled: list[ScheduledSequence], handles: list[int]) -> None:
        """What layers with running states make of the step."""

    def _layer(self, index: int, layer: AttentionLayer, tokens: Tensor, plan: object, rotate: Rotation) -> Tensor:
        k, v, q = self.vectors[index][tokens].split((KV_HEADS, KV_HEADS, HEADS), 1)
        own = self.spec.layers[index].source is None
        return self.backend.run(
            q.contiguous(), k.contiguous() if own else None, v.contiguous() if own else None, layer, plan, rotate
        )

    def compute(self, kv: SequenceKV, tokens: array[int], *chunks: int) -> SequenceKV:
        """All of them, in chunks of these sizes, the last one again and again."""
        sizes = [*chunks]
        if not kv.num_computed:
            self.books.states.plan(kv, len(tokens), range(0, len(tokens), BLOCK))
        while kv.num_computed < len(tokens):
            size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
            num = min(size, len(tokens) - kv.num_computed)
            self.step([(kv, tokens, self.books.states.until_mark(kv, num))])
        return kv

    def warm(self, tokens: array[int]) -> SequenceKV:
        """A new handle with what is found of `tokens`."""
        kv = self.books.open()
        assert self.books.allocate(kv, 0, self.books.match(kv, tokens, len(tokens) - 1))
        return kv

    def stored(self, kv: SequenceKV) -> Iterator[Tensor]:
        """The bytes of every sealed block that is still held, layer by layer."""
        for part in (part for layer in self.layers for part in layer.parts):
            ids = kv.block_ids()[part.group][: kv.num_computed // BLOCK]
            held = torch.tensor([i for i in ids.tolist() if i >= 0], dtype=torch.int64)
            for plane in part.view.values():
                yield plane[held].contiguous().view(torch.uint8)


TOKENS = array("i", torch.randint(VOCAB, (LENGTH,), generator=torch.Generator().manual_seed(5)).tolist())
OTHER = array("i", reversed(TOKENS))


def chunked(world: World) -> SequenceKV:
    return world.compute(world.books.open(), TOKENS, 5, 30, 1, 13, 11)


def whole(world: World) -> SequenceKV:
    return world.compute(world.books.open(), TOKENS, LENGTH)


def hit(world: World) -> SequenceKV:
    world.books.free(world.compute(world.books.open(), TOKENS[:60] + OTHER[:9], 25))
    kv = world.warm(TOKENS)
    assert kv.num_computed == 48
    return world.compute(kv, TOKENS, 9)


def fork(world: World) -> SequenceKV:
    parent = world.compute(world.books.open(), TOKENS[:41], 20)
    child = world.books.fork(parent)
    assert child is not None
    world.step([(parent, TOKENS[:41] + OTHER[:20], 20), (child, TOKENS, 3)])
    return world.compute(child, TOKENS, 8)


def truncated(world: World) -> SequenceKV:
    kv = world.compute(world.books.open(), TOKENS[:38] + OTHER[:4], 21)
    left = world.books.truncate(kv, 38)
    assert left in (32, 38)
    return world.compute(kv, TOKENS, 10)


def preempted(world: World) -> SequenceKV:
    world.books.free(world.compute(world.books.open(), TOKENS[:53], 30, 1))
    return world.compute(world.warm(TOKENS[:53]), TOKENS, 14, 1)


def mixed(world: World) -> SequenceKV:
    kv, one, two = (world.books.open() for _ in range(3))
    world.step([(one, OTHER, 33), (kv, TOKENS, 18)])
    world.step([(kv, TOKENS, 1), (one, OTHER, 1), (two, OTHER, 50)])
    world.step([(two, OTHER, 25), (one, OTHER, 14), (kv, TOKENS, 29)])
    world.step([(one, OTHER, 1), (kv, TOKENS, 1)])
    return world.compute(kv, TOKENS, 3)


HISTORIES = [chunked, whole, hit, fork, truncated, preempted, mixed]


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Any orthogonal matrices serve."""
    path = str(tmp_path_factory.mktemp("calibration") / "any.safetensors")
    moments = torch.randn(2 * len(LAYERS), DIM, DIM, dtype=torch.float64)
    names = [f"{side}.{layer}" for side in "kv" for layer in range(len(LAYERS))]
    rotations = {name: rotation(x @ x.T) for name, x in zip(names, moments, strict=True)}
    bases = {f"{name}.basis": torch.linalg.qr(torch.randn(1, N, N)).Q for name in names}
    weights = {f"{name}.weights": torch.rand(N) + 0.5 for name in names}
    write(rotations | bases | weights | {"k.0.channels": torch.rand(KV_HEADS, DIM)}, path)
    return path


@pytest.mark.parametrize("words", RECIPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_no_history_shows(backend: str, words: str, calibration: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All histories with the kernels; three in turn with the reference, over the same books."""
    monkeypatch.setattr("kvtrove.kv.selection.double_sparsity.LEAST_TOKENS", 2 * BLOCK)  # else it reads everything here
    named, words = words, words.replace("CALIBRATION", calibration)
    world = World(words, BACKENDS[backend])
    if reasons := world.reasons():
        assert backend == "cpu", "the reference reads everything"
        pytest.skip(reasons[0])
    alone = world.compute(world.books.open(), TOKENS, 1)
    bits = backend == "cpu" or all(layer.format.whole_block for layer in world.spec.layers)
    few = [HISTORIES[(RECIPES.index(named) + i) % len(HISTORIES)] for i in (0, 2, 4)]
    for history in HISTORIES if backend == "cpu" else few:
        other = World(words, BACKENDS[backend])
        kv = history(other)
        assert other.books.check() == []
        for mine, theirs in zip(world.stored(alone), other.stored(kv), strict=True):
            assert torch.equal(mine, theirs), f"{history.__name__} stored other bytes"
        computed = [p for handle, p in other.results if handle == id(kv)]
        assert computed[-1] == LENGTH - 1
        expected = torch.stack([world.results[id(alone), p] for p in computed])
        found = torch.stack([other.results[id(kv), p] for p in computed])
        if bits:
            assert torch.equal(found, expected), history.__name__
        else:  # float32 sums of at most 75 products of weights and values of size 20, in another order
            torch.testing.assert_close(found, expected, atol=75 * 20 * 2**-24, rtol=1e-5)


@pytest.mark.parametrize("words", ["auto", "int8", "int4r", "kivi=2", "first=32:fp16+kivi=4"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_layer_reads_some_heads_of_another(backend: str, words: str) -> None:
    """What it finds in head 1 is what a layer finds there that reads both, by the same queries and a narrower rule."""
    found = []
    for heads in ((1, 2), None):
        kept: list[Kept] = [(Full(), None, None), (SlidingWindow(40), 0, heads)]
        world = World(words, BACKENDS[backend], kept=kept)
        assert world.reasons() == []
        kv = world.compute(world.books.open(), TOKENS, 5, 30, 1)
        found.append(torch.stack([world.results[id(kv), p][1, HEADS // 2 :] for p in range(LENGTH)]))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
