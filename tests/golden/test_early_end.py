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
from tests.golden import harness
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

SHARED: dict[str, tuple[list[int | None], dict[str, Any]]] = {
    "yoco": ([None, None, None, 2, 2], {"num_self_decoder_layers": 2}),  # two with a window, then one cache
    "mlkv": ([None, 0, None, 2], {"num_key_value_layers": 2, "sliding_window": None}),
}
"""Whose keys and values each layer reads, and keys of config.json that say so."""
PROMPTS = prompts()[3:5]


class Shared:
    """family -> a checkpoint, and a model of transformers whose layers take keys and values of those before them.

    transformers has no such family: hooks put what one layer projects in the place of what another would.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, family: str) -> tuple[Path, Any]:
        sources, keys = SHARED[family]
        directory, first = self.root / family, keys.get("num_self_decoder_layers", 0)
        types = ["sliding_attention"] * first + ["full_attention"] * (len(sources) - first)
        shape = {
            "vocab_size": 300,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_attention_heads": 4,
            "head_dim": 16,
        }
        layers = {"num_hidden_layers": len(sources), "layer_types": types, "sliding_window": 9}
        save(MinistralForCausalLM(MinistralConfig(**shape, **layers, num_key_value_heads=2)), directory, 0, "float32")
        reference = hugging_face(directory)
        for part in ("k_proj", "v_proj"):
            kept: list[Tensor] = []
            for layer, source in zip(reference.model.layers, sources, strict=True):
                hook = (lambda _, x, y, kept=kept: kept.append(y)) if source is None else lambda *_, kept=kept: kept[-1]
                getattr(layer.self_attn, part).register_forward_hook(hook)
        written = directory / "config.json"
        named = {"architectures": [f"{family.capitalize()}ForCausalLM"], "model_type": family, "layer_types": None}
        written.write_text(json.dumps({**json.loads(written.read_text()), **named, **keys}))
        return directory, reference


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    return Shared(tmp_path_factory.mktemp("shared"))


@pytest.mark.parametrize("family", SHARED)
def test_logits_of_layers_that_share_a_cache(family: str, shared: Shared) -> None:
    directory, reference = shared(family)
    sequence = prompts()[-1]
    expected, model = expected_logits(reference, sequence), PagedModel(directory)
    assert [layer.source for layer in model.cache.layers] == SHARED[family][0]
    chunks = [model.step({1: part})[1] for part in (sequence[:30], sequence[30:61], *([t] for t in sequence[61:]))]
    assert difference(model.step({0: sequence})[0], expected) < TOLERANCE
    assert difference(torch.cat(chunks), expected) < TOLERANCE


@pytest.mark.parametrize("family", ["yoco", "mlkv", "gemma4", "gemma3n"])
def test_answers_and_how_many_tokens_pass_the_last_layers(
    family: str, checkpoints: Checkpoints, shared: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch, chunked and warm, with the kernels and in plain torch; at most one token a sequence and step."""
    monkeypatch.setattr(harness, "NEW_TOKENS", 8)
    directory, reference = shared(family) if family in SHARED else (checkpoints.get(family), None)
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
