"""Tokenizer files that would multiply text, never end, or end the process."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from kvtrove.demo import demo_model_dir
from kvtrove.models.spec import ModelError
from kvtrove.text.tokenizer import Tokenizer


def directory(tmp_path: Path, **changes: Any) -> Path:
    pipeline = json.loads((demo_model_dir() / "tokenizer.json").read_text()) | changes
    (tmp_path / "tokenizer.json").write_text(json.dumps(pipeline))
    return tmp_path


def replaced(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


GROWS = {"type": "Sequence", "normalizers": [replaced({"String": "a"}, "aaaaaaaaaa")] * 9}
GARBAGE = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff" * 64).decode()}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"normalizer": GROWS}, "make up to 1000000000 characters of one"),
        ({"normalizer": replaced({"Regex": "."}, "x" * 100)}, "make up to 100 characters"),
        ({"decoder": replaced({"Regex": "(a+)+$"}, "x")}, "repeats a repetition"),
        ({"normalizer": GARBAGE}, "fails on it|not a tokenizer"),
    ],
)
def test_a_hostile_tokenizer_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words) as error:
        Tokenizer.load(directory(tmp_path, **changes))
    assert str(tmp_path / "tokenizer.json") in str(error.value)


def test_the_replacements_of_known_families_are_taken(tmp_path: Path) -> None:
    spaces = replaced({"String": " "}, "\u2581")
    sequence = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, spaces]}
    assert Tokenizer.load(directory(tmp_path, normalizer=sequence)).encode("a")
