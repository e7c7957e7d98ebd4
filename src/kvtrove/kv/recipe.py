"""Recipes: what a cache stores and keeps, in words that mean the same wherever a cache is named.

    int8                    K and V of every layer as int8
    k=int8+v=int4r          K and V apart
    lowrank=0.5@FILE        half of each vector's coefficients on a calibrated basis; lowrank=0.5,int8@FILE: as int8
    edges=2:int8+int4r      the first and the last 2 layers as int8, the others as int4r
    layers=3,7:bf16+int4r   layers 3 and 7 as bf16 (they count from 0)
    sliding:int8            layers with a window; full: those that read everything
    window=1024             layers that read everything read the last 1024 tokens instead, themselves included
    sinks=4+window=1024     and the first 4 (StreamingLLM, arXiv 2309.17453, with true positions)
    first=64:bf16+int4r     the first 64 tokens of every sequence as bf16, all others as int4r
    chunk=8192              or their own chunk of 8192
    quest=1024              queries read the blocks of 1024 tokens that promise most, and their own; nothing leaves
    doublesparsity=1/16@FILE   one block of 16, chosen by channels that `kvtrove calibrate` found
    keydiff=0.5             of a prompt, every head keeps half of the tokens; keydiff=2048: so many
    streaming=4+1024        sequences keep their first 4 tokens and the last 1024, and never end

Words are joined by "+". A recipe changes the exact cache, which stores what the model computes and keeps what it reads;
"auto" is that cache. Words of formats, of what queries read and of what is dropped lie in `words.py` of `formats/`,
`selection/` and `compaction/`: engine, planner, simulator, benchmarks and evaluation take a new one from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from kvtrove.config import ConfigError, nearest
from kvtrove.kv.compaction.compactor import Compactor
from kvtrove.kv.compaction.words import COMPACTORS, VARIANTS
from kvtrove.kv.formats.dense import Dense
from kvtrove.kv.formats.words import ALIASES, FORMATS, examples
from kvtrove.kv.retention import ChunkedLocal, Full, Retention, SinksAndWindow, SlidingWindow
from kvtrove.kv.selection.words import SELECTORS
from kvtrove.kv.spec import First, KVCacheSpec, KVFormat, LayerKV

EXACT = "auto"
RETENTIONS: Mapping[str, str] = {
    "window": "the last N tokens, themselves included",
    "sinks": "with window=N: the first N tokens as well",
    "chunk": "their own chunk of N tokens",
}
DENSE_LAYERS = 2
"""The first layers, which read everything unless they are named, as in Quest (arXiv 2406.10774): their attention is
not sparse."""
SCOPES: Mapping[str, str] = {
    "edges": "edges=N: the first and the last N layers",
    "layers": "layers=A,B,...: these, counted from 0",
    "full": "layers that read everything",
    "sliding": "layers that do not",
    "first": "first=N: the first N tokens of a sequence, in layers that read them to the end",
}
_ANY = LayerKV(0, 1, 1, 1, KVFormat(Dense("k", "float32"), Dense("v", "float32")))
"""A layer to try arguments of words on, before there is a model."""


@dataclass(frozen=True)
class _Part:
    """One word of a recipe. scope: layers that it is for; None is all. side: "" is both. first: tokens; 0 is all."""

    text: str
    scope: Callable[[int, KVCacheSpec], bool] | None
    side: str
    word: str
    value: str
    first: int = 0


@dataclass(frozen=True)
class Recipe:
    """A change of the exact cache. text: as it was written."""

    text: str
    parts: tuple[_Part, ...] = field(repr=False, compare=False)

    @property
    def compactor(self) -> Compactor | None:
        made = next((COMPACTORS[part.word].make(part.value) for part in self.parts if part.word in COMPACTORS), None)
        for part in self.parts:
            if part.word in VARIANTS and made is not None:
                made = VARIANTS[part.word].change(made, part.value)
        return made

    def __call__(self, cache: KVCacheSpec) -> KVCacheSpec:
        """ConfigError when the result cannot work, with the reason."""
        layers = tuple(self._layer(index, layer, cache) for index, layer in enumerate(cache.layers))
        if any(part.first for part in self.parts) and not any(layer.first for layer in layers):
            raise ConfigError(f"cache: {self.text!r}: no layer reads first tokens to the end that it stores otherwise")
        compactor = self.compactor
        compactor = cache.compactor if compactor is None else compactor.in_blocks_of(cache.block_size)
        changed = replace(cache, layers=layers, compactor=compactor)
        if reasons := changed.check():
            raise ConfigError(f"cache: {self.text!r} cannot work: {reasons[0]}")
        return changed

    @property
    def name(self) -> str:
        """In this package's words."""
        return "+".join(map(_spelled, self.parts)) or EXACT

    def _layer(self, index: int, layer: LayerKV, cache: KVCacheSpec) -> LayerKV:
        mine = [part for part in self.parts if part.scope is None or part.scope(index, cache)]
        mine.sort(key=lambda part: (part.scope is not None, part.side != ""))  # what is particular comes last
        changed = layer.format
        for part in mine:
            if part.word in FORMATS and not part.first:
                changed = _stored(changed, part, layer)
        selects = [p for p in mine if p.word in SELECTORS and (p.scope or index >= DENSE_LAYERS)]
        kept = _kept(layer.retention, mine)
        if selects and kept == Full():
            changed = replace(changed, select=SELECTORS[selects[-1].word].make(selects[-1].value, layer.layer))
        first = _first(layer, [part for part in mine if part.first])
        reads_it = layer.source is None and isinstance(kept, Full | SinksAndWindow)
        if first is None or first.format.id == changed.id or not reads_it:
            first = layer.first
        return replace(layer, format=changed, retention=kept, first=first)


