"""The cache never loses, mixes up or leaks a token, whatever is done to it in whatever order.

A stand-in for the runner writes into a real arena, for every token and layer, four numbers that tell it apart from all
others: token id, checksum of the tenant and of the whole prefix, position, layer. After every operation each block
table is decoded, and what comes back must be exactly the live tokens of its sequence. All invariants are checked too.

`--hypothesis-profile=thorough` runs forty times as long, with other examples each time.
"""

from __future__ import annotations

import random
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

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

from kvtrove.config import EVICTION
from kvtrove.kv.arena import Arena
from kvtrove.kv.chain import KeyChain
from kvtrove.kv.compaction.compact import compact
from kvtrove.kv.compaction.compactor import Usual, streaming
from kvtrove.kv.compaction.fits import reasons_against
from kvtrove.kv.compaction.scores import Seen
from kvtrove.kv.formats.dense import ECHO
from kvtrove.kv.keeping import keep
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.pins import Pin
from kvtrove.kv.prefix_cache import Match
from kvtrove.kv.retention import Beginning, ChunkedLocal, Full, Retention, SinksAndWindow, SlidingWindow, live_blocks
from kvtrove.kv.rows import RowOp
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.kv.table import SequenceKV
from kvtrove.kv.tiers.store import BlockStore
from kvtrove.request import SoftPin
from kvtrove.scheduler.output import ScheduledSequence, SchedulerOutput
from tests.faulty_store import FAULTS, Fault, FaultyStore
from tests.steps import ECHO_SEALED, ECHO_STATE, StepRunner, echo_state

MAX_BLOCKS = 6  # longest prompt, in blocks


@dataclass(frozen=True)
class Shape:
    """A cache to test: one layer per retention; a number means that the layer reads the storage of that one.

    sealed: layers whose format encodes whole blocks. states: whether there is an echo state, in three rows.
    """

    layers: tuple[Retention | int, ...]
    block_size: int
    num_blocks: int
    prefix_caching: bool = True
    sealed: tuple[int, ...] = ()
    num_seats: int = 64  # more than there are sequences: what is short here is blocks
    states: bool = False

    @property
    def spec(self) -> KVCacheSpec:
        layers = [
            LayerKV(i, 1, 2, 2, ECHO, self.layers[rule], source=rule)  # type: ignore[arg-type]
            if isinstance(rule, int)
            else LayerKV(i, 1, 2, 2, ECHO_SEALED if i in self.sealed else ECHO, rule)
            for i, rule in enumerate(self.layers)
        ]
        states = (ECHO_STATE,) if self.states else ()
        return KVCacheSpec(tuple(layers), self.block_size, "int32", states)


SHAPES = {
    "full-1": Shape((Full(),), 1, 16),
    "full-4": Shape((Full(), Full()), 4, 14),
    "full-16": Shape((Full(),), 16, 10),
    "window-4": Shape((SlidingWindow(10),), 4, 12),
    "window-16": Shape((SlidingWindow(24),), 16, 9),
    "window-of-1": Shape((SlidingWindow(1),), 4, 8),
    "full-and-window": Shape((Full(), SlidingWindow(6)), 4, 22),
    "full-and-3-windows": Shape((Full(), *[SlidingWindow(9)] * 3), 4, 40),
    "two-windows": Shape((SlidingWindow(5), SlidingWindow(12)), 4, 18),
    "sinks-and-window": Shape((SinksAndWindow(5, 7),), 4, 12),
    "chunked": Shape((ChunkedLocal(6), Full()), 4, 22),
    "beginning": Shape((Full(), Beginning(Full(), 8), Beginning(SinksAndWindow(3, 7), 12)), 4, 22),
    "source": Shape((Full(), SlidingWindow(7), 0, 1), 4, 22),
    "sealed": Shape((Full(), Full()), 4, 14, sealed=(0, 1)),
    "sealed-and-not": Shape((Full(), SlidingWindow(7), 0, 1, Full()), 4, 40, sealed=(0, 1)),
    "sealed-window": Shape((SinksAndWindow(5, 7), Full()), 4, 22, sealed=(0,)),
    "no-prefix-caching": Shape((Full(), SlidingWindow(6)), 4, 22, prefix_caching=False),
    "states": Shape((Full(),), 4, 20, states=True),
    "states-sealed": Shape((Full(), SlidingWindow(6)), 4, 30, sealed=(0,), states=True),
}


