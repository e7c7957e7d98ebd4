"""Compactors: when a sequence gives up some of its tokens, and which ones. Metadata only; scores are `scores.py`.

    tokens   | 0 ......................... computed | next        a sequence of 1,000 tokens that keeps 250 of them
    table    | 0 ....... held |                                   places 0 .. 249 of its blocks; the next goes to 250
             positions 3, 8, 9, ... each (layer, head) its own    the next token still is at position 1,000

Keys are stored rotated and attention does not ask in which order they lie, so every head of every layer may keep tokens
of its own. As long as all keep equally many, tables, kernels and planning see a shorter sequence and nothing else;
unequal heads keep whole blocks, in rows that are cut into cells (`kv.cells`). A compactor that moves tokens
(`contiguous`) turns their keys to the positions that they have now, as if the others had never been there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING, Protocol, Self

from kvtrove.kv.compaction.budgets import Budgets, in_blocks
from kvtrove.kv.formats.calibration import Calibration

if TYPE_CHECKING:
    from torch import Tensor

    from kvtrove.kv.compaction.scores import Seen

NEVER = 1 << 62


class Compactor(Protocol):
    """A frozen dataclass. `id` ("keydiff=0.5/1") stands for what it does to a sequence: it enters derived keys."""

    @property
    def id(self) -> str: ...
    @property
    def contiguous(self) -> bool:
        """Whether kept tokens move to positions 0, 1, 2, ...; else each keeps its own."""
        ...

    @property
    def window(self) -> int:
        """Queries of the last tokens of a prompt that it scores with; 0 when keys and places suffice."""
        ...

    def due(self, num_prompt: int, dropped: int) -> int:
        """Number of computed tokens at which a sequence that has `dropped` some is compacted next; NEVER."""
        ...

    @property
    def reads_values(self) -> bool:
        """Whether it scores by values as well as by keys."""
        ...

    @property
    def calibration(self) -> Calibration | None:
        """What it scores by beside the cache. Its digest is part of `id`."""
        ...

    @property
    def on_demand(self) -> bool:
        """Whether it compacts prefixes that somebody names, once for all, instead of the prompts of requests."""
        ...

    @property
    def unequal(self) -> bool:
        """Whether heads keep different numbers of tokens (`AfterPrompt.blocks`)."""
        ...

    def kept(self, held: int, dropped: int = 0) -> int:
        """How many of `held` tokens stay for every layer and head, after `dropped` have left before; where heads are
        unequal, places that these take.
        """
        ...

    def most(self, num_tokens: int) -> int:
        """Most tokens that a sequence of `num_tokens` ever holds, whatever of them is prompt."""
        ...

    def keep(self, seen: Seen) -> Tensor:
        """int64 [heads, kept], places in the table in ascending order, of one layer."""
        ...

    def in_blocks_of(self, block_size: int) -> Compactor:
        """The same for a cache of such blocks."""
        ...

    def problems(self, block_size: int) -> list[str]:
        """Why there cannot be such a compactor; empty when there can."""
        ...


class Usual:
    """What a compactor is where it says nothing else: equal heads, each token at its place, scored by keys alone."""

    contiguous = False
    window = 0
    reads_values = False
    calibration: Calibration | None = None
    on_demand = False
    unequal = False

    def in_blocks_of(self, block_size: int) -> Self:
        return self


def made_by(calibration: Calibration | None) -> str:
    """The part of an id that says what a compactor scores by."""
    return "" if calibration is None else f"@{calibration.digest[:16]}"


@dataclass(frozen=True)
class AfterPrompt:
    """Scores the tokens of a prompt once all are computed, and keeps the best `budget` of them in every head.

    method: its word. budget: a share of the prompt (a float up to 1), or a number of tokens. score: float32
    [heads, held] of what was seen of a layer. window: queries that it needs. recent: last tokens that always stay, most
    often a question; the window's are among them. sinks: first tokens that do. budgets: None is the same for all heads.
    on_demand: prefixes that somebody names are compacted, and no prompt. reconstructs: by scores that are found
    beforehand (`kv.compaction.reconstruct`). calibration: what the score reads beside the cache. block_size: of the
    cache.
    """

    method: str
    budget: float | int
    score: Callable[[Seen], Tensor] = field(compare=False, repr=False)
    window: int = 0
    recent: int = 0
    sinks: int = 0
    contiguous: bool = False
    budgets: Budgets | None = None
    on_demand: bool = False
    reconstructs: bool = False
    reads_values: bool = False
    calibration: Calibration | None = field(default=None, compare=False, repr=False)
    block_size: int = 1

    @property
    def id(self) -> str:
        budgets = f"{self.budgets.id}+" if self.budgets else ""
        return f"{budgets}{self.method}={self.budget}{made_by(self.calibration)}/1"

    @property
    def unequal(self) -> bool:
        return self.budgets is not None

    def due(self, num_prompt: int, dropped: int) -> int:
        if self.on_demand:
            return NEVER
        return num_prompt if not dropped and self.kept(num_prompt) < num_prompt else NEVER

    def kept(self, held: int, dropped: int = 0) -> int:
        wanted = ceil(self.budget * held) if isinstance(self.budget, float) else self.budget
        wanted = min(held, max(wanted, 1, self.sinks + self.recent))
        if self.on_demand:
            wanted = min(held, -(-wanted // self.block_size) * self.block_size)  # others go on behind whole blocks
        if self.budgets is None or wanted == held:
            return wanted
        return min(held, (1 - -wanted // self.block_size) * self.block_size)  # a block says how many each head keeps

    def most(self, num_tokens: int) -> int:
        return num_tokens

    def keep(self, seen: Seen) -> Tensor:
        scores = self.scores(seen)
        best = scores.sort(dim=-1, descending=True, stable=True).indices  # of equal ones, the first
        return best[:, : self.kept(scores.shape[1])].sort(-1).values

    def scores(self, seen: Seen) -> Tensor:
        """float32 [heads, held] of one layer, the highest of what stays whatever it is."""
        scores = self.score(seen)
        scores[:, : self.sinks] = float("inf")
        if self.recent:
            scores[:, -self.recent :] = float("inf")
        return scores

    def blocks(self, scores: Sequence[Tensor]) -> list[list[int]]:
        """Whole blocks that each head of each layer keeps of what has these scores."""
        assert self.budgets is not None, "they are equal"
        held, size = scores[0].shape[1], self.block_size
        each = self.kept(held) // size - 1
        always = self.sinks + self.recent
        wanted = self.budgets.wanted(scores, each * size, always)
        flat = [part for layer in wanted for part in layer]
        # A head without any has lost the first token, on which attention leans.
        least = max(1, -(-always // size))
        parts = in_blocks(flat, each * len(flat), least, held // size)
        return [[parts.pop(0) for _ in layer] for layer in wanted]

    def in_blocks_of(self, block_size: int) -> Compactor:
        return replace(self, block_size=block_size)

    def problems(self, block_size: int) -> list[str]:
        word, budget = self.method, self.budget
        if isinstance(budget, float):
            return [] if 0 < budget <= 1 else [f"{word}={budget:g} is no share of a prompt: take one up to 1, as 0.5"]
        least = max(block_size, self.sinks + self.recent)
        return [] if budget >= least else [f"{word}={budget} tokens are less than {least}, the least that makes sense"]


@dataclass(frozen=True)
class Rolling(Usual):
    """The first `sinks` tokens and the last ones, `capacity` together at most: once they are full, the oldest `evict`
    of the window leave and the others move up. So a sequence never ends, in constant memory (StreamingLLM, arXiv
    2309.17453; with another `evict` the context shift of llama.cpp).
    """

    sinks: int
    capacity: int
    evict: int

    contiguous = True

    @property
    def id(self) -> str:
        return f"rolling={self.sinks},{self.capacity},{self.evict}/1"

    def due(self, num_prompt: int, dropped: int) -> int:
        return dropped + self.capacity

    def kept(self, held: int, dropped: int = 0) -> int:
        return held - self.evict if held >= self.capacity else held

    def most(self, num_tokens: int) -> int:
        return min(num_tokens, self.capacity)

    def keep(self, seen: Seen) -> Tensor:
        heads, held = seen.k.shape[1], seen.k.shape[0]
        places = seen.k.new_ones(held).int().cumsum(0) - 1
        return places[(places < self.sinks) | (places >= self.sinks + self.evict)].expand(heads, -1)

    def problems(self, block_size: int) -> list[str]:
        window = self.capacity - self.sinks
        if window < block_size:
            return [f"a window of {window} tokens is smaller than a block ({block_size})"]
        return [] if 0 < self.evict <= window else [f"{self.evict} tokens cannot leave a window of {window}"]


def streaming(sinks: int, window: int) -> Rolling:
    """The first `sinks` tokens and a window, of which an eighth leaves at a time: a key is turned 8 times at most."""
    return Rolling(sinks, sinks + window, max(1, window // 8))


def context_shift(n_keep: int, capacity: int) -> Rolling:
    """As in llama.cpp: half of what is behind the first `n_keep` tokens leaves when a context of `capacity` is full."""
    return Rolling(n_keep, capacity, max(1, (capacity - n_keep) // 2))
