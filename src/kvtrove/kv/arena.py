"""The bytes of the cache: one row per block, whatever the row means."""

from __future__ import annotations

import contextlib
import logging
import mmap
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from kvtrove import kernels
from kvtrove.config import ConfigError
from kvtrove.kv.plane import Plane
from kvtrove.kv.spec import KVCacheSpec, LayerKV

log = logging.getLogger(__name__)

HUGE_PAGE = 2 << 20
MAP_HUGETLB = getattr(mmap, "MAP_HUGETLB", 0x40000)
"""Of Linux; Python names it from 3.13 on."""


class Arena:
    """uint8 [num_blocks, block_bytes] on one device.

        row | layer 0: k | layer 0: v | layer 4: k | layer 4: v | padding |     the rows of a block's group only

    Rows start as zeros. On a CPU the system provides their pages when they are first written, so an unused cache takes
    no memory. Beside them lie the seats of sequences (`kv.seats`), uint8 [num_seats, seat_bytes], where formats or
    states need them. A checkpoint of states (`kv.marks`) lies in rows, cut into pieces of block_bytes. huge_pages: of a
    CPU, as in EngineConfig. Raises ConfigError when the device cannot hold it.
    """

    def __init__(
        self,
        spec: KVCacheSpec,
        num_blocks: int,
        device: str | torch.device = "cpu",
        huge_pages: str = "auto",
        num_seats: int = 0,
    ) -> None:
        self.spec = spec
        self.huge_pages = huge_pages
        self.num_blocks = num_blocks
        self.device = str(device)
        self.nbytes = num_blocks * spec.block_bytes
        self._kernel = self.device == "cpu" and kernels.available()
        try:
            self.rows = _zeros(self.nbytes, torch.device(device), huge_pages).view(num_blocks, spec.block_bytes)
            self.seats = self._beside(num_seats, spec.seat_bytes)
        except (RuntimeError, OSError, OverflowError) as error:
            raise ConfigError(
                f"kv: {self.nbytes} bytes ({self.nbytes / 2**30:.1f} GiB) for {num_blocks} blocks cannot be allocated "
                f"on {device}; give `kv` less memory than is free there, or lower num_blocks"
            ) from error

    def views(self, layer: int) -> dict[str, Tensor]:
        """Plane name -> typed, strided [num_blocks, *plane.shape] of the storage that `layer` reads. No copies.

        Where rows are cut into cells (`kv.cells`), [num_blocks * cells, *plane.shape]: the same for all layers.
        """
        return self._heads(layer, 1, self._views(self.spec.storage(layer), self.spec.group_of[layer]))

    def first_views(self, layer: int) -> dict[str, Tensor]:
        """The same of its first tokens, where they are stored otherwise."""
        owner = self.spec.storage(layer).beginning
        return {} if owner is None else self._heads(layer, 1, self._views(owner, self.spec.first_group_of[layer]))

    def _heads(self, layer: int, axis: int, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of the heads that the layer reads, in every plane along `axis`."""
        heads = next(one.source_heads for one in self.spec.layers if one.layer == layer)
        if heads is None:
            return views
        return {name: view.narrow(axis, heads[0], heads[1] - heads[0]) for name, view in views.items()}

    def _views(self, owner: LayerKV, group: int) -> dict[str, Tensor]:
        cells, offsets = self.spec.cells or 1, self.spec.groups[group].offsets[owner.layer]
        rows = self.rows.view(self.num_blocks * cells, -1)
        first = min(offsets.values()) if self.spec.cells else 0
        views = {}
        for plane in self.spec.planes(owner):
            typed = rows.view(getattr(torch, plane.dtype))
            start = (offsets[plane.name] - first) // typed.element_size()
            stop = start + plane.nbytes // typed.element_size()
            views[plane.name] = typed[:, start:stop].view(len(rows), *plane.shape)
        return views

    def tails(self, layer: int) -> dict[str, Tensor]:
        """ "k" and "v" -> [num_seats, block_size, heads, dim] of open blocks, where the layer encodes whole ones."""
        owner = self.spec.storage(layer)
        seats = self._of_seats(self.spec.tail_planes(owner), self.spec.tail_offsets.get(owner.layer, {}), 0)
        return self._heads(layer, 2, seats)

    @cached_property
    def states(self) -> Mapping[int, Mapping[str, Tensor]]:
        """Layer -> plane name -> [num_seats, *plane.shape] of the running states."""
        return {
            state.layer: self._of_seats(state.planes, self.spec.state_offsets[state.layer], self.spec.tail_bytes)
            for state in self.spec.states
        }

    def forget_states(self, seats: Sequence[int]) -> None:
        """States of sequences that begin."""
        if self.spec.states:
            self.seats[list(seats), self.spec.tail_bytes :] = 0

    def copy_seats(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy seat source over seat target for each (source, target), as if one after the other."""
        self._copy(self.seats, pairs)

    def save_mark(self, seat: int, rows: Sequence[int]) -> None:
        """Copy the states of a seat into the rows of a checkpoint; zeros fill the last one."""
        for row, piece in zip(rows, self._pieces(seat), strict=True):
            self.rows[row, : len(piece)] = piece
            self.rows[row, len(piece) :] = 0

    def load_mark(self, rows: Sequence[int], seat: int) -> None:
        """Copy the rows of a checkpoint over the states of a seat."""
        for row, piece in zip(rows, self._pieces(seat), strict=True):
            piece.copy_(self.rows[row, : len(piece)])

    def _pieces(self, seat: int) -> list[Tensor]:
        """The states of a seat in pieces of a row."""
        states, size = self.seats[seat, self.spec.tail_bytes :], self.spec.block_bytes
        return [states[at : at + size] for at in range(0, len(states), size)]

    def _of_seats(self, planes: Iterable[Plane], offsets: Mapping[str, int], base: int) -> dict[str, Tensor]:
        views = {}
        for plane in planes:
            typed = self.seats.view(getattr(torch, plane.dtype))
            start = (base + offsets[plane.name]) // typed.element_size()
            stop = start + plane.nbytes // typed.element_size()
            views[plane.name] = typed[:, start:stop].view(len(self.seats), *plane.shape)
        return views

    def _beside(self, num: int, size: int) -> Tensor:
        """uint8 [num, size]."""
        if not num * size:
            return torch.empty(0, size, dtype=torch.uint8, device=self.device)
        return _zeros(num * size, torch.device(self.device), self.huge_pages).view(num, size)

    def copy_rows(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy row source over row target for each (source, target), as if one after the other."""
        self._copy(self.rows, pairs)

    def _copy(self, rows: Tensor, pairs: Sequence[tuple[int, int]]) -> None:
        if self._kernel and pairs:
            kernels.copy_rows(rows, torch.tensor(pairs, dtype=torch.int32))
            return
        for source, target in pairs:
            rows[target] = rows[source]

    def crc(self, block_id: int) -> int:
        """CRC-32 of a row."""
        return zlib.crc32(self.rows[block_id].cpu().numpy().data)


def _zeros(nbytes: int, device: torch.device, huge_pages: str) -> Tensor:
    """uint8 [nbytes]; `torch.zeros` would write, and so occupy, every page of a CPU's memory at once.

    In huge pages where the system has them: a step reads a few KiB of every block, each of them on a page of its own.
    """
    if device.type != "cpu":
        return torch.zeros(nbytes, dtype=torch.uint8, device=device)
    return torch.frombuffer(_map(nbytes, huge_pages), dtype=torch.uint8, count=nbytes)


def _map(nbytes: int, huge_pages: str) -> mmap.mmap:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    if huge_pages == "hugetlb":
        try:
            return mmap.mmap(-1, -(-nbytes // HUGE_PAGE) * HUGE_PAGE, flags=flags | MAP_HUGETLB)
        except OSError:
            log.warning(
                "huge_pages: the pool has not %d pages left for the cache, which takes transparent ones; raise "
                "/proc/sys/vm/nr_hugepages",
                -(-nbytes // HUGE_PAGE),
            )
    memory = mmap.mmap(-1, nbytes, flags=flags)
    advice = "MADV_NOHUGEPAGE" if huge_pages == "off" else "MADV_HUGEPAGE"
    if hasattr(mmap, advice):
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(getattr(mmap, advice))
    return memory
