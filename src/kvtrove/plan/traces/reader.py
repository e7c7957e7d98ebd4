"""Which format a trace file has, and reading it. A file may be compressed (.gz, .xz).

Mooncake   {"timestamp": 0, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1, ...]}      one a line
WEKA       {"id": "...", "block_size": 64, "requests": [{"t": 0.0, "in": 15818, "out": 154, ...}]}    one session a line
Azure      TIMESTAMP,ContextTokens,GeneratedTokens                                                    then one a line
"""

from __future__ import annotations

import gzip
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from kvtrove.plan.traces import azure, mooncake, weka
from kvtrove.plan.traces.fields import Line, TraceError
from kvtrove.plan.traces.request import Trace

_OPENERS: dict[str, Callable[..., IO[str]]] = {".gz": gzip.open, ".xz": lzma.open}


def read_trace(path: Path) -> Trace:
    """TraceError naming file, line and field when it is missing, of no known format, or broken."""
    lines = _lines(path)
    try:
        first = next(lines, None)
        if first is None:
            raise TraceError(f"{path}: the trace is empty")
        if azure.recognises(first):
            return azure.read(path.name, first, lines)
        if weka.recognises(first):
            return weka.read(path.name, first, lines)
        if mooncake.recognises(first):
            return mooncake.read(path.name, first, lines)
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read: {error}") from error
    raise TraceError(
        f"{path}: line 1 is of no known trace format: Mooncake has 'timestamp', 'input_length', 'output_length'; WEKA "
        f"has 'requests'; Azure begins with {azure.HEADER}"
    )


def _lines(path: Path) -> Iterator[Line]:
    """Lines that are not blank."""
    if not path.exists():
        raise TraceError(f"{path}: there is no such trace file")
    with _OPENERS.get(path.suffix, open)(path, "rt", encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if text.strip():
                yield Line(path, number, text.strip())
