"""Prompts that an administrator keeps in the cache, whatever else needs blocks."""

from __future__ import annotations

from array import array
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from kvtrove.kv.block import Block
from kvtrove.kv.pins import Pin
from kvtrove.kv.table import SequenceKV
from kvtrove.request import RequestError
from kvtrove.scheduler.scheduler import Scheduler


@dataclass(frozen=True)
class PinnedPrefix:
    """What an administrator keeps in the cache: the first `num_tokens` of a prompt, in `num_blocks` blocks."""

    id: str
    num_tokens: int
    num_blocks: int


class PinnedPrefixes:
    """Of one engine; called on its thread."""

    def __init__(self, scheduler: Scheduler, max_model_len: int) -> None:
        self._scheduler, self._kv, self._max_model_len = scheduler, scheduler.kv, max_model_len
        self._pins: dict[str, tuple[Pin, PinnedPrefix]] = {}
        self._count = 0

    def pin(self, prompt_token_ids: Sequence[int], salt: str) -> PinnedPrefix:
        """Keep what is cached of this prompt. RequestError as `Engine.pin` says."""
        kv = self._kv.open(salt.encode())
        match = self._kv.match(kv, array("i", prompt_token_ids), len(prompt_token_ids))
        self._kv.free(kv)
        held = match.held
        room = self._scheduler.room_for_pins(self._max_model_len)
        if not held:
            raise RequestError("nothing of this prompt is cached; send it as a request first", "prompt")
        if len(held) > room:
            raise RequestError(
                f"pinning {len(held)} blocks would leave too little for a request of {self._max_model_len} "
                f"tokens; {max(0, room)} fit; pin a shorter prefix, unpin another, or give the cache more memory",
                "prompt",
            )
        self._count += 1
        pinned = PinnedPrefix(f"pin-{self._count}", match.num_tokens, len(held))
        self._pins[pinned.id] = self._kv.pin_blocks(held), pinned
        return pinned

    def keep(self, kv: SequenceKV, num_tokens: int) -> PinnedPrefix:
        """Keep all that an open sequence holds: the first `num_tokens` of a prompt."""
        self._count += 1
        pinned = PinnedPrefix(f"pin-{self._count}", num_tokens, kv.num_blocks)
        self._pins[pinned.id] = self._kv.pin(kv), pinned
        return pinned

    def let_go_of(self, blocks: Collection[Block]) -> None:
        """Unpin every prefix that has none but these blocks: others serve in their place."""
        ids = {block.id for block in blocks}
        for name in [name for name, (pin, _) in self._pins.items() if ids.issuperset(b.id for b in pin.blocks)]:
            self.unpin(name)

    def unpin(self, pin_id: str) -> PinnedPrefix | None:
        pin, pinned = self._pins.pop(pin_id, (None, None))
        if pin is not None:
            self._kv.unpin(pin)
        return pinned

    def all(self) -> list[PinnedPrefix]:
        return [pinned for _, pinned in self._pins.values()]

    def drop_lost(self) -> None:
        """Forget the pins that the books have lost with everything else, after a fault."""
        self._pins = {name: kept for name, kept in self._pins.items() if kept[0] in self._kv.pins}
