"""Rows and columns that lie in another order in a GGUF file than in the model. No torch; numpy where it moves some."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtrove.models.config_view import ConfigView

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Order:
    """An axis that is [outer, b, a, inner] in the file and [outer, a, b, inner] in the model; one size may be -1.

    kept: elements in front that are where they should be. columns: inputs of the matrix rather than outputs.
    """

    sizes: tuple[int, int, int, int]
    kept: int = 0
    columns: bool = False

    def of_model(self, size: int) -> NDArray[np.int64]:
        """Where in the file each element of the model lies, of `size`. ValueError where the sizes do not fit."""
        import numpy as np

        moved = np.arange(self.kept, size).reshape(self.sizes).swapaxes(1, 2).reshape(-1)
        return np.concatenate([np.arange(self.kept), moved])


Orders = Mapping[str, Order]
"""Part of a layer, as the file calls it -> the order of its rows or columns."""


def as_written(view: ConfigView) -> Orders:
    return {}


def rotary_pairs(view: ConfigView) -> Orders:
    """Q and K of Llama: elements that rotate together are neighbours in the file, half a head apart in the model."""
    heads = _heads(view, "attention.head_count", 1)
    return {"attn_q": _pairs(heads), "attn_k": _pairs(_heads(view, "attention.head_count_kv", heads))}


def _pairs(heads: int) -> Order:
    return Order((heads, -1, 2, 1))


def _heads(view: ConfigView, key: str, default: int) -> int:
    """Of layers that have some, where the file gives a number for each."""
    value = view.get(key, default)
    return ConfigView({key: max(value, default=0) if isinstance(value, array) else value}, view.where).size(key)


def tiled_values(view: ConfigView) -> Orders:
    """Value heads of Gated DeltaNet: in the file, the first ones of all key heads come first."""
    keys, values = view.size("ssm.group_count"), view.size("ssm.time_step_rank")
    width, before = view.size("ssm.inner_size") // values, 2 * keys * view.size("ssm.state_size")
    heads, scalars = ((1, values // keys, keys, inner) for inner in (width, 1))
    return {
        **dict.fromkeys(("attn_qkv", "ssm_conv1d"), Order(heads, kept=before)),
        **dict.fromkeys(("ssm_alpha", "ssm_beta", "ssm_a", "ssm_dt"), Order(scalars)),
        "attn_gate": Order(heads),
        "ssm_out": Order(heads, columns=True),
    }
