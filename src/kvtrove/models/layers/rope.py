"""Rotary position embeddings (arXiv 2104.09864) and what stretches them to longer contexts.

Cached keys are stored rotated, so a position must always rotate by the same angles: they may depend on the longest
context that the engine serves (`max_model_len`), which is fixed at load, never on the length of a sequence so far.
That decides two scalings, for which Hugging Face switches angles when a sequence outgrows the original context:

    dynamic   up to `max_position_embeddings`: unscaled, equal to Hugging Face. Served beyond: at every position the
              base that belongs to `factor * max_position_embeddings` tokens, as vLLM does.
    longrope  up to `original_max_position_embeddings`: the short factors. Served beyond: the long factors at every
              position, as vLLM does; equal to Hugging Face for prompts longer than the original context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from kvtrove.models.rope_config import ORIGINAL
from kvtrove.models.spec import ModelError, RopeSpec, Temperature


@dataclass(frozen=True, eq=False)
class Rotation:
    """cos and sin of a step's positions, each [T, 1, rotary_dim / 2]: broadcast over heads. table: of all positions.

    temperature: [T, 1, 1], multiplies queries; None where nothing does.
    """

    cos: Tensor
    sin: Tensor
    table: RotaryEmbedding
    temperature: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Rotates the leading elements of every head of x [T, heads, head_dim]; i pairs with i + rotary_dim / 2."""
        half = self.cos.shape[-1]
        a, b = x[..., :half], x[..., half : 2 * half]
        rotated = (a * self.cos - b * self.sin, b * self.cos + a * self.sin)
        return torch.cat((*rotated, x[..., 2 * half :]), dim=-1)

    def at(self, positions: Tensor) -> Rotation:
        """The same of other positions, int64 [T]."""
        return self.table.at(positions, self.cos.dtype)


@dataclass(frozen=True, eq=False)
class RotaryEmbedding:
    """inv_freq: float32 [rotary_dim / 2], radians per position. scale: multiplies cos and sin (YaRN, LongRoPE)."""

    inv_freq: Tensor
    scale: float = 1.0
    temperature: Temperature | None = None

    @classmethod
    def build(cls, rope: RopeSpec, max_model_len: int, device: str) -> RotaryEmbedding:
        """max_model_len: longest context in tokens that will be served. Raises ModelError for an unknown scaling."""
        if rope.scaling not in _SCALINGS:
            raise ModelError(
                f"rope type {rope.scaling!r} is not supported; supported: {', '.join(map(str, _SCALINGS))}"
            )
        inv_freq, scale = _SCALINGS[rope.scaling](rope, max_model_len)
        return cls(inv_freq.to(device), scale, rope.temperature)

    def at(self, positions: Tensor, dtype: torch.dtype) -> Rotation:
        """positions: int64 [T]. Angles in float32, then rounded to dtype."""
        angles = positions[:, None, None].float() * self.inv_freq
        cos, sin = (angles.cos() * self.scale).to(dtype), (angles.sin() * self.scale).to(dtype)
        return Rotation(cos, sin, self, None if self.temperature is None else self._heat(positions).to(dtype))

    def _heat(self, positions: Tensor) -> Tensor:
        assert self.temperature is not None
        scale, period, first = self.temperature.scale, self.temperature.period, self.temperature.first
        return 1.0 + scale * torch.log1p(((positions[:, None, None].float() + first) / period).floor())

    def turned(self, x: Tensor, by: Tensor) -> Tensor:
        """Rotated vectors x [T, heads, head_dim], moved by int64 [T, heads] positions: a rotation without `scale`.

        In float32, the result in x's dtype.
        """
        angles = by[..., None].float() * self.inv_freq
        return Rotation(angles.cos(), angles.sin(), self)(x.float()).to(x.dtype)


def _exponents(rope: RopeSpec) -> Tensor:
    return torch.arange(0, rope.rotary_dim, 2, dtype=torch.float32) / rope.rotary_dim


