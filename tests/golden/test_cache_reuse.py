"""Text that moved inside prompts is taken over: the very keys of its new position, values as they were, and no trace of
it in what exact requests find."""

from __future__ import annotations

from array import array

import pytest
import torch

from kvtrove import LLM
from kvtrove.config import ConfigError
from tests.golden.test_compaction import GREEDY, engine, tokens

HEAD, LOST, DOCUMENT, QUESTION = (list(range(a, b)) for a, b in ((40, 77), (100, 151), (300, 403), (500, 523)))
OLD, NEW = HEAD + LOST + DOCUMENT, HEAD + DOCUMENT + QUESTION
MOVED = len(OLD) // 16 * 16 - len(HEAD + LOST)
"""Tokens of the document that lie in full blocks: others are found by nobody."""


def moved_tokens(llm: LLM, prompt: list[int]) -> int:
    [output] = llm.generate([prompt], GREEDY, use_tqdm=False)
    return output.metrics.num_moved_tokens


def first_layer(llm: LLM, prompt: list[int]) -> tuple[torch.Tensor, ...]:
    """Keys and values of a prompt once it is computed, [tokens, heads, dim]."""
    llm_engine = llm.llm_engine
    llm_engine.add("held", prompt, GREEDY)
    seq = None
    while seq is None or seq.kv.num_computed < len(prompt):
        llm_engine.step()
        [seq] = llm_engine.scheduler.running.values()
    layer = llm_engine.runner.layers[0]
    ids = torch.from_numpy(seq.kv.block_ids()[0].astype("int64"))
    k, v = (x[: len(prompt)].float().clone() for x in layer.format.decode(layer.view, ids, layer.v_dim))
    llm_engine.abort("held")
    return k, v


def test_keys_are_turned_to_where_they_are_now_and_values_stay():
    """In the first layer, where both depend on a token and its position alone, they are what is computed."""
    exact = engine(dtype="float32", linear="torch", enable_prefix_caching=False)
    for more in (0, 30):  # to the left, to the right
        new = HEAD + LOST[: len(LOST) * bool(more)] + list(range(200, 200 + more)) + DOCUMENT + QUESTION
        llm = engine(cache_reuse=64, check=2, dtype="float32", linear="torch")
        tokens(llm, OLD)
        # Angles of up to 250 radians have an error of 2^-17 in float32, and keys are at most 30 in size.
        for mine, theirs in zip(first_layer(llm, new), first_layer(exact, new), strict=True):
            torch.testing.assert_close(mine, theirs, atol=30 * 2**-16, rtol=1e-5)
        assert moved_tokens(llm, new[:-1]) >= MOVED, "it is no prefix of another request, but moves again"


def test_exact_requests_never_see_what_moved():
    llm = engine(cache_reuse=64, check=2)
    [old] = tokens(llm, OLD)
    assert moved_tokens(llm, NEW) == MOVED
    assert tokens(llm, OLD) == [old], "found by its own keys"
    assert tokens(engine(), OLD) == [old]
    books = llm.llm_engine.kv
    chain = books.open().chain
    chain.extend(array("i", NEW), len(NEW) // 16)
    there = [books.index.with_key(key) is not None for key in chain.keys]
    assert there == [i < len(HEAD) // 16 for i in range(len(there))]


@pytest.mark.parametrize(
    ("cache", "least", "expected"),
    [("int8", MOVED, MOVED), ("layers=2,3:quest=48", 64, MOVED), ("auto", MOVED + 1, 0), ("auto", 0, 0)],
)
def test_what_is_too_short_or_unasked_for_is_computed(cache, least, expected):
    llm = engine(cache, cache_reuse=least, check=2)
    tokens(llm, OLD)
    assert moved_tokens(llm, NEW) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache": "window=64"}, "cache_reuse: layer 0 reads window=64, and only layers that read everything"),
        ({"cache": "kivi=2"}, "cache_reuse: layer 0 stores kivi=2, which encodes whole blocks: take int8"),
        ({"cache": "keydiff=0.5"}, "cache_reuse: keydiff=0.5 gives up tokens"),
    ],
)
def test_caches_whose_tokens_cannot_move_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        engine(cache_reuse=64, **settings)
