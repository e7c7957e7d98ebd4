"""Prefixes compacted once for all: many requests read what is left, no history shows, and it outlives the process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from kvtrove import LLM, SamplingParams
from kvtrove.compacting import CompactedPrefix
from kvtrove.demo import demo_model_dir
from kvtrove.kv.reasons import Reason
from kvtrove.request import RequestError
from kvtrove.runner.model_runner import ModelRunner

SETTINGS = {"linear": "own", "check": 1, "use_tqdm_on_load": False, "seed": 0, "block_size": 16}
PREFIX = list(range(40, 300))
"""16 blocks and 4 tokens."""
PROMPTS = [PREFIX + [500 + i, 600, 700] * 6 for i in range(3)]
GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, detokenize=False)


def engine(cache: str = "kvzip=0.25", **settings) -> LLM:
    return LLM(str(demo_model_dir()), cache=cache, **(SETTINGS | {"num_blocks": 120, "max_model_len": 512} | settings))


def compacted(llm: LLM, prefix: list[int] = PREFIX, salt: str = "") -> CompactedPrefix:
    done = llm.llm_engine.compact(prefix, salt)
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    return done.result(timeout=0)


def tokens(llm: LLM, *prompts: list[int]) -> list[list[int]]:
    outputs = llm.generate(list(prompts), GREEDY, use_tqdm=False)
    return [[*output.outputs[0].token_ids] for output in outputs]


def test_a_request_may_insist_on_the_exact_prefix() -> None:
    llm = engine("prefix+keydiff=0.25", max_num_seqs=4, num_blocks=40)
    exact = tokens(llm, PROMPTS[0])
    compacted(llm)
    tokens(llm, [*range(1000, 1480)])  # pushes exact blocks out
    insisting, told = replace(GREEDY, exact_prefix=True), []
    for _ in range(2):
        [output] = llm.generate([PROMPTS[0]], insisting, use_tqdm=False)
        assert [[*output.outputs[0].token_ids]] == exact
        assert output.metrics.num_dropped_tokens == 0
        told.append(output.metrics.explanation)
    assert [one.reason for one in told] == [Reason.EXACT_PREFIX, Reason.FULL]
    assert told[0].reused_tokens < 256 < told[1].reused_tokens
    [other] = llm.generate([PROMPTS[0]], GREEDY, use_tqdm=False)
    assert other.metrics.num_dropped_tokens > 0, "others still read what is left"
    beams = SamplingParams(beam_width=2, n=2, max_tokens=4, temperature=0, detokenize=False)
    with pytest.raises(RequestError, match="leave it at 0, or set exact_prefix"):
        llm.generate([PROMPTS[0]], beams, use_tqdm=False)
    [both] = llm.generate([PROMPTS[0]], replace(beams, exact_prefix=True), use_tqdm=False)
    assert len({tuple(one.token_ids) for one in both.outputs}) == 2


def test_many_requests_read_what_is_left_of_a_prefix(tmp_path: Path) -> None:
    llm = engine(tier=f"disk:{tmp_path}")
    exact = tokens(llm, *PROMPTS)
    pin = llm.llm_engine.pin(PREFIX)
    done = compacted(llm)
    assert (pin.num_blocks, done.blocks_before, done.pin.num_blocks, done.pin.num_tokens) == (16, 16, 5, 256)
    assert llm.llm_engine.pins() == [done.pin], "the exact prefix is let go"
    assert llm.llm_engine.kv.stats().used == 5
    alone = [tokens(llm, prompt)[0] for prompt in PROMPTS]
    assert alone != exact, "a quarter of it is another cache"
    outputs = llm.generate(PROMPTS, GREEDY, use_tqdm=False)
    assert [[*o.outputs[0].token_ids] for o in outputs] == alone, "together, and on what the others have left"
    assert {o.num_cached_tokens - o.metrics.num_dropped_tokens for o in outputs} == {5 * 16 + 16}
    assert [o.metrics.num_dropped_tokens for o in outputs] == [256 - 5 * 16] * 3
    assert compacted(llm).pin.num_blocks == 5, "once more changes nothing"
    while llm.llm_engine.tend():
        pass
    llm.llm_engine.close()
    again = engine(tier=f"disk:{tmp_path}", max_num_batched_tokens=16, max_num_seqs=4)
    [output] = again.generate([PROMPTS[0]], GREEDY, use_tqdm=False)
    assert [*output.outputs[0].token_ids] == alone[0], "after a restart"
    assert output.metrics.num_dropped_tokens == 256 - 5 * 16
    assert "disk" in output.metrics.reused_from


def test_kernels_move_what_torch_decodes_and_encodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads of unequal shares, in bf16, which both leave as it is."""
    found = []
    for _ in range(2):
        llm = engine("adakv+snapkv=0.25")
        found.append(tokens(llm, *PROMPTS))
        monkeypatch.setattr(ModelRunner, "_tokens", lambda self, layer: None)
    assert found[0] == found[1]


def test_whoever_has_another_salt_or_another_prefix_reads_it_exactly() -> None:
    llm = engine("prefix+keydiff=0.25", max_num_batched_tokens=64, max_num_seqs=4)
    exact = tokens(llm, *PROMPTS)
    assert compacted(llm, salt="tenant").blocks_before == 16
    assert tokens(llm, *PROMPTS) == exact
    done = compacted(llm, PREFIX[:128])
    assert (done.blocks_before, done.pin.num_blocks) == (8, 2)
    assert tokens(llm, [7, *PROMPTS[0]]) == tokens(engine(), [7, *PROMPTS[0]])
    short = llm.generate([PREFIX[:128]], GREEDY, use_tqdm=False)[0]
    assert short.metrics.num_dropped_tokens == 0, "its last token is computed, which was compacted"


@pytest.mark.parametrize(
    ("settings", "prefix", "message"),
    [
        ({"cache": "keydiff=0.5"}, PREFIX, r"start it with .* cache='kvzip=0\.3'"),
        ({"enable_prefix_caching": False}, PREFIX, "nobody would find"),
        ({}, PREFIX[:16], "is too short to be compacted; from 48 on"),
        ({"max_model_len": 300}, PREFIX, "leaves no room in a context of 300"),
    ],
)
def test_what_cannot_be_compacted_is_refused_in_words(settings, prefix, message) -> None:
    with pytest.raises(RequestError, match=message):
        compacted(engine(**settings), prefix)
