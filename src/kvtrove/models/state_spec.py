"""Mixers that keep a running state instead of keys and values: their sizes, and what the state of a sequence is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvtrove.kv.plane import Plane


@dataclass(frozen=True)
class ConvSpec:
    """Gated short convolution (LFM2). width: channels. kernel: tokens that an output sees, its own included."""

    width: int
    kernel: int
    bias: bool = False
    kind: ClassVar[str] = "conv/1"

    @property
    def projected(self) -> int:
        """Outputs of what reads the hidden states."""
        return 3 * self.width

    @property
    def mixed(self) -> int:
        """Inputs of what leads back to them."""
        return self.width

    @property
    def others(self) -> int:
        """Parameters beside these two matrices and their biases."""
        return self.width * (self.kernel + self.bias)

    def planes(self, dtype: str) -> tuple[Plane, ...]:
        """Of one sequence; dtype: of hidden states."""
        return (Plane("conv", dtype, (self.kernel - 1, self.width)),)


@dataclass(frozen=True)
class DeltaSpec:
    """Gated DeltaNet (arXiv 2412.06464): a matrix [k_dim, v_dim] a value head, behind a convolution of q, k and v.

    key_heads: each serves value_heads / key_heads neighbouring value heads. kernel: of the convolution.
    """

    key_heads: int
    value_heads: int
    k_dim: int
    v_dim: int
    kernel: int
    bias: ClassVar[bool] = False
    kind: ClassVar[str] = "delta/1"

    @property
    def projected(self) -> int:
        """Outputs of what reads the hidden states."""
        return self.width + self.values + 2 * self.value_heads

    @property
    def mixed(self) -> int:
        """Inputs of what leads back to them."""
        return self.values

    @property
    def others(self) -> int:
        """Parameters beside these two matrices."""
        return self.width * self.kernel + 2 * self.value_heads + self.v_dim

    @property
    def keys(self) -> int:
        """Elements of all keys of a token; queries have as many."""
        return self.key_heads * self.k_dim

    @property
    def values(self) -> int:
        return self.value_heads * self.v_dim

    @property
    def width(self) -> int:
        """Channels of the convolution: queries, keys, values."""
        return 2 * self.keys + self.values

    def planes(self, dtype: str) -> tuple[Plane, ...]:
        """Of one sequence; dtype: of hidden states. The matrices are float32, as models are trained."""
        return (
            Plane("conv", dtype, (self.kernel - 1, self.width)),
            Plane("matrix", "float32", (self.value_heads, self.k_dim, self.v_dim)),
        )


@dataclass(frozen=True)
class MambaSpec:
    """Mamba2 (arXiv 2405.21060): a matrix [head_dim, state] a head, behind a convolution of x, B and C.

    groups: B and C are shared by heads / groups neighbouring heads. limits: smallest and largest time step.
    """

    heads: int
    head_dim: int
    state: int
    groups: int
    kernel: int
    conv_bias: bool = True
    bias: bool = False
    limits: tuple[float, float] = (0.0, float("inf"))
    kind: ClassVar[str] = "mamba2/1"

    @property
    def projected(self) -> int:
        """Outputs of what reads the hidden states."""
        return self.inner + self.width + self.heads

    @property
    def mixed(self) -> int:
        """Inputs of what leads back to them."""
        return self.inner

    @property
    def others(self) -> int:
        """Parameters beside these two matrices and their biases."""
        return self.width * (self.kernel + self.conv_bias) + 3 * self.heads + self.inner

    @property
    def inner(self) -> int:
        """Elements of x of a token."""
        return self.heads * self.head_dim

    @property
    def width(self) -> int:
        """Channels of the convolution: x, B, C."""
        return self.inner + 2 * self.groups * self.state

    def planes(self, dtype: str) -> tuple[Plane, ...]:
        """Of one sequence; dtype: of hidden states."""
        return (
            Plane("conv", dtype, (self.kernel - 1, self.width)),
            Plane("matrix", "float32", (self.heads, self.head_dim, self.state)),
        )


StateSpec = ConvSpec | DeltaSpec | MambaSpec
