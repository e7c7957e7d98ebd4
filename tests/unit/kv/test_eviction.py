"""Eviction orders: each loses no block and gives back none twice; what each is for; priorities above them."""

from __future__ import annotations

import random
from array import array

import pytest

from kvtrove.config import EVICTION
from kvtrove.kv.block import Block, BlockList, Use
from kvtrove.kv.eviction.orders import Eviction
from kvtrove.kv.eviction.priority import Prioritised
from kvtrove.kv.eviction.queues import S3Fifo
from kvtrove.kv.eviction.reuse import ReuseModel
from kvtrove.kv.formats.dense import ECHO
from kvtrove.kv.keeping import keep
from kvtrove.kv.manager import KVCacheManager
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.request import SoftPin
from tests.steps import ECHO_STATE

SIZE = 512


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def make_block(number: int, uses: int = 0, use: Use | None = None) -> Block:
    block = Block(number)
    block.key, block.uses, block.use, block.sealed, block.published = bytes([number]), uses, use, True, True
    return block


@pytest.mark.parametrize("name", EVICTION)
def test_every_block_leaves_once_and_only_while_nobody_holds_it(name: str) -> None:
    rng, clock = random.Random(name), Clock()
    order = Eviction.named(name, SIZE, clock).order()
    uses = [Use(ended=0.0) for _ in range(6)]
    held = [make_block(i, use=rng.choice(uses)) for i in range(40)]
    for block in held:
        block.priority, block.keep_until = rng.choice([0, 0, 1]), rng.choice([30.0, 1e9])
    inside: set[int] = set()
    for _ in range(3000):
        clock.now += 0.01
        if held and rng.random() < 0.5:
            block = held.pop(rng.randrange(len(held)))
            order.add(block)
            inside.add(block.id)
        elif inside:
            if rng.random() < 0.5:
                block = rng.choice(list(order))
                order.remove(block)
                block.uses += 1
            else:
                block = order.victim()
                block.uses = 0
            block.use = rng.choice(uses)
            inside.remove(block.id)
            held.append(block)
        assert len(order) == len(inside)
        assert {block.id for block in order} == inside
    while inside:
        inside.remove(order.victim().id)
    with pytest.raises(IndexError):
        order.victim()


def leaving(name: str, blocks: list[Block]) -> list[int]:
    order = Eviction.named(name, SIZE, Clock()).order()
    for block in blocks:
        order.add(block)
    return [order.victim().id for _ in blocks]


def test_what_was_used_again_outlives_what_came_once() -> None:
    """LRU lets the longest unused go, whatever it was good for."""
    blocks = [lambda: make_block(0, uses=1), lambda: make_block(1), lambda: make_block(2)]
    first = {name: leaving(name, [make() for make in blocks])[0] for name in ("lru", "s3fifo", "sieve", "lfu", "gdsf")}
    assert first == {"lru": 0, "s3fifo": 1, "sieve": 1, "lfu": 1, "gdsf": 1}


def test_s3fifo_gives_a_second_chance_to_what_failed_its_trial() -> None:
    order = S3Fifo()
    order.add(make_block(0))
    assert order.victim().id == 0
    order.add(make_block(0))  # computed again: it is no stranger
    order.add(make_block(1))
    assert [order.victim().id, order.victim().id] == [1, 0]


def test_counts_of_long_ago_fade() -> None:
    order = Eviction.named("lfu", SIZE, Clock()).order()
    old = make_block(0, uses=12)
    order.add(old)
    new = make_block(1, uses=1)
    for _ in range(4 * 8 * 64):
        order.add(new)
        order.remove(new)
    assert old.uses <= 1


def test_priorities_last_as_long_as_they_are_meant_to() -> None:
    clock = Clock()
    order = Prioritised(BlockList, clock)
    kept, plain = make_block(0), make_block(1)
    kept.priority, kept.keep_until = 2, 60.0
    order.add(kept)
    order.add(plain)
    assert order.victim() is plain
    order.add(plain)
    clock.now = 61.0
    assert order.victim() is plain, "an expired block is as good as any, and has come now"
    assert order.victim() is kept


