"""Does a cache change what the model predicts? Text is read through two caches and every next token compared.

    text  | chunk | chunk | chunk | ...        each cache computes the same chunk, then reads it and all before it back
    exact   p(next token)  ──┐
    other   q(next token)  ──┴─ KL(p || q), same likeliest token?, -log q(token that follows)

A chunk's logits are all that is held of the vocabulary's size.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from kvtrove.engine import Engine
from kvtrove.evaluate.prefix import compacted, on_demand
from kvtrove.kv.compaction.compact import compact
from kvtrove.kv.compaction.compactor import NEVER
from kvtrove.scheduler.output import ScheduledSequence, SchedulerOutput

ROWS = 32  # predictions compared at once, in float64


class TeacherForced:
    """A text computed chunk by chunk through an engine's own paged cache. A context manager that frees its blocks.

    Where the cache drops tokens, the first half of the text is what it takes for the prompt.
    """

    def __init__(self, engine: Engine, tokens: Sequence[int]) -> None:
        self.engine, self.tokens = engine, array("i", tokens)
        self.sequence, self.observed = engine.kv.open(), list[Any]()
        self._plan()

    def logits(self, count: int) -> Tensor:
        """float32 [count, vocab_size] after each of the next `count` tokens, whose K/V are then in the cache."""
        parts = []
        while count:
            parts.append(self._step(min(count, self.sequence.compacts_at - self.sequence.num_computed)))
            count -= len(parts[-1])
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _step(self, count: int) -> Tensor:
        kv, runner, seq = self.engine.kv, self.engine.runner, self.sequence
        start, compactor, observed = seq.num_computed, runner.cache.compactor, dict[int, list[Tensor]]()
        if not kv.allocate(seq, count):
            raise RuntimeError(f"{kv.num_free_blocks} free blocks do not hold {count} more tokens after {start}")
        work = ScheduledSequence(0, self.tokens[start : start + count], seq.num_held, seq.block_ids(), seat=seq.seat)
        work.shift, work.packed = seq.shift, seq.packed
        if compactor is not None:
            work.observe = max(0, start + count - max(start, seq.compacts_at - compactor.window))
        _, hidden = runner.forward(SchedulerOutput([work], kv.take_ops()), observed)
        self.observed += observed.values()
        kv.commit(seq, self.tokens, count)
        if on_demand(compactor) and seq.num_computed == seq.compacts_at:
            self._go_on_behind(self.tokens[: seq.num_computed])
        elif compactor is not None and seq.num_computed == seq.compacts_at:
            if not compact(kv, seq, self.tokens, compactor, self.observed):
                raise RuntimeError(f"{kv.num_free_blocks} free blocks do not hold what stays of {seq.num_held} tokens")
            self._plan()
        return runner.model.logits(hidden)

    def _plan(self) -> None:
        compactor, self.observed = self.engine.runner.cache.compactor, []
        if on_demand(compactor):
            half = len(self.tokens) // 2 // self.engine.kv.block_size * self.engine.kv.block_size
            self.sequence.compacts_at = NEVER if self.sequence.num_computed >= half else half
        elif compactor is not None:
            self.sequence.compacts_at = compactor.due(len(self.tokens) // 2, self.sequence.dropped)

    def _go_on_behind(self, prefix: array[int]) -> None:
        """Replace what was computed by what compaction leaves of it."""
        kv = self.engine.kv
        kv.free(self.sequence)
        with compacted(self.engine, prefix):
            self.sequence = kv.open()
            match = kv.match(self.sequence, prefix, len(prefix))
            if not kv.allocate(self.sequence, 0, match) or self.sequence.num_computed < len(prefix):
                raise RuntimeError(f"{kv.num_free_blocks} free blocks do not hold a prefix of {len(prefix)} tokens")
        self._plan()

    def __enter__(self) -> TeacherForced:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.engine.kv.free(self.sequence)


@dataclass(frozen=True)
class TextSegment:
    """All predictions within one segment of the text: that of every token but the first."""

    index: int
    tokens: list[int]
    reference: Engine
    chunk: int

    kind = "text"

    @property
    def key(self) -> str:
        return f"text {self.index} {hashlib.sha256(array('i', self.tokens)).hexdigest()[:16]}"

    def run(self, engines: Mapping[str, Engine]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Per configuration {"kl": of every prediction in nats, "nll": their sum in nats, "same_top": a count}."""
        found = {name: {"kl": [], "nll": 0.0, "same_top": 0} for name in engines}
        with ExitStack() as stack:
            exact = stack.enter_context(TeacherForced(self.reference, self.tokens))
            others = {name: stack.enter_context(TeacherForced(e, self.tokens)) for name, e in engines.items()}
            last = len(self.tokens) - 1
            for start in range(0, last, self.chunk):
                stop = min(start + self.chunk, last)
                wanted = torch.tensor(self.tokens[start + 1 : stop + 1])
                expected = exact.logits(stop - start)
                for name, other in others.items():
                    _add(found[name], expected, other.logits(stop - start), wanted)
        yield from found.items()


def _add(sums: dict[str, Any], expected: Tensor, logits: Tensor, wanted: Tensor) -> None:
    """expected, logits: [T, vocab_size]. wanted: int64 [T], the tokens that follow."""
    for p_logits, q_logits, targets in zip(
        expected.split(ROWS), logits.split(ROWS), wanted.to(logits.device).split(ROWS), strict=True
    ):
        p, q = p_logits.double().log_softmax(-1), q_logits.double().log_softmax(-1)
        sums["kl"] += (p.exp() * (p - q)).sum(-1).clamp_(min=0).tolist()  # rounding may leave less than zero
        sums["nll"] -= float(q.gather(-1, targets[:, None]).sum())
        sums["same_top"] += int((p_logits.argmax(-1) == q_logits.argmax(-1)).sum())
