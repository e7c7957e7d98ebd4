"""Prices of caches: kept by key, told when an engine starts, and never in the way."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from kvtrove import prices
from kvtrove.config import EngineConfig
from kvtrove.demo import demo_model_dir
from kvtrove.engine import Engine
from kvtrove.prices import Price

GOOD = Price("int8", 0.0004, 0.98, 0.9, 15.0, 14.9, 2047)
BAD = Price("kivi=2", 0.3, 0.75, 0.9, 20.0, 14.9, 2047)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVTROVE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_what_is_kept_is_found_beside_what_was_there(home: Path) -> None:
    prices.save({"a": GOOD})
    prices.save({"b": BAD})
    assert (prices.price_of("a"), prices.price_of("b"), prices.price_of("c")) == (GOOD, BAD, None)
    assert [path.name for path in home.iterdir()] == ["prices.json"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "kvtrove-prices/1", "prices": {"a": {"kl": 1}}}'])
def test_a_file_that_is_something_else_is_no_price(home: Path, content: str) -> None:
    home.mkdir()
    (home / "prices.json").write_text(content)
    assert prices.price_of("a") is None


def test_a_start_with_a_cache_that_the_model_does_not_bear_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "kvtrove.prices")

    def said(cache: str, price: Price | None) -> list[tuple[str, str]]:
        caplog.clear()
        config = EngineConfig(str(demo_model_dir()), cache=cache, num_blocks=8, max_model_len=64, warm_up=False)
        engine = Engine(config)
        if price:
            prices.save({engine.kv.chain_root(b"").hex(): price})
            caplog.clear()
            Engine(config)
        return [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "kvtrove.prices"]

    [(level, text)] = said("kivi=2", BAD)
    assert level == "WARNING"
    assert text.startswith(
        "cache kivi=2 changes what this model says: KL 0.3, top-1 75.0%, perplexity 20.00 instead of"
    )
    assert said("int8", GOOD) == [("INFO", f"cache int8: {GOOD}")]
    [(level, text)] = said("int4r", None)
    assert (level, text) == (
        "INFO",
        "cache int4r has not been measured on this model: kvtrove eval MODEL --cache int4r",
    )
    assert said("auto", None) == []
