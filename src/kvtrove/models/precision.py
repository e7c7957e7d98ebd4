"""In which numbers a model is kept and computed. No torch: the planner counts with it as well."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Precision:
    """dtype: of weights in memory, and of cached K/V unless they are told otherwise. activations: of hidden states.

    weights: how matrices of linear layers are stored, the output matrix included; an embedding that is tied to it is
    read from there. "auto" is `dtype`, "int8" has one scale per output, "int4" a scale and a minimum for 32 inputs,
    "gguf" is for each matrix what keeps the bits that a GGUF file has for it.
    Routers, norms, biases and an embedding of its own stay in `dtype` or wider.
    """

    dtype: str
    activations: str
    weights: str = "auto"

    @classmethod
    def plain(cls, dtype: str) -> Precision:
        """Everything in one dtype."""
        return cls(dtype, dtype)

    @property
    def quantised(self) -> bool:
        """Matrices have fewer bits than `dtype`."""
        return self.weights != "auto"

    def __str__(self) -> str:
        """``bfloat16``, ``bfloat16 weights, float32 activations`` or ``int8 weights, float32 activations, ...``."""
        if self.quantised:
            return f"{self.weights} weights, {self.activations} activations, {self.dtype} rest"
        if self.dtype == self.activations:
            return self.dtype
        return f"{self.dtype} weights, {self.activations} activations"
