"""Azure's traces of LLM inference (Splitwise, ISCA'24): times and lengths without prefixes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from kvtrove.plan.traces.fields import Line
from kvtrove.plan.traces.request import Trace, TraceRequest

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"


def recognises(line: Line) -> bool:
    return line.text.replace(" ", "").lower() == HEADER.lower()


def read(name: str, header: Line, rest: Iterable[Line]) -> Trace:
    rows = [_row(line) for line in rest]
    if not rows:
        raise header.error("the trace has a header, but no requests")
    start = min(at for at, _, _ in rows)
    requests = [TraceRequest((at - start).total_seconds(), prompt, new) for at, prompt, new in rows]
    return Trace(name, 0, sorted(requests, key=lambda r: r.arrival))


def _row(line: Line) -> tuple[datetime, int, int]:
    parts = line.text.split(",")
    if len(parts) != 3:
        raise line.error(f"has {len(parts)} columns, expected {HEADER}")
    try:
        at = datetime.fromisoformat(_microseconds(parts[0]))
    except ValueError:
        raise line.error(f"'TIMESTAMP' is {parts[0]!r}, expected a time such as 2023-11-16 18:15:46.6805900") from None
    return at, _count(line, "ContextTokens", parts[1], 1), _count(line, "GeneratedTokens", parts[2], 0)


def _microseconds(text: str) -> str:
    """Seven digits after the second become six, and a zone that Python cannot read is left out."""
    time, dot, fraction = text.strip().partition(".")
    return f"{time}.{fraction[:6]:0<6}" if dot else time


def _count(line: Line, name: str, text: str, least: int) -> int:
    if not text.strip().isdigit() or int(text) < least:
        raise line.error(f"'{name}' is {text!r}, expected a whole number of at least {least}")
    return int(text)
