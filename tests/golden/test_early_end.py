"""Layers behind the last one that stores anything: tokens that nobody asks about end before them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import MinistralConfig, MinistralForCausalLM

from kvtrove.models.layers.linear import Linear
from tests.checkpoints import Checkpoints, save
from tests.golden.harness import (
    PagedModel,
    answer,
    engine_for,
    expected_logits,
    greedy,
    hugging_face,
    prompts,
    tokens,
)
from tests.golden.test_families import TOLERANCE, difference

LAYERS, FIRST = 5, 2
"""Of the YOCO model: two layers with a window, one that stores for itself and the two behind it."""
PROMPTS = prompts()[3:5]


@pytest.fixture(scope="module")
def yoco(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint, and a model of transformers whose last layers take the keys and values of layer FIRST.

    transformers has no YOCO: hooks put what that layer projects in the place of what those behind it would.
    """
    directory = tmp_path_factory.mktemp("yoco")
    types = ["sliding_attention"] * FIRST + ["full_attention"] * (LAYERS - FIRST)
    shape = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "head_dim": 16}
    config = MinistralConfig(
        **{**shape, "num_key_value_heads": 2, "num_hidden_layers": LAYERS, "layer_types": types, "sliding_window": 9}
    )
    save(MinistralForCausalLM(config), directory, 0, "float32")
    reference = hugging_face(directory)
    layers = reference.model.layers
    for part in ("k_proj", "v_proj"):
        kept: list[Tensor] = []
        getattr(layers[FIRST].self_attn, part).register_forward_hook(lambda _, x, y, kept=kept: kept.append(y))
        for layer in layers[FIRST + 1 :]:
            getattr(layer.self_attn, part).register_forward_hook(lambda _, x, y, kept=kept: kept[-1])
    keys = {"architectures": ["YocoForCausalLM"], "model_type": "yoco", "num_self_decoder_layers": FIRST}
    written = directory / "config.json"
    written.write_text(json.dumps({**json.loads(written.read_text()), **keys, "layer_types": None}))
    return directory, reference


def test_yoco_gives_the_logits_of_layers_that_share_a_cache(yoco: tuple[Path, Any]) -> None:
    directory, reference = yoco
    sequence = prompts()[-1]
    expected, model = expected_logits(reference, sequence), PagedModel(directory)
    assert [layer.source for layer in model.cache.layers] == [None] * (FIRST + 1) + [FIRST] * (LAYERS - FIRST - 1)
    chunks = [model.step({1: part})[1] for part in (sequence[:30], sequence[30:61], *([t] for t in sequence[61:]))]
    assert difference(model.step({0: sequence})[0], expected) < TOLERANCE
    assert difference(torch.cat(chunks), expected) < TOLERANCE


@pytest.mark.parametrize("family", ["yoco", "gemma4", "gemma3n"])
def test_answers_and_how_many_tokens_pass_the_last_layers(
    family: str, checkpoints: Checkpoints, yoco: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch, chunked and warm, with the kernels and in plain torch; at most one token a sequence and step."""
    directory, reference = yoco if family == "yoco" else (checkpoints.get(family), None)
    naive = [greedy(reference or hugging_face(directory), prompt) for prompt in PROMPTS]
    for backend in ("cpu", "reference") if family == "yoco" else ("cpu",):
        engine = engine_for(directory, max_num_batched_tokens=40, attention_backend=backend)
        last = engine.runner.model.layers[-1].attention.o
        assert isinstance(last, Linear)
        passed: list[int] = []
        whole = type(last).__call__

        def counted(self: Linear, x: Tensor, last=last, passed=passed, whole=whole) -> Tensor:
            if self is last:
                passed.append(len(x))
            return whole(self, x)

        with monkeypatch.context() as patch:
            patch.setattr(Linear, "__call__", counted)
            for _ in range(2):
                assert tokens(answer(engine, PROMPTS)) == naive
        assert 0 < max(passed) <= len(PROMPTS)
    [out] = answer(engine_for(directory), [PROMPTS[0]], prompt_logprobs=1)
    assert len(out.prompt_logprobs) == len(PROMPTS[0]), "all tokens are asked about"
