"""What mixers with a running state share: the states of a step's sequences, and the convolution before most of them.

Every token is computed by the same operations in the same order, whatever step it is part of and whoever shares that
step: so a prompt has the same states whole, in chunks, and from a checkpoint on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from kvtrove.kernels import states as kernels
from kvtrove.models.layers.linear import Weights
from kvtrove.models.layers.norm import WithoutHeadNorms

States = Mapping[str, Tensor]
"""Plane name -> [num_seats, *plane.shape] of one layer, updated in place."""


@dataclass(frozen=True, eq=False)
class StateBatch:
    """One step. query_start: S + 1 row numbers of T tokens. seats: of each sequence. layers: layer -> its states.

    The states of a sequence that begins are zeros.
    """

    query_start: Sequence[int]
    seats: Sequence[int]
    layers: Mapping[int, States]
    device: str = "cpu"

    @cached_property
    def counts(self) -> list[int]:
        return [stop - start for start, stop in zip(self.query_start, self.query_start[1:], strict=False)]

    @cached_property
    def seat_rows(self) -> Tensor:
        """int64 [S]."""
        return torch.tensor(self.seats, dtype=torch.int64, device=self.device)

    @cached_property
    def starts(self) -> Tensor:
        """int64 [S + 1]."""
        return torch.tensor(self.query_start, dtype=torch.int64, device=self.device)

    def rounds(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The first token of every sequence, then the second of all that have one, ...: (seats, rows), each [n]."""
        counts = torch.tensor(self.counts, dtype=torch.int64, device=self.device)
        for turn in range(max(self.counts)):
            there = (counts > turn).nonzero()[:, 0]
            yield self.seat_rows[there], self.starts[there] + turn


class StateMixer(WithoutHeadNorms):
    """What stands in the place of attention and keeps a running state."""


def causal_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, batch: StateBatch, *, silu: bool = False
) -> Tensor:
    """Depthwise convolution over the tokens of each sequence, float32 [T, width]; x may have any float dtype.

    weight: float32 [kernel, width], the newest token last. bias: float32 [width]. state: [num_seats, kernel - 1,
    width], the last inputs of before; updated. Sums are float32; silu: of the result.
    """
    if kernels.available(x) and state.dtype == x.dtype:
        return kernels.convolve(x, weight, bias, state, batch.starts, batch.seat_rows, silu=silu)
    past = state.shape[1]
    starts = batch.starts
    counts = starts[1:] - starts[:-1]
    owner = torch.repeat_interleave(torch.arange(len(counts), device=x.device), counts)
    rows = torch.arange(x.shape[0], device=x.device) + (owner + 1) * past
    ends = starts[1:] + (torch.arange(len(counts), device=x.device) + 1) * past  # of each sequence in `inputs`
    back = torch.arange(past, device=x.device)
    inputs = x.new_empty(x.shape[0] + len(counts) * past, x.shape[1])
    inputs[(ends - counts - past)[:, None] + back] = state[batch.seat_rows].to(x.dtype)
    inputs[rows] = x
    out = inputs[rows - past].float() * weight[0]
    for tap in range(1, past + 1):
        out = out + inputs[rows - past + tap].float() * weight[tap]
    state[batch.seat_rows] = inputs[(ends - past)[:, None] + back].to(state.dtype)
    out = out if bias is None else out + bias
    return F.silu(out) if silu else out


def taps(weights: Weights, name: str, width: int, kernel: int) -> Tensor:
    """A convolution's weight as `causal_conv` takes it."""
    return weights.take(name, (width, 1, kernel))[:, 0].T.float().contiguous()
