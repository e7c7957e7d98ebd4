"""Decoders whose layers run in one call from attention to attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kvtrove.models.config_reader import read_spec
from kvtrove.models.decoder import Model
from kvtrove.models.loader import load_model
from kvtrove.models.precision import Precision
from kvtrove.models.products import Products
from tests.checkpoints import Checkpoints


def load(checkpoints: Checkpoints, family: str, wanted: str, **precision: Any) -> Model:
    directory = checkpoints.get(family, dtype="bfloat16")
    return load_model(
        directory, read_spec(directory), Products(Precision("bfloat16", "float32", **precision), wanted=wanted)
    )


def hidden(model: Model, tokens: int) -> Tensor:
    """Hidden states where attention gives every head its own query, whatever the cache."""
    ids = torch.arange(tokens) % model.spec.vocab_size

    def attend(index: int, q: Tensor, k: Tensor | None, v: Tensor | None, rotate: Any) -> Tensor:
        return rotate(q)

    return model(ids, torch.arange(tokens), attend)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("family", ["llama3", "qwen2", "qwen3"])
def test_joined_layers_give_the_same_bits(
    family: str, int8: bool, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(checkpoints, family, "own", int8=int8)
    assert model.calls is not None
    assert len(model.calls) == len(model.layers)
    joined = [hidden(model, tokens) for tokens in (1, 300)]
    monkeypatch.setattr(Model, "calls", None)
    assert all(torch.equal(one, hidden(model, len(one))) for one in joined)


@pytest.mark.parametrize("family", ["gemma2", "mixtral"])
def test_other_layers_stay_apart(family: str, checkpoints: Checkpoints) -> None:
    assert load(checkpoints, family, "own").calls is None


def test_products_of_torch_stay_apart(checkpoints: Checkpoints) -> None:
    directory = checkpoints.get("llama3", dtype="bfloat16")
    plain = load_model(directory, read_spec(directory), Products(Precision.plain("bfloat16"), wanted="torch"))
    assert plain.calls is None
