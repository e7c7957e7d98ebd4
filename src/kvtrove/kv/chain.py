"""The chain of keys of a sequence's blocks.

    H(model, cache spec, adapter, salt)     tokens 0..15       tokens 16..31
    root ─────────────────────────────────> key 0 ───────────> key 1 ───────────> ...    key_i = H(key_{i-1} ‖ tokens_i)

A key stands for everything before it, so equal keys mean equal prefixes under the same model, format and tenant. It is
a SHA-256 of fixed bytes and therefore the same in every process and on every machine. A sequence that has given up some
of its tokens goes on under a derived root, which stands for all of them and for what was done:

    root' = H(everything before, what was done)     KEPT x 16     KEPT x 3, tokens 997..1009     ...
"""

from __future__ import annotations

import sys
from array import array
from hashlib import sha256

_ADAPTER = b"\xff"
"""Begins a scope with an adapter. A salt is UTF-8 text, which has no such byte."""


KEPT = -1
"""Stands for a token that was kept, in the content of a derived chain: each head of a layer may keep another one."""


def root_key(model: bytes, fingerprint: bytes, adapter: bytes, salt: bytes) -> bytes:
    """Where a chain starts. Every field enters behind its length, so no two tuples share a root."""
    h = sha256(b"kvtrove key chain 1")
    for field in (model, fingerprint, adapter, salt):
        h.update(len(field).to_bytes(8, "little") + field)
    return h.digest()


def scoped(adapter: bytes, salt: bytes) -> bytes:
    """Adapter and salt as one: what separates sequences of the same model. adapter: a digest, or empty without one."""
    return _ADAPTER + len(adapter).to_bytes(1, "little") + adapter + salt if adapter else salt


def unscoped(scope: bytes) -> tuple[bytes, bytes]:
    """(adapter, salt) of `scoped`."""
    if not scope.startswith(_ADAPTER):
        return b"", scope
    stop = 2 + scope[1]
    return scope[2:stop], scope[stop:]


def key_behind(key: bytes, content: bytes, bend: bytes = b"") -> bytes:
    """The key of a block with this content behind the block, or root, under `key`."""
    return sha256(key + bend + content).digest()


class KeyChain:
    """Keys of a sequence's full blocks, extended block by block and never hashed twice.

    keys[i]: 32 bytes. tokens[i]: the int32 little-endian token ids of block i, 4 * block_size bytes.
    origin: the root of the chain that this one was derived from, its own root if it was not. dropped, kept: tokens that
    were given up, and that were left when this was done last. shared: it is that of a prefix compacted for all.
    bends: what else blocks stand for (`bend`).
    """

    __slots__ = ("bends", "block_size", "dropped", "kept", "keys", "origin", "root", "shared", "tokens")

    def __init__(
        self, root: bytes, block_size: int, origin: bytes = b"", dropped: int = 0, kept: int = 0, shared: bool = False
    ) -> None:
        self.root, self.origin = root, origin or root
        self.block_size = block_size
        self.dropped, self.kept, self.shared = dropped, kept, shared
        self.keys: list[bytes] = []
        self.tokens: list[bytes] = []
        self.bends: dict[int, bytes] = {}

    def extend(self, tokens: array[int], num_blocks: int) -> None:
        """Hash up to block `num_blocks`; `tokens` are the sequence's from position 0, an array of 4-byte integers."""
        size = self.block_size
        if tokens.itemsize != 4:
            raise ValueError(f"tokens: array({tokens.typecode!r}) has {tokens.itemsize}-byte items; use array('i')")
        if num_blocks * size > len(tokens) - self.dropped:
            raise ValueError(f"{num_blocks} blocks of {size} are more than the {len(tokens)} tokens given")
        key = self.keys[-1] if self.keys else self.root
        for i in range(len(self.keys), num_blocks):
            part = self._held(tokens, i * size, (i + 1) * size)
            if sys.byteorder == "big":
                part.byteswap()
            content = part.tobytes()
            key = key_behind(key, content, self.bends.get(i, b""))
            self.keys.append(key)
            self.tokens.append(content)

    def place(self, i: int) -> tuple[bytes, bytes, bytes]:
        """Key, key before it (empty of the first) and tokens of block i."""
        return self.keys[i], self.keys[i - 1] if i else b"", self.tokens[i]

    def cut(self, num_blocks: int) -> None:
        """Forget all keys from block `num_blocks` on. That block may still hold what bent the chain there."""
        del self.keys[num_blocks:], self.tokens[num_blocks:]
        self.bends = {i: what for i, what in self.bends.items() if i <= num_blocks}

    def bend(self, i: int, what: bytes) -> None:
        """Part of block i was not computed behind what is before it: from there on, keys stand for `what` as well."""
        del self.keys[i:], self.tokens[i:]
        self.bends[i] = self.bends.get(i, b"") + len(what).to_bytes(4, "little") + what

    def copy(self, num_blocks: int) -> KeyChain:
        """The first `num_blocks` keys; what was hashed ahead may not become true for the copy."""
        twin = KeyChain(self.root, self.block_size, self.origin, self.dropped, self.kept, self.shared)
        twin.keys, twin.tokens, twin.bends = self.keys[:num_blocks], self.tokens[:num_blocks], {**self.bends}
        return twin

    def derive(self, what: bytes, tokens: array[int], held: int, kept: int, shared: bool = False) -> KeyChain:
        """The chain of a sequence of which `what` left `kept` of the `held` tokens that it had in its tables.

        tokens: the sequence's from position 0. The keys of full blocks that were hashed enter the new root. shared:
        others find its blocks.
        """
        full = min(len(self.keys), held // self.block_size)
        rest = self._held(tokens, full * self.block_size, held).tobytes()
        key = self.keys[full - 1] if full else self.root
        root = root_key(b"derived", key, what + b" %d" % kept, rest)
        return KeyChain(root, self.block_size, self.origin, self.dropped + held - kept, kept, shared)

    def _held(self, tokens: array[int], start: int, stop: int) -> array[int]:
        """Tokens at places start .. stop - 1 of the tables."""
        behind = tokens[max(start, self.kept) + self.dropped : stop + self.dropped]
        return array("i", [KEPT] * (min(stop, self.kept) - start)) + behind if start < self.kept else behind
