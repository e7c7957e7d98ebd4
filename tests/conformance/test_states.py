"""Every kind of running state, whatever the history and beside whatever format: one result for each token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kvtrove.kv.plane import LayerState, Plane
from kvtrove.models.layers.delta import delta_rule
from kvtrove.models.layers.mamba import scan
from kvtrove.models.layers.state import StateBatch, causal_conv
from kvtrove.scheduler.output import ScheduledSequence
from tests.conformance.test_formats import BACKENDS, HISTORIES, TOKENS, VOCAB, World, truncated

HEADS, KEY, VALUE, CHANNELS = 3, 8, 24, 20
SHAPES = {"conv": (3, CHANNELS), "delta": (HEADS, KEY, VALUE), "mamba": (HEADS, VALUE, KEY)}


class Hybrid(World):
    """With one layer of a kind of state beside those that attend."""

    def __init__(self, words: str, mixer: str) -> None:
        state = LayerState(9, mixer, (Plane("state", "float32", SHAPES[mixer]),))
        super().__init__(words, BACKENDS["reference"], states=(state,))
        self.mixer, self.beside = mixer, dict[tuple[int, int], Tensor]()
        generator = torch.Generator().manual_seed(7)

        def draw(*shape: int) -> Tensor:
            return torch.randn(VOCAB, *shape, generator=generator)

        gates = [draw(HEADS).sigmoid() for _ in "gb"]
        self.inputs = {
            "conv": [draw(CHANNELS)],
            "delta": [draw(HEADS, KEY), draw(HEADS, KEY), draw(HEADS, VALUE), *gates],
            "mamba": [draw(HEADS, VALUE), draw(HEADS, KEY), draw(HEADS, KEY), gates[0]],
        }[mixer]
        self.taps = draw(CHANNELS)[:4], draw(CHANNELS)[0]

    def follow(self, scheduled: list[ScheduledSequence], handles: list[int]) -> None:
        self.arena.forget_states([s.seat for s in scheduled if s.start == 0])
        tokens = torch.tensor([token for s in scheduled for token in s.tokens])
        starts = [sum(len(s.tokens) for s in scheduled[:i]) for i in range(len(scheduled) + 1)]
        batch = StateBatch(starts, [s.seat for s in scheduled], self.arena.states)
        rows, state = [x[tokens] for x in self.inputs], self.arena.states[9]["state"]
        if self.mixer == "conv":
            found = causal_conv(*rows, *self.taps, state, batch)
        else:
            found = (delta_rule if self.mixer == "delta" else scan)(*rows, state, batch)
        places = [
            (handle, s.start + i) for handle, s in zip(handles, scheduled, strict=True) for i in range(len(s.tokens))
        ]
        self.beside |= dict(zip(places, found, strict=True))


@pytest.mark.parametrize("words", ["auto", "int8", "window=20+int8", "kivi=2"])
@pytest.mark.parametrize("mixer", SHAPES)
def test_no_history_shows_in_states(mixer: str, words: str) -> None:
    world = Hybrid(words, mixer)
    alone = world.compute(world.books.open(), TOKENS, 1)
    expected = world.arena.states[9]["state"][alone.seat]
    for history in HISTORIES:
        if history is truncated:
            continue  # back to the last checkpoint, of which the window has given up what it would read
        other = Hybrid(words, mixer)
        kv = history(other)
        assert other.books.check() == []
        assert torch.equal(other.arena.states[9]["state"][kv.seat], expected), history.__name__
        for (handle, p), row in other.beside.items():
            if handle == id(kv):
                assert torch.equal(row, world.beside[id(alone), p]), f"{history.__name__}, token {p}"
