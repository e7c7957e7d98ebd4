"""What golden tests share: prompts, the answers of transformers to them, engines, and a model without an engine.

`PagedModel` is a model over a paged arena without engine, scheduler or manager: blocks are handed out by hand, in
random order. Every row of the arena is NaN until it is written, and rows that a window leaves behind become NaN again,
so whatever attention reads beyond what it may shows up in the logits.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from kvtrove.attention.backend import AttentionLayer, Rotation
from kvtrove.attention.reference import ReferenceBackend
from kvtrove.config import EngineConfig
from kvtrove.engine import Engine
from kvtrove.kv.arena import Arena
from kvtrove.kv.retention import live_blocks
from kvtrove.kv.spec import LayerKV
from kvtrove.models.cache import cache_spec
from kvtrove.models.config_reader import read_spec
from kvtrove.models.decoder import Model
from kvtrove.models.layers.state import StateBatch
from kvtrove.models.loader import load_model
from kvtrove.models.precision import Precision
from kvtrove.models.products import Products
from kvtrove.request import RequestOutput, SamplingParams
from kvtrove.runner.batch import Batch, build_batch
from kvtrove.scheduler.output import ScheduledSequence

NAN_BYTE = 0xFF  # all ones is a NaN in float32, float16 and bfloat16


NEW_TOKENS = 24
LENGTHS = (1, 5, 16, 33, 47, 70)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(4, 300, (n,), generator=generator).tolist() for n in LENGTHS]


@pytest.fixture(scope="session")
def naive(checkpoints: Any) -> Callable[[str], list[list[int]]]:
    """family -> per prompt the greedy tokens of transformers, everything recomputed at every token."""
    known: dict[str, list[list[int]]] = {}

    def answers(family: str) -> list[list[int]]:
        if family not in known:
            model = hugging_face(checkpoints.get(family))
            known[family] = [greedy(model, prompt) for prompt in prompts()]
        return known[family]

    return answers


@torch.inference_mode()
def greedy(model: Any, prompt: list[int]) -> list[int]:
    tokens = list(prompt)
    for _ in range(NEW_TOKENS):
        tokens.append(int(model(torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()))
    return tokens[len(prompt) :]


def engine_for(directory: Path, **settings: Any) -> Engine:
    defaults: dict[str, Any] = {"dtype": "float32", "block_size": 4, "num_blocks": 400, "max_num_seqs": 4, "check": 2}
    return Engine(EngineConfig(str(directory), **{**defaults, "max_num_batched_tokens": 64, **settings}))


def answer(engine: Engine, batch: list[list[int]], **params: Any) -> list[RequestOutput]:
    for i, prompt in enumerate(batch):
        engine.add(str(i), prompt, SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True, **params))
    done: dict[str, RequestOutput] = {}
    while engine.has_unfinished_requests():
        done |= {out.request_id: out for out in engine.step() if out.finished}
    stats = engine.stats().kv
    assert stats.used == 0, "an idle engine holds no block"
    return [done[str(i)] for i in range(len(batch))]


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [out.outputs[0].token_ids for out in outputs]


class PagedModel:
    """Sequences are numbers; `step` computes new tokens of any of them and returns the logits of all these tokens."""

    def __init__(
        self,
        directory: Path,
        dtype: str = "float32",
        block_size: int = 4,
        num_blocks: int = 400,
        device: str = "cpu",
        products: Products | None = None,
        **load: Any,
    ) -> None:
        """products: None multiplies in plain torch, everything in `dtype`."""
        self.spec = read_spec(directory)
        products = products or Products(Precision.plain(dtype), device, "torch")
        self.model: Model = load_model(directory, self.spec, products, **load)
        self.cache = cache_spec(self.spec, dtype, block_size)
        assert not self.cache.check()
        self.arena = Arena(self.cache, num_blocks, device, num_seats=8)
        self.arena.rows.fill_(NAN_BYTE)
        self.arena.seats.fill_(NAN_BYTE)
        self.backend = ReferenceBackend(max_scores=400)  # small enough that prefills are cut into query chunks
        self.free = random.Random(7).sample(range(num_blocks), num_blocks)
        self.tables: dict[int, list[list[int]]] = {}
        self.lengths: dict[int, int] = {}
        self.layers = {kv.layer: self._layer(kv) for kv in self.cache.layers}

    def step(self, work: dict[int, list[int]]) -> dict[int, Tensor]:
        """{sequence: new tokens} -> {sequence: float32 logits [new tokens, vocab_size]}."""
        starts = {s: self.lengths.get(s, 0) for s in work}
        for s, tokens in work.items():
            self._grow(s, starts[s] + len(tokens))
        batch = self._batch(work, starts)
        plan = self.backend.plan(batch.attention)

        def attend(layer: int, q: Tensor, k: Tensor | None, v: Tensor | None, rotate: Rotation) -> Tensor:
            return self.backend.run(q, k, v, self.layers[layer], plan, rotate)

        self.arena.forget_states([s for s in work if starts[s] == 0])
        states = StateBatch(batch.attention.query_start, batch.attention.seats, self.arena.states)
        logits = self.model.logits(self.model(batch.tokens, batch.positions, attend, states=states))
        for s in work:
            self._release(s)
        return dict(zip(work, logits.split([len(w) for w in work.values()]), strict=True))

    def _layer(self, kv: LayerKV) -> AttentionLayer:
        spec, index = self.spec, kv.layer
        return AttentionLayer(
            index=index,
            num_heads=spec.num_heads,
            kv_heads=kv.heads,
            k_dim=kv.k_dim,
            v_dim=kv.v_dim,
            scale=spec.query_scale,
            retention=kv.retention,
            format=kv.format,
            group=self.cache.group_of[index],
            view=self.arena.views(index),
            block_size=self.cache.block_size,
            softcap=spec.attention_softcap,
            sink_logits=self.model.layers[index].attention.sinks,
        )

    def _grow(self, s: int, length: int) -> None:
        self.lengths[s] = length
        for table in self.tables.setdefault(s, [[] for _ in self.cache.groups]):
            while len(table) * self.cache.block_size < length:
                table.append(self.free.pop())

    def _release(self, s: int) -> None:
        for group, table in zip(self.cache.groups, self.tables[s], strict=True):
            live = set(live_blocks(group.retention, self.lengths[s], self.cache.block_size))
            for i, block in enumerate(table):
                if block >= 0 and i not in live and (i + 1) * self.cache.block_size <= self.lengths[s]:
                    self.arena.rows[block] = NAN_BYTE
                    self.free.insert(0, block)
                    table[i] = -1

    def _batch(self, work: dict[int, list[int]], starts: dict[int, int]) -> Batch:
        scheduled = [
            ScheduledSequence(
                *(s, array("i", tokens), starts[s]),
                tuple(np.array(table, dtype=np.int32) for table in self.tables[s]),
                seat=s,
            )
            for s, tokens in work.items()
        ]
        return build_batch(scheduled, self.cache.block_size, self.arena.device)


def hugging_face(directory: Path, dtype: str = "float32") -> Any:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)).eval()


@torch.no_grad()
def expected_logits(model: Any, tokens: list[int]) -> Tensor:
    """float32 [len(tokens), vocab_size] from transformers, the whole sequence at once."""
    logits: Tensor = model(torch.tensor([tokens])).logits[0].float()
    return logits
