"""Which format for which layer? Picked under a budget of bits or of KL, from what each layer alone costs.

1. every candidate in one layer at a time: its KL against the exact cache, on the first tokens of the text
2. from the exact cache on, the change with the least KL for each byte that it saves, and the next, and the next
   (errors of layers about add up, so that each change is judged once)
3. the cache so chosen, measured as a whole on all of the text; a limit of KL is held by what is measured there

layer       0     1     2     3              `int8+layers=0:bf16+layers=2:int4r`
format    bf16  int8 int4r  int8
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kvtrove.config import ConfigError
from kvtrove.engine import Engine
from kvtrove.evaluate.engines import Engines
from kvtrove.evaluate.fidelity import TextSegment
from kvtrove.evaluate.store import Store, cell_key
from kvtrove.kv.recipe import in_layers
from kvtrove.kv.spec import KVCacheSpec, LayerKV
from kvtrove.loading import Progress

CANDIDATES = ("int8", "k=int8+v=int4r", "kivi=4", "int4r", "first=64:bf16+kivi=2")
"""Formats to choose from where none are named: those of them that the model can have."""
TOKENS = 1024
"""Of the text, on which single layers are measured."""
TOGETHER = 8
"""Caches that share a run of the exact one."""
TRIES = 6
"""Caches measured as a whole for a limit of KL."""


@dataclass(frozen=True)
class Fit:
    """recipe: what `--cache` takes. bits: per element of K and V. expected: sum of its layers' KL, in nats.

    layers: candidate -> layer -> mean KL of that candidate in that layer alone.
    """

    recipe: str
    bits: float
    expected: float
    layers: dict[str, dict[int, float]]


@dataclass(frozen=True)
class State:
    """A format for each layer. bits and kl: as in Fit."""

    words: tuple[str, ...]
    bits: float
    kl: float


def bits_per_element(cache: KVCacheSpec, context: int) -> float:
    """Of what blocks hold for each element of K and V, scales and padding of planes included.

    context: tokens of a sequence, which share the bytes of its first ones where these are stored otherwise as well.
    """
    own = [layer for layer in cache.layers if layer.source is None]
    elements = sum(layer.heads * (layer.k_dim + layer.v_dim) for layer in own) * cache.block_size
    return 8 * sum(_bytes(cache, layer, context) for layer in own) / elements


def _bytes(cache: KVCacheSpec, layer: LayerKV, context: int) -> float:
    first = layer.beginning
    own = float(cache.layer_bytes(layer))
    return own if first is None else own + cache.layer_bytes(first) * min(1.0, (first.retention.kept() or 0) / context)


def fit(engines: Engines, store: Store, texts: Sequence[TextSegment], progress: Progress | None = None) -> Fit:
    """The best cache of `settings.caches` under `settings.fit_bits` or `settings.max_kl`; ConfigError if none is."""
    settings, search = engines.settings, _Search(engines, store, texts, progress)
    costs = search.costs()
    path = [*search.path(costs)]
    if settings.fit_bits is not None:
        found = next((state for state in path if state.bits <= settings.fit_bits), None)
        if found is None:
            raise ConfigError(
                f"fit_bits: {settings.fit_bits:g} bits are fewer than the smallest candidate takes, "
                f"{path[-1].bits:.2f}: add a smaller one, such as --cache kivi=2"
            )
    else:
        found = search.within(path, settings.max_kl or 0.0)
    return Fit(joined(found.words), found.bits, found.kl, costs)


def joined(words: Sequence[str]) -> str:
    """A recipe of each layer's words, in as few words as there are kinds."""
    plain = [word for word in words if "first=" not in word]  # one of first tokens is that of its own layers alone
    base = Counter(plain or words).most_common(1)[0][0]
    others: dict[str, list[int]] = {}
    for layer, word in enumerate(words):
        if word != base:
            others.setdefault(word, []).append(layer)
    return "+".join([base, *(in_layers(word, layers) for word, layers in others.items())])


def cheapest_first(
    sizes: Mapping[str, Sequence[float]], costs: Mapping[str, Mapping[int, float]], start: str
) -> Iterator[tuple[str, ...]]:
    """Formats of all layers, after each change: that with the least added cost for what it saves comes next.

    sizes: format -> bytes of each layer, 0 for layers that store nothing. costs: format -> layer -> cost, `start`
    costs nothing. A change never costs less than one that saves as much and was possible before.
    """
    now = [start] * len(sizes[start])
    yield tuple(now)
    while True:
        moves = [
            ((costs[word][layer] - spent) / saved, layer, word)
            for layer in next(iter(costs.values()), {})
            for word in costs
            for saved, spent in ((sizes[now[layer]][layer] - sizes[word][layer], _cost(costs, now[layer], layer)),)
            if saved > 0
        ]
        if not moves:
            return
        _, layer, word = min(moves)
        now[layer] = word
        yield tuple(now)


