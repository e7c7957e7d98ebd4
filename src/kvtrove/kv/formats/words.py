"""Words of formats in recipes: how a side is stored."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from kvtrove.config import ConfigError, nearest
from kvtrove.kv.formats.calibration import read_calibration
from kvtrove.kv.formats.dense import Dense
from kvtrove.kv.formats.fp8 import Fp8
from kvtrove.kv.formats.int4 import Int4, Int4Rotated
from kvtrove.kv.formats.int8 import Int8
from kvtrove.kv.formats.kivi import Kivi
from kvtrove.kv.formats.lowrank import LowRank
from kvtrove.kv.formats.oscar import oscar
from kvtrove.kv.spec import Codec, LayerKV, Side

Make = Callable[[Side, str, LayerKV], Codec]


@dataclass(frozen=True)
class Format:
    """A way to store one side. make: side, the text behind "=", the exact layer -> the codec; ConfigError for a wrong
    text.

    argument: an example of that text; empty where there is none. vllm, llama_cpp: the nearest there. also: other names.
    """

    help: str
    make: Make
    argument: str = ""
    vllm: str = ""
    llama_cpp: str = ""
    also: tuple[str, ...] = ()


def _dense(dtype: str) -> Make:
    return lambda side, _, layer: Dense(side, dtype)


def _one_of(word: str, text: str, known: tuple[int, ...]) -> int:
    if text not in map(str, known):
        raise ConfigError(f"cache: {word}={text} is not one of {', '.join(f'{word}={number}' for number in known)}")
    return int(text)


def _low_rank(side: Side, text: str, layer: LayerKV) -> LowRank:
    """text: "0.5@FILE", "32@FILE" or "0.5,int8@FILE"."""
    kept, at, path = text.partition("@")
    size, _, inner = kept.partition(",")
    share = float(size) if re.fullmatch(r"\d*\.\d+", size) else None
    if not at or not (size.isdecimal() or (share is not None and 0 < share <= 1)):
        raise ConfigError(
            f"cache: lowrank={text} needs a share of each vector or a rank, and a calibration, such as "
            "lowrank=0.5@FILE, lowrank=32@FILE or, with coefficients as int8, lowrank=0.5,int8@FILE"
        )
    dim, codec = (layer.k_dim, layer.format.k) if side == "k" else (layer.v_dim, layer.format.v)
    rank = int(size) if share is None else max(1, round(share * dim))
    if inner:
        plain = [word for word, known in FORMATS.items() if not known.argument]
        if (inner := ALIASES.get(inner, inner)) not in plain:
            raise ConfigError(
                f"cache: lowrank={text}: coefficients cannot be stored as {inner!r}{nearest(inner, plain)}; there are "
                f"{', '.join(plain)}"
            )
        codec = FORMATS[inner].make(side, "", layer)
    assert codec is not None, "sides that lie in the other one are not stored"
    calibration = read_calibration(path)
    return LowRank(side, rank, codec, f"{side}.{layer.layer}", calibration.digest, calibration)


FORMATS: Mapping[str, Format] = {
    "fp32": Format("float32", _dense("float32"), llama_cpp="f32", also=("float32",)),
    "bf16": Format("bfloat16", _dense("bfloat16"), vllm="bfloat16", llama_cpp="bf16"),
    "fp16": Format("float16", _dense("float16"), vllm="float16", llama_cpp="f16", also=("half",)),
    "fp8": Format(
        "8 bits (e4m3), a scale per token and head",
        lambda side, _, layer: Fp8(side),
        vllm="fp8",
        also=("fp8_e4m3", "fp8_per_token_head"),
    ),
    "int8": Format(
        "8 bits, a scale per token and head",
        lambda side, _, layer: Int8(side),
        vllm="int8_per_token_head",
        llama_cpp="q8_0",
    ),
    "int4r": Format(
        "4 bits after a rotation, scale and zero per token and head",
        lambda side, _, layer: Int4Rotated(side),
        vllm="int4_per_token_head",
        llama_cpp="q4_0",
        also=("q4_1", "iq4_nl"),
    ),
    "kivi": Format(
        "2 or 4 bits: K per channel and block, V per token",
        lambda side, text, layer: Kivi(side, bits=_one_of("kivi", text, (2, 4))),
        argument="2",
    ),
    "oscar": Format(
        "2 bits after rotations that `kvtrove calibrate` found for this model",
        oscar,
        argument="FILE",
    ),
    "lowrank": Format(
        'a share of each vector: coefficients of a basis that `kvtrove calibrate` found; ",int8" stores them so',
        _low_rank,
        argument="0.5@FILE",
    ),
    "int4": Format("4 bits, scale and zero for every 32 elements", lambda side, _, layer: Int4(side)),
}
ALIASES: Mapping[str, str] = {
    alias: word
    for word, known in FORMATS.items()
    for alias in (known.vllm, known.llama_cpp, *known.also)
    if alias and alias not in FORMATS
}


def examples() -> Iterator[str]:
    """Every format, with an example of its argument."""
    return (f"{word}={known.argument}" if known.argument else word for word, known in FORMATS.items())


def names_elsewhere(codec: Codec | None) -> tuple[str, str]:
    """What vLLM and llama.cpp call the format of a side; empty where they have none."""
    word = "" if codec is None else codec.id.partition("/")[0]
    known = FORMATS.get(ALIASES.get(word, word))
    return (known.vllm, known.llama_cpp) if known else ("", "")