def recipe(text: str) -> Recipe:
    """ConfigError for a word that is unknown, with the nearest known one, and for words that contradict each other."""
    if text.strip() in ("", EXACT, "exact"):
        return Recipe(text, ())
    parts = tuple(_part(part.strip(), text) for part in re.split(r"\+(?!\s*\d+\s*(?:\+|$))", text))
    said: set[tuple[str, str]] = set()
    for part in parts:
        place = part.text.rpartition(":")[0] if part.scope or part.first else ""
        for what in _said(part):
            if (place, what) in said:
                raise ConfigError(
                    f"cache: {text!r} says twice how to store or keep the same: leave one of the words out"
                )
            said.add((place, what))
    words = {part.word for part in parts}
    if len(first := sorted({part.first for part in parts if part.first})) > 1:
        raise ConfigError(f"cache: {text!r}: first={first[0]} and first={first[1]} contradict each other; take one")
    if "sinks" in words and "window" not in words:
        raise ConfigError(f"cache: {text!r}: sinks go with a window, such as sinks=4+window=1024")
    variants = sorted(words.intersection(VARIANTS))
    if variants and not words.intersection(COMPACTORS):
        raise ConfigError(f"cache: {text!r}: {variants[0]} goes with a way to drop tokens: {variants[0]}+snapkv=0.2")
    if "chunk" in words and "window" in words:
        raise ConfigError(f"cache: {text!r}: a chunk and a window contradict each other; take one of them")
    made = Recipe(text, parts)
    _ = made.compactor  # raises
    return made


def _said(part: _Part) -> tuple[str, ...]:
    """What a part decides."""
    if part.word in FORMATS:
        return (part.side or "kv",)
    return ("dropped",) if part.word in COMPACTORS else (part.word,)


def known_words() -> Iterator[str]:
    """Every word, with an example of its argument."""
    yield from examples()
    yield from ("k=FORMAT", "v=FORMAT", "window=N", "sinks=N", "chunk=N")
    yield from (f"{word}={known.argument}" for word, known in SELECTORS.items())
    yield from (f"{word}={known.argument}" for word, known in COMPACTORS.items())
    yield from (f"{word}+WORD" for word in VARIANTS)
    yield from ("edges=N:WORD", "layers=A,B:WORD", "full:WORD", "sliding:WORD", "first=N:WORD")


def in_layers(words: str, layers: Sequence[int]) -> str:
    """The recipe of a format in some layers alone. ConfigError for words that say more than a format."""
    parts = recipe(words).parts
    if not parts or any(part.scope or part.word in RETENTIONS for part in parts):
        raise ConfigError(f"cache: {words!r} is more than a format, and cannot be tried in one layer after the other")
    place = f"layers={','.join(map(str, layers))}"
    return "+".join(f"{place}:{_spelled(part)}" for part in parts)


