"""One answer, however it was computed: naive = paged = chunked = prefix hit = preempted = mixed batch, token for token.

Greedy tokens in fp32 of the whole engine against transformers' own generate() without a cache.
"""

from __future__ import annotations

import pytest
import torch

from kvtrove.engine import Engine
from kvtrove.request import RequestOutput, SamplingParams
from tests.golden.harness import LENGTHS, NEW_TOKENS, answer, engine_for, greedy, hugging_face, prompts, tokens

FAMILIES = pytest.mark.parametrize("family", ["llama3", "mistral", "gemma3"], ids=["full", "sliding", "hybrid"])


@pytest.mark.parametrize(("family", "block_size"), [("llama3", 1), ("llama3", 32), ("mistral", 4), ("gemma3", 1)])
def test_paged_one_by_one(family, block_size, checkpoints, naive):
    engine = engine_for(checkpoints.get(family), block_size=block_size, num_blocks=1600 // block_size)
    assert [tokens(answer(engine, [prompt]))[0] for prompt in prompts()] == naive(family)


@FAMILIES
@pytest.mark.parametrize(
    ("budget", "backend", "block_size"), [(5, "cpu", 16), (5, "reference", 4), (16, "cpu", 4), (256, "cpu", 16)]
)
def test_chunked_in_a_batch_of_mixed_lengths(family, budget, backend, block_size, checkpoints, naive):
    """Blocks of 4 tokens are in plain layout, those of 16 are tiled."""
    settings = {"attention_backend": backend, "block_size": block_size}
    engine = engine_for(checkpoints.get(family), max_num_batched_tokens=budget, **settings)
    assert {one.name for one in engine.runner.backends} == {backend}
    assert tokens(answer(engine, prompts())) == naive(family)


@FAMILIES
def test_int8_answers_do_not_depend_on_how_they_were_computed(family, checkpoints):
    """The cache is lossy, the engine is not: one by one = chunked in a batch = prefix hit."""

    def engine(budget: int) -> Engine:
        settings = {"cache": "int8", "block_size": 16, "max_num_batched_tokens": budget}
        return engine_for(checkpoints.get(family), **settings)

    alone, chunked = engine(256), engine(5)
    expected = [tokens(answer(alone, [prompt]))[0] for prompt in prompts()]
    assert tokens(answer(chunked, prompts())) == expected
    assert tokens(answer(chunked, prompts())) == expected
    assert chunked.stats().kv.hits > 0


@pytest.mark.parametrize(
    ("family", "cache"), [("qwen3", "kivi=2"), ("qwen3", "edges=1:fp8+kivi=4"), ("gemma2", "k=int8+v=int4r")]
)
def test_answers_of_other_lossy_caches_do_not_depend_on_it_either(family, cache, checkpoints):
    """One by one = chunked in a batch = prefix hit = preempted, with blocks that are encoded when they are full too."""

    def engine(budget: int, **settings: int) -> Engine:
        directory = checkpoints.get(family)
        return engine_for(directory, cache=cache, block_size=16, max_num_batched_tokens=budget, **settings)

    alone, chunked = engine(256), engine(5)
    expected = [tokens(answer(alone, [prompt]))[0] for prompt in prompts()]
    assert tokens(answer(chunked, prompts())) == expected
    assert tokens(answer(chunked, prompts())) == expected
    assert chunked.stats().kv.hits > 0


@FAMILIES
def test_prefix_hit(family, checkpoints, naive):
    engine = engine_for(checkpoints.get(family))
    cold = answer(engine, prompts())
    warm = answer(engine, prompts())
    assert tokens(cold) == tokens(warm) == naive(family)
    assert [out.num_cached_tokens for out in cold] == [0] * len(LENGTHS)
    assert [out.num_cached_tokens for out in warm] == [(n - 1) // 4 * 4 for n in LENGTHS]


@pytest.mark.parametrize("family", ["gpt_oss", "gemma4", "gemma4_moe", "llama4"])
def test_shared_tied_and_chunked_caches_answer_alike_cold_and_warm(family, checkpoints):
    """Chunks of a mixed batch, a warm cache, and transformers: sinks, layers that read another's cache, keys that are
    values, and chunks of local attention."""
    directory, some = checkpoints.get(family), prompts()[3::2]
    model = hugging_face(directory)
    engine = engine_for(directory, max_num_batched_tokens=16)
    cold, warm = answer(engine, some), answer(engine, some)
    assert tokens(cold) == tokens(warm)
    assert tokens(cold)[0] == greedy(model, some[0])
    assert all(out.num_cached_tokens >= len(prompt) // 4 * 4 - 8 for out, prompt in zip(warm, some, strict=True))


@FAMILIES
def test_hit_in_the_middle_of_an_earlier_answer(family, checkpoints, naive):
    """The next turn of a conversation: prompt + answer + more. What was generated is reused like what was given."""
    engine = engine_for(checkpoints.get(family))
    first = prompts()[4]
    turn = [*first, *tokens(answer(engine, [first]))[0], 9, 8, 7, 6, 5]
    warm = answer(engine, [turn])
    assert warm[0].num_cached_tokens == (len(first) + NEW_TOKENS - 1) // 4 * 4
    assert tokens(warm) == tokens(answer(engine_for(checkpoints.get(family)), [turn]))


@FAMILIES
def test_preempted_and_recomputed(family, checkpoints, naive):
    """A pool for little more than the longest request alone."""
    directory = checkpoints.get(family)
    roomy = engine_for(directory)
    blocks = roomy.kv.blocks_for(max(LENGTHS) + NEW_TOKENS, 16) + 2
    engine = engine_for(directory, num_blocks=blocks, max_num_batched_tokens=16)
    outputs = answer(engine, prompts())
    assert tokens(outputs) == naive(family)
    if family != "mistral":  # a window never grows, so nothing needs to be preempted
        assert engine.stats().num_preemptions > 0


@FAMILIES
def test_without_prefix_cache(family, checkpoints, naive):
    engine = engine_for(checkpoints.get(family), enable_prefix_caching=False)
    for _ in range(2):
        outputs = answer(engine, prompts())
        assert tokens(outputs) == naive(family)
        assert not any(out.num_cached_tokens for out in outputs)


@FAMILIES
def test_samples_do_not_depend_on_the_batch(family, checkpoints):
    """Seeded sampling: alone, among others, preempted, forked from one prefill: the same tokens."""
    directory, params = (
        checkpoints.get(family),
        SamplingParams(temperature=1.0, seed=5, max_tokens=12, ignore_eos=True, n=3),
    )

    def draw(engine: Engine, others: int) -> list[list[int]]:
        for i in range(others):
            engine.add(f"other{i}", prompts()[i], SamplingParams(max_tokens=20, seed=i))
        engine.add("it", prompts()[3], params)
        for i in range(others):
            engine.add(f"later{i}", prompts()[5 - i], SamplingParams(max_tokens=20, seed=i))
        while True:
            for out in engine.step():
                if out.request_id == "it" and out.finished:
                    return [o.token_ids for o in out.outputs]

    alone = draw(engine_for(directory), 0)
    assert len({tuple(t) for t in alone}) == 3
    assert draw(engine_for(directory), 3) == alone
    tight = engine_for(directory, num_blocks=engine_for(directory).kv.blocks_for(64, 16) + 6, max_num_batched_tokens=16)
    assert draw(tight, 2) == alone


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_beam_search_equals_transformers(penalty, checkpoints):
    directory = checkpoints.get("llama3")
    model = hugging_face(directory)
    prompt = prompts()[2]
    with torch.inference_mode():
        theirs = model.generate(
            torch.tensor([prompt]),
            num_beams=4,
            num_return_sequences=4,
            max_new_tokens=10,
            do_sample=False,
            early_stopping="never",
            length_penalty=penalty,
            pad_token_id=3,
        )
    engine = engine_for(directory)
    engine.add("a", prompt, SamplingParams(n=4, beam_width=4, max_tokens=10, length_penalty=penalty))
    out = []
    while engine.has_unfinished_requests():
        out += engine.step()
    ours = [o.token_ids for o in out[-1].outputs]
    expected = [[t for t in row[len(prompt) :].tolist() if t != 3] for row in theirs]
    assert ours == expected


def test_prompt_logprobs_equal_transformers(checkpoints):
    directory = checkpoints.get("mistral")
    model = hugging_face(directory)
    prompt = prompts()[5]
    with torch.inference_mode():
        theirs = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    engine = engine_for(directory, max_num_batched_tokens=16)
    answer(engine, [prompt])
    (out,) = answer(engine, [prompt], prompt_logprobs=2, logprobs=1)
    assert out.prompt_logprobs is not None
    assert out.prompt_logprobs[0] is None
    for i, entry in enumerate(out.prompt_logprobs[1:], 1):
        assert entry is not None
        best = theirs[i - 1].topk(2).indices.tolist()
        assert set(entry) == {prompt[i], *best}
        for token, logprob in entry.items():
            assert logprob.logprob == pytest.approx(float(theirs[i - 1, token]), abs=1e-4)
            assert logprob.rank == 1 + int((theirs[i - 1] > theirs[i - 1, token]).sum())
    assert out.outputs[0].logprobs is not None
    assert out.outputs[0].cumulative_logprob == pytest.approx(
        sum(step[t].logprob for step, t in zip(out.outputs[0].logprobs, out.outputs[0].token_ids, strict=True))
    )


def test_abort_at_every_moment_frees_everything(checkpoints):
    engine = engine_for(checkpoints.get("gemma3"), max_num_batched_tokens=16)
    for steps in range(12):
        for i, prompt in enumerate(prompts()):
            engine.add(f"{steps}-{i}", prompt, SamplingParams(n=1 + i % 3, max_tokens=8, seed=1))
        for _ in range(steps):
            engine.step()
        for i in range(len(LENGTHS)):
            engine.abort(f"{steps}-{i}")
        assert not engine.has_unfinished_requests()
        assert engine.stats().kv.used == 0


def text_of(engine: Engine, request_id: str, **params) -> RequestOutput:
    engine.add(request_id, prompts()[2], SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, **params))
    outputs: list[RequestOutput] = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    return outputs[-1]


def test_a_stop_string_ends_the_sequence_and_frees_its_blocks(checkpoints):
    engine = engine_for(checkpoints.get("llama3"))
    whole = text_of(engine, "whole").outputs[0]
    stop = whole.text[6:9]
    cut = text_of(engine, "cut", stop=[stop]).outputs[0]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert len(cut.token_ids) < len(whole.token_ids)
    kept = text_of(engine, "kept", stop=[stop], include_stop_str_in_output=True).outputs[0]
    assert kept.text == cut.text + stop
    late = text_of(engine, "late", stop=[stop], min_tokens=len(cut.token_ids) + 1).outputs[0]
    assert len(late.token_ids) > len(cut.token_ids)
    assert engine.stats().kv.used == 0


def test_deltas_add_up_to_the_whole(checkpoints):
    engine = engine_for(checkpoints.get("llama3"))
    whole = text_of(engine, "whole", n=2, logprobs=1)
    engine.add(
        "it", prompts()[2], SamplingParams(temperature=0, max_tokens=16, ignore_eos=True, n=2, output_kind="delta")
    )
    pieces: dict[int, list] = {0: [], 1: []}
    while engine.has_unfinished_requests():
        for out in engine.step():
            for piece in out.outputs:
                pieces[piece.index].append(piece)
    for completion in whole.outputs:
        parts = pieces[completion.index]
        assert "".join(p.text for p in parts) == completion.text
        assert [t for p in parts for t in p.token_ids] == completion.token_ids
        assert [p.finish_reason for p in parts if p.finish_reason] == ["length"]


def test_final_only_reports_once(checkpoints):
    engine = engine_for(checkpoints.get("llama3"))
    engine.add("it", prompts()[2], SamplingParams(max_tokens=8, ignore_eos=True, output_kind="final_only"))
    reports = []
    while engine.has_unfinished_requests():
        reports += engine.step()
    assert [out.finished for out in reports] == [True]


@pytest.mark.parametrize(
    ("family", "weights"), [("llama3", "auto"), ("gemma3", "auto"), ("mistral", "int8"), ("gemma3", "int8")]
)
def test_packed_weights_give_the_same_tokens_however_they_are_computed(family, weights, checkpoints):
    """One by one, batched and chunked, hit: the kernels sum in one order whatever the number of rows."""
    directory = checkpoints.get(family, dtype="bfloat16")
    settings = {"dtype": "auto", "cache": "fp32", "weights": weights, "linear": "own"}
    alone = [tokens(answer(engine_for(directory, **settings), [prompt]))[0] for prompt in prompts()]
    for budget in (5, 64):
        engine = engine_for(directory, max_num_batched_tokens=budget, **settings)
        assert tokens(answer(engine, prompts())) == tokens(answer(engine, prompts())) == alone


@FAMILIES
def test_bf16_weights_with_float32_activations_are_transformers_float32(family, checkpoints):
    """What `auto` does on a processor without bf16 instructions, beside a cache that is not rounded."""
    directory = checkpoints.get(family, dtype="bfloat16")
    model = hugging_face(directory)
    engine = engine_for(directory, dtype="auto", cache="fp32", linear="own")
    assert engine.runner.model.precision.dtype == "bfloat16"
    if engine.runner.model.precision.activations == "float32":
        assert tokens(answer(engine, prompts())) == [greedy(model, prompt) for prompt in prompts()]
