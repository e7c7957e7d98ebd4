"""What every family shares: reading the usual keys of a config.json, and where a parameter lies in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kvtrove.config import nearest
from kvtrove.kv.formats.dense import dense
from kvtrove.kv.retention import Full, Retention, SlidingWindow
from kvtrove.kv.spec import LayerKV
from kvtrove.models.config_view import ConfigView
from kvtrove.models.rope_config import served_positions, without_positions
from kvtrove.models.spec import Activation, LayerSpec, ModelSpec, MoESpec, RopeSpec
from kvtrove.models.state_spec import StateSpec

if TYPE_CHECKING:
    from torch import Tensor

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}
DTYPES = ("float32", "float16", "bfloat16")
FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Source:
    """A parameter is rows [start, stop) of tensor `name`, which has `total` rows; None stands for the whole tensor.

    every: of each `every` rows, those. member, of: of `of` such tensors stacked in one, that one.

        total 24, every 8, [2, 4)    | . . x x . . . . | . . x x . . . . | . . x x . . . . |
    """

    name: str
    start: int = 0
    stop: int | None = None
    total: int | None = None
    every: int | None = None
    member: int = 0
    of: int | None = None

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the whole tensor, when the parameter has this one."""
        rows = shape if self.total is None else (self.total, *shape[1:])
        return rows if self.of is None else (self.of, *rows)

    def part(self, whole: Tensor) -> Tensor:
        """The parameter's rows of a tensor of all rows."""
        whole = whole if self.of is None else whole[self.member]
        if self.every is None:
            return whole[self.start : self.stop]
        return whole.unflatten(0, (-1, self.every))[:, self.start : self.stop].flatten(0, 1)


def same_name(name: str, spec: ModelSpec) -> Source:
    """The names of Hugging Face's Llama, which the decoder asks for and most families use."""
    return Source(name)


@dataclass(frozen=True)
class Family:
    """How one architecture is read.

    read: config.json -> ModelSpec. locate: the decoder's name of a parameter -> where it lies (both without prefix).
    prefixes: what tensor names of the decoder may begin with; the first that fits the checkpoint is taken.
    """

    read: Callable[[ConfigView], ModelSpec]
    locate: Callable[[str, ModelSpec], Source] = same_name
    prefixes: tuple[str, ...] = ("model.",)


@dataclass(frozen=True)
class Heads:
    """Attention heads of every layer."""

    query: int
    kv: int
    dim: int


