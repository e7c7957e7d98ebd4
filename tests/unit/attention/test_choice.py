"""Which backend an engine takes, and what it says about it."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest

from kvtrove.config import ConfigError
from kvtrove.kv.retention import Full
from kvtrove.loading import choose_backend
from tests.unit.attention.test_reference import Case, Shape

LAYER = Case([(0, 1)], Full(), Shape()).layer
ODD = replace(LAYER, index=1, k_dim=20, v_dim=20)


@pytest.mark.parametrize(("wanted", "taken"), [("auto", "cpu"), ("cpu", "cpu"), ("reference", "reference")])
def test_the_kernels_are_taken_where_they_serve(wanted: str, taken: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kvtrove"):
        assert choose_backend(wanted, [LAYER], "cpu").name == taken
    assert ("attention: CPU kernels (" in caplog.text) == (taken == "cpu")


def test_auto_says_once_why_it_is_the_reference(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kvtrove"):
        assert choose_backend("auto", [LAYER, ODD], "cpu").name == "reference"
    assert caplog.messages == ["attention: plain torch, because layer 1: head_dim 20 is not a multiple of 8 up to 512"]


def test_cpu_is_refused_where_it_cannot_serve() -> None:
    with pytest.raises(ConfigError, match="attention_backend: 'cpu' cannot serve this model, 'reference' can: layer 1"):
        choose_backend("cpu", [LAYER, ODD], "cpu")
