"""Sequences that give up tokens, share what is left of a prefix, or take over text that moved, mixed with all else.

A token stands in the cache as what a model would have made of it: its id, its position, which head it is of, and a
checksum of all that had been read before it. The checksum goes on from what was kept and from what moved, so a block
that an exact request found behind a lossy step would not be its own. After every operation each head of each layer must
hold exactly the tokens that it has kept, with their true positions.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor

from kvtrove.kv.arena import Arena
from kvtrove.kv.cells import read_counts
from kvtrove.kv.compaction.budgets import AdaKV, Everywhere
from kvtrove.kv.compaction.compact import compact
from kvtrove.kv.compaction.compactor import AfterPrompt
from kvtrove.kv.compaction.scores import Seen
from kvtrove.kv.formats.dense import ECHO
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.moved import find_moved, take_over
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.kv.table import SequenceKV
from kvtrove.scheduler.output import ScheduledSequence, SchedulerOutput
from tests.faulty_store import FaultyStore
from tests.steps import StepRunner

SIZE, LAYERS, HEADS, BLOCKS = 4, 2, 2, 60
CELLS = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]

TEXTS = [[10 * part + i % 7 for part in parts for i in range(11)] for parts in ((0, 1), (0, 2, 1), (2, 1), (0, 1, 2))]
"""Prompts share beginnings, and have the same parts elsewhere."""

Token = tuple[int, int, int]
"""Id, position, checksum."""


def scores_of(seed: int, layer: int, held: int) -> Tensor:
    """float32 [heads, held]: any, and the same whenever they are asked for."""
    return torch.rand(HEADS, held, generator=torch.Generator().manual_seed(seed * 1000 + layer * 100 + held))


def any_tokens(seed: int, share: float, *, contiguous: bool = False) -> AfterPrompt:
    def score(seen: Seen) -> Tensor:
        return scores_of(seed, seen.layer, len(seen.k))

    return AfterPrompt(f"any{seed}", share, score, contiguous=contiguous, block_size=SIZE)


FOR_ALL = replace(any_tokens(7, 0.4), on_demand=True)
COMPACTORS = {"equal heads": FOR_ALL, "unequal heads": replace(FOR_ALL, budgets=Everywhere())}


def turned(layer: int, k: Tensor, by: Tensor) -> Tensor:
    """The second element of a key is its position."""
    return torch.stack((k[..., 0], k[..., 1] + by.int()), -1)


def kept_of(compactor: AfterPrompt, held: list[list[Token]]) -> list[list[Token]]:
    """What is left of the tokens of each head, which are equally many. Contiguous: they move up as their places do."""
    num, scores = len(held[0]), [scores_of(int(compactor.method[3:]), layer, len(held[0])) for layer in range(LAYERS)]
    if compactor.unequal:
        counts = [blocks * SIZE for layer in compactor.blocks(scores) for blocks in layer]
    else:
        counts = [compactor.kept(num)] * len(CELLS)
    found = []
    for (layer, head), tokens, count in zip(CELLS, held, counts, strict=True):
        best = scores[layer][head].sort(descending=True, stable=True).indices[:count]
        places = best.sort().values.tolist()
        up = [place - at if compactor.contiguous else 0 for at, place in enumerate(places)]
        kept = [tokens[place] for place in places]
        found.append([(token, at - by, crc) for (token, at, crc), by in zip(kept, up, strict=True)])
    return found


@dataclass
class Live:
    """A sequence as the test knows it. held: the computed tokens of each head. after: checksum after each of
    `tokens`, and before the first; of the token that a lossy step stands behind, after the step.
    """

    kv: SequenceKV
    salt: bytes
    tokens: array[int]
    held: list[list[Token]] = field(default_factory=lambda: [[] for _ in CELLS])
    after: list[int] = field(default_factory=list)
    done: list[tuple[int, AfterPrompt]] = field(default_factory=list)
    up: int = 0
    """Positions that its next tokens have moved up."""
    exact: bool = True
    """Whether it would be the same on an empty cache."""

    def __post_init__(self) -> None:
        self.after = self.after or [zlib.crc32(self.salt)]

    def compute(self, num: int) -> list[Token]:
        """Its next tokens, which it holds from then on."""
        n, new = len(self.after) - 1, []
        for at, token in enumerate(self.tokens[n : n + num], n - self.up):
            self.take(token, at)
            new.append((token, at, self.after[-1]))
        for tokens in self.held:
            tokens += new
        return new

    def take(self, *what: int) -> None:
        self.after.append(zlib.crc32(repr(what).encode(), self.after[-1]) & 0x7FFFFFFF)

    def give_up(self, compactor: AfterPrompt) -> None:
        before, self.held = len(self.held[0]), kept_of(compactor, self.held)
        self.up += before - len(self.held[0]) if compactor.contiguous else 0
        self.after[-1] = zlib.crc32(compactor.id.encode(), self.after[-1]) & 0x7FFFFFFF
        self.done.append((len(self.after) - 1, compactor))

    def forget(self, num: int) -> None:
        """The last `num` tokens."""
        if num:
            self.held = [tokens[:-num] for tokens in self.held]
            del self.after[-num:]


class FewerTokens(RuleBasedStateMachine):
    def __init__(self, kind: str, *, tiers: bool) -> None:
        super().__init__()
        self.for_all, self.unequal = COMPACTORS[kind], COMPACTORS[kind].unequal
        layers = tuple(LayerKV(i, HEADS, 2, 2, ECHO) for i in range(LAYERS))
        self.spec = KVCacheSpec(layers, SIZE, compactor=self.for_all)
        self.arena = Arena(self.spec, BLOCKS)
        store = FaultyStore(delay=1, budget=40 * self.spec.block_bytes) if tiers else None
        self.runner = StepRunner(self.spec, self.arena, store, turned)
        self.books = KVCacheManager(self.spec, BLOCKS, check=2, crc=self.arena.crc, clock=lambda: 0.0, store=store)
        if not self.unequal:
            self.books.index.note_contents()
        self.live: list[Live] = []
        self.said: dict[bytes, list[Token]] = {}  # what a key stands for, of blocks of which nothing was given up

    # ---- sequences begin, go on, end ----

    @initialize(text=st.sampled_from(TEXTS), blocks=st.integers(2, 5))
    def first(self, text: Sequence[int], blocks: int) -> None:
        self.open(b"", text, 3, "exact")
        self.compact_for_all(text, blocks)

    @rule(
        salt=st.sampled_from([b"", b"", b"", b"tenant"]),
        text=st.sampled_from(TEXTS),
        more=st.integers(1, 7),
        how=st.sampled_from(["exact", "any", "any", "moves", "moves"]),
    )
    def open(self, salt: bytes, text: Sequence[int], more: int, how: str) -> None:
        """A prompt that is computed at once. It begins as others do, or has text of theirs elsewhere."""
        seq = self.begin(salt, array("i", [*text, *range(more)]), exact=how != "any")
        while seq is not None and how == "moves" and self.move(seq):
            pass
        if seq is not None and (left := len(seq.tokens) - seq.kv.num_computed):
            self.go_on(seq, left)

    def begin(self, salt: bytes, tokens: array[int], *, exact: bool, limit: int | None = None) -> Live | None:
        """A sequence that has taken over what the cache has of it; None where that does not fit."""
        kv, limit = self.books.open(salt), len(tokens) - 1 if limit is None else limit
        match = self.books.match(kv, tokens, limit, exact)
        if match.elsewhere:
            load = self.books.fetch(kv, match)
            while not load.done:
                self.books.poll()
            assert self.books.let_go(load)
            match = self.books.match(kv, tokens, limit, exact)
        if not self.books.allocate(kv, 1, match):
            self.books.free(kv)
            return None
        seq = Live(kv, salt, tokens)
        if kv.dropped:
            assert not exact, "a request that asks for all tokens got some of them"
            seq.compute(kv.dropped + kv.chain.kept)
            seq.give_up(self.for_all)
        seq.compute(kv.num_computed - (len(seq.after) - 1))
        seq.exact = exact
        self.live.append(seq)
        return seq

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 99), num=st.integers(1, 14), drawn=st.integers(0, 1))
    def compute(self, which: int, num: int, drawn: int) -> None:
        self.go_on(self.live[which % len(self.live)], num, drawn)

    def go_on(self, seq: Live, num: int, drawn: int = 0) -> bool:
        """Compute up to `num` tokens of what is left, or one that was drawn."""
        kv = seq.kv
        if len(seq.tokens) == kv.num_computed:
            seq.tokens.append(drawn)
        num = min(num, len(seq.tokens) - kv.num_computed)
        if not self.books.allocate(kv, num):
            return False
        new, place = seq.compute(num), kv.num_held
        work = ScheduledSequence(
            *(0, seq.tokens[kv.num_computed : kv.num_computed + num], place, kv.block_ids()),
            shift=kv.shift,
            packed=kv.packed,
        )

        def values(s: ScheduledSequence, layer: LayerKV, span: range) -> tuple[Tensor, Tensor]:
            k = torch.tensor([[[token, at]] * HEADS for token, at, _ in new], dtype=torch.int32)
            v = torch.tensor([[[crc, layer.layer * HEADS + head] for head in range(HEADS)] for *_, crc in new])
            return k, v.int()

        self.runner.execute(SchedulerOutput([work], self.books.take_ops()), values)
        self.books.commit(kv, seq.tokens, num)
        self.remember(seq)
        return True

    @precondition(lambda self: 0 < len(self.live) < 6)
    @rule(which=st.integers(0, 99), diverge=st.lists(st.integers(0, 1), max_size=3))
    def fork(self, which: int, diverge: list[int]) -> None:
        seq = self.live[which % len(self.live)]
        if (child := self.books.fork(seq.kv)) is not None:
            tokens = seq.tokens[: child.num_computed] + array("i", diverge)
            held = [[*tokens] for tokens in seq.held]
            self.live.append(Live(child, seq.salt, tokens, held, [*seq.after], [*seq.done], seq.up, seq.exact))

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 99), back=st.integers(0, 9))
    def truncate(self, which: int, back: int) -> None:
        """Behind what was given up; what goes back further begins again."""
        seq = self.live[which % len(self.live)]
        before = seq.kv.num_computed
        done = self.books.truncate(seq.kv, max(0, before - back))
        if done is None:
            return
        if done == 0:
            seq.held, seq.done, seq.up, seq.after = [[] for _ in CELLS], [], 0, [zlib.crc32(seq.salt)]
        else:
            seq.forget(before - done)
        del seq.tokens[done:]
        seq.tokens.append(1)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 99))
    def preempt(self, which: int) -> None:
        """It gives up all, begins again, and gives up tokens where it did before: what it then holds is the same."""
        seq = self.live.pop(which % len(self.live))
        num = seq.kv.num_computed
        self.books.free(seq.kv)
        first = seq.done[0][0] if seq.done else num
        if not seq.exact or not num or first < 2:
            return
        again = self.begin(seq.salt, seq.tokens[:], exact=True, limit=min(first, len(seq.tokens) - 1))
        if again is None:
            return
        for stop, compactor in [*seq.done, (num, None)]:
            while again.kv.num_computed < stop:
                if not self.go_on(again, stop - again.kv.num_computed):
                    return
            if compactor is not None and not self.give_up(again, compactor):
                return
        assert again.held == seq.held

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 99))
    def free(self, which: int) -> None:
        self.books.free(self.live.pop(which % len(self.live)).kv)

    # ---- tokens leave, or move ----

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 99), seed=st.integers(0, 2), share=st.floats(0.1, 1), contiguous=st.booleans())
    def compact(self, which: int, seed: int, share: float, contiguous: bool) -> None:
        seq = self.live[which % len(self.live)]
        compactor = any_tokens(seed, share, contiguous=contiguous and not self.unequal)
        if self.unequal:
            compactor = replace(compactor, budgets=AdaKV(0.3) if seed else Everywhere())
        if seq.kv.num_held and not (self.unequal and seq.kv.dropped):
            self.give_up(seq, compactor)

    def give_up(self, seq: Live, compactor: AfterPrompt, *, shared: bool = False) -> bool:
        held = seq.kv.num_held
        if not compact(self.books, seq.kv, seq.tokens, compactor, shared=shared):
            return False
        if compactor.kept(held) < held:
            seq.give_up(compactor)
            assert seq.kv.num_held == compactor.kept(held)
        return True

    @rule(text=st.sampled_from(TEXTS), blocks=st.integers(2, 5))
    def compact_for_all(self, text: Sequence[int], blocks: int) -> None:
        """A prefix that prompts begin with."""
        tokens = array("i", text[: blocks * SIZE])
        seq = self.begin(b"", tokens, exact=True, limit=len(tokens))
        if seq is None:
            return
        left = len(tokens) - seq.kv.num_computed
        if not left or self.go_on(seq, left):
            self.give_up(seq, self.for_all, shared=True)
        self.live.remove(seq)
        self.books.free(seq.kv)

    def move(self, seq: Live) -> bool:
        """Take over the next run that the cache has of its prompt, and compute what lies before it."""
        found = find_moved(self.books, seq.tokens, seq.kv.num_computed, least=5)
        if found is None:
            return False
        if found.start > seq.kv.num_computed and not self.go_on(seq, found.start - seq.kv.num_computed):
            return False
        if (found := find_moved(self.books, seq.tokens, seq.kv.num_computed, least=5)) is None:
            return False
        if found.start > seq.kv.num_computed:
            return True
        blocks = [self.said[block.key] for block in found.blocks[0]]
        source = [token for block in blocks for token in block][found.offset : found.offset + found.num_tokens]
        if not take_over(self.books, seq.kv, seq.tokens, found):
            return False
        run = [(token, at + found.by, crc) for token, at, crc in source]
        expected = [(token, at) for at, token in enumerate(seq.tokens)][found.start : found.start + found.num_tokens]
        assert [(token, at) for token, at, _ in run] == expected
        for token in run:
            seq.take(*token)
        for held in seq.held:
            held += run
        seq.exact = False
        self.remember(seq)
        return True

    # ---- the rest of the cache ----

    @rule()
    def pressure(self) -> None:
        """All that nobody holds leaves, into the tiers if there are some."""
        stranger = self.books.open(b"stranger")
        assert self.books.allocate(stranger, self.books.num_free_blocks * SIZE)
        self.books.free(stranger)

    # ---- what must hold ----

    @invariant()
    def every_head_holds_what_it_kept(self) -> None:
        pending = self.books.rows.waiting()
        rows = self.runner.after(pending)
        found = [self.contents(rows, layer) for layer in self.spec.layers]
        for seq in self.live:
            slots = self.slots(rows, seq.kv)
            for cell, ((layer, _), mine) in enumerate(zip(CELLS, slots, strict=True)):
                expected = [[*token, cell] for token in seq.held[cell]]
                assert found[layer][mine[: len(expected)]].tolist() == expected, f"{CELLS[cell]} of {seq}"
                assert len(mine) >= len(expected)

    def contents(self, arena: Arena, layer: LayerKV) -> np.ndarray:
        """[slots of all cells, 4]; where rows are not cut, each head's slots follow those of the head before."""
        rows = torch.arange(BLOCKS * (self.spec.cells or 1))
        k, v = layer.format.decode(arena.views(layer.layer), rows)
        return torch.cat((k, v), -1).transpose(0, 1).flatten(0, 1).numpy()

    def slots(self, arena: Arena, kv: SequenceKV) -> list[np.ndarray]:
        """Of each head's tokens in `contents`, by the words of `kv.cells` alone."""
        [table] = kv.block_ids()
        if self.unequal:
            packed, later = table[1 : kv.packed], table[kv.packed :]
            counts = [*read_counts(arena, int(table[0]))] if kv.packed else [0] * len(CELLS)
            cells = [int(row) * len(CELLS) + i for row in packed for i in range(len(CELLS))]
            assert sum(counts) == len(cells), "a cell of a packed row is nobody's"
            blocks = []
            for cell, count in enumerate(counts):
                own, cells = cells[:count], cells[count:]
                blocks.append([*own, *(later.astype(int) * len(CELLS) + cell)])
        else:
            blocks = [[*(table.astype(int) + head * BLOCKS)] for _, head in CELLS]
        return [(np.array(rows, dtype=int)[:, None] * SIZE + np.arange(SIZE)).ravel() for rows in blocks]

    def remember(self, seq: Live) -> None:
        """What its keys stand for: the same as ever."""
        for i in range(seq.kv.chain.kept // SIZE + bool(seq.kv.chain.kept % SIZE), seq.kv.num_held // SIZE):
            behind = seq.kv.num_held - i * SIZE
            content = seq.held[0][len(seq.held[0]) - behind :][:SIZE]
            assert self.said.setdefault(seq.kv.chain.keys[i], content) == content, "two contents under one key"

    @invariant()
    def no_invariant_is_broken(self) -> None:
        assert self.books.check() == []

    def teardown(self) -> None:
        for seq in self.live:
            self.books.free(seq.kv)
        assert self.books.stats().used == 0, "blocks are held although nobody is left"


@pytest.mark.parametrize("tiers", [False, True], ids=["memory", "tiers"])
@pytest.mark.parametrize("kind", COMPACTORS)
def test_heads_hold_what_they_kept_whatever_happens(kind: str, tiers: bool) -> None:
    profile = settings(stateful_step_count=20, suppress_health_check=list(HealthCheck))
    profile = settings(profile, max_examples=max(7, settings.default.max_examples // 7))
    run_state_machine_as_test(partial(FewerTokens, kind, tiers=tiers), settings=profile)  # type: ignore[arg-type]
