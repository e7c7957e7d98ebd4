"""Linear maps and the way every layer asks for its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

Take = Callable[[str, tuple[int, ...]], Tensor]
"""take(name, shape): a parameter under the decoder's own name, on its device and in its dtype."""


@dataclass(frozen=True, eq=False)
class Linear:
    """weight [out, in], bias [out]."""

    weight: Tensor
    bias: Tensor | None = None

    @classmethod
    def load(cls, take: Take, name: str, shape: tuple[int, int], bias: bool = False) -> Linear:
        return cls(take(f"{name}.weight", shape), take(f"{name}.bias", shape[:1]) if bias else None)

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)
