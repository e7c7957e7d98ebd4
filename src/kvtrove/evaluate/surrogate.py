"""Fitting a gate, which predicts KVzip's scores (`kv.compaction.surrogate`), to a text that the model repeats.

    text   | as it stands | as a dialogue | as it stands | ... | held out, of each kind one
    fit      log score ~ gate . (key, value, their lengths, 1)       ridge regression of each head, in closed form

Half of the text is rendered as the messages of a dialogue, so that what a chat template writes is among the tokens.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

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
SEGMENTS = 4
"""A text is cut into so many at least, of which two are held out."""
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
    fitted, held_out = _Read(), _Read()
    for i, segment in enumerate(shown):
        _repeat(engine, array("i", segment), held_out if i >= len(shown) - 2 else fitted)
    found = {}
    for layer in sorted(fitted.layers):
        x, y = held_out.of(layer)
        before = _ridge(*fitted.of(layer))
        found[gate_name(layer)] = _ridge(*(torch.cat(both, 1) for both in zip(fitted.of(layer), (x, y), strict=True)))
        found[f"{gate_name(layer)}.correlation"] = rank_correlation((x @ before[:, :, None])[..., 0], y)
    return found


class _Read:
    """What probes have found. layers: number -> features [heads, n, size] and logarithms of scores [heads, n]."""

    def __init__(self) -> None:
        self.layers: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def probe(self, start: int, stop: int, window: int) -> Probe:
        sinks = min(SINKS, start)
        piece, positions = slice(sinks, sinks + stop - start), torch.arange(start, stop)

        def look(layer: int, seen: Seen) -> None:
            assert seen.v is not None, "the probe reads values"
            assert seen.turn is not None
            x = features(seen.k[piece], seen.v[piece], seen.turn, positions.to(seen.k.device))
            y = reconstruction(seen, sinks).clamp(min=LEAST).log()
            self.layers.setdefault(layer, []).append((x.cpu(), y.cpu()))

        return Probe(look, window, range(start, stop), reads_values=True)

    def of(self, layer: int) -> tuple[Tensor, Tensor]:
        x, y = zip(*self.layers[layer], strict=True)
        return torch.cat(x, 1), torch.cat(y, 1)


def _repeat(engine: Engine, tokens: array[int], read: _Read) -> None:
    """Have the model repeat a text, and note what it read; nothing of it stays cached."""
    for piece, behind in repetitions(tokens, engine.tokenizer, engine.max_model_len):
        engine.add("repetition", tokens + behind, ASK)
        engine.scheduler.requests["repetition"].compactor = read.probe(*piece, len(behind))
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


def _ridge(x: Tensor, y: Tensor) -> Tensor:
    """Least squares of y [heads, n] by x [heads, n, size], whose last feature is 1 and costs nothing: float32
    [heads, size]. What the others cost is `RIDGE` of their variance.
    """
    x, y = x[..., :-1].double(), y.double()
    mean, level = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
    x, y = x - mean, y - level
    moments = x.mT @ x
    cost = (RIDGE * moments.diagonal(dim1=1, dim2=2)).clamp(min=1e-9).diag_embed()
    weights = torch.linalg.solve(moments + cost, (x.mT @ y[..., None])[..., 0])
    constant = level - (mean @ weights[..., None])[..., 0]
    return torch.cat([weights, constant], 1).float()


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's, along the last dimension: float32 [heads] of [heads, n]."""
    ranks = [x.argsort(dim=-1, stable=True).argsort(-1).double() for x in (one, other)]
    a, b = (x - x.mean(-1, keepdim=True) for x in ranks)
    return ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).float()
