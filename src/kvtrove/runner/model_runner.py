"""The runner: SchedulerOutput in, ModelOutput out. The only place where model, cache bytes and attention meet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

import torch
from torch import Tensor

from kvtrove.attention.backend import AttentionBackend, AttentionLayer, Rotation, StoringBackend
from kvtrove.attention.cells import CellsBackend, CellTokens
from kvtrove.attention.cpu import CpuBackend, CpuTokens, is_one_read
from kvtrove.attention.reference import window_probabilities
from kvtrove.kv.arena import Arena
from kvtrove.kv.spec import KVCacheSpec
from kvtrove.models.decoder import Model, Rest
from kvtrove.models.layers.packed import PackedLinear
from kvtrove.models.layers.state import StateBatch
from kvtrove.request import EngineError
from kvtrove.runner.adapters import Adapters
from kvtrove.runner.batch import Batch, asked_about, build_batch
from kvtrove.runner.fused import FusedLayers
from kvtrove.runner.gather import Gatherer
from kvtrove.runner.logprobs import undrawable
from kvtrove.runner.observe import Observer
from kvtrove.runner.pooling import pooled
from kvtrove.runner.rows import Rows
from kvtrove.runner.sampler import Sampler, logprob_table
from kvtrove.runner.threads import few_threads
from kvtrove.scheduler.output import ModelOutput, ScheduledSequence, SchedulerOutput, SequenceResult, accept

FEW_TOKENS = 64
"""In a step of so many, torch's work in the layers that the kernels do not serve is too short to be shared out."""
PROMPT_LOGPROB_ROWS = 256  # rows of logits held at once while prompt logprobs are reported