def _default(rope: RopeSpec, max_model_len: int) -> tuple[Tensor, float]:
    return 1.0 / rope.theta ** _exponents(rope), 1.0


def _linear(rope: RopeSpec, max_model_len: int) -> tuple[Tensor, float]:
    """Position interpolation, arXiv 2306.15595."""
    return _default(rope, max_model_len)[0] / rope.param("factor"), 1.0


def _proportional(rope: RopeSpec, max_model_len: int) -> tuple[Tensor, float]:
    """Gemma 4: the leading part of the pairs turns as it would in a whole head, the others do not."""
    inv_freq, _ = _default(rope, max_model_len)
    turning = int(rope.param("partial_rotary_factor", 1.0) * rope.rotary_dim // 2)
    inv_freq[turning:] = 0.0
    return inv_freq / rope.param("factor", 1.0), 1.0


def _dynamic(rope: RopeSpec, max_model_len: int) -> tuple[Tensor, float]:
    """NTK-aware scaling of the base, described in arXiv 2309.00071, section 3.1 and appendix B.1."""
    if not rope.stretches(max_model_len):
        return _default(rope, max_model_len)
    factor, dim = rope.param("factor"), rope.rotary_dim
    base = rope.theta * (factor * factor - (factor - 1)) ** (dim / (dim - 2))
    return 1.0 / base ** _exponents(rope), 1.0


def _llama3(rope: RopeSpec, max_model_len: int) -> tuple[Tensor, float]:
    """Llama 3.1, arXiv 2407.21783: long waves are stretched by `factor`, short ones are not, those between partly."""
    inv_freq, _ = _default(rope, max_model_len)
    factor, low, high = (rope.param(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = rope.param(ORIGINAL)
    wavelength = 2 * math.pi / inv_freq
    smooth = (original / wavelength - low) / (high - low)
    between = (1 - smooth) * inv_freq / factor + smooth * inv_freq
    stretched = torch.where(wavelength > original / low, inv_freq / factor, inv_freq)
    medium = (wavelength >= original / high) & (wavelength <= original / low)
    return torch.where(medium, between, stretched), 1.0


def _yarn(rope: RopeSpec, max_model_len: int) -> tuple[Tensor, float]:
    """YaRN, arXiv 2309.00071: a ramp from extrapolation (short waves) to interpolation (long ones)."""
    factor, dim = rope.param("factor"), rope.rotary_dim
    low, high = (_yarn_dim(rope, rope.param(key, turns)) for key, turns in (("beta_fast", 32), ("beta_slow", 1)))
    if rope.param("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / ((high - low) or 0.001)).clamp(0, 1)
    waves = rope.theta ** _exponents(rope)
    keep = 1 - ramp
    return 1.0 / (factor * waves) * (1 - keep) + 1.0 / waves * keep, _yarn_scale(rope, factor)


def _yarn_dim(rope: RopeSpec, turns: float) -> float:
    """The (fractional) pair of elements that turns `turns` times within the original context."""
    original = rope.param(ORIGINAL, rope.max_position)
    return rope.rotary_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))


def _yarn_scale(rope: RopeSpec, factor: float) -> float:
    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    given, top, bottom = (rope.param(key) for key in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is not None:
        return float(given)
    return mscale(top) / mscale(bottom) if top and bottom else mscale(1.0)


def _longrope(rope: RopeSpec, max_model_len: int) -> tuple[Tensor, float]:
    """LongRoPE, arXiv 2402.13753: one searched factor per pair of elements."""
    original, factor = rope.param(ORIGINAL), rope.param("factor")
    stretch = rope.param("long_factor" if rope.stretches(max_model_len) else "short_factor")
    scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    inv_freq = 1.0 / (torch.tensor(stretch, dtype=torch.float32) * rope.theta ** _exponents(rope))
    return inv_freq, rope.param("attention_factor", scale)


_SCALINGS = {
    None: _default,
    "linear": _linear,
    "proportional": _proportional,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
}
