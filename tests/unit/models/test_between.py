"""Decoders whose layers run in one call from attention to attention, or to what is not for kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kvtrove.kernels.decoder import ranges
from kvtrove.models.config_reader import read_spec
from kvtrove.models.decoder import Model
from kvtrove.models.loader import load_model
from kvtrove.models.precision import Precision
from kvtrove.models.products import Products
from tests.checkpoints import Checkpoints


def load(checkpoints: Checkpoints, family: str, wanted: str, weights: str = "auto") -> Model:
    directory = checkpoints.get(family, dtype="bfloat16")
    return load_model(
        directory, read_spec(directory), Products(Precision("bfloat16", "float32", weights), wanted=wanted)
    )


def hidden(model: Model, tokens: int) -> Tensor:
    """Hidden states where attention gives every head its own query, whatever the cache."""
    ids = torch.arange(tokens) % model.spec.vocab_size

    def attend(index: int, q: Tensor, k: Tensor | None, v: Tensor | None, rotate: Any) -> Tensor:
        return rotate(q)

    return model(ids, torch.arange(tokens), attend)


@pytest.mark.parametrize("weights", ["auto", "int8", "int4"])
@pytest.mark.parametrize("family", ["llama3", "qwen2", "qwen3", "gemma2", "gemma3", "mixtral"])
def test_joined_layers_give_the_same_bits(
    family: str, weights: str, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(checkpoints, family, "own", weights=weights)
    assert None not in model.calls
    joined = [hidden(model, tokens) for tokens in (1, 300)]
    monkeypatch.setattr(Model, "calls", (None,) * len(model.layers))
    assert all(torch.equal(one, hidden(model, len(one))) for one in joined)


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("gemma2", [(0, 4)]),
        ("gemma3", [(0, 4)]),
        ("mixtral", [(0, 1), (1, 2), (2, 3)]),
        ("qwen3_moe", [(0, 1), (1, 3)]),
    ],
)
def test_ranges_break_at_experts_alone(family: str, expected: list[tuple[int, int]], checkpoints: Checkpoints) -> None:
    assert [*ranges(load(checkpoints, family, "own").calls)] == expected


def test_products_of_torch_stay_apart(checkpoints: Checkpoints) -> None:
    directory = checkpoints.get("llama3", dtype="bfloat16")
    plain = load_model(directory, read_spec(directory), Products(Precision.plain("bfloat16"), wanted="torch"))
    assert plain.calls == (None,) * len(plain.layers)
