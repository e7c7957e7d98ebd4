"""Layers with running states: one answer, however it was computed, and no more computed than there must be."""

from __future__ import annotations

from array import array

import pytest
import torch

from kvtrove.kv.loads import Transfers
from kvtrove.models.layers.delta import delta_rule
from kvtrove.models.layers.mamba import scan
from kvtrove.models.layers.state import StateBatch, causal_conv
from kvtrove.request import SamplingParams
from tests.golden.harness import NEW_TOKENS, answer, engine_for, prompts, tokens

FAMILIES = pytest.mark.parametrize("family", ["lfm2", "qwen3_5"])
BLOCK = 8
CHAT = [5, 6, 7, 8] * 9 + [2] + [9, 10, 11] * 8 + [2]
"""A system prompt of 37 tokens and a message of 25, both ended by the end token."""


def states_engine(checkpoints, family, **settings):
    return engine_for(checkpoints.get(family), **{"block_size": BLOCK, "num_blocks": 200, **settings})


@FAMILIES
def test_alone_chunked_in_a_batch_and_warm(family, checkpoints, naive):
    alone, chunked = states_engine(checkpoints, family), states_engine(checkpoints, family, max_num_batched_tokens=5)
    assert [tokens(answer(alone, [prompt]))[0] for prompt in prompts()] == naive(family)
    assert tokens(answer(chunked, prompts())) == naive(family)
    warm = answer(chunked, prompts())
    assert tokens(warm) == naive(family)
    assert [out.num_cached_tokens for out in warm] == [max(0, n - 1) // BLOCK * BLOCK for n in (1, 5, 16, 33, 47, 70)]


@FAMILIES
def test_preempted_and_forked(family, checkpoints, naive):
    """Blocks for about one sequence and a half: the others lose theirs and come back from their last checkpoint."""
    engine = states_engine(checkpoints, family, num_blocks=16)
    assert tokens(answer(engine, prompts())) == naive(family)
    assert engine.stats().num_preemptions > 0
    outputs = answer(states_engine(checkpoints, family), prompts()[:3], n=3)
    assert [[out.token_ids for out in one.outputs] for one in outputs] == [[t] * 3 for t in naive(family)[:3]]


@FAMILIES
def test_drafts_that_are_wrong_leave_no_trace_in_the_states(family, checkpoints, naive):
    engine = states_engine(checkpoints, family, speculation="ngram", prompt_lookup_min=1)
    repeating = [[4, 5, 6, 4, 5, 6, 4, 5, 6, 4]]
    assert tokens(answer(engine, prompts())) == naive(family)
    expected = tokens(answer(states_engine(checkpoints, family), repeating))
    assert tokens(answer(engine, repeating)) == expected
    drafts = engine.stats().drafts
    assert drafts.num_draft_tokens > drafts.num_accepted_tokens


@FAMILIES
def test_a_second_conversation_computes_its_own_message_and_one_block_at_most(family, checkpoints):
    """The system prompt is shared, the messages are not: marks at the ends of messages serve it. marks: no `every`."""
    engine = states_engine(checkpoints, family, marks="end,messages,branches")
    answer(engine, [CHAT])
    other = CHAT[:37] + [12, 13, 14] * 8 + [2]
    [out] = answer(engine, [other])
    assert len(other) - out.num_cached_tokens <= 25 + BLOCK
    cold = states_engine(checkpoints, family, enable_prefix_caching=False)
    assert tokens([out]) == tokens(answer(cold, [other]))


@FAMILIES
def test_the_third_prompt_finds_the_branch_that_the_second_one_made(family, checkpoints):
    engine = states_engine(checkpoints, family, marks="branches")
    shared = list(range(20, 60))
    found, reasons = [], []
    for end in ([4], [5], [6]):
        engine.add("0", shared + end * 9, SamplingParams(temperature=0, max_tokens=1))
        outputs = [out for _ in range(20) if engine.has_unfinished_requests() for out in engine.step()]
        found.append(outputs[-1].num_cached_tokens)
        reasons.append(outputs[-1].metrics.explanation.reason.value)
    assert found == [0, 0, 40]
    assert reasons == ["cold", "no_state_checkpoint", "diverged"]


@FAMILIES
def test_without_room_for_checkpoints_answers_stay_right(family, checkpoints, naive):
    small = states_engine(checkpoints, family, num_blocks=13)
    for _ in range(2):
        assert tokens(answer(small, prompts()[2:])) == naive(family)[2:]
    engine = states_engine(checkpoints, family, marks="off")
    answer(engine, [prompts()[-1]])
    [out] = answer(engine, [prompts()[-1]])
    assert out.num_cached_tokens == 0
    assert out.metrics.explanation.reason.value == "no_state_checkpoint"


def full_blocks(outputs) -> list[int]:
    """Tokens of each prompt that its full blocks hold, but for the block of the last token."""
    return [(len(out.prompt_token_ids) - 1) // BLOCK * BLOCK for out in outputs]


@FAMILIES
def test_a_hybrid_is_warm_after_a_restart_and_after_its_blocks_were_evicted(
    family, checkpoints, naive, tmp_path, monkeypatch
):
    """Checkpoints go through the tiers as blocks do: memory in one engine, a directory for the next one."""
    monkeypatch.setattr(Transfers, "is_worth", lambda self, match, rate: match.elsewhere > match.num_tokens)
    settings, long = {"kv_dir": str(tmp_path / "kv"), "num_blocks": 60}, prompts()[4:]
    first = states_engine(checkpoints, family, **settings)
    answer(first, long)
    first.close()
    engine = states_engine(checkpoints, family, tier="ram:64MiB", **settings)
    for place in ("disk", "ram"):
        warm = answer(engine, long)
        assert tokens(warm) == naive(family)[4:]
        assert [out.metrics.reused_from for out in warm] == [{place: n} for n in full_blocks(warm)]
        while any(engine.kv.index.holds_any(*key) for key in keys_of(engine, long)):
            answer(engine, [[int(x) for x in torch.randint(4, 300, (70,))]])
    engine.close()


def keys_of(engine, batch) -> list[tuple[bytes, bytes]]:
    """Keys and tokens of the first blocks of prompts."""
    found = []
    for prompt in batch:
        kv = engine.kv.open()
        engine.kv.match(kv, array("i", prompt), len(prompt))
        found.append((kv.chain.keys[0], kv.chain.tokens[0]))
        engine.kv.free(kv)
    return found


@FAMILIES
def test_a_conversation_is_kept_in_a_file_and_restored_with_its_states(family, checkpoints, naive, tmp_path):
    prompt, file = prompts()[-1], tmp_path / "chat.safetensors"
    first = states_engine(checkpoints, family)
    first.add("0", prompt, SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True), session="chat")
    while first.has_unfinished_requests():
        first.step()
    assert first.checkpoint("chat", file).result().nbytes == file.stat().st_size
    engine = states_engine(checkpoints, family)
    restored = engine.restore(file)
    assert list(restored.tokens) == prompt + naive(family)[-1]
    assert restored.num_tokens == (len(restored.tokens) - 1) // BLOCK * BLOCK
    more = [*restored.tokens, 5, 6, 7]
    [out] = answer(engine, [more])
    assert out.num_cached_tokens == restored.num_tokens
    assert tokens([out]) == tokens(answer(states_engine(checkpoints, family, enable_prefix_caching=False), [more]))


@FAMILIES
def test_a_prompt_after_a_checkpoint_has_the_bits_of_a_cold_one(family, checkpoints):
    """Cold, from a checkpoint, cut elsewhere: in bf16, whose products do not depend on the batch."""
    prompt = prompts()[-1]
    seen = []
    for budget, first in ((256, None), (256, prompt[:50]), (7, None)):
        settings = {"dtype": "bfloat16", "linear": "own", "max_num_batched_tokens": budget}
        engine = engine_for(
            checkpoints.get(family, dtype="bfloat16"), **{"block_size": 16, "num_blocks": 99, **settings}
        )
        if first:
            answer(engine, [first])
        [out] = answer(engine, [prompt], logprobs=3)
        assert bool(first) == (out.num_cached_tokens > 0)
        seen.append([[(i, p.logprob) for i, p in step.items()] for step in out.outputs[0].logprobs])
    assert len(seen[0]) == NEW_TOKENS
    assert seen[0] == seen[1] == seen[2]


@pytest.mark.parametrize("mixer", ["conv", "delta", "mamba"])
def test_float32_states_do_not_depend_on_how_tokens_are_cut(mixer):
    """States and results of mixers alone, bit for bit: whole, in chunks, and beside another sequence."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tokens, heads, dim, other = 37, 3, 8, 24
    arguments = {
        "conv": (draw(tokens, 20),),
        "delta": (*(draw(tokens, heads, n) for n in (dim, dim, other)), *(draw(tokens, heads).sigmoid() for _ in "gb")),
        "mamba": (*(draw(tokens, heads, n) for n in (other, dim, dim)), draw(tokens, heads).sigmoid()),
    }[mixer]
    shape = {"conv": (3, 20), "delta": (heads, dim, other), "mamba": (heads, other, dim)}[mixer]
    taps = draw(4, 20), draw(20)

    def run(chunks: list[int], beside: int) -> tuple[torch.Tensor, torch.Tensor]:
        """In seat 1; `beside`: tokens of a sequence in seat 0 that come first in every step."""
        state = torch.zeros(2, *shape)
        outs, at = [], 0
        for n in chunks:
            rows = [torch.cat([x[:beside], x[at : at + n]]) for x in arguments]
            batch = StateBatch([0, beside, beside + n] if beside else [0, n], [0, 1] if beside else [1], {})
            if mixer == "conv":
                found = causal_conv(*rows, *taps, state, batch)
            else:
                found = (delta_rule if mixer == "delta" else scan)(*rows, state, batch)
            outs.append(found[beside:])
            at += n
        return torch.cat(outs), state[1]

    whole = run([tokens], 0)
    for other_way in (run([1] * tokens, 0), run([5, 17, 1, 14], 0), run([20, 17], 9)):
        assert all(torch.equal(a, b) for a, b in zip(whole, other_way, strict=True))
