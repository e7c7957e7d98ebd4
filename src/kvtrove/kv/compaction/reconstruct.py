"""Looking at prompts without dropping any of their tokens: what compaction of a prefix has to know beforehand.

KVzip (arXiv 2505.23416) lets the model repeat a text that it has in its cache, piece by piece, and keeps what it read:

    prefix | ... piece ... | "Repeat the previous context exactly." piece        the prompt of one probe
                  ^ max over the queries of the repetition, softmax over sinks, piece and repetition
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvtrove.kv.compaction.compactor import Usual
from kvtrove.kv.compaction.scores import SINKS, Seen

if TYPE_CHECKING:
    from torch import Tensor

Look = Callable[[int, Seen], None]
"""Told of a layer, by its number, what it shows of a sequence."""
PROBABILITIES = 1 << 17
"""Of a repetition that are held at once: half a megabyte."""


@dataclass(frozen=True)
class Probe(Usual):
    """Shows a prompt to `look` once all of it is computed, and keeps all. window: last queries to show.

    piece: the keys of these tokens are shown, with those of the first `SINKS` and of the window; none if it is empty.
    reads_values: so are their values.
    """

    look: Look = field(compare=False, repr=False)
    window: int = 0
    piece: range = range(0)
    reads_values: bool = False

    @property
    def id(self) -> str:
        return "probe/1"

    def places(self, held: int) -> Sequence[int]:
        """Tokens whose keys are shown, of `held`."""
        sinks = range(min(SINKS, self.piece.start))
        return [*sinks, *self.piece, *range(held - self.window, held)] if self.piece else ()

    def due(self, num_prompt: int, dropped: int) -> int:
        return num_prompt

    def kept(self, held: int, dropped: int = 0) -> int:
        return held

    def most(self, num_tokens: int) -> int:
        return num_tokens

    def keep(self, seen: Seen) -> Tensor:
        raise NotImplementedError("it keeps all")

    def problems(self, block_size: int) -> list[str]:
        return []


def reconstruction(seen: Seen, sinks: int) -> Tensor:
    """The most that a repetition reads of the tokens of a piece: float32 [heads, tokens of the piece].

    Keys are those of `sinks` first tokens, of the piece and of the repetition, whose w queries were seen. Each reads
    them up to itself, as if there were nothing else. The maximum is over queries and query heads. Few queries at a
    time, so that their probabilities stay in a processor's cache.
    """
    assert seen.queries is not None, "a probe has a window"
    (w, num_heads, dim), (held, heads, _) = seen.queries.shape, seen.k.shape
    shared, behind = num_heads // heads, held - w
    q = (seen.queries.float() * seen.scale).view(w, heads, shared, dim).transpose(0, 1)  # [heads, w, shared, dim]
    keys = seen.k.float().permute(1, 2, 0).contiguous()
    read = keys.new_zeros((heads, behind - sinks))
    step = max(1, PROBABILITIES // (num_heads * held))
    for start in range(0, w, step):
        stop = min(start + step, w)
        logits = q[:, start:stop].flatten(1, 2) @ keys[..., : behind + stop]  # [heads, (stop - start) * shared, ...]
        later = logits.new_ones((stop - start, stop - start)).triu(1).bool().repeat_interleave(shared, 0)
        logits[..., behind + start :].masked_fill_(later, float("-inf"))
        read = read.maximum(logits.softmax(-1)[..., sinks:behind].amax(1))
    return read


class Scores:
    """Of the first `num_tokens` tokens of a prefix, as far as probes have found them. layers: number -> [heads, n]."""

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.layers: dict[int, Tensor] = {}

    def probe(self, start: int, stop: int, window: int) -> Probe:
        """Takes what the last `window` tokens of a prompt read of the tokens start .. stop - 1."""

        def look(layer: int, seen: Seen) -> None:
            if layer not in self.layers:
                unread = seen.k.new_zeros((seen.k.shape[1], self.num_tokens)).float()
                unread[:, :SINKS] = float("inf")
                self.layers[layer] = unread
            self.layers[layer][:, start:stop] = reconstruction(seen, min(SINKS, start))

        return Probe(look, window, range(start, stop))


class Queries:
    """Of the last tokens of a prefix, for methods that score by them. layers: number -> [w, num_heads, k_dim]."""

    def __init__(self) -> None:
        self.layers: dict[int, Any] = {}

    def probe(self, window: int) -> Probe:
        def look(layer: int, seen: Seen) -> None:
            self.layers[layer] = seen.queries

        return Probe(look, window)
