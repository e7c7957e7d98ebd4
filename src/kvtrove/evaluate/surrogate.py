"""Fitting a gate, which predicts KVzip's scores (`kv.compaction.surrogate`), to a text that the model repeats.

    text   | as it stands | as a dialogue | as it stands | ... | checks the gate, then counts as well
    fit      log score ~ gate . (key, value, their lengths, 1)       ridge regression of each head, in closed form

Half of the text is rendered as the messages of a dialogue, so that what a chat template writes is among the tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvtrove.compacting import repetitions
from kvtrove.config import ConfigError
from kvtrove.engine import Engine
from kvtrove.evaluate.prefix import PROBES
from kvtrove.kv.compaction.fits import reasons_against
from kvtrove.kv.compaction.reconstruct import Probe, reconstruction
from kvtrove.kv.compaction.scores import SINKS, Seen
from kvtrove.kv.compaction.surrogate import LEAST, features, gate_name
from kvtrove.kv.compaction.words import COMPACTORS
from kvtrove.request import SamplingParams
from kvtrove.text.tokenizer import Tokenizer

RIDGE = 1e-3
"""Share of each feature's variance that is added to it: features of keys are nearly dependent in some heads."""
SEGMENTS, HELD_OUT = 4, 2
"""A text is cut into so many at least; the last ones, one of each kind, check what the others have given."""
SHORTEST = 64
"""Tokens of a segment."""
ASK = SamplingParams(temperature=0, max_tokens=1, detokenize=False, exact_prefix=True)


def room_of(engine: Engine, tokens: int) -> int:
    """Tokens of a segment of a text of `tokens` that the model can repeat in its context."""
    return max(SHORTEST, min(tokens // SEGMENTS, max(engine.max_model_len - PROBES, engine.max_model_len // 2)))


def fit_gate(engine: Engine, segments: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """The gate of every layer, and the rank correlation of its predictions with KVzip's scores in what was held out:
    `gate.0` and `gate.0.correlation`, float32 [heads].

    engine: with the exact cache, in which prefixes are found. ConfigError where its layers keep all tokens, or the text
    is too short.
    """
    if reasons := reasons_against(COMPACTORS["kvzip"].make("0.5"), engine.runner.cache):
        raise ConfigError(f"surrogate: {reasons[0]}: a gate would be of no use")
    long = [[*segment] for segment in segments if len(segment) >= SHORTEST]
    if len(long) < SEGMENTS:
        raise ConfigError(
            f"text: {sum(map(len, segments))} tokens are too few to fit a gate and to check it; give a longer text, or "
            "leave --surrogate out"
        )
    shown = [_as_dialogue(one, engine.tokenizer) if i % 2 else one for i, one in enumerate(long)]
    layers: dict[int, Regression] = {}
    for segment in shown[:-HELD_OUT]:
        _repeat(engine, array("i", segment), layers)
    for one in layers.values():
        one.checked = one.solved()
    for segment in shown[-HELD_OUT:]:
        _repeat(engine, array("i", segment), layers)
    found = {}
    for layer, one in sorted(layers.items()):
        found[gate_name(layer)], found[f"{gate_name(layer)}.correlation"] = one.solved(), one.correlation
    return found


@dataclass(eq=False)
class Regression:
    """Least squares of y [heads, n] by x [heads, n, size], whose last feature is 1: float64 sums over all that was
    added. checked: float32 [heads, size], whose predictions of what is added from then on are compared with it.
    """

    squares: Tensor
    products: Tensor
    checked: Tensor | None = None
    ranked: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, heads: int, size: int) -> Regression:
        return cls(torch.zeros(heads, size, size, dtype=torch.float64), torch.zeros(heads, size, dtype=torch.float64))

    def add(self, x: Tensor, y: Tensor) -> None:
        if self.checked is not None:
            self.ranked.append(((x @ self.checked[..., None])[..., 0], y))
        x, y = x.double(), y.double()
        self.squares += x.mT @ x
        self.products += (x.mT @ y[..., None])[..., 0]

    def solved(self) -> Tensor:
        """float32 [heads, size]. A weight costs `RIDGE` of what its feature varies, that of the constant nothing."""
        squares, products = self.squares[:, :-1, :-1], self.products[:, :-1]
        count, sums, level = self.squares[0, -1, -1], self.squares[:, :-1, -1], self.products[:, -1:]
        squares = squares - sums[:, :, None] * sums[:, None, :] / count
        products = products - sums * level / count
        cost = (RIDGE * squares.diagonal(dim1=1, dim2=2)).clamp(min=1e-9).diag_embed()
        weights = torch.linalg.solve(squares + cost, products[..., None])[..., 0]
        constant = (level - (sums * weights).sum(1, keepdim=True)) / count
        return torch.cat([weights, constant], 1).float()

    @property
    def correlation(self) -> Tensor:
        predicted, y = (torch.cat(parts, 1) for parts in zip(*self.ranked, strict=True))
        return rank_correlation(predicted, y)


def _probe(layers: dict[int, Regression], start: int, stop: int, window: int) -> Probe:
    """Adds the tokens start .. stop - 1 of a text to the regressions of its layers."""
    sinks = min(SINKS, start)
    piece, positions = slice(sinks, sinks + stop - start), torch.arange(start, stop)

    def look(layer: int, seen: Seen) -> None:
        assert seen.v is not None, "the probe reads values"
        assert seen.turn is not None
        x = features(seen.k[piece], seen.v[piece], seen.turn, positions.to(seen.k.device)).cpu()
        y = reconstruction(seen, sinks).clamp(min=LEAST).log().cpu()
        layers.setdefault(layer, Regression.of(x.shape[0], x.shape[2])).add(x, y)

    return Probe(look, window, range(start, stop), reads_values=True)


def _repeat(engine: Engine, tokens: array[int], layers: dict[int, Regression]) -> None:
    """Have the model repeat a text, and add what it read; nothing of it stays cached."""
    for piece, behind in repetitions(tokens, engine.tokenizer, engine.max_model_len):
        engine.add("repetition", tokens + behind, ASK)
        engine.scheduler.requests["repetition"].compactor = _probe(layers, *piece, len(behind))
        while engine.has_unfinished_requests():
            engine.step()
    engine.runner.rows.settle(engine.kv)
    engine.reset_prefix_cache()


def _as_dialogue(segment: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Its paragraphs as messages of a user and an assistant in turn, cut to as many tokens."""
    if tokenizer.chat_template is None:
        return [*segment]
    paragraphs = [text for text in tokenizer.decode(segment).split("\n\n") if text.strip()]
    messages = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(paragraphs)]
    rendered = tokenizer.chat_template.render(messages, add_generation_prompt=False)
    return tokenizer.encode(rendered, add_special_tokens=False)[: len(segment)]


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's, along the last dimension: float32 [heads] of [heads, n]."""
    ranks = [x.argsort(dim=-1, stable=True).argsort(-1).double() for x in (one, other)]
    a, b = (x - x.mean(-1, keepdim=True) for x in ranks)
    return ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).float()
