"""What every backend's plan of a step holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from kvtrove.attention.backend import AttentionBatch, AttentionLayer, Rotation
from kvtrove.attention.own_block import Shared


@dataclass(frozen=True)
class StepPlan:
    """A step, and what layers leave in it for those that read their storage.

    shared: dense K and V. unturned: storage -> how its keys are rotated when they are read, where they are stored
    before their rotation.
    """

    batch: AttentionBatch
    shared: Shared = field(default_factory=Shared)
    unturned: dict[int, Rotation | None] = field(default_factory=dict)

    def leave_rotation(self, layer: AttentionLayer, rotate: Rotation | None) -> None:
        """Of keys that this step stores."""
        self.unturned[layer.storage] = rotate if layer.format.rope == "pre" else None
