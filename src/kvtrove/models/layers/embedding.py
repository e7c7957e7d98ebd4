"""Embeddings: the rows of a table, or of an output matrix that is tied to it and packed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kvtrove.kernels.linear import Groups
from kvtrove.models.layers.linear import Product
from kvtrove.models.layers.packed import PackedLinear


@dataclass(frozen=True, eq=False)
class Embedding:
    """weight [vocab_size, hidden_size]; dtype: of the hidden states."""

    weight: Tensor
    dtype: torch.dtype

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [T] -> [T, hidden_size]."""
        return F.embedding(tokens, self.weight).to(self.dtype)


@dataclass(frozen=True, eq=False)
class PackedEmbedding:
    """The rows of the output matrix, unpacked as they are looked up: it is held once."""

    head: PackedLinear
    dtype: torch.dtype

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [T] -> [T, hidden_size]."""
        out = torch.empty((len(tokens), self.head.weights.inputs), dtype=self.dtype)
        return self.head.weights.gather(tokens, out)


def embedding_of(table: Tensor | Groups, head: Product, tied: bool, dtype: torch.dtype) -> Embedding | PackedEmbedding:
    """Whichever holds the table once; one of its own that is stored in 4 bits is kept in `dtype`."""
    if tied and isinstance(head, PackedLinear):
        return PackedEmbedding(head, dtype)
    return Embedding(table.values().to(dtype) if isinstance(table, Groups) else table, dtype)