def test_a_soft_pin_keeps_the_checkpoint_of_states_at_its_end() -> None:
    """Blocks without it are of no use to layers with states. It stays although the conversation goes on behind it."""
    clock = Clock()
    spec = KVCacheSpec((LayerKV(0, 1, 1, 1, ECHO),), 4, "int32", (ECHO_STATE,))
    manager = KVCacheManager(spec, 20, check=2, clock=clock)

    def chat(length: int, *pins: SoftPin) -> None:
        tokens, kv = array("i", range(length)), manager.open()
        assert manager.allocate(kv, 0, manager.match(kv, tokens, length - 1))
        manager.states.plan(kv, length, [8, length])
        while num := manager.states.until_mark(kv, length - kv.num_computed):
            assert manager.allocate(kv, num)
            manager.take_ops()
            manager.commit(kv, tokens, num)
        keep(manager, kv, pins)
        manager.free(kv)

    def found() -> int:
        kv = manager.open()
        match = manager.match(kv, array("i", [*range(8), 99, 99]), 9)
        manager.free(kv)
        return match.num_tokens

    chat(10, SoftPin(60, num_tokens=8))
    chat(18)
    others = manager.open()
    assert manager.allocate(others, 4 * (20 - 2 - spec.mark_rows)), "all but what is pinned"
    assert found() == 8
    manager.free(others)
    clock.now = 61.0
    assert manager.allocate(manager.open(), 4 * 20)
    assert found() == 0


def keys(conversation: int, length: int) -> list[bytes]:
    return [bytes([conversation, i]) for i in range(length)]


def test_conversations_that_come_back_are_worth_more_than_prompts_that_do_not() -> None:
    """Even conversations return after a minute, turn after turn; others are never heard of again."""
    clock = Clock()
    model = ReuseModel(SIZE, clock)
    for turn in range(6):
        for number in range(60):
            clock.now += 1.0
            if turn and number % 2:
                continue
            use = Use()
            model.begin(keys(number, 4 + turn), use)
            model.end(keys(number, 4 + turn), use)
            assert use.turn == turn
    returning, new = Use(category=(2, 0, 3), ended=clock.now), Use(category=(0, 0, 1), ended=clock.now)
    forgotten = Use(category=(2, 0, 3), ended=clock.now - 1000)
    values = model.values([returning, new, forgotten])
    assert values[0] > 1.2 * values[1], "half of the new ones stay away"
    assert values[0] > 2 * values[2], "whoever has not come back by now will not"


def test_sharing_instructions_makes_no_conversation() -> None:
    model = ReuseModel(SIZE, Clock())
    first, second = Use(), Use()
    model.begin(keys(1, 9), first)
    model.end(keys(1, 9), first)
    model.begin([*keys(1, 2), *keys(2, 8)], second)
    assert second.turn == 0


def test_the_workload_order_keeps_what_returns_where_lru_loses_it() -> None:
    def hits(eviction: str) -> int:
        clock = Clock()
        spec = KVCacheSpec((LayerKV(0, 1, 1, 1, ECHO),), SIZE)
        manager = KVCacheManager(spec, 80, clock=clock, eviction=eviction)
        for turn in range(40):
            for number in range(4):  # four conversations go on, with many strangers in between
                clock.now += 10.0
                ask(manager, [number + 1] * (2 + turn // 8) * SIZE + [turn])
                for stranger in range(3):
                    clock.now += 1.0
                    ask(manager, [100 + turn * 100 + number * 10 + stranger] * 8 * SIZE)
        return manager.stats().hits

    assert hits("workload") > 1.5 * hits("lru")


def ask(manager: KVCacheManager, prompt: list[int]) -> None:
    tokens = array("i", prompt)
    kv = manager.open()
    match = manager.match(kv, tokens, len(tokens) - 1)
    assert manager.allocate(kv, len(tokens) - match.num_tokens, match)
    manager.take_ops()
    manager.commit(kv, tokens, len(tokens) - match.num_tokens)
    manager.free(kv)
