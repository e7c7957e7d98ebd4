"""The random bits: right, uniform along every axis, and a function of (seed, stream, position, token) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kvtrove.runner.random import draw_keys, gumbel, philox
from tests.unit.runner.sampling import chi_square

WORD = st.integers(0, 2**32 - 1)
N = 40_000
AXES = {
    "positions": ([3] * N, [0] * N, list(range(N)), [5] * N),
    "streams": ([3] * N, list(range(N)), [0] * N, [5] * N),
    "seeds": (list(range(N)), [0] * N, [0] * N, [5] * N),
    "tokens": ([3] * N, [0] * N, [0] * N, list(range(N))),
}


def words(*values: int) -> list[np.ndarray]:
    return [np.array([value], dtype=np.uint64) for value in values]


def philox_by_hand(c: tuple[int, ...], k: tuple[int, ...]) -> tuple[int, ...]:
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = ((b >> 32) ^ c[1] ^ k[0], b % 2**32, (a >> 32) ^ c[3] ^ k[1], a % 2**32)
        k = ((k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32)
    return c


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    assert tuple(int(w[0]) for w in philox(words(*counter), words(*key))) == expected


@given(st.tuples(WORD, WORD, WORD, WORD), st.tuples(WORD, WORD))
def test_philox_equals_arithmetic_on_whole_numbers(counter, key):
    assert tuple(int(w[0]) for w in philox(words(*counter), words(*key))) == philox_by_hand(counter, key)


def uniforms(seeds: list[int], streams: list[int], positions: list[int], tokens: list[int]) -> np.ndarray:
    """What the noise was made of, back from it."""
    keys = torch.from_numpy(draw_keys(seeds, streams, positions))
    return 1 - np.exp(-np.exp(-gumbel(torch.tensor(tokens, dtype=torch.int32), keys).numpy()))


@pytest.mark.parametrize("axis", AXES)
def test_noise_is_gumbel_along_each_axis(axis):
    u = uniforms(*AXES[axis])
    assert u.min() > 0
    assert u.max() < 1
    assert len(np.unique(u)) == N, "52 random bits do not repeat in 40000 draws"
    assert chi_square(np.bincount((u * 500).astype(int), minlength=500), np.full(500, 1 / 500)) < 5
    pairs = (u[:-1] * 20).astype(int) * 20 + (u[1:] * 20).astype(int)
    assert chi_square(np.bincount(pairs, minlength=400), np.full(400, 1 / 400)) < 5, "neighbours depend on each other"
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / np.sqrt(N)


def test_tokens_of_one_draw_are_independent_of_each_other_over_draws():
    u = uniforms([3] * N, [0] * N, list(range(N)), [17] * N)
    for other in (16, 18, 17 + 2**15, 17 + 2**17):
        v = uniforms([3] * N, [0] * N, list(range(N)), [other] * N)
        pairs = (u * 20).astype(int) * 20 + (v * 20).astype(int)
        assert chi_square(np.bincount(pairs, minlength=400), np.full(400, 1 / 400)) < 5, f"17 and {other}"


def test_each_key_depends_on_its_own_arguments_alone():
    rng = np.random.default_rng(0)
    seeds, streams, positions = (rng.integers(0, 50, 200).tolist() for _ in range(3))
    together = draw_keys(seeds, streams, positions)
    alone = [draw_keys([a], [b], [c])[0].tolist() for a, b, c in zip(seeds, streams, positions, strict=True)]
    assert together.tolist() == alone


def test_all_three_arguments_matter_in_full():
    variants = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**33, 0, 0), (0, 2**33, 0), (0, 0, 2**33), (-1, 0, 0)]
    assert len({tuple(draw_keys([a], [b], [c])[0].tolist()) for a, b, c in variants}) == len(variants)


def test_seeds_count_modulo_two_to_the_64():
    assert draw_keys([-1], [0], [0]).tolist() == draw_keys([2**64 - 1], [0], [0]).tolist()
    assert draw_keys([2**200 + 5], [0], [0]).tolist() == draw_keys([5], [0], [0]).tolist()
