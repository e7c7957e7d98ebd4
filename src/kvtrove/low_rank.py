"""A prefix's own basis: keys and values as coefficients of the directions that this prefix uses most.

    x [T, n]  ->  c = (x - mean) U  [T, r]  ->  int8, one scale for each direction      n = heads * dim

U are the first eigenvectors of the covariance of the prefix's own vectors, all heads of a layer and side together: the
singular value decomposition of a prompt, as ShadowKV (arXiv 2410.21465) does it for keys. Directions of all layers and
both sides compete for the budget; what explains the largest share of its own side goes first. A basis takes 2 n r
bytes, so prefixes of fewer than some thousand tokens gain little.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST = 127.0  # of int8
SMALLEST = 1e-30  # a direction that nothing uses keeps a scale that can be divided by


@dataclass(frozen=True)
class Basis:
    """mean float32 [n], directions float16 [n, r], scales float32 [r] of their coefficients."""

    mean: Tensor
    directions: Tensor
    scales: Tensor

    @property
    def rank(self) -> int:
        """Coefficients of a token."""
        return len(self.scales)

    def encode(self, x: Tensor) -> Tensor:
        """int8 [T, r] of x [T, n]."""
        coefficients = (x.float() - self.mean) @ self.directions.float()
        return (coefficients / self.scales).round().clamp(-MOST, MOST).char()

    def decode(self, codes: Tensor) -> Tensor:
        """float32 [T, n] of int8 [T, r]."""
        return (codes.float() * self.scales) @ self.directions.float().T + self.mean

    def to_bytes(self) -> bytes:
        """Rank, mean, scales, directions, little-endian."""
        head = torch.tensor([self.rank], dtype=torch.int32)
        return b"".join(part.contiguous().numpy().tobytes() for part in (head, self.mean, self.scales, self.directions))

    @classmethod
    def from_bytes(cls, content: memoryview, n: int) -> tuple[Basis, memoryview]:
        """The basis of vectors of n elements, and the bytes behind it. ValueError when they are cut or damaged."""
        rank = int.from_bytes(content[:4], "little")
        ends = [4, 4 + 4 * n, 4 + 4 * (n + rank), 4 + 4 * (n + rank) + 2 * n * rank]
        if not 1 <= rank <= n or len(content) < ends[-1]:
            raise ValueError(f"there is no basis of vectors of {n} elements")
        mean, scales, directions = (
            torch.frombuffer(bytearray(content[first:last]), dtype=dtype)
            for first, last, dtype in zip(ends, ends[1:], (torch.float32, torch.float32, torch.float16), strict=False)
        )
        return cls(mean, directions.view(n, rank), scales), content[ends[-1] :]


def fit(sides: Sequence[Tensor], share: float) -> list[Basis]:
    """One basis for each of `sides` [T, n], which together keep `share` of their directions and each at least one."""
    found = [_directions(x) for x in sides]
    worth = torch.cat([energy / energy.sum().clamp(min=SMALLEST) for energy, _ in found])
    owner = torch.cat([torch.full_like(energy, i) for i, (energy, _) in enumerate(found)])
    kept = owner[worth.argsort(descending=True, stable=True)[: round(share * len(worth))]]
    return [
        _basis(x, directions[:, : max(1, int((kept == i).sum()))])
        for i, (x, (_, directions)) in enumerate(zip(sides, found, strict=True))
    ]


def _directions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Energy [n] of the eigenvectors [n, n] of the covariance of x [T, n], the strongest first; float64."""
    wide = x.double() - x.double().mean(0)
    energy, directions = torch.linalg.eigh(wide.T @ wide)
    return energy.flip(0).clamp(min=0), directions.flip(1)


def _basis(x: Tensor, directions: Tensor) -> Basis:
    mean, kept = x.float().mean(0), directions.half()
    largest = ((x.float() - mean) @ kept.float()).abs().amax(0)
    return Basis(mean, kept, (largest / MOST).clamp(min=SMALLEST))