def _part(part: str, text: str) -> _Part:
    place, colon, rest = part.rpartition(":")
    outer, _, last = place.rpartition(":") if _split(place.rpartition(":")[2])[0] == "first" else (place, "", "")
    first = _number(_split(last)[1], "first", text) if last else 0
    scope = _scope(outer, text) if colon and (outer or not first) else None
    side, word, value = "", *_split(rest)
    if word in ("k", "v"):
        side, (word, value) = word, _split(value)
    word = ALIASES.get(word, word)
    if word in SCOPES or (first and word not in FORMATS):
        where = f"first={first}" if first else rest
        raise ConfigError(f"cache: {text!r}: {where} names how tokens are stored, such as {where}:bf16")
    if word in FORMATS:
        FORMATS[word].make("k", value, _ANY) if FORMATS[word].argument else _no_value(value, word, text)
    elif word in RETENTIONS and not side:
        _number(value, word, text, least=0 if word == "sinks" else 1)
    elif word in SELECTORS and not side:
        SELECTORS[word].make(value, 0)
    elif word in (*COMPACTORS, *VARIANTS) and not side:
        if colon:
            raise ConfigError(f"cache: {text!r}: {word} drops tokens of all layers alike; write {rest}")
    else:
        known = [*known_words()]
        names = [*FORMATS, *ALIASES, *RETENTIONS, *SELECTORS, *COMPACTORS, *VARIANTS, *SCOPES, "k", "v"]
        raise ConfigError(f"cache: {text!r}: {word!r} is not known{nearest(word, names)}; there are {', '.join(known)}")
    return _Part(part, scope, side, word, value, first)


def _split(text: str) -> tuple[str, str]:
    word, _, value = text.partition("=")
    return word.strip(), value.strip()


def _scope(place: str, text: str) -> Callable[[int, KVCacheSpec], bool]:
    word, value = _split(place)
    if word == "edges":
        count = _number(value, word, text)
        return lambda index, cache: index < count or index >= len(cache.layers) - count
    if word == "layers":
        chosen = {_number(one.strip(), word, text, least=0) for one in value.split(",")}
        return partial(_among, chosen, text)
    if word in ("full", "sliding"):
        _no_value(value, word, text)
        return lambda index, cache: (cache.layers[index].retention == Full()) == (word == "full")
    raise ConfigError(
        f"cache: {text!r}: {word!r} names no layers{nearest(word, SCOPES)}; there are {', '.join(SCOPES)}"
    )


def _among(chosen: set[int], text: str, index: int, cache: KVCacheSpec) -> bool:
    known = [layer.layer for layer in cache.layers]
    if missing := chosen.difference(known):
        numbers = f"the {len(known)} layers count from 0 to {len(known) - 1}"
        if known != list(range(len(known))):
            numbers = f"keys and values are kept by layers {', '.join(map(str, known))}"
        raise ConfigError(f"cache: {text!r}: there is no layer {max(missing)}, {numbers}")
    return known[index] in chosen


def _number(value: str, word: str, text: str, least: int = 1) -> int:
    if not value.isdecimal() or int(value) < least:
        small = {"sinks": 4, "edges": 4, "first": 64}
        example = "layers=0,3" if word == "layers" else f"{word}={small.get(word, 1024)}"
        raise ConfigError(f"cache: {text!r}: {word} needs a whole number of at least {least}, such as {example}")
    return int(value)


def _no_value(value: str, word: str, text: str) -> None:
    if value:
        raise ConfigError(f"cache: {text!r}: {word} takes no value; write {word}")


def _stored(kv_format: KVFormat, part: _Part, layer: LayerKV) -> KVFormat:
    """A side that is read out of the other one stays so."""
    make = FORMATS[part.word].make
    k, v = kv_format.k, kv_format.v
    if part.side != "v" and k is not None:
        k = make("k", part.value, layer)
    if part.side != "k" and v is not None:
        v = make("v", part.value, layer)
    return replace(kv_format, k=k, v=v)


def _first(layer: LayerKV, parts: list[_Part]) -> First | None:
    stored = layer.format
    for part in parts:
        stored = _stored(stored, part, layer)
    return First(parts[0].first, stored) if parts else None


def _kept(rule: Retention, parts: list[_Part]) -> Retention:
    """Of a layer that reads everything; other layers keep what they read."""
    numbers = {part.word: int(part.value) for part in parts if part.word in RETENTIONS}
    if rule != Full() or not numbers:
        return rule
    if "chunk" in numbers:
        return ChunkedLocal(numbers["chunk"])
    if numbers.get("sinks"):
        return SinksAndWindow(numbers["sinks"], numbers["window"])
    return SlidingWindow(numbers["window"])


def _spelled(part: _Part) -> str:
    place = part.text.rpartition(":")[0] + ":" if part.scope or part.first else ""
    side = f"{part.side}=" if part.side else ""
    return f"{place}{side}{part.word}" + (f"={part.value}" if part.value else "")
