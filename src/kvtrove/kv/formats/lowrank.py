"""Low rank: vectors as coefficients of a basis that was calibrated on the model (arXiv 2407.21118, 2408.05646).

    x [heads, dim]  ->  c = (s * x) U_r  ->  stored  ->  x ~ (c U_r^T) / s          c [heads, rank]

Up to four neighbouring heads share a basis U, so that what they have in common is stored once. It is sorted by what it
explains, and its first columns are taken: any rank comes out of one file. s weighs the elements of a key by what
queries make of them. Keys are stored before their rotation, which would spread them over many more directions, and are
rotated when they are read. Coefficients are stored by a codec of their own, as vectors of `rank` elements.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvtrove.kv.formats.calibration import Calibration
from kvtrove.kv.formats.codec import TokenCodec
from kvtrove.kv.plane import Plane
from kvtrove.kv.spec import Codec, Planes, Rope

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LowRank(TokenCodec):
    """rank: coefficients per head. inner: the codec of coefficients. name: "k.0", of its basis in the calibration."""

    rank: int
    inner: Codec
    name: str = ""
    digest: str = ""
    calibration: Calibration | None = field(default=None, compare=False, repr=False)

    @property
    def id(self) -> str:
        return f"lowrank={self.rank},{self.inner.id}@{self.digest[:16]}/1"

    @property
    def rope(self) -> Rope:
        return "pre"

    def problems(self, heads: int, dim: int, block_size: int) -> list[str]:
        if not 1 <= self.rank <= dim:
            return [f"lowrank={self.rank} is no rank of vectors of {dim} elements: take 1 to {dim}, or a share as 0.5"]
        shapes = {} if self.calibration is None else self.calibration.shapes
        basis = shapes.get(f"{self.name}.basis", ())
        if len(basis) != 3 or basis[0] * basis[1] != heads * dim or basis[1] % dim or basis[1] != basis[2]:
            found = f"basis of shape {list(basis)} for" if basis else "basis for"
            return [
                f"the calibration has no {found} {heads} heads of {dim} elements under {self.name!r}: it is that of "
                "another model or version; make it with `kvtrove calibrate`"
            ]
        return self.inner.problems(heads, self.rank, block_size)

    def planes(self, heads: int, dim: int, block_size: int) -> tuple[Plane, ...]:
        return self.inner.planes(heads, self.rank, block_size)

    def encode(self, x: Tensor, view: Planes, slots: Tensor) -> None:
        """Projected in float64, so that no batch shows in the bytes."""
        basis, weights = (part.double() for part in self._basis(x))
        grouped = (x.double().flatten(1) * weights).reshape(len(x), *basis.shape[:2])  # [T, groups, n]
        coefficients = (grouped.transpose(0, 1) @ basis).transpose(0, 1)
        self.inner.encode(coefficients.reshape(*x.shape[:2], self.rank).float(), view, slots)

    def decode(self, view: Planes, rows: Tensor) -> Tensor:
        """float32."""
        coefficients = self.inner.decode(view, rows).float()
        matrices = self.expansion(coefficients)
        tokens, heads, _ = coefficients.shape
        grouped = coefficients.reshape(tokens, *matrices.shape[::2]).transpose(0, 1)  # [groups, tokens, kept]
        x: Tensor = (grouped @ matrices.transpose(1, 2)).transpose(0, 1)  # [tokens, groups, n]
        return x.reshape(tokens, heads, -1)

    def expansion(self, like: Tensor) -> Tensor:
        """float32 [groups, n, kept]: what makes vectors of the heads of a group out of their coefficients."""
        basis, weights = self._basis(like)
        return basis / weights.view(*basis.shape[:2], 1)

    def _basis(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [groups, n, kept] and the weights [groups * n], on the device of `like` [T, heads, elements]."""
        assert self.calibration is not None, "checked by `problems`"
        basis = self.calibration.tensor(f"{self.name}.basis", like)
        kept = self.rank * like.shape[1] // basis.shape[0]
        return basis[..., :kept], self.calibration.tensor(f"{self.name}.weights", like)
