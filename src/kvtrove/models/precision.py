"""In which numbers a model is kept and computed. No torch: the planner counts with it as well."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """dtype: of weights in memory, and of cached K/V unless they are told otherwise. activations: of hidden states.

    int8: matrices of linear layers are int8 with one scale per output, the output matrix included; an embedding that
    is tied to it is read from there. Routers, norms, biases and an embedding of its own stay in `dtype` or wider.
    """

    dtype: str
    activations: str
    int8: bool = False

    @classmethod
    def plain(cls, dtype: str) -> Precision:
        """Everything in one dtype."""
        return cls(dtype, dtype)

    def __str__(self) -> str:
        """``bfloat16``, ``bfloat16 weights, float32 activations`` or ``int8 weights, float32 activations, ...``."""
        if self.int8:
            return f"int8 weights, {self.activations} activations, {self.dtype} rest"
        if self.dtype == self.activations:
            return self.dtype
        return f"{self.dtype} weights, {self.activations} activations"
