"""Caches that drop tokens: no history shows, nothing is dropped unasked, memory falls, and answers go on for ever."""

from __future__ import annotations

import pytest
import torch

from kvtrove import LLM, SamplingParams
from kvtrove.config import ConfigError
from kvtrove.demo import demo_model_dir
from kvtrove.evaluate.calibrate import write
from kvtrove.kv.formats.calibration import read_calibration
from kvtrove.request import RequestError

SETTINGS = {"linear": "own", "check": 1, "use_tqdm_on_load": False, "max_model_len": 256, "seed": 0, "block_size": 16}
PROMPT = list(range(40, 150))
OTHER = PROMPT[:70] + list(range(300, 350))
GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, detokenize=False)


@pytest.fixture(autouse=True)
def gate(tmp_path, monkeypatch):
    """What surrogate=0.5@FILE reads, in the current directory."""
    monkeypatch.chdir(tmp_path)
    drawn = torch.Generator().manual_seed(0)
    write({f"gate.{layer}": torch.randn(2, 64 + 64 + 3, generator=drawn) for layer in range(4)}, "FILE")
    read_calibration.cache_clear()
    yield
    read_calibration.cache_clear()


def engine(cache: str = "auto", **settings) -> LLM:
    return LLM(str(demo_model_dir()), cache=cache, **(SETTINGS | {"num_blocks": 100} | settings))


def tokens(llm: LLM, *prompts: list[int], params: SamplingParams = GREEDY) -> list[list[int]]:
    outputs = llm.generate(list(prompts), params, use_tqdm=False)
    return [[*o.outputs[0].token_ids] for o in outputs]


def interrupted(llm: LLM, *prompts: list[int], at: int = 20, params: SamplingParams = GREEDY) -> list[list[int]]:
    """Every sequence is preempted in the midst of its answer."""
    llm_engine, found = llm.llm_engine, {}
    for name, prompt in enumerate(prompts):
        llm_engine.add(str(name), prompt, params)
    for step in range(200):
        for output in llm_engine.step() if llm_engine.has_unfinished_requests() else ():
            found[output.request_id] = output.outputs[0].token_ids
        if step == at:
            for seq in list(llm_engine.scheduler.running.values()):
                assert seq.num_output
                llm_engine.scheduler.preempt(seq)
    assert llm_engine.stats().num_preemptions == len(prompts)
    return [found[str(name)] for name in range(len(prompts))]


@pytest.mark.parametrize("cache", ["expected=0.5", "finch=48+int8", "streaming=4+60", "surrogate=0.3@FILE+int8"])
def test_no_history_shows(cache):
    [alone], [other] = tokens(engine(cache), PROMPT), tokens(engine(cache), OTHER)
    llm = engine(cache)
    assert tokens(llm, PROMPT, OTHER, PROMPT) == [alone, other, alone], "in a batch"
    assert tokens(llm, OTHER) == [other], "on a warm cache"
    assert tokens(engine(cache, max_num_batched_tokens=16, max_num_seqs=4), PROMPT, OTHER) == [alone, other], (
        "in chunks"
    )
    assert interrupted(engine(cache), PROMPT, OTHER) == [alone, other], "preempted"
    assert tokens(engine(cache, speculation="ngram"), PROMPT) == [alone], "with drafts"


def test_nor_while_answers_give_up_tokens_again_and_again():
    params = SamplingParams(temperature=0, max_tokens=150, ignore_eos=True, detokenize=False, output_kind="final_only")
    [alone] = engine("h2o=0.3").generate([PROMPT], params, use_tqdm=False)
    assert alone.metrics.num_dropped_tokens == 110 - 33 + 2 * 64
    assert interrupted(engine("h2o=0.3", max_num_batched_tokens=40, max_num_seqs=4), PROMPT, at=120, params=params) == [
        alone.outputs[0].token_ids
    ]


def test_selection_shows_no_history_either():
    """The answer is computed as a prompt when it was preempted, and found as one by the next turn."""
    llm = engine("quest=48")
    [alone] = tokens(llm, PROMPT)
    assert tokens(llm, PROMPT) == [alone], "on a warm cache"
    assert interrupted(engine("quest=48", max_num_batched_tokens=40, max_num_seqs=4), PROMPT) == [alone]
    whole = PROMPT + alone[:10]
    assert tokens(llm, whole)[0][:14] == tokens(engine("quest=48"), whole)[0][:14] == alone[10:]


@pytest.mark.parametrize("cache", ["pyramid=0.3", "streaming=4+60"])
def test_forks_are_those_of_requests_alone(cache):
    """Two streams of a prompt share what is left of it, and each goes on by itself."""
    params = SamplingParams(temperature=0.9, seed=3, n=2, max_tokens=24, ignore_eos=True, detokenize=False)
    [output] = engine(cache).generate([PROMPT], params, use_tqdm=False)
    short = engine(cache, num_blocks=17, max_num_seqs=2)  # no block is left for a fork's tail at first
    [again] = short.generate([PROMPT], params, use_tqdm=False)
    assert [o.token_ids for o in again.outputs] == [o.token_ids for o in output.outputs]
    assert output.outputs[0].token_ids != output.outputs[1].token_ids


@pytest.mark.parametrize(
    "cache", ["keydiff=1.0", "adakv+snapkv=1", "surrogate=1.0@FILE", "tova=4096", "streaming=4+252"]
)
def test_what_drops_nothing_changes_no_bit(cache):
    params = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, detokenize=False, logprobs=1)
    [plain] = engine().generate([PROMPT], params, use_tqdm=False)
    [same] = engine(cache).generate([PROMPT], params, use_tqdm=False)
    assert same.outputs[0].token_ids == plain.outputs[0].token_ids
    assert same.outputs[0].cumulative_logprob == plain.outputs[0].cumulative_logprob
    assert same.metrics.num_dropped_tokens == 0