@dataclass
class Live:
    """A sequence as the test knows it: its tokens, of which kv.num_computed are in the cache."""

    kv: SequenceKV
    salt: bytes
    tokens: array[int] = field(default_factory=lambda: array("i"))
    kept: list[int] = field(default_factory=list)
    """Positions that compaction has left, of those before the kept_of-th token."""
    kept_of: int = 0

    @property
    def positions(self) -> list[int]:
        """Of every token in its tables."""
        return [*self.kept, *range(self.kept_of, self.kv.num_computed)]

    def prefixes(self) -> list[int]:
        """Checksum of the tenant and tokens[: i + 1], for every i."""
        steps = accumulate(
            self.tokens, lambda crc, token: zlib.crc32(token.to_bytes(4, "little"), crc), initial=zlib.crc32(self.salt)
        )
        return [crc & 0x7FFFFFFF for crc in steps][1:]


@dataclass(frozen=True)
class KeepAny(Usual):
    """A compactor that keeps a share of the places in a table, any of them."""

    share: float
    seed: int
    contiguous: bool

    @property
    def id(self) -> str:
        return f"any={self.share},{self.seed}"

    def kept(self, held: int, dropped: int = 0) -> int:
        return int(self.share * held)

    def places(self, held: int) -> list[int]:
        return sorted(random.Random(self.seed).sample(range(held), self.kept(held)))

    def keep(self, seen: Seen) -> torch.Tensor:
        return torch.tensor([self.places(len(seen.k))] * seen.k.shape[1], dtype=torch.int64)


@dataclass(frozen=True)
class Arrival:
    """A prompt: part of a stream that others share, then perhaps something else; `steps` chunks are computed now."""

    salt: bytes
    stream: int
    blocks: float
    suffix: list[int]
    reuse: bool
    evict_meanwhile: bool
    steps: int
    border: int


ARRIVALS = st.builds(
    Arrival,
    salt=st.sampled_from([b"", b"", b"", b"tenant"]),
    stream=st.integers(0, 1),
    blocks=st.floats(0.3, MAX_BLOCKS),
    suffix=st.lists(st.integers(0, 1), max_size=3),
    reuse=st.sampled_from([True, True, True, False]),
    evict_meanwhile=st.sampled_from([False, False, False, True]),
    steps=st.integers(0, MAX_BLOCKS),
    border=st.integers(0, 4),
)


