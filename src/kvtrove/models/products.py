"""Which implementation serves a linear layer: decided once per shape at load, and logged.

    torch    torch.nn.functional.linear on views of the checkpoint: costs no memory of its own
    onednn   oneDNN on weights in its own layout
    own      kernels/linear.py: bf16 or int8 weights, a row gives the same bits in every batch

One implementation serves all numbers of rows: a second layout would double the memory, and a row's bits would depend on
the batch.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from kvtrove.config import ConfigError
from kvtrove.models.layers.linear import Part, Product, separate
from kvtrove.models.layers.packed import OneDnnLinear, PackedLinear
from kvtrove.models.precision import Precision

log = logging.getLogger(__name__)

MEASURED_ROWS = (1, 8, 64)
"""Numbers of rows that are timed: decoding alone, decoding in a batch, a piece of a prompt."""
LONG_ROWS = 512
"""A long prompt: timed as well, on one copy of the weights, where it may still decide and does not take long."""
LONGEST = 0.1
"""Seconds that one product for a long prompt may take at load, by its time for the last of MEASURED_ROWS."""
WORTH_MEASURING = 1 << 20
"""Elements of a matrix. The choice for smaller ones changes no step noticeably."""
COLD_BYTES = 32 << 20
"""Weights are timed in turn until they have so many bytes: in a step they come from memory, not from a cache."""
HOPELESS = 4
"""A candidate that is so many times slower than another one, at the first or the last of MEASURED_ROWS, is out."""

Shape = tuple[int, int, bool]
"""(outputs, inputs, shared with the embedding) of a product."""
Seconds = tuple[float, ...]
"""Of one product, per entry of MEASURED_ROWS and for LONG_ROWS, as far as it was timed."""


def candidates(wanted: str, precision: Precision, device: str) -> tuple[str, ...]:
    """Implementations that can serve these numbers, of those that `wanted` ("auto" or a name) allows.

    ConfigError when there are none; it names what works. "onednn" may still turn out not to know the processor.
    """
    able = _able(precision, device)
    if wanted == "auto":
        # what is stored in float32 or float16 stays where it lies: a view of the checkpoint
        return able if precision.dtype == "bfloat16" or precision.int8 else ("torch",)
    if wanted not in able:
        raise ConfigError(
            f"linear: {wanted!r} cannot serve {precision} on {device}; auto or {' or '.join(able)} can"
            + ("; own needs --dtype bfloat16 or --weights int8" if wanted == "own" and device == "cpu" else "")
        )
    return (wanted,)


def _able(precision: Precision, device: str) -> tuple[str, ...]:
    if device != "cpu":
        return ("torch",)
    if precision.int8:
        return ("own",)
    if precision.dtype != precision.activations:
        return ("own",)
    return {"bfloat16": ("torch", "onednn", "own"), "float32": ("torch", "onednn")}.get(precision.dtype, ("torch",))


@dataclass
class Products:
    """Builds products (`layers.linear.Build`), and remembers the choice for every shape.

    wanted: "auto" measures where there is a choice. isa: of the own kernels.
    """

    precision: Precision
    device: str = "cpu"
    wanted: str = "auto"
    isa: str = "auto"
    clock: Callable[[], float] = time.perf_counter
    chosen: dict[Shape, str] = field(default_factory=dict)
    built: Counter[Shape] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.candidates = candidates(self.wanted, self.precision, self.device)

    def build(self, parts: Sequence[Part], inputs: int, shared: bool = False) -> Sequence[Product]:
        shape = (sum(part.outputs for part in parts), inputs, shared)
        if shape not in self.chosen:
            self.chosen[shape] = self._choose(*shape)
        self.built[shape] += 1
        name = self.chosen[shape]
        try:
            return self._make(name, parts, inputs)
        except RuntimeError as error:
            if name != "onednn":
                raise
            raise ConfigError(f"linear: oneDNN cannot serve this processor ({error}); take auto") from error

    def summary(self) -> str:
        """``24 x [9728, 896] own, 24 x [896, 4864] own, ...``: what was built so far."""
        return ", ".join(f"{count} x [{s[0]}, {s[1]}] {self.chosen[s]}" for s, count in self.built.items())

    def _make(self, name: str, parts: Sequence[Part], inputs: int) -> Sequence[Product]:
        if name == "own":
            kind = "int8" if self.precision.int8 else "bf16"
            return [PackedLinear.pack(parts, inputs, kind, self.isa)]  # type: ignore[arg-type]
        return [OneDnnLinear.pack(part) for part in parts] if name == "onednn" else separate(parts, inputs)

    def _choose(self, outputs: int, inputs: int, shared: bool) -> str:
        # an embedding can be read from torch's and from our own layout, not from oneDNN's: it would be held twice
        names = [name for name in self.candidates if not (shared and name == "onednn")] or ["torch"]
        if len(names) == 1 or outputs * inputs < WORTH_MEASURING:
            return names[0]
        timed: dict[str, Seconds] = {}
        for name in names:
            fair = min((seconds[0] for seconds in timed.values() if seconds), default=math.inf)
            timed[name] = self._measure(name, outputs, inputs, HOPELESS * fair)
        for name in self._rivals(timed):
            timed[name] += (self._rounds(self._copies(name, outputs, inputs, 1), LONG_ROWS, inputs, 2),)
        best = fastest(timed)
        log.info("linear [%d, %d]: %s; %s", outputs, inputs, best, "; ".join(map(_sentence, timed.items())))
        return best

    def _measure(self, name: str, outputs: int, inputs: int, slowest: float) -> Seconds:
        """Best of three rounds over cold weights per number of rows; only the first when that takes over `slowest`.

        Empty when the processor cannot.
        """
        size = outputs * inputs * getattr(torch, self.precision.dtype).itemsize
        try:
            products = self._copies(name, outputs, inputs, max(1, COLD_BYTES // size))
        except RuntimeError:
            return ()
        seconds: list[float] = []
        for rows in MEASURED_ROWS:
            seconds.append(self._rounds(products, rows, inputs, 3))
            if seconds[0] > slowest:
                break
        return tuple(seconds)

    def _rivals(self, timed: dict[str, Seconds]) -> list[str]:
        """Who is timed for a long prompt: nobody when it is decided without, or when that would take long."""
        last = {name: seconds[-1] for name, seconds in timed.items() if len(seconds) == len(MEASURED_ROWS)}
        rivals = [name for name in last if last[name] <= HOPELESS * min(last.values())]
        expected = max(last[name] for name in rivals) * LONG_ROWS / MEASURED_ROWS[-1]
        return rivals if len(rivals) > 1 and expected <= LONGEST else []

    def _copies(self, name: str, outputs: int, inputs: int, count: int) -> list[Product]:
        weight = torch.randn(outputs, inputs).to(getattr(torch, self.precision.dtype))
        return [self._make(name, [Part(outputs, weight.clone)], inputs)[0] for _ in range(count)]

    def _rounds(self, products: Sequence[Product], rows: int, inputs: int, count: int) -> float:
        """Seconds of one product in the best of `count` rounds."""
        x = torch.randn(rows, inputs).to(getattr(torch, self.precision.dtype))
        return min(self._round(products, x) for _ in range(count)) / len(products)

    @torch.inference_mode()
    def _round(self, products: Sequence[Product], x: Tensor) -> float:
        start = self.clock()
        for product in products:
            product(x)
        return self.clock() - start


def fastest(timed: dict[str, Seconds]) -> str:
    """The name with the least geometric mean of its times: every number of rows counts alike.

    Who was timed at fewer numbers of rows than another one loses.
    """
    most = max(map(len, timed.values()))
    full = {name: math.prod(seconds) for name, seconds in timed.items() if len(seconds) == most}
    return min(full, key=lambda name: full[name])


def _sentence(entry: tuple[str, Seconds]) -> str:
    name, seconds = entry
    if not seconds:
        return f"{name} cannot serve this processor"
    times = ", ".join(f"{1e3 * s:.2f}" for s in seconds)
    return f"{name} {times} ms at {', '.join(map(str, (*MEASURED_ROWS, LONG_ROWS)[: len(seconds)]))} rows"