class ModelRunner:
    """Executes steps on one device. backends: one per layer with attention. `token_text` spells tokens for logprobs."""

    def __init__(
        self,
        model: Model,
        cache: KVCacheSpec,
        arena: Arena,
        backends: Sequence[AttentionBackend],
        token_text: Callable[[int], str],
    ) -> None:
        self.model, self.cache, self.arena, self.backends = model, cache, arena, tuple(backends)
        self.rows = Rows(arena)
        self.rows.gather = Gatherer(arena, self._turned, self._attention, model.spec.query_scale, self._tokens)
        self.token_text = token_text
        self.sampler = Sampler(model.spec.vocab_size, arena.device)
        self.layers = tuple(attention_layers(model, cache, arena))
        for layer, backend in zip(self.layers, self.backends, strict=True):
            if reasons := backend.reasons_against(layer, arena.device):
                raise ValueError(f"attention backend {backend.name!r} cannot serve this model: {'; '.join(reasons)}")
        self.states = arena.states
        self.adapters = Adapters(model, self.layers, self.backends)
        self.fuse()

    def fuse(self) -> None:
        """Find the runs of layers that one call takes; again when model or backends have changed."""
        self._at = {layer.index: i for i, layer in enumerate(self.layers)}  # of layers with attention
        self.fused = FusedLayers(self.model, self.layers, self.backends)
        self.packed = all(isinstance(layer.attention.o, PackedLinear) for layer in self.model.layers)

    @torch.inference_mode()
    def execute(self, step: SchedulerOutput) -> ModelOutput:
        """Work on rows, compute K/V and logits of every scheduled token, draw where asked."""
        if not step.sequences:
            self.rows.execute(step.ops)
            return ModelOutput({})
        observed: dict[int, list[Tensor]] = {}
        observing = any(s.observe for s in step.sequences)
        few = self.fused.whole or (self.packed and sum(len(s.tokens) for s in step.sequences) <= FEW_TOKENS)
        with few_threads() if few and not observing else contextlib.nullcontext():
            batch, hidden = self.forward(step, observed) if observing else self.forward(step, all_rows=False)
            output, start = self._results(step.sequences, hidden[batch.logit_rows]), batch.attention.query_start
            for index, s in enumerate(step.sequences):
                if s.pool is not None:
                    output.results[s.seq_id] = pooled(s, hidden[start[index] : start[index + 1]], self.model)
            return replace(output, observed=observed)

    @torch.inference_mode()
    def forward(
        self, step: SchedulerOutput, observed: dict[int, list[Tensor]] | None = None, *, all_rows: bool = True
    ) -> tuple[Batch, Tensor]:
        """Work on rows and compute a step of at least one sequence: its K/V are in the cache when this returns.

        The hidden states [T, hidden_size] are those of all its tokens, in the order of the batch. observed: gets what
        `ScheduledSequence.observe` asks for; layers are then computed one by one. all_rows: False leaves out those
        that nobody asks about, where the model can do without them; the batch then says what the rows are.
        """
        self.rows.execute(step.ops)
        self.arena.forget_states([s.seat for s in step.sequences if s.start == 0])
        model, fused = self.adapters.model_for(step.sequences) or (self.model, self.fused)
        batch = build_batch(step.sequences, self.cache.block_size, self.arena.device, self.arena)
        states = StateBatch(batch.attention.query_start, batch.attention.seats, self.states, self.arena.device)
        plans = {backend: backend.plan(batch.attention) for backend in dict.fromkeys(self.backends)}

        observer = Observer(step.sequences, batch.attention.query_start, batch.positions)

        def attend(layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, rotate: Rotation | None) -> Tensor:
            if observer.seen:
                observer(q, rotate)
            backend = self.backends[self._at[layer]]
            return backend.run(q, k, v, self.layers[self._at[layer]], plans[backend], rotate)

        def through(
            first: int, x: Tensor, projected: Tensor, rotations: Sequence[Rotation]
        ) -> tuple[int, Tensor] | None:
            at = self._at.get(first)
            return None if at is None else fused(first, plans[self.backends[at]], x, projected, rotations)

        rest, whole = None, batch
        if not all_rows and self.ends_early and model is self.model and (asked := asked_about(step.sequences, batch)):
            rest, batch = self._rest(*asked, plans), asked[1]
        hidden = model(whole.tokens, whole.positions, attend, None if observer.seen else through, states, rest)
        if observed is not None:
            observed |= observer.seen
        return batch, hidden

    @property
    def ends_early(self) -> bool:
        """Whether rows that nobody asks about need not pass all layers."""
        plain = all(not layer.format.whole_block and layer.format.rope == "post" for layer in self.layers)
        return plain and self.model.ends_early and all(isinstance(one, StoringBackend) for one in self.backends)

    def _rest(self, rows: Tensor, batch: Batch, plans: Mapping[AttentionBackend, Any]) -> Rest:
        """How layers go on with these rows. batch: of them alone. plans: of the whole step."""
        own = {backend: backend.plan(batch.attention) for backend in plans} if len(rows) else {}

        def store(layer: int, k: Tensor, v: Tensor, rotate: Rotation | None) -> None:
            backend = self.backends[self._at[layer]]
            assert isinstance(backend, StoringBackend)
            backend.store(k, v, self.layers[self._at[layer]], plans[backend], rotate)

        def attend(layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, rotate: Rotation | None) -> Tensor:
            backend = self.backends[self._at[layer]]
            return backend.run(q, k, v, self.layers[self._at[layer]], own[backend], rotate)

        def fused(first: int, x: Tensor, projected: Tensor, rotations: Sequence[Rotation]) -> tuple[int, Tensor] | None:
            return self.fused(first, own[self.backends[self._at[first]]], x, projected, rotations)

        return Rest(rows, store, attend, fused)

    def _turned(self, layer: int, k: Tensor, by: Tensor) -> Tensor:
        """Keys [n, heads, k_dim] of a layer, moved by so many positions int64 [n, heads]: `kv.compaction`."""
        return self.model.ropes[self.model.spec.layers[layer].rope].turned(k, by)

    def _tokens(self, layer: int) -> CpuTokens | CellTokens | None:
        backend, own = self.backends[self._at[layer]], self.layers[self._at[layer]]
        if isinstance(backend, CellsBackend):
            one = backend.one_head(own)
            return CellTokens(CpuTokens(backend.inner, one), own) if _reads_tokens(backend.inner, one) else None
        return CpuTokens(backend, own) if _reads_tokens(backend, own) else None

    def _attention(self, layer: int, q: Tensor, k: Tensor) -> Tensor:
        return window_probabilities(q, k, self.layers[self._at[layer]])

    def _results(self, sequences: list[ScheduledSequence], hidden: Tensor) -> ModelOutput:
        """hidden: [R, hidden] in the order of `build_batch`: sampling rows, then prompt-logprob rows."""
        sampling, at = [s for s in sequences if s.sample is not None], 0
        results = {s.seq_id: SequenceResult([]) for s in sequences if s.prompt_logprobs is not None}
        if sampling:
            specs = [spec for s in sampling if s.sample is not None for spec in (s.sample, *s.verify)]
            logits = self.model.logits(hidden[: len(specs)])
            drawn = self.sampler.sample(logits, specs, self.token_text)
            for s in sampling:
                samples, after = drawn[at], [row[0] for row in drawn[at + 1 : at + 1 + len(s.verify)] if row]
                error = None if samples else undrawable(logits[at])
                accepted = accept(s.tokens[-len(s.verify) :], samples[0], after) if samples and s.verify else []
                results[s.seq_id] = SequenceResult(samples, error=error, accepted=accepted)
                at += 1 + len(s.verify)
        for s in sequences:
            if s.prompt_logprobs is not None:
                try:
                    report = [*self._prompt_logprobs(s, hidden[at : at + len(s.prompt_targets)])]
                    results[s.seq_id] = replace(results[s.seq_id], prompt_logprobs=report)
                except EngineError as error:
                    results[s.seq_id] = SequenceResult([], error=error)
                at += len(s.prompt_targets)
        return ModelOutput(results)

    def _prompt_logprobs(self, s: ScheduledSequence, hidden: Tensor) -> Iterator[dict]:
        assert s.prompt_logprobs is not None
        for first in range(0, len(s.prompt_targets), PROMPT_LOGPROB_ROWS):
            rows = slice(first, first + PROMPT_LOGPROB_ROWS)
            yield from logprob_table(
                self.model.logits(hidden[rows]), s.prompt_targets[rows], s.prompt_logprobs, self.token_text
            )


