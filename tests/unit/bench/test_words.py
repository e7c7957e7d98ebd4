"""Synthetic text shares exactly the beginnings that its keys share."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtrove.bench.words import KEY_WORDS, NUM_KEYS, WORDS, Words

BY_SEED = [Words(seed) for seed in range(6)]
GOLDEN = "at country about as can few did by at"
keys = st.integers(0, NUM_KEYS - 1)


def test_the_vocabulary_is_what_the_arithmetic_needs() -> None:
    assert len(set(WORDS)) == 64
    assert NUM_KEYS == 64**KEY_WORDS


@given(keys, st.integers(1, 200), st.integers(0, 5))
def test_a_text_has_as_many_words_as_asked_for_and_repeats(key: int, count: int, seed: int) -> None:
    text = BY_SEED[seed].text(key, count)
    assert len(text.split(" ")) == count
    assert set(text.split(" ")) <= set(WORDS)
    assert BY_SEED[seed].text(key, count) == text


def test_a_seed_gives_the_same_text_in_every_process() -> None:
    """Golden: a change here makes results with one seed incomparable with earlier ones."""
    assert Words(0).text(0, 9) == Words(0).text(0, 9) == GOLDEN


@given(keys, st.integers(1, 300), st.integers(1, 300))
def test_a_shorter_text_begins_the_longer_one(key: int, one: int, other: int) -> None:
    words = BY_SEED[0]
    short, long = (words.text(key, count).split(" ") for count in sorted((one, other)))
    assert long[: len(short)] == short


@given(keys, keys)
def test_different_keys_differ_within_the_key_words(one: int, other: int) -> None:
    words = BY_SEED[0]
    heads = {words.text(key, KEY_WORDS) for key in (one, other)}
    assert len(heads) == len({one, other})


def test_neighbouring_keys_differ_in_the_first_word() -> None:
    """A prefix cache compares whole blocks from the start: prompts that should miss must miss at once."""
    words = Words(0)
    assert len({words.text(key, 1) for key in range(64)}) == 64


def test_another_seed_is_another_text() -> None:
    assert Words(1).text(0, KEY_WORDS) != Words(2).text(0, KEY_WORDS)


def test_a_text_longer_than_the_stock_goes_round() -> None:
    text = Words(0).text(5, 100_000)
    assert text.count(" ") == 99_999


@pytest.mark.parametrize("key", [-1, NUM_KEYS])
def test_a_key_out_of_range_is_refused(key: int) -> None:
    with pytest.raises(ValueError, match="outside of 0"):
        Words(0).text(key, 8)
