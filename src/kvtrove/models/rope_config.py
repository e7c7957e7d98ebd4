"""What a config.json says about rotary embeddings, in its three layouts, as a RopeSpec.

old     "rope_theta": 10000.0, "rope_scaling": {"type" or "rope_type": "yarn", "factor": 4.0, ...}
new     "rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, ...}
nested  "rope_parameters": {"full_attention": {...}, "sliding_attention": {...}}
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kvtrove.config import nearest
from kvtrove.models.config_view import ConfigView
from kvtrove.models.spec import RopeSpec

ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True)
class ScalingKeys:
    """Keys of a scaling beside `original_max_position_embeddings`, which some measure their stretch from."""

    required: tuple[str, ...]
    optional: tuple[str, ...] = ()
    has_original: bool = False


SCALINGS = {
    "linear": ScalingKeys(("factor",)),
    "dynamic": ScalingKeys(("factor",)),
    "llama3": ScalingKeys(("factor", "low_freq_factor", "high_freq_factor"), has_original=True),
    "yarn": ScalingKeys(
        ("factor",),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
        has_original=True,
    ),
    "longrope": ScalingKeys(("short_factor", "long_factor"), ("factor", "attention_factor"), has_original=True),
    "proportional": ScalingKeys((), ("factor", "partial_rotary_factor")),
}


@dataclass(frozen=True)
class RopeDefaults:
    """Where families differ.

    scaling_key: where the old layout keeps the scaling; empty for layers that are never scaled.
    aliases: older names of a scaling. partial: the family rotates a part of the head when asked to.
    """

    theta: float = 10_000.0
    theta_key: str = "rope_theta"
    scaling_key: str = "rope_scaling"
    aliases: dict[str, str] = field(default_factory=dict)
    partial: bool = False


def read_rope(
    view: ConfigView, head_dim: int, layer_type: str = "full_attention", by: RopeDefaults | None = None
) -> RopeSpec:
    """The rotary embedding of layers of `layer_type`. Raises ModelError for a type or value that is not supported."""
    by = by or RopeDefaults()
    section = _section(view, layer_type, by.scaling_key)
    theta = section.number("rope_theta", view.number(by.theta_key, by.theta))
    scaling = section.get("rope_type", section.get("type", "default"))
    scaling = by.aliases.get(scaling, scaling)
    partial = section.number("partial_rotary_factor", view.number("partial_rotary_factor", 1.0))
    whole = scaling == "proportional"  # the angles of the whole head, of which a part is zero
    rotary_dim = head_dim if whole else int(head_dim * partial)
    if partial != 1.0 and not (by.partial or whole):
        raise view.error(f"'partial_rotary_factor' {partial} is not supported for this architecture; only 1.0 is")
    if rotary_dim % 2 or not 0 < rotary_dim <= head_dim:
        raise view.error(f"rotary embeddings need an even part of the head, got {rotary_dim} of {head_dim} elements")
    max_position = view.size("max_position_embeddings")
    if scaling == "default":
        return RopeSpec(theta, rotary_dim, max_position=max_position)
    if scaling not in SCALINGS:
        supported = ("default", *SCALINGS)
        raise section.error(
            f"rope type {scaling!r} is not supported{nearest(scaling, supported)}; supported: {', '.join(supported)}"
        )
    return RopeSpec(theta, rotary_dim, scaling, _params(view, section, scaling, rotary_dim), max_position)


def without_positions(rope: RopeSpec) -> RopeSpec:
    """Of a layer that rotates nothing (NoPE) in a model whose other layers rotate by `rope`."""
    return RopeSpec(rope.theta, 0, max_position=served_positions(rope), temperature=rope.temperature)


def served_positions(rope: RopeSpec) -> int:
    """Longest context in tokens: linear and yarn reach `factor` times the original, the others say it themselves, and
    so does a yarn without an original: its `max_position_embeddings` is the stretched length already.

    As vLLM derives it, except for "dynamic", whose numbers inside the original context would change (layers/rope.py).
    """
    if rope.scaling == "linear":
        return int(rope.max_position * rope.param("factor"))
    if rope.scaling == "yarn" and rope.param(ORIGINAL):
        return int(rope.param(ORIGINAL) * rope.param("factor"))
    return rope.max_position


def _section(view: ConfigView, layer_type: str, scaling_key: str) -> ConfigView:
    """The object that describes `layer_type`: nested, flat, or the old `rope_scaling`; empty when there is none."""
    if view.has("rope_parameters"):
        section = view.section("rope_parameters")
        if any(isinstance(value, dict) for value in section.values.values()):
            return section.section(layer_type)
        return section
    return view.section(scaling_key) if view.has(scaling_key) else ConfigView({}, view.where)


def _params(view: ConfigView, section: ConfigView, scaling: str, rotary_dim: int) -> tuple[tuple[str, Any], ...]:
    keys = SCALINGS[scaling]
    params: dict[str, Any] = {}
    if keys.has_original:
        max_position = view.size("max_position_embeddings")
        original = view.size(ORIGINAL, section.size(ORIGINAL, max_position))
        if scaling != "yarn" or view.has(ORIGINAL) or section.has(ORIGINAL):
            params[ORIGINAL] = original
        if scaling in ("yarn", "longrope"):
            params["factor"] = section.number("factor", max_position / original)
    for key in keys.required:
        if key.endswith("_factor") and scaling == "longrope":
            params[key] = _factors(section, key, rotary_dim // 2)
        elif key not in params:
            params[key] = section.number(key)
    for key in keys.optional:
        if section.has(key) and key not in params:
            params[key] = section.flag(key, True) if key == "truncate" else section.number(key)
    if params.get("factor", 1.0) < 1.0 and scaling != "longrope":
        raise section.error(f"'factor' is {params['factor']}, expected at least 1")
    return tuple(sorted(params.items()))


def _factors(section: ConfigView, key: str, count: int) -> tuple[float, ...]:
    """One number per rotated pair of elements."""
    values = section.get(key)
    if not isinstance(values, list) or not all(isinstance(v, int | float) for v in values):
        raise section.error(f"{key!r} is {values!r}, expected a list of {count} numbers")
    if len(values) != count:
        raise section.error(f"{key!r} has {len(values)} numbers, expected {count}")
    return tuple(float(v) for v in values)
