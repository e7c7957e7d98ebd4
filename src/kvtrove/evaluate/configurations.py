"""Which caches can be compared: a name, and what it changes in the exact cache.

    window=256+bf16      names joined by "+" change the cache one after the other

The exact cache stores K and V in the model's compute dtype and keeps what the model reads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from kvtrove.config import ConfigError, nearest
from kvtrove.kv.formats.dense import DenseFormat
from kvtrove.kv.formats.int8 import Int8Format
from kvtrove.kv.retention import Full, SlidingWindow
from kvtrove.kv.spec import KVCacheSpec, KVFormat

EXACT = "exact"

Change = Callable[[KVCacheSpec], KVCacheSpec]


def exact(cache: KVCacheSpec) -> KVCacheSpec:
    return cache


def stored_as(kv_format: KVFormat) -> Change:
    """Every layer's K and V in this format."""
    return lambda cache: replace(cache, layers=tuple(replace(layer, format=kv_format) for layer in cache.layers))


def window(tokens: int) -> Change:
    """Layers that read everything read the last `tokens` tokens instead, themselves included."""

    def change(cache: KVCacheSpec) -> KVCacheSpec:
        rule = SlidingWindow(tokens)
        layers = (replace(one, retention=rule) if one.retention == Full() else one for one in cache.layers)
        return replace(cache, layers=tuple(layers))

    return change


PLAIN: Mapping[str, Change] = {
    EXACT: exact,
    "fp32": stored_as(DenseFormat("float32")),
    "bf16": stored_as(DenseFormat("bfloat16")),
    "fp16": stored_as(DenseFormat("float16")),
    "int8": stored_as(Int8Format()),
}
WITH_NUMBER: Mapping[str, Callable[[int], Change]] = {"window": window}
DEFAULT = ("fp32", "bf16", "fp16", "int8", "window=256", "window=1024")


@dataclass(frozen=True)
class Configuration:
    """name: as it was asked for. changes: applied in order."""

    name: str
    changes: tuple[Change, ...]

    def __call__(self, cache: KVCacheSpec) -> KVCacheSpec:
        """ConfigError when the result cannot work."""
        for change in self.changes:
            cache = change(cache)
        if reasons := cache.check():
            raise ConfigError(f"kv: {self.name!r} cannot work: {reasons[0]}")
        return cache


def configuration(name: str) -> Configuration:
    """ConfigError for an unknown name, with the nearest known one."""
    return Configuration(name, tuple(_change(part.strip(), name) for part in name.split("+")))


def configurations(names: tuple[str, ...]) -> list[Configuration]:
    """Those named, each once, after the exact one, which all are compared with."""
    return [configuration(name) for name in dict.fromkeys((EXACT, *names))]


def _change(part: str, name: str) -> Change:
    word, sign, number = part.partition("=")
    if not sign and word in PLAIN:
        return PLAIN[word]
    if sign and word in WITH_NUMBER:
        if not number.isdecimal() or int(number) < 1:
            raise ConfigError(f"kv: {name!r}: {word} needs a whole number of at least 1, such as {word}=256")
        return WITH_NUMBER[word](int(number))
    known = [*PLAIN, *(f"{other}=N" for other in WITH_NUMBER)]
    raise ConfigError(f"kv: {name!r} is not known{nearest(part, known)}; there are {', '.join(known)}")
