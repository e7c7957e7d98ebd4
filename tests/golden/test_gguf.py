"""GGUF files as the engine runs them: logits of transformers, and weights that stay in the bits they are stored in."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kvtrove import LLM, SamplingParams
from kvtrove.config import ConfigError, EngineConfig
from kvtrove.kernels.linear import Groups
from kvtrove.loading import choose_precision
from kvtrove.models.config_reader import read_spec
from kvtrove.models.gguf.architectures import ARCHITECTURES
from kvtrove.models.gguf.dequantize import GROUPS, READERS, dequantize
from kvtrove.models.gguf.header import read_header
from kvtrove.models.gguf.stored import kept_bytes
from kvtrove.models.gguf.tensor_types import TYPES
from kvtrove.models.precision import Precision
from kvtrove.models.products import Products
from kvtrove.plan.source import read_model
from kvtrove.store import stored_model
from kvtrove.text.gguf_pre_tokenizers import PATTERNS
from tests.checkpoints import VOCAB, YARN, Checkpoints
from tests.gguf_files import write_gguf
from tests.golden.harness import PagedModel, expected_logits, hugging_face

TOLERANCE = 1e-4  # of float32 logits whose standard deviation is above 1
TOKENS = random.Random(0).choices(range(4, VOCAB), k=40)


def logits(path: Path, weights: str = "auto") -> Tensor:
    linear = "torch" if weights == "auto" else "own"
    model = PagedModel(path, products=Products(Precision("float32", "float32", weights), "cpu", linear))
    return model.step({0: TOKENS})[0]


@pytest.mark.parametrize("family", ["llama3", "mixtral", "qwen2", "qwen3", "gemma3", "phi3_long"])
def test_logits_are_those_of_transformers(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    scaled = {"query_pre_attn_scalar": 16} if family.startswith("gemma") else {}
    directory = checkpoints.get(family, **scaled)
    expected = expected_logits(hugging_face(directory), TOKENS)
    assert expected.std() > 0.5, "flat logits would prove nothing"
    assert (logits(write_gguf(directory, tmp_path / "m.gguf")) - expected).abs().max() < TOLERANCE


ONE_MSCALE = {"mscale": None, "mscale_all_dim": None}
_LLAMA4 = {"no_rope_layers": [1, 1, 1, 0], "num_hidden_layers": 4}
# What no file says has the value that llama.cpp takes for it.
AS_WRITTEN: dict[str, dict[str, Any]] = {
    "smollm3": {"no_rope_layers": None, "use_sliding_window": False, "sliding_window": None, "num_hidden_layers": 4},
    "granite": {},
    "granitemoe": {},
    "olmo2": {},
    "olmo3": {},
    "exaone4": {},
    "hunyuan_v1": {},
    "glm4": {},
    "glm4_moe": {},
    "qwen2_moe": {"mlp_only_layers": []},
    "ernie4_5": {},
    "seed_oss": {},
    "ministral3": {},
    "gpt_oss": {"swiglu_limit": 7.0, "rope_parameters": {**YARN, **ONE_MSCALE, "truncate": False}},
    "gemma4": {},
    "gemma4_moe": {},
    "lfm2": {"conv_bias": False},
    "deepseek_v2": {"n_group": 1, "topk_group": 1},
    "deepseek_v3": {"rope_parameters": {**YARN, "mscale": 0.7}},
    "gemma3n": {"vocab_size_per_layer_input": VOCAB, "laurel_rank": 64},
    "glm4_moe_lite": {},
    "olmoe": {},
    "hunyuan_v1_moe": {"num_shared_expert": 1},
    "llama4": {**_LLAMA4, "attention_chunk_size": 8192, "floor_scale": 8192},
    "qwen3_next": {"mlp_only_layers": []},
    "qwen3_5": {},
    "granitemoehybrid": {},
    "granitemoehybrid_experts": {"mamba_proj_bias": False},
}


@pytest.mark.parametrize("family", AS_WRITTEN)
def test_logits_are_those_of_the_directory(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    directory = checkpoints.get(family, **AS_WRITTEN[family])
    expected = logits(directory)
    assert expected.std() > 0.5, "flat logits would prove nothing"
    assert (logits(write_gguf(directory, tmp_path / "m.gguf")) - expected).abs().max() < 1e-5  # the same floats


@pytest.mark.parametrize(("family", "arch"), [("qwen2", "qwen2vl"), ("qwen3", "qwen3vl"), ("qwen3_moe", "qwen3vlmoe")])
def test_the_language_model_of_one_that_sees_is_read(
    family: str, arch: str, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    directory = checkpoints.get(family, **({"mlp_only_layers": []} if family == "qwen3_moe" else {}))
    axes = {f"{arch}/rope/dimension_sections": [2, 1, 1, 0]}
    path = write_gguf(directory, tmp_path / "m.gguf", arch=arch, **axes)
    assert (logits(path) - logits(directory)).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["llama", "llama3", "phi3", "qwen3_moe"])
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("Q4_0", 0.05),  # kept exactly; rows of x meet them as 15-bit integers, which these wide weights enlarge
        ("Q4_1", 0.05),
        ("Q8_0", 0.05),
    ],
)
def test_weights_stay_in_their_bits(
    family: str, kind: str, error: float, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    """error: of logits beside the same file in float32, whose standard deviation is above 1."""
    directory = checkpoints.get(family, **({"mlp_only_layers": []} if family == "qwen3_moe" else {}))
    path = write_gguf(directory, tmp_path / "m.gguf", kind)
    exact = logits(path)
    assert exact.std() > 0.5
    assert 0 < (logits(path, "gguf") - exact).abs().max() < error


def test_groups_are_the_values_of_their_blocks() -> None:
    for name, (bits, read) in GROUPS.items():
        layout = next(kind for kind in TYPES.values() if kind.name == name)
        blocks = torch.randint(
            0, 256, (50, layout.nbytes), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
        )
        blocks[:, 1], blocks[:, 3] = 0x2C, 0x2C  # high bytes of scale and minimum: finite ones
        numbers, scales, minima = map(torch.from_numpy, read(blocks.numpy()))
        values = Groups(numbers, scales, minima, bits).values()
        assert torch.equal(values, torch.from_numpy(dequantize(name, blocks.numpy()))), name


def test_quantised_files_are_kept_so_on_a_cpu_unless_other_numbers_are_asked_for(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    path = write_gguf(checkpoints.get("llama"), tmp_path / "m.gguf", "Q4_0")
    plain = write_gguf(checkpoints.get("llama"), tmp_path / "n.gguf", "F16")
    for file, settings, expected in (
        (path, {}, "gguf"),
        (path, {"dtype": "float32"}, "auto"),
        (path, {"linear": "torch"}, "auto"),
        (path, {"weights": "int8"}, "int8"),
        (plain, {}, "auto"),
    ):
        config = EngineConfig(str(file), device="cpu", **settings)
        assert choose_precision(config, read_spec(file)).weights == expected, settings
    with pytest.raises(
        ConfigError, match=r"weights: gguf keeps the bits of a quantised GGUF file, .*n\.gguf is none of them"
    ):
        choose_precision(EngineConfig(str(plain), device="cpu", weights="gguf"), read_spec(plain))


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_the_plan_counts_the_bytes_that_are_kept(kind: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    path = write_gguf(checkpoints.get("llama"), tmp_path / "m.gguf", kind)
    planned = read_model(path)
    assert planned.precision is not None
    assert planned.precision.weights == "gguf"
    assert planned.weight_bytes == kept_bytes(read_header(path))
    assert planned.weight_bytes < read_model(path, "bfloat16").weight_bytes


def test_an_engine_answers_from_a_file_alone_whatever_else_is_in_the_batch(
    checkpoints: Checkpoints, tmp_path: Path
) -> None:
    llm = LLM(write_gguf(checkpoints.get("llama"), tmp_path / "m.gguf", "Q4_0"), num_blocks=64, use_tqdm_on_load=False)
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    prompts = ["the cache holds", "a block is open and then", "fox"]
    alone = [llm.generate(prompt, params, use_tqdm=False)[0].outputs[0].token_ids for prompt in prompts]
    together = [output.outputs[0].token_ids for output in llm.generate(prompts, params, use_tqdm=False)]
    assert alone == together
    assert llm.chat([{"role": "user", "content": "hi"}], params, use_tqdm=False)[0].outputs[0].token_ids


def test_the_real_smollm2_answers_as_transformers_does() -> None:
    """The greedy answer of transformers 5.23 from the same file in float32 (its own GGUF loader)."""
    path = stored_model("smollm2")
    if path is None:
        pytest.skip("the real model is not in KVTROVE_HOME; `kvtrove models get smollm2` puts it there")
    llm = LLM(path, num_blocks=32, use_tqdm_on_load=False)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    answer = llm.chat(messages, SamplingParams(max_tokens=20, temperature=0), use_tqdm=False)[0]
    assert answer.outputs[0].text == "The capital of France is Paris."


DOCS = Path(__file__).parents[2] / "docs"


def test_the_documentation_runs_and_names_what_is_read(
    checkpoints: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gguf(checkpoints.get("llama"), tmp_path / "model.gguf", "Q4_0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KVTROVE_HOME", str(tmp_path))
    for page in ("gguf", "models"):
        text = (DOCS / f"{page}.md").read_text()
        blocks = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
        assert blocks
        for block in blocks:
            exec(compile(block, page, "exec"), {})
            assert capsys.readouterr().out
    gguf = (DOCS / "gguf.md").read_text()
    for name in (*ARCHITECTURES, *READERS):
        assert re.search(rf"\b{name}\b", gguf), name
    assert f"{len(PATTERNS)} names" in gguf
