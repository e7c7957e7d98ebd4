"""The bytes that a token stands for, where they are no whole characters and its text cannot show them."""

from __future__ import annotations

import re

_BYTE_PIECE = re.compile("<0x([0-9A-Fa-f]{2})>")  # byte fallback of SentencePiece
_UNKNOWN = "\ufffd"


def _byte_alphabet() -> dict[str, int]:
    """The characters that byte-level vocabularies (GPT-2) write for bytes: printable ones for themselves, others from
    U+0100 on.
    """
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def token_bytes(piece: str | None, text: str) -> bytes:
    """Bytes of a token. piece: as the vocabulary writes it, None for a token that has none; text: as it is shown."""
    if piece is None or _UNKNOWN not in text:
        return text.encode()
    if found := _BYTE_PIECE.fullmatch(piece):
        return bytes([int(found[1], 16)])
    if all(character in _BYTES for character in piece):
        return bytes(_BYTES[character] for character in piece)
    return text.encode()