def _reads_tokens(backend: AttentionBackend, layer: AttentionLayer) -> TypeGuard[CpuBackend]:
    """Whether its kernels read and move single tokens of the layer."""
    return isinstance(backend, CpuBackend) and is_one_read(layer)


def attention_layers(model: Model, cache: KVCacheSpec, arena: Arena) -> Iterator[AttentionLayer]:
    """What the backend must know of each layer, its storage included (the source's for layers that share)."""
    for kv in cache.layers:
        storage = cache.storage(kv.layer)
        layer = AttentionLayer(
            index=kv.layer,
            num_heads=model.spec.num_heads,
            kv_heads=kv.heads,
            source_heads=kv.source_heads,
            k_dim=storage.k_dim,
            v_dim=storage.v_dim,
            scale=model.spec.query_scale,
            retention=kv.retention,
            format=storage.format,
            group=cache.group_of[kv.layer],
            view=arena.views(storage.layer),
            block_size=cache.block_size,
            softcap=model.spec.attention_softcap,
            sink_logits=model.layers[kv.layer].attention.sinks,
            storage=storage.layer,
            is_shared=any(other.source == kv.layer for other in cache.layers),
            tails=arena.tails(kv.layer),
            cells=cache.cells,
            cell=cache.cell_of[kv.layer],
        )
        if storage.first is not None:
            layer = layer.storing_first(storage.first, cache.first_group_of[kv.layer], arena.first_views(kv.layer))
        yield layer
