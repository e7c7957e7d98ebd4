"""Blocks that running sequences are computing: whoever waits for one turns a duplicate computation into a hit."""

from __future__ import annotations

from kvtrove.scheduler.sequence import Sequence


class BlocksInWork:
    """Key of a block -> the sequence that computes it."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self._owner: dict[bytes, int] = {}

    def __contains__(self, key: bytes | None) -> bool:
        return key in self._owner

    def owner(self, key: bytes) -> int:
        """Id of the sequence that computes the block, 0 if none does."""
        return self._owner.get(key, 0)

    def begin(self, seq: Sequence, limit: int) -> None:
        """`seq` computes what its match did not have, as far as a hit within `limit` tokens could have served it."""
        for key in self._missing(seq, seq.kv.num_held, limit):
            self._owner.setdefault(key, seq.id)

    def end(self, seq: Sequence, before: int, after: int) -> None:
        """What lies at places before .. after - 1 of the tables of `seq` is computed."""
        if self._owner:
            for key in seq.kv.chain.keys[before // self.block_size : after // self.block_size]:
                if self._owner.get(key) == seq.id:
                    del self._owner[key]

    def leave(self, seq: Sequence) -> None:
        for key in [key for key, owner in self._owner.items() if owner == seq.id]:
            del self._owner[key]

    def clear(self) -> None:
        self._owner.clear()

    def run_after(self, seq: Sequence, num_matched: int, limit: int) -> bytes | None:
        """Key of the last block of the run that another sequence is computing, when the run starts at the match."""
        last = None
        for key in self._missing(seq, num_matched, limit):
            if key not in self._owner:
                break
            last = key
        return last

    def _missing(self, seq: Sequence, num_matched: int, limit: int) -> list[bytes]:
        return seq.kv.chain.keys[num_matched // self.block_size : max(0, limit - seq.kv.dropped) // self.block_size]
