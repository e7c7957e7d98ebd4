"""What a tokenizer.json may hold that `tokenizers` would take literally: text that multiplies, regular expressions that
never end, tables whose garbage ends the process. Checked once, when a tokenizer is loaded.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kvtrove.models.spec import ModelError

MAX_GROWTH = 64  # characters that normalizers may make of one
TRIAL_SECONDS = 60.0
_RISKY = (b"Precompiled", b"Replace")
_NESTED_REPEAT = re.compile(r"(?<!\\)[+*}]\??\)+(?:[+*]|\{\d+,)")  # (a+)+ takes exponential time
_TRIAL = """
import sys, tokenizers
backend = tokenizers.Tokenizer.from_file(sys.argv[1])
text = "".join(map(chr, (*range(1, 0xD800), *range(0xE000, 0x20000))))
for start in range(0, len(text), 4096):
    backend.decode(backend.encode(text[start : start + 4096]).ids)
"""


def check_tokenizer(path: Path) -> None:
    """ModelError that names the file and the part which makes it unsafe to use."""
    data = path.read_bytes()
    if not any(word in data for word in _RISKY):
        return
    try:
        pipeline = json.loads(data)
    except ValueError:
        return  # the library says better what is wrong
    if not isinstance(pipeline, dict):
        return
    growth = 1
    for part in _parts(pipeline.get("normalizer")):
        if part.get("type") == "Replace":
            growth *= _growth(part)
    if growth > MAX_GROWTH:
        raise ModelError(
            f"{path}: its normalizers make up to {growth} characters of one; at most {MAX_GROWTH} are taken"
        )
    for part in (*_parts(pipeline.get("normalizer")), *_parts(pipeline.get("decoder"))):
        pattern = part.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        if isinstance(regex, str) and _NESTED_REPEAT.search(regex):
            raise ModelError(f"{path}: the pattern {regex!r:.80} repeats a repetition, which can take forever")
    if b"Precompiled" in data:
        _try(path)


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """A normalizer or decoder and all within it."""
    stack = [part]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            yield one
            stack += [*(one.get("normalizers") or ()), *(one.get("decoders") or ())]


def _growth(part: dict[str, Any]) -> int:
    content, pattern = part.get("content"), part.get("pattern")
    text = pattern.get("String") if isinstance(pattern, dict) else None
    length = len(content) if isinstance(content, str) else 0
    return max(1, -(-length // max(1, len(text) if isinstance(text, str) else 1)))


def _try(path: Path) -> None:
    """Load it and encode every character in a process of its own: a broken table ends that one."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL, str(path)], capture_output=True, text=True, timeout=TRIAL_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"{path}: encoding each character once takes more than {TRIAL_SECONDS:g} s") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ModelError(f"{path}: `tokenizers` fails on it, in its Precompiled table perhaps: {last[:200]}")
