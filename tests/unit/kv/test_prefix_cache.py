"""Keys: the same everywhere, different for everything that must not be mixed up. The index: verified on every hit."""

from __future__ import annotations

import subprocess
import sys
from array import array
from itertools import combinations

import pytest

from kvtrove.kv.block import Block
from kvtrove.kv.chain import KeyChain, root_key
from kvtrove.kv.prefix_cache import PrefixCache

PINNED = "d086383676aabeccf4a1c20dfabdf0e6dbfba2e0d13390cb59fcbc2a8b5be57c"
CHAIN = """
from array import array
from kvtrove.kv.chain import KeyChain, root_key
chain = KeyChain(root_key(b"model", b"spec", b"", b"tenant"), 4)
chain.extend(array("i", [1, 2, 3, 4, 128000, 6, 7, 8]), 2)
print(chain.keys[1].hex())
"""


def chain_of(tokens: list[int], block_size: int = 4, root: bytes = b"root") -> KeyChain:
    chain = KeyChain(root, block_size)
    chain.extend(array("i", tokens), len(tokens) // block_size)
    return chain


def sealed(block_id: int, key: bytes, tokens: bytes, group: int = 0) -> Block:
    block = Block(block_id)
    block.sealed, block.group, block.key, block.tokens = True, group, key, tokens
    return block


@pytest.mark.parametrize("seed", ["0", "1"])
def test_keys_are_the_same_in_every_process(seed: str) -> None:
    """Whatever is stored under a key outlives the process, so the value is part of the format: never change it."""
    environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", CHAIN], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == PINNED


def test_every_field_of_the_root_counts_and_none_runs_into_the_next() -> None:
    fields = [(b"a", b"b", b"c", b"d"), (b"ab", b"", b"c", b"d"), (b"a", b"b", b"cd", b""), (b"a", b"b", b"c", b"e")]
    roots = [root_key(*one) for one in fields]
    assert all(a != b for a, b in combinations(roots, 2))
    assert {len(root) for root in roots} == {32}


def test_a_key_stands_for_the_whole_prefix() -> None:
    a, b = chain_of([1, 2, 3, 4, 5, 6, 7, 8]), chain_of([9, 2, 3, 4, 5, 6, 7, 8])
    assert a.tokens[1] == b.tokens[1]
    assert a.keys[1] != b.keys[1]
    assert chain_of([1, 2, 3, 4], root=b"other").keys != a.keys[:1]


def test_a_chain_is_extended_without_hashing_again() -> None:
    whole, parts = chain_of(list(range(24))), KeyChain(b"root", 4)
    for n in (1, 3, 3, 2, 6):
        parts.extend(array("i", range(24)), n)
    assert parts.keys == whole.keys
    first = parts.keys[0]
    parts.extend(array("i", range(24)), 6)
    assert parts.keys[0] is first


def test_a_cut_chain_goes_on_with_other_tokens() -> None:
    chain = chain_of(list(range(12)))
    twin = chain.copy(2)
    chain.cut(1)
    chain.extend(array("i", [0, 1, 2, 3, 70, 71, 72, 73]), 2)
    assert chain.keys == chain_of([0, 1, 2, 3, 70, 71, 72, 73]).keys
    assert twin.keys == chain_of(list(range(8))).keys, "a copy shares nothing"


def test_chain_refuses_what_it_cannot_hash() -> None:
    chain = KeyChain(b"root", 4)
    with pytest.raises(ValueError, match=r"use array\('i'\)"):
        chain.extend(array("q", range(8)), 1)
    with pytest.raises(ValueError, match="3 blocks of 4 are more than the 8 tokens"):
        chain.extend(array("i", range(8)), 3)


def test_groups_are_looked_up_apart() -> None:
    cache = PrefixCache(2)
    block = sealed(0, b"key", b"tokens", group=1)
    cache.publish(block)
    assert cache.find(1, b"key", b"tokens") is block
    assert cache.find(0, b"key", b"tokens") is None
    cache.forget(block)
    assert cache.find(1, b"key", b"tokens") is None
    assert len(cache) == 0


def test_the_first_of_two_equal_blocks_stays_published() -> None:
    cache = PrefixCache(1)
    first, second = sealed(0, b"key", b"tokens"), sealed(1, b"key", b"tokens")
    cache.publish(first)
    cache.publish(second)
    assert (first.published, second.published) == (True, False)
    assert cache.num_duplicates == 1
    assert cache.find(0, b"key", b"tokens") is first


def test_a_block_of_other_tokens_is_a_miss_and_is_counted() -> None:
    """A collision of SHA-256 will not happen; a flipped bit in memory will."""
    cache = PrefixCache(1)
    cache.publish(sealed(0, b"key", b"tokens"))
    assert cache.find(0, b"key", b"others") is None
    assert cache.num_mismatches == 1
