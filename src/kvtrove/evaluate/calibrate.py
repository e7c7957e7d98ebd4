"""What attention makes of keys and values, measured on a text -> rotations for caches of 2 bits (OSCAR, 2605.17757).

S_K = mean over kv heads of Q^T Q / n                     what errors of a key cost, by direction
S_V = mean over kv heads of V^T diag(w) V / n             how values vary; w[t] = k_t S_K k_t^T, mean 1
R   = U H P       eigenvectors, largest first; Hadamard; bit-reversed order
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvtrove.attention.backend import AttentionBackend, AttentionBatch, AttentionLayer, Rotation
from kvtrove.config import ConfigError, EngineConfig
from kvtrove.engine import Engine
from kvtrove.evaluate.fidelity import TeacherForced
from kvtrove.evaluate.text import read_text, segments
from kvtrove.kv.formats.calibration import FORMAT
from kvtrove.models.loader import Progress

CONTEXT, CHUNK = 2048, 512


@dataclass(eq=False)
class Recorder:
    """An AttentionBackend that remembers second moments of what passes through it: layer -> float64 [dim, dim]."""

    inner: AttentionBackend
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    name = "recorder"

    def reasons_against(self, layer: AttentionLayer, device: str) -> list[str]:
        return self.inner.reasons_against(layer, device)

    def plan(self, batch: AttentionBatch) -> Any:
        return self.inner.plan(batch)

    def run(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        layer: AttentionLayer,
        plan: Any,
        rotate: Rotation | None = None,
    ) -> Tensor:
        if k is not None and v is not None:
            turned = (q, k) if rotate is None else (rotate(q), rotate(k))
            self._add(layer, *(x.double() for x in (*turned, v)))
        return self.inner.run(q, k, v, layer, plan, rotate)

    def _add(self, layer: AttentionLayer, q: Tensor, k: Tensor, v: Tensor) -> None:
        grouped = q.unflatten(1, (layer.kv_heads, -1)).transpose(0, 1).flatten(1, 2)  # [kv_heads, T * shared, dim]
        moments = grouped.transpose(1, 2) @ grouped / grouped.shape[1]
        weights = torch.einsum("thd,hde,the->ht", k, moments, k)
        weights = weights / weights.mean(1, keepdim=True).clamp(min=1e-12)
        self._sum(self.keys, layer.index, moments.mean(0) * len(q))
        self._sum(self.values, layer.index, torch.einsum("thd,ht,the->de", v, weights, v) / layer.kv_heads)

    def _sum(self, sums: dict[int, Tensor], index: int, moment: Tensor) -> None:
        sums[index] = sums[index] + moment if index in sums else moment


def rotation(moment: Tensor) -> Tensor:
    """float32 [dim, dim], orthogonal, of a second moment float64 [dim, dim]."""
    dim = moment.shape[0]
    vectors = torch.linalg.eigh(moment).eigenvectors.flip(1)
    size = dim & -dim  # the largest power of two that divides it
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < size:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    spread = torch.block_diag(*[hadamard / size**0.5] * (dim // size))
    bits = size.bit_length() - 1
    order = [int(f"{i:0{bits}b}"[::-1], 2) if bits else 0 for i in range(size)]
    place = torch.tensor([block * size + i for block in range(dim // size) for i in order])
    return (vectors @ spread)[:, place].float()


def calibrate(model: str, text: str | None, tokens: int, progress: Progress | None = None) -> dict[str, Tensor]:
    """Rotations "k.0", "v.0", ... of every layer that stores keys and values."""
    engine = Engine(
        EngineConfig(model, max_num_seqs=1, max_num_batched_tokens=CHUNK, enable_prefix_caching=False, kv="1GiB"),
        progress=progress,
    )
    runner = engine.runner
    recorder = Recorder(runner.backends[0])
    runner.backends = (recorder,) * len(runner.backends)
    runner.fuse()
    context = min(CONTEXT, engine.max_model_len)
    for segment in segments(engine.tokenizer, read_text(text), context, tokens):
        with TeacherForced(engine, segment) as forced:
            for start in range(0, len(segment), CHUNK):
                forced.logits(min(CHUNK, len(segment) - start))
    found = {f"k.{i}": rotation(moment) for i, moment in recorder.keys.items()}
    return found | {f"v.{i}": rotation(moment) for i, moment in recorder.values.items()}


def write(matrices: dict[str, Tensor], path: str) -> str:
    """A calibration file; returns its digest."""
    data = b"".join(matrix.contiguous().numpy().tobytes() for matrix in matrices.values())
    digest, header, at = hashlib.sha256(data).hexdigest(), {}, 0
    for name, matrix in matrices.items():
        size = matrix.numel() * 4
        header[name] = {"dtype": "F32", "shape": list(matrix.shape), "data_offsets": [at, at + size]}
        at += size
    about = {"__metadata__": {"format": FORMAT, "digest": digest}}
    text = json.dumps(about | header).encode()
    text += b" " * (-len(text) % 8)
    try:
        Path(path).write_bytes(len(text).to_bytes(8, "little") + text + data)
    except OSError as error:
        raise ConfigError(f"out: cannot write {path}: {error.strerror}") from error
    return digest
