"""Where the memory goes: the same lines for a plan, for the start of an engine and for its report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from kvtrove.plan.capacity import readable

RESERVE_BYTES = 512 * 2**20
"""Interpreter, libraries, allocator slack, and what else a process needs before it does anything."""
RESERVE_SHARE = 50
"""One part in so many of the memory stays free on top: estimates are not exact, and neither are allocators."""


@dataclass(frozen=True)
class Ledger:
    """Bytes. total: what may be used; free: what nobody takes. measured: activations come from a warm-up.

    weights: with the calibration that the cache reads, if any.
    kv: the whole cache; seats: what of it running sequences have beside blocks (open blocks of some formats, running
    states). planned_activations: what the formula had said before they were measured.
    process: what interpreter and libraries were measured to hold beside the other lines; most of it was theirs before
    `total` was counted.
    """

    total: int
    weights: int
    kv: int
    activations: int
    reserve: int
    measured: bool = False
    planned_activations: int | None = None
    process: int = 0
    seats: int = 0

    @property
    def free(self) -> int:
        """Negative by what is missing."""
        return self.total - self.weights - self.kv - self.activations - self.reserve

    @property
    def peak(self) -> int:
        """Most that the process holds once every block of the cache has been used, if it was measured."""
        return self.process + self.weights + self.kv + self.activations

    @property
    def at_rest(self) -> int:
        """The same while no step runs. What is held lies between the two: allocators keep some of what a step had."""
        return self.peak - self.activations

    def entries(self) -> dict[str, int]:
        """Name -> bytes, largest story first; they sum to `total` unless `free` is negative."""
        return {
            "weights": self.weights,
            "kv": self.kv - self.seats,
            **({"seats": self.seats} if self.seats else {}),
            "activations": self.activations,
            "reserve": self.reserve,
            "free": self.free,
        }

    def as_json(self) -> dict[str, int | bool]:
        return {**asdict(self), "free": self.free}

    def sentence(self) -> str:
        """``22GiB = weights 1GiB + kv 8GiB + activations 160MiB (planned 171MiB) + reserve 960MiB + free 11.9GiB``"""
        words = {name: f"{name} {readable(size) if size > 0 else size}" for name, size in self.entries().items()}
        if self.planned_activations is not None:
            words["activations"] += f" (planned {readable(self.planned_activations)})"
        return f"{readable(self.total)} = {' + '.join(words.values())}"

    def with_measured(self, activation_bytes: int, process: int = 0) -> Ledger:
        """The ledger after a warm-up: what the formula had wrong goes to or comes from `free`."""
        return replace(
            self,
            activations=activation_bytes,
            measured=True,
            planned_activations=self.activations,
            process=process,
        )


def reserve_bytes(total: int) -> int:
    """What is set aside of `total` bytes."""
    return RESERVE_BYTES + total // RESERVE_SHARE


def total_for(used: int) -> int:
    """The smallest total whose reserve still leaves `used` bytes."""
    return -(-(used + RESERVE_BYTES) * RESERVE_SHARE // (RESERVE_SHARE - 1))


def bar(ledger: Ledger, width: int) -> str:
    """One letter per share of the total, at least one for what is there: ``WWWWWWWWWWKKKKKKKKKKKKKAAR....``"""
    letters = {"weights": "W", "kv": "K", "seats": "S", "activations": "A", "reserve": "R", "free": "."}
    drawn = "".join(
        letters[name] * max(1, round(width * size / ledger.total))
        for name, size in ledger.entries().items()
        if size > 0 and name != "free"
    )
    return drawn[:width].ljust(width, letters["free"])