def _cost(costs: Mapping[str, Mapping[int, float]], word: str, layer: int) -> float:
    return costs[word][layer] if word in costs else 0.0


@dataclass(frozen=True)
class _Search:
    engines: Engines
    store: Store
    texts: Sequence[TextSegment]
    progress: Progress | None

    @property
    def exact(self) -> KVCacheSpec:
        return self.engines.reference.runner.cache

    @property
    def candidates(self) -> list[str]:
        """Those that are not the exact cache."""
        own, named = self.engines.exact_word, self.engines.settings.caches
        names = [name for name in dict.fromkeys(named) if name != own]
        return names if named != CANDIDATES else [name for name in names if self._is_possible(name)]

    def _is_possible(self, name: str) -> bool:
        try:
            return bool(self.engines.cache(name))
        except ConfigError:
            return False

    def costs(self) -> dict[str, dict[int, float]]:
        """Candidate -> layer -> KL, of every layer that stores keys and values."""
        first = self.texts[0]
        sample = replace(first, tokens=first.tokens[:TOKENS])
        layers = [index for index, layer in enumerate(self.exact.layers) if layer.source is None]
        places = [(name, layer) for name in self.candidates for layer in layers]
        found: dict[str, dict[int, float]] = {name: {} for name in self.candidates}
        for done in range(0, len(places), TOGETHER):
            self._tell("layers", done, len(places))
            recipes = {in_layers(name, [layer]): (name, layer) for name, layer in places[done : done + TOGETHER]}
            for text, kl in self._kl(list(recipes), [sample]).items():
                name, layer = recipes[text]
                found[name][layer] = kl
        self._tell("layers", len(places), len(places))
        return found

    def path(self, costs: Mapping[str, Mapping[int, float]]) -> Iterator[State]:
        """Ever smaller caches."""
        start = self.engines.exact_word
        caches = {name: self.engines.cache(name) for name in (start, *costs)}
        context = self.engines.settings.context or TOKENS
        sizes = {
            name: [0.0 if layer.source is not None else _bytes(cache, layer, context) for layer in cache.layers]
            for name, cache in caches.items()
        }
        per_byte = bits_per_element(caches[start], context) / sum(sizes[start])
        for words in cheapest_first(sizes, costs, start):
            total = sum(sizes[word][layer] for layer, word in enumerate(words))
            kl = sum(_cost(costs, word, layer) for layer, word in enumerate(words) if sizes[start][layer])
            yield State(words, total * per_byte, kl)

    def within(self, path: Sequence[State], limit: float) -> State:
        """The smallest cache found whose KL, measured as a whole, is no more than the limit."""
        good, bad, ratio = 0, len(path), 1.0
        for _ in range(TRIES):
            if bad - good <= 1:
                break
            promising = [i for i in range(good + 1, bad) if path[i].kl * ratio <= limit]
            at = promising[-1] if promising else good + 1
            name = joined(path[at].words)
            self._tell("whole caches", 0, 1)
            kl = self._kl([name], self.texts)[name]
            self._tell("whole caches", 1, 1)
            good, bad = (at, bad) if kl <= limit else (good, at)
            ratio = kl / max(path[at].kl, 1e-12)
        return path[good]

    def _kl(self, names: Sequence[str], texts: Sequence[TextSegment]) -> dict[str, float]:
        """Mean KL of each recipe over all predictions of the texts; what the store has is not computed again."""
        engines = {name: self.engines.started(name) for name in names}
        found: dict[str, list[float]] = {name: [] for name in names}
        for text in texts:
            keys = {name: cell_key(name, engine.runner.cache, text.key) for name, engine in engines.items()}
            missing: dict[str, Engine] = {n: e for n, e in engines.items() if self.store.get(keys[n]) is None}
            for name, value in text.run(missing) if missing else ():
                self.store.put(keys[name], value)
            for name, key in keys.items():
                kept = self.store.get(key)
                found[name] += kept["kl"] if kept else []
        for engine in engines.values():
            engine.close()
        return {name: float(np.mean(kl)) for name, kl in found.items()}

    def _tell(self, what: str, done: int, total: int) -> None:
        if self.progress:
            self.progress(what, done, total)