class EchoRunner:
    """What the model runner does with the cache, without a model."""

    def __init__(self, shape: Shape, store: BlockStore | None) -> None:
        self.spec = shape.spec
        self.size = shape.block_size
        self.arena = Arena(self.spec, shape.num_blocks, num_seats=shape.num_seats)
        self.steps = StepRunner(self.spec, self.arena, store)

    def execute(self, work: list[tuple[Live, int]], ops: list[RowOp]) -> None:
        """Compute the next tokens of some sequences."""
        prefixes = [seq.prefixes() for seq, _ in work]
        dropped = [seq.kv.dropped for seq, _ in work]

        def values(s: ScheduledSequence, layer: LayerKV, span: range) -> tuple[torch.Tensor, torch.Tensor]:
            positions = range(span.start + dropped[s.seq_id], span.stop + dropped[s.seq_id])
            k = [[token, prefixes[s.seq_id][p]] for token, p in zip(s.tokens, positions, strict=True)]
            v = [[p, layer.layer] for p in positions]
            k_rows, v_rows = (torch.tensor(rows, dtype=torch.int32).view(-1, 1, 2) for rows in (k, v))
            return k_rows, v_rows

        scheduled = [
            ScheduledSequence(
                i, seq.tokens[kv.num_computed : kv.num_computed + num], kv.num_held, kv.block_ids(), seat=kv.seat
            )
            for i, (seq, num) in enumerate(work)
            for kv in (seq.kv,)
        ]
        self.steps.execute(SchedulerOutput(scheduled, ops), values)

    def read(self, seqs: list[Live], pending: list[RowOp]) -> Iterator[tuple[Live, LayerKV, Any, Any]]:
        """Every (sequence, layer, what its live slots hold, what they should hold), as if `pending` were executed."""
        for layer in self.spec.layers:
            content = torch.cat(self.steps.planes(layer, pending), dim=-1)[:, :, 0].numpy()
            tails = self.steps.tails(layer, pending)
            seats = None if tails is None else torch.cat(tails, dim=-1)[:, :, 0].numpy()
            owner = layer.layer if layer.source is None else layer.source
            for seq in seqs:
                table = seq.kv.block_ids()[self.spec.group_of[layer.layer]]
                live = [p for span in layer.retention.live(seq.kv.num_held) for p in span]
                positions = np.array(live, dtype=np.int64)
                blocks = table[positions // self.size]
                assert (blocks >= 0).all(), f"live tokens of layer {layer.layer} are not held"
                prefixes, held = seq.prefixes(), seq.positions
                expected = [[seq.tokens[p], prefixes[p], p, owner] for p in (held[place] for place in live)]
                found = content[blocks, positions % self.size]
                if seats is not None:
                    is_open = positions >= seq.kv.num_computed // self.size * self.size
                    found[is_open] = seats[seq.kv.seat, positions[is_open] % self.size]
                yield seq, layer, found.tolist(), expected


def snapshot(manager: KVCacheManager) -> object:
    """All of the manager's state by value."""
    pool = manager.pool
    return (
        [(b.id, b.ref_count, b.sealed, b.published, b.group, b.key, b.tokens, b.crc) for b in pool.blocks],
        [[b.id for b in order] for order in (pool.spare, pool.cached)],
        [b.id for b in pool.free_blocks],
        [
            (
                kv.num_computed,
                kv.dropped,
                kv.chain.root,
                kv.capacity,
                kv.next_event,
                kv.seat,
                kv.spare,
                tuple(kv.due),
                tuple(kv.chain.keys),
                [ids.tolist() for ids in kv.block_ids()],
            )
            for kv in manager.sequences.values()
        ],
        [[b.id for b in pin.blocks] for pin in manager.pins],
        [(mark.key, mark.passed, mark.branched, mark.is_spare) for mark in manager.marks],
        list(manager.rows.waiting()),
        manager.stats(),
    )


class CacheMachine(RuleBasedStateMachine):
    def __init__(self, shape: Shape, store: BlockStore | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.size = shape.block_size
        self.store = store
        self.runner = EchoRunner(shape, store)
        self.groups = self.runner.spec.groups
        self.manager = KVCacheManager(
            self.runner.spec,
            shape.num_blocks,
            enable_prefix_caching=shape.prefix_caching,
            num_seats=shape.num_seats,
            check=2,
            crc=self.runner.arena.crc,
            clock=lambda: 0.0,
            eviction=EVICTION[list(SHAPES.values()).index(shape) % len(EVICTION)],  # each is met by two shapes
            store=store,
        )
        self.live: list[Live] = []
        self.pins: list[Pin] = []
        self.sealed: set[tuple[bytes, bytes]] = set()  # (salt, prefix) of every block that was ever full
        self.forgotten = False
        self.fresh_token = 1000

    # ---- sequences ----

    @initialize(arrival=ARRIVALS)
    def begin(self, arrival: Arrival) -> None:
        self.open(arrival)

    @rule(arrival=ARRIVALS)
    def open(self, arrival: Arrival) -> None:
        tokens = array("i", [arrival.stream * 10 + i % 3 for i in range(int(arrival.blocks * self.size) + 1)])
        tokens.extend(arrival.suffix)
        seq = Live(self.manager.open(arrival.salt), arrival.salt, tokens)
        limit = len(tokens) - 1 if arrival.reuse else 0
        match = self.manager.match(seq.kv, tokens, limit)
        self.compare_with_oracles(seq, limit, match.num_tokens)
        if match.elsewhere:
            match = self.load(seq, match, limit, arrival.evict_meanwhile)
        elif arrival.evict_meanwhile:
            self.pressure(self.shape.num_blocks)
        before = snapshot(self.manager)
        if not self.manager.allocate(seq.kv, min(self.size, len(tokens) - match.num_tokens), match):
            assert snapshot(self.manager) == before, "an allocation that failed left traces"
            return self.manager.free(seq.kv)
        self.manager.states.plan(seq.kv, len(tokens), [arrival.border * len(tokens) // 4])
        self.live.append(seq)
        for _ in range(arrival.steps):
            if left := len(tokens) - seq.kv.num_computed:
                self.step([(seq, min(self.size + 1, left))])

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 99), blocks=st.floats(0, 2.5), new=st.lists(st.integers(0, 1), min_size=1, max_size=3))
    def compute(self, which: int, blocks: float, new: list[int]) -> None:
        """One sequence computes a chunk of what is left of its tokens, or a few that it has just drawn."""
        seq = self.live[which % len(self.live)]
        if len(seq.tokens) == seq.kv.num_computed:
            seq.tokens.extend(new)
        self.step([(seq, min(1 + int(blocks * self.size), len(seq.tokens) - seq.kv.num_computed))])

    @precondition(lambda self: self.live)
    @rule(token=st.integers(0, 1))
    def decode_all(self, token: int) -> None:
        """Every sequence computes one token in the same step."""
        for seq in self.live:
            if len(seq.tokens) == seq.kv.num_computed:
                seq.tokens.append(token)
        self.step([(seq, 1) for seq in self.live])

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 99), blocks=st.floats(0, 2))
    def allocate_ahead(self, which: int, blocks: float) -> None:
        """Blocks for tokens that may never be computed."""
        self.allocate(self.live[which % len(self.live)], int(blocks * self.size))

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 99), children=st.integers(1, 2), diverge=st.lists(st.integers(0, 1), max_size=6))
    def fork(self, which: int, children: int, diverge: list[int]) -> None:
        """Children share what was computed; what comes next may be what the parent has still to compute, or not."""
        seq = self.live[which % len(self.live)]
        for _ in range(children):
            before = snapshot(self.manager)
            child = self.manager.fork(seq.kv)
            if child is None:
                assert snapshot(self.manager) == before, "a fork that failed left traces"
            else:
                computed = seq.tokens[: child.num_computed] + array("i", diverge)
                tokens = computed if diverge else seq.tokens[:]
                self.live.append(Live(child, seq.salt, tokens, [*seq.kept], seq.kept_of))

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 99), back=st.integers(0, 12), new=st.integers(0, 1))
    def truncate(self, which: int, back: int, new: int) -> None:
        """Forget the last tokens and go on with others."""
        seq = self.live[which % len(self.live)]
        to = max(0, seq.kv.num_computed - back)
        before = snapshot(self.manager)
        try:
            done = self.manager.truncate(seq.kv, to)
        except ValueError:
            rules = [g.retention for g in self.groups]
            assert any(r != Full() for r in rules), "full attention can resume anywhere"
            done = None
        if done is not None:
            too_far = done == 0 and seq.kept_of and to < seq.kept_of
            assert done == to or too_far or self.runner.spec.whole_block or self.runner.spec.states
            if done == 0:
                seq.kept, seq.kept_of = [], 0
            del seq.tokens[done:]
            seq.tokens.append(new)
        else:
            assert snapshot(self.manager) == before, "a truncate that failed left traces"

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 99), drafts=st.lists(st.integers(0, 1), min_size=1, max_size=4), right=st.integers(0, 4))
    def verify_drafts(self, which: int, drafts: list[int], right: int) -> None:
        """A step whose last tokens are drafts, some of which turn out wrong."""
        seq = self.live[which % len(self.live)]
        if len(seq.tokens) == seq.kv.num_computed:
            seq.tokens.append(drafts[0])
        room = self.size - 1 - (len(seq.tokens) - seq.kv.dropped) % self.size
        guessed, right = drafts[:room], min(right, len(drafts[:room]))
        own = len(seq.tokens) - seq.kv.num_computed
        if own > 1 or not self.allocate(seq, own + len(guessed)) or not self.manager.states.hold(seq.kv):
            return
        seq.tokens.extend(guessed)
        self.runner.execute([(seq, own + len(guessed))], self.manager.take_ops())
        del seq.tokens[len(seq.tokens) - len(guessed) + right :]
        before = seq.kv.num_computed
        self.manager.commit(seq.kv, seq.tokens, own + right, len(guessed) - right)
        assert seq.kv.num_computed - before == (0 if self.shape.spec.states and right < len(guessed) else own + right)
        self.remember_sealed(seq, before)

    @precondition(lambda self: self.live and not reasons_against(streaming(0, 99), self.runner.spec))
    @rule(which=st.integers(0, 99), share=st.floats(0, 1), seed=st.integers(0, 3), contiguous=st.booleans())
    def compact(self, which: int, share: float, seed: int, contiguous: bool) -> None:
        """Some of the tokens that are held leave, any of them; forks and whoever finds the prefix keep all."""
        seq = self.live[which % len(self.live)]
        compactor, positions, before = KeepAny(share, seed, contiguous), seq.positions, snapshot(self.manager)
        free = self.manager.num_free_blocks + sum(b.ref_count == 1 for b in seq.kv.sealed_blocks())
        if compact(self.manager, seq.kv, seq.tokens, compactor):
            seq.kept = [positions[place] for place in compactor.places(len(positions))]
            seq.kept_of = seq.kv.num_computed
            assert seq.kv.num_held == len(seq.kept)
            if len(seq.kept) < len(positions):
                assert seq.kv.num_blocks == self.manager.num_groups * -(-len(seq.kept) // self.size), "room is kept"
        else:
            assert snapshot(self.manager) == before, "a compaction that failed left traces"
            assert free < seq.kv.num_blocks, "the blocks that it would take are there"

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 99), pin=st.sampled_from([None, None, SoftPin(1.0), SoftPin(3600.0, num_tokens=5)]))
    def free(self, which: int, pin: SoftPin | None) -> None:
        seq = self.live.pop(which % len(self.live))
        keep(self.manager, seq.kv, [pin] if pin else [])
        self.manager.free(seq.kv)
        self.manager.free(seq.kv)

    # ---- the rest of the cache ----

    @rule(blocks=st.sampled_from([1, 1, 2, 3, 12]))
    def pressure(self, blocks: int) -> None:
        """A stranger with tokens that nobody shares comes and goes."""
        most = self.manager.num_free_blocks // self.manager.num_groups
        num = min(blocks, most) * self.size
        if num:
            self.fresh_token += num
            stranger = Live(self.manager.open(), b"", array("i", range(self.fresh_token, self.fresh_token + num)))
            assert self.allocate(stranger, num), "blocks that are counted as free cannot be allocated"
            self.execute([(stranger, num)])
            self.manager.free(stranger.kv)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, 99))
    def refuse_too_much(self, which: int) -> None:
        seq = self.live[which % len(self.live)]
        assert not self.allocate(seq, (self.shape.num_blocks + 1) * self.size + seq.kv.capacity)

    @precondition(lambda self: self.live and len(self.pins) < 2)
    @rule(which=st.integers(0, 99))
    def pin(self, which: int) -> None:
        self.pins.append(self.manager.pin(self.live[which % len(self.live)].kv))

    @precondition(lambda self: self.pins)
    @rule()
    def unpin(self) -> None:
        pin = self.pins.pop()
        self.manager.unpin(pin)
        self.manager.unpin(pin)

    @precondition(lambda self: self.manager.stats().cached > 2)
    @rule()
    def reset_prefix_cache(self) -> None:
        cached = self.manager.stats().cached
        assert self.manager.reset_prefix_cache() == cached
        assert self.manager.stats().cached == 0
        self.forgotten = True

    @rule()
    def work_on_rows(self) -> None:
        self.runner.execute([], self.manager.take_ops())

    # ---- what must hold ----

    @invariant()
    def every_live_token_is_read_back(self) -> None:
        for seq, layer, found, expected in self.runner.read(self.live, self.manager.rows.waiting()):
            assert found == expected, f"layer {layer.layer} of {seq.tokens.tolist()} at {seq.kv.num_computed}"

    @invariant()
    def states_have_seen_every_token_once(self) -> None:
        if self.shape.states:
            found = self.runner.steps.states(self.manager.rows.waiting())
            for seq in self.live:
                if n := seq.kv.num_computed:
                    seen = found[seq.kv.seat].unique(dim=0).tolist()
                    assert seen == [echo_state(seq.tokens[:n])], f"after {n} tokens"

    @invariant()
    def keys_are_those_of_the_tokens(self) -> None:
        for seq in self.live:
            full = seq.kv.num_computed // self.size if self.shape.prefix_caching else 0
            chain = KeyChain(self.manager.chain_root(seq.salt), self.size)
            chain.extend(seq.tokens, full)
            if seq.kv.dropped:
                assert not set(chain.keys) & set(seq.kv.chain.keys), "a key of all tokens for some of them"
            else:
                assert chain.keys == seq.kv.chain.keys[:full]

    @invariant()
    def no_invariant_is_broken(self) -> None:
        assert self.manager.check() == []

    def teardown(self) -> None:
        for seq in self.live:
            self.manager.free(seq.kv)
        for pin in self.pins:
            self.manager.unpin(pin)
        assert self.manager.stats().used == 0, "blocks are held although nobody is left"
        assert self.manager.num_free_blocks == self.shape.num_blocks

    # ---- helpers ----

    def load(self, seq: Live, match: Match, limit: int, pressure: bool) -> Match:
        """What a tier has of the prompt comes up while the cache works on, or some of it does; then it is a hit."""
        load = self.manager.fetch(seq.kv, match)
        for turn in range(20):
            if turn == 1 and pressure:
                self.pressure(self.shape.num_blocks)
            self.manager.poll()
            assert self.manager.check() == []
        assert load.done, "a load whose tickets are done goes on"
        assert self.manager.let_go(load)
        assert not self.manager.let_go(load)
        found = self.manager.match(seq.kv, seq.tokens, limit)
        assert found.num_tokens >= match.num_tokens, "what the match had found was not kept"
        return found

    def allocate(self, seq: Live, num: int) -> bool:
        before = snapshot(self.manager)
        done = self.manager.allocate(seq.kv, num)
        assert done or snapshot(self.manager) == before, "an allocation that failed left traces"
        return done

    def step(self, work: list[tuple[Live, int]]) -> None:
        """As the scheduler does it: allocate for those that fit, run all of them at once, commit."""
        work = [(seq, self.manager.states.until_mark(seq.kv, num)) for seq, num in work]
        self.execute([(seq, num) for seq, num in work if self.allocate(seq, num)])

    def execute(self, work: list[tuple[Live, int]]) -> None:
        self.runner.execute(work, self.manager.take_ops())
        for seq, num in work:
            before = seq.kv.num_computed
            self.manager.commit(seq.kv, seq.tokens, num)
            self.remember_sealed(seq, before)

    def remember_sealed(self, seq: Live, before: int) -> None:
        for end in range(before // self.size + 1, seq.kv.num_computed // self.size + 1 if not seq.kv.dropped else 0):
            self.sealed.add((seq.salt, seq.tokens[: end * self.size].tobytes()))

    def compare_with_oracles(self, seq: Live, limit: int, matched: int) -> None:
        """By brute force over the index; and from first principles: what was computed can be found until it goes."""
        size, keys, contents = self.size, seq.kv.chain.keys, seq.kv.chain.tokens

        def longest(present: Callable[[int, int], bool], most: int = limit // size) -> int:
            """Tokens, at most `most` blocks, after which every block that a group reads is `present(group, block)`."""
            lengths = range(most, -1, -1)
            needed = {
                n: [(g.index, i) for g in self.groups for i in live_blocks(g.retention, n * size, size)]
                for n in lengths
            }
            return size * next(n for n in lengths if all(present(*one) for one in needed[n]))

        if not self.shape.prefix_caching or not limit:
            assert matched == 0
            return
        marks = self.manager.marks

        def indexed_block(g: int, i: int) -> bool:
            return self.manager.index.find(g, keys[i], contents[i]) is not None

        def resumes(n: int) -> bool:
            return not self.shape.spec.states or n == 0 or marks.at(seq.kv.chain, n) is not None

        if self.shape.spec.states:
            fits = [n for n in range(limit // size + 1) if resumes(n) and longest(indexed_block, n) == n * size]
            assert matched == size * max(fits), "not the longest prefix that blocks and checkpoints could serve"
            return
        indexed = longest(indexed_block)
        computed = longest(lambda g, i: (seq.salt, seq.tokens[: (i + 1) * size].tobytes()) in self.sealed)
        assert matched == indexed, "not the longest prefix that the index could serve"
        assert matched <= computed, "a hit on what nobody computed"
        if self.manager.stats().evictions == 0 and not self.forgotten:
            assert matched == computed, "nothing was evicted, yet something is missing"


@pytest.mark.parametrize("fault", [None, *FAULTS])
@pytest.mark.parametrize("name", ["full-4", "full-and-window", "states"])
def test_every_live_token_survives_below_the_pool(name: str, fault: Fault | None) -> None:
    """The same, above a store that answers late, has little room, and fails at every third operation."""
    profile = settings(stateful_step_count=20, max_examples=6, suppress_health_check=list(HealthCheck))
    shape = SHAPES[name]

    def machine() -> CacheMachine:
        at = range(2, 10_000, 3) if fault else ()
        store = FaultyStore(fault, at, delay=1, budget=40 * shape.spec.block_bytes)
        return CacheMachine(shape, store)

    run_state_machine_as_test(machine, settings=profile)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SHAPES)
def test_every_live_token_survives_any_history(name: str) -> None:
    examples = max(15, settings.default.max_examples * 3 // 10)  # every shape has its own
    profile = settings(stateful_step_count=30, max_examples=examples, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(partial(CacheMachine, SHAPES[name]), settings=profile)  # type: ignore[arg-type]
