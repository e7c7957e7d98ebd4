"""Execution of Gather: which tokens a compactor keeps of each layer and head, and their move into other rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from kvtrove.kv.arena import Arena
from kvtrove.kv.compaction.compactor import AfterPrompt
from kvtrove.kv.compaction.decoding import WhileDecoding
from kvtrove.kv.compaction.scores import Seen
from kvtrove.kv.formats.layout import block_slots
from kvtrove.kv.rows import Gather, Look, Shift
from kvtrove.kv.spec import LayerKV, side_view
from kvtrove.kv.values import read_values
from kvtrove.runner.pack import pack

Turn = Callable[[int, Tensor, Tensor], Tensor]
"""Layer, keys [n, heads, k_dim], by how many positions each moves, int64 [n, heads] -> keys at their new positions."""
Attention = Callable[[int, Tensor, Tensor], Tensor]
"""Layer, queries [w, num_heads, k_dim], keys [n, heads, k_dim] -> what `Seen.attend` gives."""


class Tokens(Protocol):
    """What reads and moves single tokens of a layer without torch: `CpuTokens`, or `CellTokens` where rows are cut."""

    def keys(self, slots: Tensor) -> Tensor: ...
    def values(self, slots: Tensor) -> Tensor: ...
    def move(self, sources: Tensor, targets: Tensor) -> None: ...


class Gatherer:
    """Of one arena. turn, attention, scale: of a model; without, keys are moved as they are and no queries are seen.
    tokens: of a layer, None where torch decodes and encodes it.
    """

    def __init__(
        self,
        arena: Arena,
        turn: Turn | None = None,
        attention: Attention | None = None,
        scale: float = 1.0,
        tokens: Callable[[int], Tokens | None] = lambda layer: None,
    ) -> None:
        self.arena, self.turn, self.attention, self.scale, self.tokens = arena, turn, attention, scale, tokens

    def __call__(self, op: Gather) -> None:
        """Layer by layer, since their planes lie apart: a layer's tokens are all read before any is written."""
        spec = self.arena.spec
        if op.compactor.unequal:
            pack(self.arena, op, partial(self._scores, op, self._slots(op.sources[0])), self.tokens)
            return
        sources, targets = ([self._slots(ids) for ids in groups] for groups in (op.sources, op.targets))
        for layer in spec.layers:
            if layer.source is not None:
                continue
            group, view, tokens = spec.group_of[layer.layer], self.arena.views(layer.layer), self.tokens(layer.layer)
            slots, to = sources[group], targets[group]
            k, v = self._read(layer, op.sources[group], slots, slice(op.num_tokens), op.compactor.reads_values)
            keep = self._kept(op, layer.layer, self._seen(layer, k, v, op))
            to = to[: keep.shape[1]]
            turns = op.compactor.contiguous and layer.format.rope == "post" and self.turn is not None
            if tokens:
                tokens.move(slots[keep], to)
                if not turns:
                    continue
            kept_k = _take(k, keep)
            if turns and self.turn is not None:
                kept_k = self.turn(layer.layer, kept_k, torch.arange(len(to), device=keep.device)[:, None] - keep.T)
            if not tokens and v is not None:
                layer.format.encode(kept_k, _take(v, keep), view, to)
            elif layer.format.k is not None:
                layer.format.k.encode(kept_k, side_view(view, "k"), to)

    def shift(self, op: Shift) -> None:
        """Values as they are stored; keys decoded, turned and encoded again."""
        spec = self.arena.spec
        for layer in spec.layers:
            if layer.source is not None:
                continue
            group, view, tokens = spec.group_of[layer.layer], self.arena.views(layer.layer), self.tokens(layer.layer)
            rows, targets = (self._ids(ids[group]) for ids in (op.sources, op.targets))
            source, target = (
                self._slots(ids[group])[start : start + op.num_tokens]
                for ids, start in zip((op.sources, op.targets), op.start, strict=True)
            )
            taken = slice(op.start[0], op.start[0] + op.num_tokens)
            turn = self.turn if op.by != 0 and layer.format.rope == "post" else None

            def moved(k: Tensor, turn: Turn | None = turn, layer: int = layer.layer) -> Tensor:
                return k if turn is None else turn(layer, k, k.new_full(k.shape[:2], op.by, dtype=torch.int64))

            if tokens:
                k = tokens.keys(source) if turn is not None else None
                tokens.move(source.expand(layer.heads, -1), target)
                if k is not None and layer.format.k is not None:
                    layer.format.k.encode(moved(k), side_view(view, "k"), target)
            else:
                k, v = (side[taken] for side in layer.format.decode(view, rows))
                layer.format.encode(moved(k), v, view, target)
            if layer.format.select:
                layer.format.summarise(view, targets[: (op.start[1] + op.num_tokens) // spec.block_size])

    def _ids(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.int64, device=self.arena.device)

    def _kept(self, op: Gather, layer: int, seen: Seen) -> Tensor:
        compactor = op.compactor
        if op.memory is None or not isinstance(compactor, WhileDecoding):
            return compactor.keep(seen)
        scores = compactor.scores(seen)
        keep = compactor.best(scores, again=seen.given is not None)
        op.memory[layer] = scores.gather(1, keep)
        return keep

    def look(self, op: Look) -> None:
        spec, places = self.arena.spec, self._ids(op.places)
        slots = [self._slots(ids) for ids in op.sources]
        for layer in spec.layers:
            if layer.source is None:
                group = spec.group_of[layer.layer]
                k, v = self._read(layer, op.sources[group], slots[group], places, op.values)
                op.look(layer.layer, self._seen(layer, k, v, op))

    def _scores(self, op: Gather, slots: Tensor, layer: LayerKV) -> Tensor:
        """Of a layer whose heads keep different numbers of tokens; scores that were found beforehand need no key."""
        compactor = op.compactor
        assert isinstance(compactor, AfterPrompt), "no other keeps unequal shares"
        places = slice(0 if compactor.reconstructs else op.num_tokens)
        k, v = self._read(layer, op.sources[0], slots, places, compactor.reads_values)
        return compactor.scores(self._seen(layer, k, v, op))

    def _slots(self, rows: Sequence[int]) -> Tensor:
        return block_slots(self._ids(rows), self.arena.spec.block_size)

    def _read(
        self, layer: LayerKV, rows: Sequence[int], slots: Tensor, places: slice | Tensor, values: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Keys of the tokens at these places of the rows, which consist of `slots`, [n, heads, dim], and their values.

        Where tokens are read one by one, values come only if `values` says so.
        """
        if tokens := self.tokens(layer.layer):
            slots = slots[places]
            return tokens.keys(slots), tokens.values(slots) if values else None
        k, v = read_values(self.arena, layer.layer, rows)
        return k[places], v[places]

    def _seen(self, layer: LayerKV, k: Tensor, v: Tensor | None, op: Gather | Look) -> Seen:
        """op.observed: a part of the window each step, of every layer [tokens, num_heads, k_dim]."""
        index, observed = layer.layer, op.observed
        given = op.scores.get(index) if isinstance(op, Gather) and op.scores else None
        shift = op.shift if isinstance(op, Gather) else 0
        turn = None if self.turn is None else partial(self.turn, index)
        if not observed or self.attention is None:
            return Seen(k, v=v, turn=turn, given=given, layer=index, shift=shift)
        q = torch.cat([part[index] for part in observed])
        return Seen(k, partial(self.attention, index, q, k), v, q, turn, self.scale, given, index, shift)


def _take(x: Tensor, keep: Tensor) -> Tensor:
    """Tokens keep int64 [heads, m] of x [n, heads, dim]: [m, heads, dim]. Vectors are copied, not elements."""
    (n, heads, dim), (_, m) = x.shape, keep.shape
    first = torch.arange(heads, device=x.device)[:, None] * n
    taken = x.transpose(0, 1).reshape(heads * n, dim).index_select(0, (keep + first).flatten())
    return taken.view(heads, m, dim).transpose(0, 1)
