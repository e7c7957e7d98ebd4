"""Looking at prompts without dropping any of their tokens: what compaction of a prefix has to know beforehand.

KVzip (arXiv 2505.23416) lets the model repeat a text that it has in its cache, piece by piece, and keeps what it read:

    prefix | ... piece ... | "Repeat the previous context exactly." piece        the prompt of one probe
                  ^ max over the queries of the repetition, softmax over sinks, piece and repetition
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kvtrove.kv.compaction.compactor import Usual
from kvtrove.kv.compaction.scores import SINKS, Seen

if TYPE_CHECKING:
    from torch import Tensor

Look = Callable[[int, Seen], None]
"""Told of a layer, by its number, what it shows of a sequence."""


@dataclass(frozen=True)
class Probe(Usual):
    """Shows the tokens of a prompt to `look` once all are computed, and keeps all. window: last queries to show."""

    look: Look = field(compare=False, repr=False)
    window: int = 0

    @property
    def id(self) -> str:
        return "probe/1"

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


def reconstruction(seen: Seen, start: int, stop: int) -> Tensor:
    """The most that a repetition reads of the tokens start .. stop - 1: float32 [heads, stop - start].

    The last w tokens are the repetition, whose queries were seen. Each reads the first `SINKS` tokens, the piece and
    the repetition up to itself, as if there were nothing else. The maximum is over queries and query heads.
    """
    q, k = seen.queries, seen.k
    assert q is not None, "a probe has a window"
    w, (held, heads, dim) = q.shape[0], k.shape
    sinks = min(SINKS, start)
    keys = k.new_empty((sinks + stop - start + w, heads, dim))
    keys[:sinks], keys[sinks:-w], keys[-w:] = k[:sinks], k[start:stop], k[held - w :]
    queries = q.float().transpose(0, 1).reshape(heads, -1, dim)  # [heads, shared * w, dim]
    logits = (queries @ keys.float().permute(1, 2, 0)).view(heads, -1, w, len(keys)) * seen.scale
    later = q.new_ones((w, w)).float().triu(1).bool()
    logits[..., -w:].masked_fill_(later, float("-inf"))
    read: Tensor = logits.softmax(-1)[..., sinks:-w].amax((1, 2))
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
            self.layers[layer][:, start:stop] = reconstruction(seen, start, stop)

        return Probe(look, window)


class Queries:
    """Of the last tokens of a prefix, for methods that score by them. layers: number -> [w, num_heads, k_dim]."""

    def __init__(self) -> None:
        self.layers: dict[int, Any] = {}

    def probe(self, window: int) -> Probe:
        def look(layer: int, seen: Seen) -> None:
            self.layers[layer] = seen.queries

        return Probe(look, window)
