"""Which backend each layer gets, and what is said about it."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from kvtrove.config import ConfigError
from kvtrove.kernels.attention import MAX_HEAD_DIM
from kvtrove.kv.retention import Full
from kvtrove.loading import choose_backends
from tests.unit.attention.test_reference import Case, Shape

LAYER = Case([(0, 1)], Full(), Shape()).layer
ODD = replace(LAYER, index=1, k_dim=20, v_dim=20)


@pytest.mark.parametrize(("wanted", "taken"), [("auto", "cpu"), ("cpu", "cpu"), ("reference", "reference")])
def test_the_kernels_are_taken_where_they_serve(wanted: str, taken: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kvtrove"):
        assert [one.name for one in choose_backends(wanted, [LAYER], "cpu")] == [taken]
    assert ("attention: CPU kernels (" in caplog.text) == (taken == "cpu")


def test_a_layer_without_a_kernel_is_named_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "kvtrove"):
        assert [one.name for one in choose_backends("auto", [LAYER, ODD], "cpu")] == ["cpu", "reference"]
    assert caplog.messages == [
        "attention: 1 of 2 layers are read by plain torch, several times as slow as kernels: "
        f"layer 1: head_dim 20 is not a multiple of 8 up to {MAX_HEAD_DIM}"
    ]


def test_cpu_is_refused_where_it_cannot_serve() -> None:
    with pytest.raises(ConfigError, match="attention_backend: 'cpu' cannot serve this model, 'reference' can: layer 1"):
        choose_backends("cpu", [LAYER, ODD], "cpu")
