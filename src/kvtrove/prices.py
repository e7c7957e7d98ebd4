"""What caches cost a model, as `kvtrove eval` measured it on this machine; read again when an engine starts with them.

    <home>/prices.json    {"format": ..., "prices": {key of model and cache: price}}

The key is the root of the cache's own keys: another checkpoint, precision, recipe or calibration has another.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from kvtrove.store import home_folder

log = logging.getLogger(__name__)

FORMAT = "kvtrove-prices/1"


@dataclass(frozen=True)
class Price:
    """cache: the recipe. kl: mean, in nats. top1: share of equal likeliest tokens, at least `least_top1` to be borne.

    perplexity, exact: of the text with this cache and with the exact one. predictions: how many were compared.
    """

    cache: str
    kl: float
    top1: float
    least_top1: float
    perplexity: float
    exact: float
    predictions: int

    @property
    def is_borne(self) -> bool:
        return self.top1 >= self.least_top1

    def __str__(self) -> str:
        return (
            f"KL {self.kl:.2g}, top-1 {self.top1:.1%}, perplexity {self.perplexity:.2f} instead of {self.exact:.2f} "
            f"over {self.predictions:,} predictions of `kvtrove eval`"
        )


def save(prices: Mapping[str, Price]) -> None:
    """Beside what is there. Prices are a help, not a result: where they cannot be kept, nothing is said."""
    path, known = _file(), _read()
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    content = {"format": FORMAT, "prices": known | {key: asdict(price) for key, price in prices.items()}}
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(content, indent=1), encoding="utf-8")
        beside.replace(path)


def price_of(key: str) -> Price | None:
    try:
        return Price(**_read()[key])
    except (KeyError, TypeError):
        return None


def tell(cache: str, key: str) -> None:
    """Say at a start what a cache other than "auto" costs: a warning where the model does not bear it."""
    price = price_of(key)
    if price is None:
        log.info("cache %s has not been measured on this model: kvtrove eval MODEL --cache %s", cache, cache)
    elif price.is_borne:
        log.info("cache %s: %s", cache, price)
    else:
        log.warning(
            "cache %s changes what this model says: %s; the limit is %.0f %% (--least-top1 of eval)",
            *(cache, price, 100 * price.least_top1),
        )


def _file() -> Path:
    return home_folder() / "prices.json"


def _read() -> dict[str, dict]:
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
        prices = found["prices"] if found["format"] == FORMAT else {}
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return prices if isinstance(prices, dict) else {}