def read_heads(view: ConfigView, head_dim: int | None = None) -> Heads:
    """head_dim: what the family takes when the config leaves it out; None is hidden_size / num_attention_heads."""
    query = view.size("num_attention_heads")
    kv = view.size("num_key_value_heads", query)
    if query % kv:
        raise view.error(f"'num_attention_heads' {query} is not a multiple of 'num_key_value_heads' {kv}")
    return Heads(query, kv, view.size("head_dim", head_dim or view.size("hidden_size") // query))


def layer_types(view: ConfigView, default: Callable[[int], str], known: Sequence[str] = (FULL, SLIDING)) -> list[str]:
    """Kind of each layer: `layer_types` when the config has it, else the family's rule."""
    count = view.size("num_hidden_layers")
    types = view.get("layer_types") or [default(i) for i in range(count)]
    if len(types) != count:
        raise view.error(f"'layer_types' has {len(types)} entries, expected 'num_hidden_layers' = {count}")
    for kind in types:
        if kind not in known:
            raise view.error(
                f"layer type {kind!r} is not supported{nearest(kind, known)}; supported: {', '.join(known)}"
            )
    return list(types)


def sliding_window(view: ConfigView, default: int | None = None) -> int | None:
    """The window in tokens, the newest included; None for null and 0, which both mean that there is none."""
    return None if view.get("sliding_window") == 0 else view.optional_size("sliding_window", default)


def build_layers(
    view: ConfigView,
    heads: Heads,
    types: Sequence[str],
    ropes: dict[str, RopeSpec],
    window: int | None,
    moe: Callable[[int], MoESpec | None] = lambda index: None,
) -> tuple[LayerSpec, ...]:
    """One LayerSpec per entry of `types`. A window that no context can reach is left out: it changes nothing."""
    if SLIDING in types and window is None:
        raise view.error(f"'layer_types' names {SLIDING} layers, but 'sliding_window' is missing")
    if window is not None and window >= max(served_positions(rope) for rope in ropes.values()):
        window = None
    rules: dict[str, Retention] = {SLIDING: Full() if window is None else SlidingWindow(window)}
    stored = dense(stored_dtype(view))
    return tuple(
        LayerSpec(
            LayerKV(index, heads.kv, heads.dim, heads.dim, stored, rules.get(kind, Full())), ropes[kind], moe(index)
        )
        for index, kind in enumerate(types)
    )


def stacked_expert(name: str, spec: ModelSpec, gate_up: str, down: str) -> Source:
    """An expert's matrix in tensors of all experts, [num_experts, outputs, inputs], gate above up; other names as they
    are. gate_up, down: what stands for ".experts.N.gate_proj.weight" in their names.
    """
    start, found, rest = name.partition(".experts.")
    if not found:
        return Source(name)
    number, part, _ = rest.split(".")
    moe = next(layer.moe for layer in spec.layers if layer.moe)
    if part == "down_proj":
        return Source(start + down, member=int(number), of=moe.num_experts)
    inner = moe.intermediate_size
    first = 0 if part == "gate_proj" else inner
    return Source(start + gate_up, first, first + inner, 2 * inner, member=int(number), of=moe.num_experts)


def text_part(read: Callable[[ConfigView], ModelSpec]) -> Callable[[ConfigView], ModelSpec]:
    """Reads the language model of a checkpoint that also sees images; the vision tower stays on disk."""

    def read_text(view: ConfigView) -> ModelSpec:
        keys = ("eos_token_id", "bos_token_id", "dtype", "torch_dtype", "tie_word_embeddings")
        inherited = {key: view.values[key] for key in keys if view.has(key)}
        text = view.section("text_config")
        return read(ConfigView({**inherited, **text.values, "architecture": view.get("architecture")}, text.where))

    return read_text


def with_states(layers: Sequence[LayerSpec], states: Iterable[StateSpec | None]) -> tuple[LayerSpec, ...]:
    """The layers, one value each: a mixer with a running state in the place of attention, or None."""
    return tuple(
        layer if state is None else replace(layer, cache=None, state=state)
        for layer, state in zip(layers, states, strict=True)
    )


def rotated_where(layers: Sequence[LayerSpec], rotates: Iterable[object]) -> tuple[LayerSpec, ...]:
    """The layers, without positions (NoPE) wherever `rotates`, one value a layer, is false."""
    return tuple(
        layer if turns else replace(layer, rope=without_positions(layer.rope))
        for layer, turns in zip(layers, rotates, strict=True)
    )


def build_spec(
    view: ConfigView,
    family: str,
    heads: Heads,
    layers: tuple[LayerSpec, ...],
    activation_key: str = "hidden_act",
    **differences: Any,
) -> ModelSpec:
    """A ModelSpec from the keys that all families share; `differences` are further or other fields of it."""
    if view.has("quantization_config"):
        method = view.section("quantization_config").get("quant_method", "unknown")
        raise view.error(f"quantised weights ({method}) are not supported; use the checkpoint in {', '.join(DTYPES)}")
    activation = view.get(activation_key, "silu")
    if activation not in ACTIVATIONS:
        hint = f"{nearest(str(activation), ACTIVATIONS)}; supported: {', '.join(ACTIVATIONS)}"
        raise view.error(f"{activation_key!r} {activation!r} is not supported{hint}")
    fields: dict[str, Any] = {
        "max_position": max(served_positions(layer.rope) for layer in layers),
        "norm_eps": view.number("rms_norm_eps", 1e-6),
        "query_scale": heads.dim**-0.5,
        "tie_embeddings": view.flag("tie_word_embeddings", False),
    }
    return ModelSpec(
        family=family,
        architecture=view.get("architecture", ""),
        vocab_size=view.size("vocab_size"),
        hidden_size=view.size("hidden_size"),
        intermediate_size=view.size("intermediate_size"),
        num_heads=heads.query,
        layers=layers,
        activation=ACTIVATIONS[activation],
        dtype=stored_dtype(view),
        eos_token_ids=token_ids(view, "eos_token_id"),
        bos_token_id=next(iter(token_ids(view, "bos_token_id")), None),
        **(fields | differences),
    )


def token_ids(view: ConfigView, key: str) -> tuple[int, ...]:
    """Token ids that are written as one number, a list of them, or null."""
    value = view.get(key, [])
    ids = value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise view.error(f"{key!r} is {value!r}, expected a token id or a list of them")
    return tuple(ids)


def stored_dtype(view: ConfigView) -> str:
    """`dtype` or `torch_dtype`; float32 when neither is there or says "auto", as in Hugging Face transformers."""
    dtype = str(view.get("dtype", view.get("torch_dtype", "auto"))).removeprefix("torch.")
    dtype = "float32" if dtype == "auto" else dtype
    if dtype not in DTYPES:
        raise view.error(f"dtype {dtype!r} is not supported; supported: {', '.join(DTYPES)}")
    return dtype
