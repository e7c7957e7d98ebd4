"""Models without a checkpoint: the same shapes, reproducible numbers, and an engine that answers token ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kvtrove.config import ConfigError, EngineConfig
from kvtrove.engine import Engine
from kvtrove.models import random_weights
from kvtrove.models.config_reader import read_config
from kvtrove.models.decoder import Model
from kvtrove.models.layers.linear import Weights
from kvtrove.models.precision import Precision
from kvtrove.models.random_weights import RandomWeights
from kvtrove.models.spec import ModelError
from kvtrove.request import SamplingParams

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "vocab_size": 200,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "any-name.json"
    path.write_text(json.dumps(CONFIG))
    return path


def model_of(path: Path, seed: int = 0, **more: Any) -> Model:
    path.write_text(json.dumps(CONFIG | more))
    spec = read_config(path)
    weights = RandomWeights(spec, Precision.plain("float32"), "cpu", seed)
    return Model.load(Weights(weights.take, weights.matrix), weights.head, spec, 64, lambda layers: None)


def greedy(model: Path, **settings: Any) -> list[int]:
    engine = Engine(EngineConfig(str(model), load_format="dummy", dtype="float32", num_blocks=8, **settings))
    engine.add("a", [1, 2, 3], SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True))
    outputs = []
    while engine.has_unfinished_requests():
        outputs = engine.step()
    assert outputs[0].outputs[0].text == ""  # there is no tokenizer
    return list(outputs[0].outputs[0].token_ids)


def test_the_same_seed_gives_the_same_weights(config: Path) -> None:
    one, same, other = model_of(config), model_of(config), model_of(config, seed=1)
    assert torch.equal(one.layers[2].mlp.down.weight, same.layers[2].mlp.down.weight)
    assert not torch.equal(one.layers[2].mlp.down.weight, other.layers[2].mlp.down.weight)
    assert not torch.equal(one.layers[0].mlp.down.weight, one.layers[1].mlp.down.weight)


def test_matrices_keep_the_size_of_what_passes_through_them(config: Path) -> None:
    up = model_of(config).layers[0].mlp.gate_up.products[1].weight
    assert up.std().item() == pytest.approx(32**-0.5, rel=0.1)


def test_a_tensor_larger_than_the_pool_repeats_it(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_weights, "POOL", 1001)
    weights = RandomWeights(read_config(config), Precision.plain("float32"), "cpu")
    drawn = weights.take("embed_tokens.weight", (30, 100)).view(-1)
    assert torch.equal(drawn[:1001], drawn[1001:2002])
    assert drawn.isfinite().all()


@pytest.mark.parametrize(("tied", "same"), [(True, True), (False, False)])
def test_the_output_matrix_is_tied_when_the_config_says_so(config: Path, tied: bool, same: bool) -> None:
    model = model_of(config, tie_word_embeddings=tied)
    assert (model.head.weight.data_ptr() == model.embedding.weight.data_ptr()) is same


def test_an_engine_runs_a_config_file(config: Path) -> None:
    tokens = greedy(config)
    assert len(tokens) == 6
    assert greedy(config) == tokens


def test_an_engine_runs_the_config_of_a_directory_without_weights(config: Path) -> None:
    (config.parent / "config.json").write_text(config.read_text())
    assert greedy(config.parent) == greedy(config)


def test_random_weights_never_share_keys_with_a_checkpoint(demo_dir: Path) -> None:
    keys = set()
    for kind in ("auto", "dummy"):
        engine = Engine(EngineConfig(str(demo_dir), load_format=kind, num_blocks=8))
        assert engine.tokenizer.encode("hi")  # the directory has one, so it is used
        keys.add(engine.kv.chain_root(b""))
    assert len(keys) == 2


@pytest.fixture
def demo_dir() -> Path:
    from kvtrove.demo import demo_model_dir

    return demo_model_dir()


def test_wrong_settings_name_what_works(config: Path) -> None:
    with pytest.raises(ConfigError, match="load_format: 'pt' is not one of auto, safetensors, dummy"):
        EngineConfig(str(config), load_format="pt")
    with pytest.raises(ModelError, match="not a directory"):
        Engine(EngineConfig(str(config)))
    with pytest.raises(ModelError, match=r"no\.json"):
        Engine(EngineConfig(str(config.parent / "no.json"), load_format="dummy"))
