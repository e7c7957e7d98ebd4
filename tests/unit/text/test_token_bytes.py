"""Bytes of tokens that are no whole characters."""

from __future__ import annotations

import pytest

from kvtrove.demo import demo_model_dir
from kvtrove.text.token_bytes import token_bytes
from kvtrove.text.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("piece", "text", "expected"),
    [
        ("<0xE2>", "\ufffd", b"\xe2"),
        ("âĺ", "\ufffd", b"\xe2\x98"),
        ("Ġâĺ", " \ufffd", b" \xe2\x98"),
        ("Ġhi", " hi", b" hi"),
        ("\ufffd", "\ufffd", "\ufffd".encode()),  # a token that is the replacement character itself
        (None, "\ufffd", "\ufffd".encode()),
    ],
)
def test_of_a_piece(piece: str | None, text: str, expected: bytes) -> None:
    assert token_bytes(piece, text) == expected


def test_of_a_text_they_add_up_to_it() -> None:
    tokenizer = Tokenizer.load(demo_model_dir())
    text = "naïve ☂ 𝄞 你好 \u0085"
    ids = tokenizer.encode(text, add_special_tokens=False)
    parts = [token_bytes(tokenizer.backend.id_to_token(i), tokenizer.token_text(i)) for i in ids]
    assert b"".join(parts) == text.encode()
    assert any("\ufffd" in tokenizer.token_text(i) for i in ids), "the text wants characters of several tokens"
