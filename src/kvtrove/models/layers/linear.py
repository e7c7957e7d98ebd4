"""Linear maps and the way every layer asks for its weights.

Products that read the same input are asked for together (`Weights.joint`): where weights are copied at load anyway they
become one matrix and one pass over memory, where they are views of the checkpoint they stay apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from kvtrove.kernels.linear import Groups, Kind
from kvtrove.models.precision import Precision

Take = Callable[[str, tuple[int, ...]], Tensor]
"""take(name, shape): a parameter under the decoder's own name."""
Read = Callable[[str, tuple[int, ...]], Tensor | Groups]
"""The same for a matrix, which may be in 4 bits already."""


class Product(Protocol):
    """y = x W^T + b"""

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, inputs] -> [T, outputs]."""
        ...


@dataclass(frozen=True, eq=False)
class Linear:
    """weight [out, in], bias [out], as torch multiplies them."""

    weight: Tensor
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Part:
    """Some outputs of a matrix. Tensors are read when they are needed, so that one at a time is held.

    weight() -> [outputs, inputs], or what it consists of where it is stored in 4 bits; bias() -> [outputs]. kind: that
    keeps the bits in which it is stored; None where the checkpoint has no opinion.
    """

    outputs: int
    weight: Callable[[], Tensor | Groups]
    bias: Callable[[], Tensor] | None = None
    kind: Kind | None = None

    def tensor(self) -> Tensor:
        """The weight as numbers, whatever it is stored in."""
        weight = self.weight()
        return weight.values() if isinstance(weight, Groups) else weight


Build = Callable[[Sequence[Part], int, bool], Sequence[Product]]
"""build(parts, inputs, shared) -> one product of all parts or one of each. shared: an embedding holds it, too."""


def separate(parts: Sequence[Part], inputs: int, shared: bool = False) -> tuple[Product, ...]:
    """Plain torch, every part in the memory it comes in."""
    return tuple(Linear(part.tensor(), part.bias() if part.bias else None) for part in parts)


class HeadProduct(Protocol):
    """y = x W^T, with a matrix for every head."""

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, heads, inputs] -> [T, heads, outputs]."""
        ...


@dataclass(frozen=True, eq=False)
class HeadLinear:
    """weight [heads, out, in], as torch multiplies it."""

    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return torch.bmm(x.transpose(0, 1), self.weight.transpose(1, 2)).transpose(0, 1)


BuildHeads = Callable[[Tensor], HeadProduct]
"""build(matrices [heads, outputs, inputs]) -> the product of all of them."""
BuildOne = Callable[[Part, int], Product]


def alone(part: Part, inputs: int) -> Product:
    """Plain torch."""
    return separate([part], inputs)[0]


@dataclass(frozen=True, eq=False)
class Joint:
    """Several products of one input. sizes: outputs of each."""

    products: Sequence[Product]
    sizes: tuple[int, ...]

    def __call__(self, x: Tensor) -> Sequence[Tensor]:
        """x: [T, inputs] -> one [T, size] per size; views of one tensor where there is one product."""
        if self.product is not None:
            return self.split(self.product(x))
        return [product(x) for product in self.products]

    @property
    def product(self) -> Product | None:
        """Of all together; None when they are apart."""
        return self.products[0] if len(self.products) == 1 else None

    def split(self, y: Tensor) -> Sequence[Tensor]:
        """What `product` returned, one view per size."""
        return y.split_with_sizes(self.sizes, dim=-1)


@dataclass(frozen=True)
class Weights:
    """Where layers get their parameters.

    take: norms, biases, routers, in the dtype of activations. matrix: of linear layers and embeddings, in the dtype of
    weights, or in 4 bits as the checkpoint has it; None is `take`. build: how matrices become products. build_router:
    the same for a router. build_heads: for a matrix of every head. precision: None is the checkpoint's own dtype.
    kind: of a matrix that is quantised already. device: where parameters are.
    """

    take: Take
    matrix: Read | None = None
    build: Build = field(default=separate)
    precision: Precision | None = None
    build_router: BuildOne = field(default=alone)
    build_heads: BuildHeads = field(default=HeadLinear)
    kind: Callable[[str], Kind | None] = field(default=lambda name: None)
    device: str = "cpu"

    def read(self, name: str, shape: tuple[int, int]) -> Tensor | Groups:
        return (self.matrix or self.take)(name, shape)

    def numbers(self, name: str, shape: tuple[int, int]) -> Tensor:
        """A matrix that no product is made of, whatever it is stored in."""
        return Part(shape[0], lambda: self.read(name, shape)).tensor()

    def ones(self, size: int) -> Tensor:
        """Weights of a norm that has none, in the dtype of activations."""
        dtype = getattr(torch, self.precision.activations) if self.precision else torch.float32
        return torch.ones(size, dtype=dtype, device=self.device)

    def joint(
        self, names: dict[str, int], inputs: int, bias: bool = False, orders: Mapping[str, Tensor] | None = None
    ) -> Joint:
        """names: module -> its outputs. bias: all of them have one. orders: module -> another order of its outputs."""
        parts = [self._part(name, outputs, inputs, bias, (orders or {}).get(name)) for name, outputs in names.items()]
        return Joint(self.build(parts, inputs, False), tuple(names.values()))

    def linear(self, name: str, shape: tuple[int, int], bias: bool = False) -> Product:
        """shape: (outputs, inputs)."""
        return self.build([self._part(name, *shape, bias)], shape[1], False)[0]

    def router(self, name: str, shape: tuple[int, int], bias: bool = False) -> Product:
        """shape: (outputs, inputs)."""
        added = (lambda: self.take(f"{name}.bias", shape[:1])) if bias else None
        return self.build_router(Part(shape[0], lambda: self.take(f"{name}.weight", shape), added), shape[1])

    def _part(self, name: str, outputs: int, inputs: int, bias: bool, order: Tensor | None = None) -> Part:
        return Part(
            outputs,
            weight=lambda: _ordered(self.read(f"{name}.weight", (outputs, inputs)), order),
            bias=(lambda: self.take(f"{name}.bias", (outputs,))[slice(None) if order is None else order])
            if bias
            else None,
            kind=self.kind(f"{name}.weight"),
        )


def _ordered(stored: Tensor | Groups, order: Tensor | None) -> Tensor | Groups:
    """Rows in another order."""
    if order is None:
        return stored
    if isinstance(stored, Groups):
        return replace(stored, **{part: getattr(stored, part)[order] for part in ("numbers", "scales", "minima")})
    return stored[order]
