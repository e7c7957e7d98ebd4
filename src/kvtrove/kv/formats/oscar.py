"""OSCAR (arXiv 2605.17757): 2 bits after a rotation that was calibrated on the model's own attention.

    x [dim]  ->  x R  ->  the largest 4 % (K) or 8 % (V) clipped  ->  2-bit codes, scale and zero per token

R = U H P: eigenvectors of what attention makes of the side, a Hadamard matrix that spreads them, and a permutation that
mixes large with small ones; the same for all heads of a layer, or one for each. Own blocks are read as they were
computed. bits: 2 + 32 / dim.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvtrove.config import ConfigError
from kvtrove.kv.formats.calibration import Calibration, read_calibration
from kvtrove.kv.formats.codec import TokenCodec
from kvtrove.kv.formats.codes import dequantise, pack, quantise, unpack
from kvtrove.kv.formats.layout import data_plane, read, read_scales, write, write_scales
from kvtrove.kv.plane import Plane
from kvtrove.kv.spec import LayerKV, Planes, Side

if TYPE_CHECKING:
    from torch import Tensor

BITS = 2
KEPT = {"k": 0.96, "v": 0.92}
"""Share of a vector's elements that are not clipped."""


@dataclass(frozen=True)
class Oscar(TokenCodec):
    """name: of its rotation in the calibration. Planes "scale" and "zero", float16 [heads, block_size]."""

    name: str = ""
    digest: str = ""
    calibration: Calibration | None = field(default=None, compare=False, repr=False)

    @property
    def id(self) -> str:
        return self.id_of(f"oscar={self.digest[:16]}")

    @property
    def whole_block(self) -> bool:
        return True

    def problems(self, heads: int, dim: int, block_size: int) -> list[str]:
        found = None if self.calibration is None else self.calibration.shapes.get(self.name)
        if found is None:
            return [f"the calibration has no rotation {self.name!r}: it is that of another model"]
        if found[-1] != dim:
            return [f"the calibration is for vectors of {found[-1]} elements, not {dim}: it is that of another model"]
        if found not in ((dim, dim), (heads, dim, dim)):
            return [f"the calibration is for {found[0]} heads, not {heads}: it is that of another model"]
        return [] if dim % (8 // BITS) == 0 else [f"oscar needs a multiple of {8 // BITS} elements, not {dim}"]

    def planes(self, heads: int, dim: int, block_size: int) -> tuple[Plane, ...]:
        return (
            data_plane(self.side, self.layout, "uint8", heads, dim * BITS // 8, block_size),
            Plane("scale", "float16", (heads, block_size)),
            Plane("zero", "float16", (heads, block_size)),
        )

    def encode(self, x: Tensor, view: Planes, slots: Tensor) -> None:
        turned = self.turn(x)
        sizes = turned.abs().sort(-1).values
        most = sizes[..., int(KEPT[self.side] * x.shape[-1])][..., None]
        codes, scale, zero = quantise(turned.minimum(most).maximum(-most), BITS)
        write(self.side, pack(codes, BITS), view["data"], slots)
        write_scales(scale[..., 0], view["scale"], slots)
        write_scales(zero[..., 0], view["zero"], slots)

    def decode(self, view: Planes, rows: Tensor) -> Tensor:
        """float32, turned back."""
        codes = unpack(read(self.side, view["data"], rows), BITS)
        x = dequantise(codes, read_scales(view["scale"], rows), read_scales(view["zero"], rows))
        return self.turn_back(x).float()

    def turn(self, x: Tensor) -> Tensor:
        """float64 [T, heads, dim] of x: its own vectors, or queries of a multiple of as many heads."""
        return _product(x, self._rotation(x))

    def turn_back(self, x: Tensor) -> Tensor:
        return _product(x, self._rotation(x).transpose(-1, -2))

    def _rotation(self, like: Tensor) -> Tensor:
        """float32 [dim, dim], or [heads, dim, dim]."""
        assert self.calibration is not None, "checked by `problems`"
        return self.calibration.tensor(self.name, like)


def _product(x: Tensor, rotation: Tensor) -> Tensor:
    """float64 [T, heads, dim] of x [T, heads, dim], times a matrix for all heads or one for each run of them.

    In float64, so that rounding hides how many tokens came together.
    """
    if rotation.dim() == 2:
        return x.double() @ rotation.double()
    grouped = x.double().reshape(len(x), len(rotation), -1, x.shape[-1]).transpose(0, 1)  # [kv_heads, T, shared, dim]
    return (grouped @ rotation.double()[:, None]).transpose(0, 1).reshape(x.shape)


def oscar(side: Side, path: str, layer: LayerKV) -> Oscar:
    """ConfigError when the file is no calibration."""
    if not path:
        raise ConfigError("cache: oscar needs a calibration: write oscar=FILE, which `kvtrove calibrate MODEL` makes")
    calibration = read_calibration(path)
    return Oscar(side, name=f"{side}.{layer.layer}", digest=calibration.digest, calibration=calibration)
