"""Layers with adapters: a product of which some rows get a low-rank sum on top, each that of its own request.

    y = W x            for all rows, as ever
    y[rows] += s B (A x[rows])        for the rows of each adapter

A row's sum has the same bits whatever else is in the step, where products have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from torch import Tensor

from kvtrove.models.layers.attention import Attention
from kvtrove.models.layers.latent import LatentAttention
from kvtrove.models.layers.linear import Joint, Product
from kvtrove.models.layers.mlp import MLP, ExpertsBeside
from kvtrove.models.spec import ModelSpec

if TYPE_CHECKING:
    from kvtrove.models.decoder import DecoderLayer


@dataclass(frozen=True, eq=False)
class LowRank:
    """down: [r, inputs], up: [outputs, r], in float32 or narrower."""

    down: Product
    up: Product
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        """x: float32 [n, inputs] -> float32 [n, outputs]."""
        return self.up(self.down(x)) * self.scale


@dataclass(eq=False)
class Selection:
    """Which rows of the step that is computed belong to which adapter: digest -> int64 [n]."""

    rows: Mapping[bytes, Tensor] = field(default_factory=dict)


Added = Mapping[bytes, Sequence[tuple[int, int | None, LowRank]]]
"""Digest of an adapter -> (first output, one past the last (None: all), what is added to these)."""


@dataclass(frozen=True, eq=False)
class AdaptedProduct:
    base: Product
    added: Added
    selection: Selection

    def __call__(self, x: Tensor) -> Tensor:
        y = self.base(x)
        for digest, rows in self.selection.rows.items():
            parts = self.added.get(digest)
            if parts:
                wide, sums = x[rows].float(), y[rows].float()
                for first, stop, low_rank in parts:
                    sums[:, first:stop] += low_rank(wide)
                y[rows] = sums.to(y.dtype)
        return y


def modules_of(spec: ModelSpec) -> Iterator[tuple[str, tuple[int, int]]]:
    """Every linear layer that adapters may change, by the decoder's name, with its outputs and inputs."""
    hidden = spec.hidden_size
    for index, layer in enumerate(spec.layers):
        attention, mlp = f"layers.{index}.self_attn", f"layers.{index}.mlp"
        if (latent := spec.latent) is not None:
            queries, inner = spec.num_heads * (latent.nope + latent.rope), spec.num_heads * latent.v_dim
            if latent.q_rank is None:
                yield f"{attention}.q_proj", (queries, hidden)
            else:
                yield f"{attention}.q_a_proj", (latent.q_rank, hidden)
                yield f"{attention}.q_b_proj", (queries, latent.q_rank)
            yield f"{attention}.kv_a_proj_with_mqa", (layer.kv.v_dim + latent.rope, hidden)
            yield f"{attention}.o_proj", (hidden, inner)
        elif layer.cache is not None and not layer.tied:
            inner, narrow = spec.num_heads * layer.kv.k_dim, layer.kv.heads * layer.kv.k_dim
            yield f"{attention}.q_proj", (inner, hidden)
            if layer.kv.source is None:
                yield f"{attention}.k_proj", (narrow, hidden)
                yield f"{attention}.v_proj", (narrow, hidden)
            yield f"{attention}.o_proj", (hidden, inner)
        size, moe = layer.intermediate_size or spec.intermediate_size, layer.moe
        if moe is not None and not moe.beside:
            size, mlp = moe.shared_size, f"{mlp}.shared_experts"
        if size:
            yield f"{mlp}.gate_proj", (size, hidden)
            yield f"{mlp}.up_proj", (size, hidden)
            yield f"{mlp}.down_proj", (hidden, size)


def adapted_layer(
    layer: DecoderLayer,
    name: str,
    spec: ModelSpec,
    adapters: Mapping[bytes, Mapping[str, LowRank]],
    selection: Selection,
) -> DecoderLayer:
    """The layer with all that the adapters change in it. adapters: digest -> modules by the decoder's names."""

    def product(base: Product, module: str) -> Product:
        return _wrapped(base, [(module, 0, None)], adapters, selection)

    def joint(base: Joint, modules: Sequence[str]) -> Joint:
        if base.product is None:
            wrapped = [product(one, module) for one, module in zip(base.products, modules, strict=True)]
            return replace(base, products=wrapped)
        ends = [sum(base.sizes[: i + 1]) for i in range(len(modules))]
        places = [(m, end - size, end) for m, end, size in zip(modules, ends, base.sizes, strict=True)]
        return replace(base, products=[_wrapped(base.product, places, adapters, selection)])

    def mlp(base: MLP, at: str) -> MLP:
        gate_up = joint(base.gate_up, [f"{at}.gate_proj", f"{at}.up_proj"])
        return replace(base, gate_up=gate_up, down=product(base.down, f"{at}.down_proj"))

    attention, at = layer.attention, f"{name}.self_attn"
    if isinstance(attention, LatentAttention):
        first = "q_proj" if attention.q_up is None else "q_a_proj"
        attention = replace(
            attention,
            qkv=joint(attention.qkv, [f"{at}.{first}", f"{at}.kv_a_proj_with_mqa"]),
            q_up=None if attention.q_up is None else product(attention.q_up, f"{at}.q_b_proj"),
            o=product(attention.o, f"{at}.o_proj"),
        )
    elif isinstance(attention, Attention):
        names = [f"{at}.{part}_proj" for part in "qkv"][: len(attention.qkv.sizes)]
        attention = replace(attention, qkv=joint(attention.qkv, names), o=product(attention.o, f"{at}.o_proj"))
    changed = layer.mlp
    if isinstance(changed, MLP):
        changed = mlp(changed, f"{name}.mlp")
    elif isinstance(changed, ExpertsBeside):
        changed = replace(changed, dense=mlp(changed.dense, f"{name}.mlp"))
    elif changed.shared is not None:
        changed = replace(changed, shared=mlp(changed.shared, f"{name}.mlp.shared_experts"))
    return replace(layer, attention=attention, mlp=changed)


def _wrapped(
    base: Product,
    places: Sequence[tuple[str, int, int | None]],
    adapters: Mapping[bytes, Mapping[str, LowRank]],
    selection: Selection,
) -> Product:
    """The product itself where no adapter changes it. places: module, first output, one past the last (None: all)."""
    added = {
        digest: [(first, stop, modules[module]) for module, first, stop in places if module in modules]
        for digest, modules in adapters.items()
    }
    return AdaptedProduct(base, added, selection) if any(added.values()) else base