def test_memory_falls_and_the_whole_prompt_can_still_be_found():
    llm = engine("keydiff=0.3")
    held = watched(llm, PROMPT, GREEDY)
    assert held[0] == -(-33 // 16), "of the prompt"
    assert max(held) == -(-(33 + 23) // 16), "and the answer"
    assert llm.llm_engine.kv.stats().cached == len(PROMPT) // 16, "the exact prompt, and nothing else"


def test_sequences_never_end_in_constant_memory():
    params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True, detokenize=False, output_kind="final_only")
    llm = engine("streaming=4+60", num_blocks=4, max_model_len=64, check=1)
    assert max(watched(llm, PROMPT[:50], params)) == 4
    [output] = llm.generate([PROMPT[:50]], params, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 200
    assert output.metrics.num_dropped_tokens == 27 * 7, "an eighth of the window, from 64 of 249 tokens on"
    assert len(tokens(llm, PROMPT)[0]) == 24, "prompts longer than the context, too"


def watched(llm: LLM, prompt: list[int], params: SamplingParams) -> list[int]:
    """Blocks in use after every step."""
    held = []
    llm.llm_engine.add("watched", prompt, params)
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
        held.append(llm.llm_engine.kv.stats().used)
    return held


def test_contexts_shift_as_in_llama_cpp():
    """A context of 128 tokens, of which 8 stay: 60 leave when it is full, and again after every 60 tokens."""
    params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True, detokenize=False, n_keep=8)
    [output] = engine(context_shift=True, max_model_len=128, check=1).generate([PROMPT], params, use_tqdm=False)
    assert len(output.outputs[0].token_ids) == 200
    assert output.metrics.num_dropped_tokens == 4 * 60
    exact = SamplingParams(temperature=0, ignore_eos=True, detokenize=False, max_tokens=18)
    [whole] = engine().generate([PROMPT], exact, use_tqdm=False)
    assert output.outputs[0].token_ids[:18] == whole.outputs[0].token_ids, "nothing happens before the context is full"
    with pytest.raises(RequestError, match="context_shift=True"):
        engine().generate([PROMPT], params, use_tqdm=False)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache": "keydiff=1.5"}, r"keydiff=1\.5 is no budget: take a share .* up to 1 \(keydiff=0\.5\)"),
        ({"cache": "keydiff=0"}, "keydiff=0 is no budget"),
        ({"cache": "snapkv=8"}, "snapkv=8 tokens are less than 32"),
        ({"cache": "keydiff=8"}, "keydiff=8 tokens are less than 32"),
        ({"cache": "streaming=4+8"}, "a window of 8 tokens is smaller than a block"),
        ({"cache": "streaming=1024"}, r"such as streaming=4\+1024"),
        ({"cache": "streaming=4+1024"}, r"take streaming=4\+252"),
        ({"cache": "h2o=16"}, "h2o=16 tokens are less than 64"),
        ({"cache": "triattention=2048"}, "such as triattention=2048@FILE"),
        ({"cache": "surrogate=0.3"}, "such as surrogate=0.3@FILE; `kvtrove calibrate MODEL --surrogate --out FILE`"),
        ({"cache": "surrogate=1.5@FILE"}, r"surrogate=1\.5 is no budget: .*\(surrogate=0\.5@FILE\)"),
        ({"cache": "surrogate=0.3@none"}, "cannot read the calibration 'none': No such file"),
        ({"cache": "adakv+surrogate=0.3@FILE"}, "goes with one of keydiff, snapkv, tova, expected"),
        ({"cache": "prefix+finch=0.5"}, r"prefix takes no value.*prefix\+keydiff=0.5"),
        ({"cache": "adakv=2+snapkv=0.5"}, "adakv=2: give the share of a head's budget that is safe, such as adakv=0.2"),
        ({"cache": "adakv=0.2"}, r"adakv goes with a way to drop tokens: adakv\+snapkv=0.2"),
        ({"cache": "adakv+finch=0.5"}, "goes with one of keydiff, snapkv, tova, expected"),
        ({"cache": "adakv+pyramid=0.5"}, "goes with one of keydiff, snapkv, tova, expected"),
        ({"cache": "edges=1:int8+pyramid=0.5"}, "layer 1 stores other keys and values than layer 0: its heads cannot"),
        ({"cache": "keydiff=0.5+snapkv=0.5"}, "leave one of the words out"),
        ({"cache": "edges=1:keydiff=0.5"}, "all layers alike"),
        (
            {"cache": "keydiff=0.5+window=64"},
            "reads window=64 and not everything, so it drops no tokens: take quest=1024",
        ),
        ({"cache": "kivi=2+keydiff=0.5"}, "encodes whole blocks: take int8"),
        ({"cache": "keydif=0.5"}, "did you mean 'keydiff'"),
        ({"cache": "window=64", "context_shift": True}, "context_shift: layer 0 reads window=64"),
        ({"cache": "keydiff=0.5", "context_shift": True}, "context_shift: keydiff=0.5 drops tokens already"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(settings, message):
    with pytest.raises(ConfigError, match=message):
        engine(**settings)


def test_beams_are_refused():
    with pytest.raises(RequestError, match="beam_width: beams need every token"):
        tokens(engine("keydiff=0.5"), PROMPT, params=SamplingParams(beam_width=2, temperature=0, max_tokens=4))
