"""Times, rates and speeds as people write them."""

from __future__ import annotations

import re

from kvtrove.config import ConfigError

_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}


def parse_seconds(text: str, what: str) -> float:
    """``"50ms"``, ``"1.5s"``, ``"2min"`` or a plain number of seconds."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", text.lower())
    if not found or found[2] not in _SECONDS or float(found[1]) == 0:
        raise ConfigError(f"{what}: cannot read {text!r} as a time; write for example 50ms or 1s")
    return float(found[1]) * _SECONDS[found[2]]


def parse_rate(text: str, what: str) -> float:
    """Requests per second of ``"3/s"``, ``"120/min"`` or a plain number."""
    number, _, unit = text.lower().replace(" ", "").partition("/")
    if not re.fullmatch(r"\d+(\.\d+)?", number) or float(number) == 0 or unit not in ("", "s", "min", "h"):
        raise ConfigError(f"{what}: cannot read {text!r} as a rate; write for example 3/s or 120/min")
    return float(number) / _SECONDS[unit]


def parse_speed(text: str, what: str) -> float:
    """Bytes or operations per second of ``"31GB/s"``, ``"2.2TFLOPS"`` or ``"2e12"``: decimal prefixes."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgtp]?)(?:b|b/s|flops?|flop/s)?\s*", text.lower())
    if not found or float(found[1]) == 0:
        raise ConfigError(f"{what}: cannot read {text!r} as a speed; write for example 31GB/s or 2.2TFLOPS")
    return float(found[1]) * _PREFIXES[found[2]]


def show_seconds(seconds: float) -> str:
    """``0.0123 -> "12.3 ms"``."""
    if seconds == float("inf"):
        return "never"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"
