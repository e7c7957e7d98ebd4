"""Adapters against transformers with W + s B A in place of W; the same bits alone, beside others, on a warm cache."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kvtrove.config import ConfigError, EngineConfig
from kvtrove.engine import Engine
from kvtrove.llm import LLM, LoRARequest
from kvtrove.models.spec import ModelError
from kvtrove.request import RequestError, RequestOutput, SamplingParams
from tests.adapters import write_adapter
from tests.golden.harness import hugging_face

ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
PROMPT = [17, 40, 3, 99, 250, 8, 120, 64, 5, 77, 31]
FAMILIES = {
    "llama3": (*ATTENTION, *MLP),
    "phi3": ("qkv_proj", "gate_up_proj"),
    "qwen3_moe": ATTENTION,
    "deepseek_v3": ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj", "shared_experts.up_proj"),
}


def engine_for(directory: Path, adapters: dict[str, Path], **settings: Any) -> Engine:
    defaults = {"block_size": 4, "num_blocks": 200, "max_num_seqs": 8, "max_num_batched_tokens": 64, "check": 2}
    modules = tuple(f"{name}={path}" for name, path in adapters.items())
    return Engine(EngineConfig(str(directory), lora_modules=modules, **{**defaults, **settings}))


def answers(engine: Engine, adapters: list[str], **params: Any) -> list[RequestOutput]:
    """One request for each, all of them at once."""
    for i, adapter in enumerate(adapters):
        asked = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, logprobs=3, **params)
        engine.add(str(i), PROMPT, asked, adapter=adapter)
    done: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests():
        done |= {out.request_id: out for out in engine.step() if out.finished}
    return [done[str(i)] for i in range(len(adapters))]


def bits(output: RequestOutput) -> tuple[list[int], list[dict[int, float]]]:
    [one] = output.outputs
    assert one.logprobs is not None
    return one.token_ids, [{token: entry.logprob for token, entry in table.items()} for table in one.logprobs]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_merged_weights(checkpoints, tmp_path: Path, family: str) -> None:
    """Float32; a sum of two products instead of one, so the last places differ."""
    directory = checkpoints.get(family)
    model = hugging_face(directory)
    deltas = write_adapter(tmp_path / "a", model, FAMILIES[family], seed=1, use_rslora=family == "phi3")
    engine = engine_for(directory, {"a": tmp_path / "a"}, dtype="float32")
    [plain, adapted] = answers(engine, ["", "a"], prompt_logprobs=2)
    for output, added in ((plain, {}), (adapted, deltas)):
        merged = hugging_face(directory)
        for name, delta in added.items():
            merged.get_parameter(name).data += delta
        with torch.no_grad():
            expected = merged(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
        assert output.prompt_logprobs is not None
        for place, table in enumerate(output.prompt_logprobs[1:]):
            assert table is not None
            for token, entry in table.items():
                assert entry.logprob == pytest.approx(expected[place, token].item(), abs=2e-4)
    assert bits(plain) != bits(adapted)


def test_the_same_bits_alone_in_a_mixed_batch_in_chunks_and_on_a_warm_cache(checkpoints, tmp_path: Path) -> None:
    directory = checkpoints.get("llama3", dtype="bfloat16")
    model = hugging_face(directory)
    write_adapter(tmp_path / "a", model, (*ATTENTION, *MLP), seed=1)
    write_adapter(tmp_path / "b", model, ("q_proj", "v_proj"), seed=2, rank=8)
    adapters = {"a": tmp_path / "a", "b": tmp_path / "b"}
    names = ["", "a", "b"]
    alone = [bits(answers(engine_for(directory, adapters), [name])[0]) for name in names]
    assert alone[0] == bits(answers(engine_for(directory, {}), [""])[0]), "adapters that nobody asks for change nothing"
    assert alone[0] != alone[1] != alone[2]
    engine = engine_for(directory, adapters)
    for _ in range(2):  # the second time on a warm cache
        together = answers(engine, [*names, *names])
        assert [bits(one) for one in together] == alone * 2
    assert [one.num_cached_tokens for one in together] == [8] * 6
    assert [bits(one) for one in answers(engine_for(directory, adapters, max_num_batched_tokens=8), names)] == alone


def test_adapters_never_share_blocks_but_their_own(checkpoints, tmp_path: Path) -> None:
    directory = checkpoints.get("llama3")
    write_adapter(tmp_path / "a", hugging_face(directory), ("q_proj",), seed=1)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    write_adapter(tmp_path / "c", hugging_face(directory), ("q_proj",), seed=2)
    engine = engine_for(directory, {name: tmp_path / name for name in "abc"}, dtype="float32")
    found = [answers(engine, [name])[0].num_cached_tokens for name in ("a", "", "c", "a", "b")]
    assert found == [0, 0, 0, 8, 8], "b is a under another name, and computes the same"


def test_from_python(checkpoints, tmp_path: Path) -> None:
    directory = checkpoints.get("llama3")
    write_adapter(tmp_path / "a", hugging_face(directory), ATTENTION, seed=1)
    settings = {"block_size": 4, "num_blocks": 100, "max_num_seqs": 4, "max_num_batched_tokens": 64}
    llm = LLM(directory, use_tqdm_on_load=False, **settings)
    params = SamplingParams(temperature=0, max_tokens=6)
    request = LoRARequest("a", 1, str(tmp_path / "a"))
    first = llm.generate([PROMPT], params, use_tqdm=False, lora_request=request)[0].outputs[0].token_ids
    assert llm.generate([PROMPT], params, use_tqdm=False, lora_request="a")[0].outputs[0].token_ids == first
    with pytest.raises(RequestError, match="adapter: 'z' is not here; there is a"):
        llm.generate([PROMPT], params, use_tqdm=False, lora_request="z")


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "'use_dora' is True: DoRA"),
    "method": ({"peft_type": "IA3"}, "'peft_type' is 'IA3': only LORA"),
    "bias": ({"bias": "all"}, "'bias' is 'all': adapters with biases"),
    "saved": ({"modules_to_save": ["lm_head"]}, "'modules_to_save' is"),
    "alpha": ({"lora_alpha": 0}, "'lora_alpha' is 0, expected a number above zero"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_adapter_is_refused_by_the_name_of_its_setting(checkpoints, tmp_path: Path, name: str) -> None:
    directory, (config, expected) = checkpoints.get("llama3"), BAD[name]
    write_adapter(tmp_path, hugging_face(directory), ("q_proj",), 1)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(written | config))
    with pytest.raises(ModelError, match=expected):
        engine_for(directory, {"a": tmp_path})


def test_a_bad_adapter_is_refused_by_the_name_of_its_tensor(checkpoints, tmp_path: Path) -> None:
    directory = checkpoints.get("llama3")
    with pytest.raises(ModelError, match=r"no adapter_config\.json; an adapter is a folder as PEFT saves it"):
        engine_for(directory, {"a": tmp_path})
    write_adapter(tmp_path, hugging_face(directory), ("lm_head", "q_proj"), 1)
    with pytest.raises(ModelError, match="adapts lm_head, which cannot be adapted"):
        engine_for(directory, {"a": tmp_path})
    write_adapter(tmp_path, hugging_face(checkpoints.get("llama3", hidden_size=32)), ("q_proj",), 1)
    with pytest.raises(ModelError, match=r"layers.0.self_attn.q_proj has lora_A \[4, 32\].*is it an adapter of this"):
        engine_for(directory, {"a": tmp_path})
    save_file(
        {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 64)}, tmp_path / "adapter_model.safetensors"
    )
    with pytest.raises(ModelError, match="q_proj has lora_A alone"):
        engine_for(directory, {"a": tmp_path})
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        engine_for(directory, {"a": tmp_path})
    for modules in ("nameless", "=path", "a:b=path", '{"name": 3}'):
        with pytest.raises(ConfigError, match="lora_modules: "):
            EngineConfig("m", lora_modules=modules)
    with pytest.raises(ConfigError, match="two adapters have one name"):
        EngineConfig("m", lora_modules=("a=x", '{"name": "a", "path": "y"}'))
