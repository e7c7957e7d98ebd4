"""Which implementation serves a linear layer: the numbers that are stored decide, never a clock and never the batch.

    own      kernels/linear.py: bf16, int8 or int4 weights; a row gives the same bits in every batch
    torch    torch.nn.functional.linear on views of the checkpoint: costs no memory of its own
    onednn   oneDNN on weights in its own layout

torch and oneDNN choose how to sum by the number of rows, so the last bits of a row depend on what is computed with it.
"auto" takes them only where own kernels cannot serve: float32 and float16 weights, and GPUs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from kvtrove.config import ConfigError
from kvtrove.kernels.linear import Kind
from kvtrove.models.layers.linear import HeadLinear, HeadProduct, Linear, Part, Product, alone, separate
from kvtrove.models.layers.packed import OneDnnLinear, PackedHeads, PackedLinear
from kvtrove.models.precision import Precision


def choose(wanted: str, precision: Precision, device: str) -> str:
    """The implementation that serves these numbers, by name. wanted: "auto" or that name.

    ConfigError when it cannot; it names what can. "onednn" may still turn out not to know the processor.
    """
    able = _able(precision, device)
    if wanted == "auto":
        return able[0]
    if wanted not in able:
        raise ConfigError(
            f"linear: {wanted!r} cannot serve {precision} on {device}; auto or {' or '.join(able)} can"
            + ("; own needs --dtype bfloat16 or --weights int8 or int4" if wanted == "own" and device == "cpu" else "")
        )
    return wanted


def _able(precision: Precision, device: str) -> tuple[str, ...]:
    """All that can serve, the default first."""
    if device != "cpu":
        return ("torch",)
    if precision.quantised or precision.dtype != precision.activations:
        return ("own",)
    return {"bfloat16": ("own", "torch", "onednn"), "float32": ("torch", "onednn")}.get(precision.dtype, ("torch",))


WIDER: tuple[tuple[Kind, ...], ...] = (
    ("int4_symmetric", "int4", "int4_f32"),
    ("int8_groups", "int8_groups_f32"),
)
"""Each holds those before it exactly."""


@dataclass
class Products:
    """Builds products (`layers.linear.Build`), and counts them.

    wanted: an implementation, or "auto". isa: of the own kernels.
    """

    precision: Precision
    device: str = "cpu"
    wanted: str = "auto"
    isa: str = "auto"
    built: Counter[tuple[int, int, str]] = field(default_factory=Counter)
    """(outputs, inputs, implementation) of what was built so far."""

    def __post_init__(self) -> None:
        self.chosen = choose(self.wanted, self.precision, self.device)

    @property
    def same_in_every_batch(self) -> bool:
        """A row of any product has the same bits whatever is computed with it."""
        return self.chosen == "own"

    def build(self, parts: Sequence[Part], inputs: int, shared: bool = False) -> Sequence[Product]:
        # an embedding can be read from torch's and from our own layout, not from oneDNN's: it would be held twice
        name = "torch" if shared and self.chosen == "onednn" else self.chosen
        kind = self._kind(parts)
        if name == "own" and kind is None:
            return [product for part in parts for product in self.build([part], inputs, shared)]
        self.built[sum(part.outputs for part in parts), inputs, name] += 1
        if name == "own" and kind is not None:
            return [PackedLinear.pack(parts, inputs, kind, self.isa)]
        if name == "torch":
            return separate(parts, inputs)
        try:
            return [OneDnnLinear.pack(part) for part in parts]
        except RuntimeError as error:
            raise ConfigError(f"linear: oneDNN cannot serve this processor ({error}); take auto") from error

    def _kind(self, parts: Sequence[Part]) -> Kind | None:
        """Of a matrix of own kernels: as asked for, or with "gguf" what keeps the bits of all its parts.

        None where parts have several: a matrix has one, and no part is rounded for another's sake.
        """
        wanted = self.precision.weights
        named: dict[str, Kind] = {"auto": "bf16", "int8": "int8", "int4": "int4"}
        kinds: set[Kind] = {named[wanted]} if wanted in named else {part.kind or "bf16" for part in parts}
        if len(kinds) == 1:
            return kinds.pop()
        return next((max(kinds, key=line.index) for line in WIDER if kinds <= set(line)), None)

    def build_router(self, part: Part, inputs: int) -> Product:
        """A small matrix that stays in the checkpoint's numbers, also where linear layers have fewer bits."""
        if self.chosen == "own" and self.precision.dtype == "bfloat16":
            return PackedLinear.pack([part], inputs, "bf16", self.isa)
        return alone(part, inputs)

    def build_heads(self, matrices: Tensor) -> HeadProduct:
        """A matrix [outputs, inputs] for every head, in the checkpoint's numbers."""
        if self.chosen == "own" and self.precision.dtype == "bfloat16":
            return PackedHeads.pack(matrices, self.isa)
        return HeadLinear(matrices.contiguous())

    def build_adapter(self, part: Part, inputs: int) -> Product:
        """A thin matrix of an adapter, which multiplies float32: in bf16 by own kernels, else in float32."""
        if self.chosen == "own":
            return PackedLinear.pack([part], inputs, "bf16", self.isa)
        return Linear(part.tensor().to(self.device).float())

    def summary(self) -> str:
        """``24 x [9728, 896] own, 24 x [896, 4864] own, ...``: what was built so far."""
        return ", ".join(f"{count} x [{n}, {k}] {name}" for (n, k, name), count in self.built.items())
