"""What attention makes of keys and values, measured on a text -> rotations and bases for caches that need to know.

Rotations, for caches of 2 bits (OSCAR, arXiv 2605.17757), for each kv head or for all of a layer:

    S_K = mean over kv heads of Q^T Q / n             what errors of a key cost, by direction
    S_V = mean over kv heads of V^T diag(w) V / n     how values vary; w[t] = k_t S_K k_t^T, mean 1
    R   = U H P       eigenvectors, largest first; Hadamard; bit-reversed order

Bases, for caches of low rank: eigenvectors of the second moment of s * x, largest first, x the vectors of up to GROUP
heads side by side (as in Palu, arXiv 2407.21118). Keys are those before their rotation, and s is the root of the mean
square of what queries have there: of both elements of a pair alike, since distances turn one into the other.

Channels, for queries that choose blocks by few elements of keys (Double Sparsity, arXiv 2408.07092): mean |q * k| of
each element, both rotated, of each kv head.

A gate, for prompts that are compacted as KVzip would: `surrogate.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvtrove.attention.backend import AttentionBackend, AttentionBatch, AttentionLayer, Rotation
from kvtrove.config import ConfigError, EngineConfig
from kvtrove.engine import Engine
from kvtrove.evaluate.fidelity import TeacherForced
from kvtrove.evaluate.surrogate import fit_gate, room_of
from kvtrove.evaluate.text import read_text, segments
from kvtrove.kv.formats.calibration import FORMAT
from kvtrove.models.loader import Progress

CONTEXT, CHUNK = 2048, 512
GROUP = 4  # heads that share a basis at most


@dataclass(eq=False)
class Recorder:
    """An AttentionBackend that remembers second moments of what passes through it: name of a matrix -> float64 sums."""

    inner: AttentionBackend
    per_head: bool = False
    rotations: dict[str, Tensor] = field(default_factory=dict)
    bases: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    channels: dict[str, Tensor] = field(default_factory=dict)
    queries: dict[str, Tensor] = field(default_factory=dict)
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
            self._add_rotations(layer, *(x.double() for x in (*turned, v)))
            asked = turned[0].double().abs().unflatten(1, (layer.kv_heads, -1)).mean(2)
            self._sum(self.channels, f"k.{layer.index}.channels", (asked * turned[1].double().abs()).mean(0))
            self._add_queries(layer, q.double(), 0 if rotate is None else rotate.cos.shape[-1])
            self._add_bases(layer, q.double(), k.double(), v.double(), 0 if rotate is None else rotate.cos.shape[-1])
        return self.inner.run(q, k, v, layer, plan, rotate)

    def _add_queries(self, layer: AttentionLayer, q: Tensor, half: int) -> None:
        """Of layers that rotate all elements of a head."""
        if 2 * half == q.shape[2]:
            lengths = (q[..., :half].square() + q[..., half:].square()).sqrt()
            for name, x in (("mean", q), ("length", lengths), ("count", torch.ones_like(q[..., :1]))):
                self._sum(self.queries, f"q.{layer.index}.{name}", x.sum(0))

    def _add_rotations(self, layer: AttentionLayer, q: Tensor, k: Tensor, v: Tensor) -> None:
        grouped = q.unflatten(1, (layer.kv_heads, -1)).transpose(0, 1).flatten(1, 2)  # [kv_heads, T * shared, dim]
        moments = grouped.transpose(1, 2) @ grouped / grouped.shape[1]
        weights = torch.einsum("thd,hde,the->ht", k, moments, k)
        weights = weights / weights.mean(1, keepdim=True).clamp(min=1e-12)
        found = {"k": moments * len(q), "v": torch.einsum("thd,ht,the->hde", v, weights, v)}
        for side, moment in found.items():
            self._sum(self.rotations, f"{side}.{layer.index}", moment if self.per_head else moment.mean(0))

    def _add_bases(self, layer: AttentionLayer, q: Tensor, k: Tensor, v: Tensor, half: int) -> None:
        """half: pairs of elements that are rotated, i with i + half."""
        asked = q.square().unflatten(1, (layer.kv_heads, -1)).mean(2).sum(0)  # [kv_heads, dim]
        pairs = (asked[:, :half] + asked[:, half : 2 * half]) / 2
        asked = torch.cat([pairs, pairs, asked[:, 2 * half :]], 1)
        self._sum(self.weights, f"k.{layer.index}.weights", asked.flatten())
        self._sum(self.weights, f"v.{layer.index}.weights", torch.ones_like(v[0]).flatten() * len(v))
        size = max(n for n in range(1, GROUP + 1) if layer.kv_heads % n == 0)
        for side, x in (("k", k), ("v", v)):
            grouped = x.unflatten(1, (-1, size)).flatten(2).transpose(0, 1)  # [groups, T, size * dim]
            self._sum(self.bases, f"{side}.{layer.index}.basis", grouped.transpose(1, 2) @ grouped)

    def _sum(self, sums: dict[str, Tensor], name: str, moment: Tensor) -> None:
        sums[name] = sums[name] + moment if name in sums else moment

    def matrices(self) -> dict[str, Tensor]:
        """What a calibration file holds, float32."""
        found = {}
        for name, moment in self.rotations.items():
            found[name] = torch.stack([*map(rotation, moment)]) if self.per_head else rotation(moment)
        for name, moment in self.bases.items():
            squares = self.weights[name.replace("basis", "weights")]
            weights = (squares / squares.mean()).clamp(min=1e-6).sqrt()
            sides = weights.view(moment.shape[0], -1)
            vectors = torch.linalg.eigh(sides[:, :, None] * moment * sides[:, None, :]).eigenvectors
            found[name], found[name.replace("basis", "weights")] = vectors.flip(2).float(), weights.float()
        for name in [name for name in self.queries if name.endswith("mean")]:
            sums = [self.queries[name.replace("mean", what)] for what in ("mean", "length", "count")]
            mean, lengths = sums[0] / sums[2], sums[1] / sums[2]
            half = lengths.shape[1]
            of_mean = (mean[:, :half].square() + mean[:, half:].square()).sqrt()
            found[name], found[name.replace("mean", "length")] = mean.float(), (lengths - of_mean).float()
        return found | {name: moment.float() for name, moment in self.channels.items()}


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


def calibrate(
    model: str,
    text: str | None,
    tokens: int,
    progress: Progress | None = None,
    per_head: bool = False,
    surrogate: bool = False,
) -> dict[str, Tensor]:
    """Rotations and bases of every layer that stores keys and values, under the names of `kv.formats.calibration`.

    per_head: a rotation for each kv head. surrogate: a gate as well. ConfigError for a text or a model that does not
    serve.
    """
    engine = Engine(
        EngineConfig(model, max_num_seqs=1, max_num_batched_tokens=CHUNK, enable_prefix_caching=surrogate, kv="1GiB"),
        progress=progress,
    )
    runner, content = engine.runner, read_text(text)
    gate = {}
    if surrogate:
        length = room_of(engine, min(tokens, len(engine.tokenizer.encode(content, add_special_tokens=False))))
        gate = fit_gate(engine, segments(engine.tokenizer, content, min(CONTEXT, length), tokens))
    recorder = Recorder(runner.backends[0], per_head)
    runner.backends = (recorder,) * len(runner.backends)
    runner.fuse()
    context = min(CONTEXT, engine.max_model_len)
    for segment in segments(engine.tokenizer, content, context, tokens):
        with TeacherForced(engine, segment) as forced:
            for start in range(0, len(segment), CHUNK):
                forced.logits(min(CHUNK, len(segment) - start))
    return recorder.matrices() | gate


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
    beside = Path(f"{path}.{os.getpid()}.new")
    try:
        beside.write_bytes(len(text).to_bytes(8, "little") + text + data)
        beside.replace(path)
    except OSError as error:
        raise ConfigError(f"out: cannot write {path}: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)
    return digest
