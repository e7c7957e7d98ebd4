"""A checkpoint and its ModelSpec -> a running Model."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from kvtrove.kernels.linear import Groups, Kind
from kvtrove.models.decoder import HEAD, Model
from kvtrove.models.families import find_family
from kvtrove.models.families.common import EMBEDDING, Family, Source
from kvtrove.models.layers.linear import Weights
from kvtrove.models.products import Products
from kvtrove.models.random_weights import RandomWeights
from kvtrove.models.spec import ModelError, ModelSpec
from kvtrove.models.weights import Checkpoint, open_checkpoint

Progress = Callable[[str, int, int], None]

log = logging.getLogger(__name__)
# Buffers that older versions of transformers saved beside the weights.
_BUFFERS = re.compile(r"rotary_emb\.|\.masked_bias$|\.attn\.bias$")


def load_model(
    directory: Path,
    spec: ModelSpec,
    products: Products,
    progress: Progress | None = None,
    *,
    max_model_len: int | None = None,
    load_format: str = "auto",
) -> Model:
    """The checkpoint or GGUF file at `directory`, its matrices built by `products`, in its precision and on its device.

    On the CPU, parameters that are stored as they are used stay views of the memory-mapped files; others are converted
    or packed one by one. progress(what, layers done, layers in total). max_model_len: longest context in tokens that
    will be served; two rope scalings depend on it (layers/rope.py); None is the model's own `max_position`.
    load_format: "dummy" reads no checkpoint; the weights are random (models/random_weights.py).

    Raises ModelError naming file and tensor when a tensor is missing, misshapen or not readable.
    """

    def loaded(layers: int) -> None:
        if progress:
            progress("loading weights", layers, spec.num_layers)

    longest = max_model_len or spec.max_position
    if load_format == "dummy":
        random = RandomWeights(spec, products.precision, products.device)
        drawn = Weights(
            random.take,
            random.matrix,
            products.build,
            products.precision,
            products.build_router,
            products.build_heads,
            device=products.device,
        )
        return Model.load(drawn, random.head, spec, longest, loaded)
    reader = _Reader(open_checkpoint(directory), find_family(spec.architecture), spec, products)
    weights = Weights(
        reader.take,
        reader.matrix,
        products.build,
        products.precision,
        products.build_router,
        products.build_heads,
        reader.kind,
        products.device,
    )
    model = Model.load(weights, reader.head, spec, longest, loaded)
    reader.log_ignored()
    return model


class _Reader:
    """Turns the decoder's names of parameters into tensors of the checkpoint, and remembers which it used."""

    def __init__(self, checkpoint: Checkpoint, family: Family, spec: ModelSpec, products: Products) -> None:
        self.checkpoint, self.spec = checkpoint, spec
        self.locate = checkpoint.locate or family.locate
        self.device, precision = products.device, products.precision
        self.weights = precision.weights
        self.dtype: torch.dtype = getattr(torch, precision.dtype)
        self.activations: torch.dtype = getattr(torch, precision.activations)
        self.used: set[str] = set()
        if checkpoint.note and self.weights != "gguf":
            log.warning(checkpoint.note, precision.dtype)
        self.prefix = family.prefix(checkpoint.names)

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """In the dtype of activations."""
        return self._located(name, shape).to(device=self.device, dtype=self.activations)

    def matrix(self, name: str, shape: tuple[int, ...]) -> Tensor | Groups:
        """In the dtype of weights, or in groups where it is stored and kept so.

        What is rounded to groups comes in float32: it is not rounded twice.
        """
        source, kind = self._source(name), self.kind(name)
        if kind in (None, "bf16"):
            return self._convert(self._located(name, shape))
        plain = replace(source, transposed=False)  # groups lie along inputs, whatever a tensor of numbers would be
        stored = self.checkpoint.groups(self._used(self.prefix + source.name), plain.whole_shape(shape), source.stack)
        if stored is None:
            return self._located(name, shape, torch.float32)
        numbers, scales, minima = (plain.rows(part) for part in (stored.numbers, stored.scales, stored.minima))
        return replace(stored, numbers=numbers, scales=scales, minima=minima)

    def kind(self, name: str) -> Kind | None:
        """That keeps the bits of this matrix, where the precision asks for it."""
        if self.weights not in ("gguf", "int4"):
            return None
        kind = self.checkpoint.kind(HEAD if name == HEAD else self.prefix + self._source(name).name)
        return kind if self.weights == "gguf" or kind in ("int4", "int4_symmetric") else None

    def _source(self, name: str) -> Source:
        return self.locate(name, self.spec)

    def _located(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> Tensor:
        source = self._source(name)
        return source.rows(self._read(self.prefix + source.name, source.whole_shape(shape), source.stack, dtype))

    def head(self, embedding: Tensor | Groups) -> Tensor | Groups:
        """The output matrix: `embedding` itself when tied, unless the checkpoint holds a different one of its own."""
        shape = (self.spec.vocab_size, self.spec.hidden_size)
        name = next((n for n in (HEAD, f"language_model.{HEAD}") if n in self.checkpoint), None)
        if name is None and self.spec.tie_embeddings:
            return embedding
        if name is None:
            raise ModelError(
                f"{self.checkpoint.listing}: tensor {HEAD!r} is missing, expected shape {list(shape)}; a model whose "
                f"output matrix is its embedding says so with 'tie_word_embeddings': true in config.json"
            )
        if self.kind(HEAD) not in (None, "bf16") and (stored := self.checkpoint.groups(self._used(name), shape)):
            return stored
        head = self._read(name, shape)
        if self.spec.tie_embeddings:
            if torch.equal(head, self._read(self.prefix + EMBEDDING, shape)):
                return embedding
            log.warning("%s differs from the embeddings, so it is used although config.json ties them", name)
        return self._convert(head)

    def log_ignored(self) -> None:
        ignored = sorted(name for name in self.checkpoint.names - self.used if not _BUFFERS.search(name))
        if ignored:
            log.debug("%d tensors of the checkpoint are not part of the model: %s", len(ignored), ", ".join(ignored))

    def _read(
        self,
        name: str,
        shape: tuple[int, ...],
        stack: tuple[int, int] | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """dtype: of what is not stored as floats; None is that of weights."""
        if stack is not None:
            return self.checkpoint.one_of(self._used(name), *stack, shape)
        return self.checkpoint.read(self._used(name), shape, dtype or self.dtype)

    def _used(self, name: str) -> str:
        self.used.add(name)
        return name

    def _convert(self, tensor: Tensor) -> Tensor:
        return tensor.to(device=self.device, dtype=self.dtype)
