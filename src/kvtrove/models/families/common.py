"""What every family shares: reading the usual keys of a config.json, and where a parameter lies in a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from kvtrove.config import nearest
from kvtrove.kv.formats.dense import dense
from kvtrove.kv.retention import ChunkedLocal, Full, Retention, SlidingWindow
from kvtrove.kv.spec import LayerKV
from kvtrove.models.config_view import ConfigView
from kvtrove.models.integers_config import METHODS, read_integers
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
QUANTISED = "quantization_config"
EMBEDDING = "embed_tokens.weight"
FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"


@dataclass(frozen=True)
class Source:
    """A parameter is every `step`-th of rows [start, stop) of tensor `name`, which has `total` rows; None stands for
    the whole tensor.

    every: of each `every` rows, [start, stop). stack: (index, count): the tensor holds `count` such ones, one for each
    expert. transposed: it is [inputs, outputs], rows being its columns.

        total 24, every 8, [2, 4)    | . . x x . . . . | . . x x . . . . | . . x x . . . . |
    """

    name: str
    start: int = 0
    stop: int | None = None
    total: int | None = None
    step: int = 1
    every: int | None = None
    stack: tuple[int, int] | None = None
    transposed: bool = False

    def rows(self, whole: Tensor) -> Tensor:
        """Of what `whole_shape` asks for."""
        found = whole.T if self.transposed else whole
        if self.every is not None:
            return found.unflatten(0, (-1, self.every))[:, self.start : self.stop].flatten(0, 1)
        return found[self.start : self.stop : self.step].contiguous()

    def whole_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the tensor as it is stored, one of a stack, for a parameter of `shape`."""
        whole = shape if self.total is None else (self.total, *shape[1:])
        return whole[::-1] if self.transposed else whole


Locate = Callable[[str, ModelSpec], Source]
"""The decoder's name of a parameter -> where it lies, both without prefix."""


def same_name(name: str, spec: ModelSpec) -> Source:
    """The names of Hugging Face's Llama, which the decoder asks for and most families use."""
    return Source(name)


@dataclass(frozen=True)
class Family:
    """How one architecture is read.

    read: config.json -> ModelSpec. locate: the decoder's name of a parameter -> where it lies (both without prefix).
    prefixes: what tensor names of the decoder may begin with; the first that fits the checkpoint is taken.
    quantised: methods of `quantization_config` that its checkpoints are read in.
    """

    read: Callable[[ConfigView], ModelSpec]
    locate: Locate = same_name
    prefixes: tuple[str, ...] = ("model.",)
    quantised: tuple[str, ...] = ()

    def prefix(self, names: frozenset[str]) -> str:
        """What the decoder's names begin with in a checkpoint that holds tensors of these names."""
        return next((prefix for prefix in self.prefixes if prefix + EMBEDDING in names), self.prefixes[0])

    def spec(self, view: ConfigView) -> ModelSpec:
        """What a config.json says. ModelError naming the key, for weights that are quantised as well."""
        method = quantisation(view)
        if method is None or method in self.quantised or read_integers(view.values, view.where) is not None:
            return self.read(view)
        usable = ", ".join((*DTYPES, *METHODS, *self.quantised))
        raise view.error(f"quantised weights ({method}) are not supported; use the checkpoint in {usable}")


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
    """One LayerSpec per entry of `types`."""
    rules = retentions(view, types, max(served_positions(rope) for rope in ropes.values()), window)
    stored = dense(stored_dtype(view))
    return tuple(
        LayerSpec(
            LayerKV(index, heads.kv, heads.dim, heads.dim, stored, rules.get(kind, Full())), ropes[kind], moe(index)
        )
        for index, kind in enumerate(types)
    )


def retentions(view: ConfigView, types: Sequence[str], longest: int, window: int | None) -> dict[str, Retention]:
    """Which tokens each type of layer reads. A window that no context can reach is left out: it changes nothing.

    longest: tokens that the checkpoint is made for.
    """
    if SLIDING in types and window is None:
        raise view.error(f"'layer_types' names {SLIDING} layers, but 'sliding_window' is missing")
    slides = window is not None and window < longest
    chunk = view.size("attention_chunk_size") if CHUNKED in types else longest
    return {
        FULL: Full(),
        SLIDING: SlidingWindow(window) if slides and window is not None else Full(),
        CHUNKED: ChunkedLocal(chunk) if chunk < longest else Full(),
    }


def shared_sources(view: ConfigView, types: Sequence[str], shared: int) -> list[int | None]:
    """Whose keys and values each layer reads, None for its own: the last `shared` ones read the last before them of
    their type.
    """
    first = len(types) - shared
    own = {kind: index for index, kind in enumerate(types[:first])}
    missing = sorted(set(types[first:]) - own.keys())
    if missing or first < 1:
        where = f"no {missing[0]} layer" if missing else "no layer"
        raise view.error(f"'num_kv_shared_layers' {shared} leaves {where} whose keys and values the others could read")
    return [None if index < first else own[kind] for index, kind in enumerate(types)]


def reading(layers: Sequence[LayerSpec], sources: Sequence[int | None]) -> tuple[LayerSpec, ...]:
    """The layers, each reading what another stores, or None: what it stores for itself."""
    return tuple(
        replace(layer, cache=replace(layer.kv, source=source)) for layer, source in zip(layers, sources, strict=True)
    )


def sharing_in_runs(layers: Sequence[LayerSpec], length: int) -> tuple[LayerSpec, ...]:
    """Of every `length` layers in turn, the first stores what all of them read."""
    return reading(layers, [i - i % length if i % length else None for i in range(len(layers))])


def biases(view: ConfigView) -> dict[str, Any]:
    """What `build_spec` is told of Llama's flags."""
    bias = view.flag("attention_bias", False)
    return {"attention_bias": bias, "output_bias": bias, "mlp_bias": view.flag("mlp_bias", False)}


def fused_expert(name: str, spec: ModelSpec, gate_up: str, down: str, transposed: bool = False) -> Source:
    """Where an expert's part (`name`: "3.up_proj.weight") lies in the stacks of all of them, `gate_up` and `down`."""
    number, part, _ = name.split(".")
    moe = first_experts(spec)
    stack, inner = (int(number), moe.num_experts), moe.intermediate_size
    if part == "down_proj":
        return Source(down, stack=stack, transposed=transposed)
    return fused_gate(part, gate_up, inner, stack=stack, transposed=transposed)


def fused_gate(part: str, gate_up: str, inner: int, **stored: Any) -> Source:
    """gate_proj or up_proj, which lie behind each other in `gate_up`. inner: width of the network."""
    start = inner if part == "up_proj" else 0
    return Source(gate_up, start, start + inner, 2 * inner, **stored)


def first_experts(spec: ModelSpec) -> MoESpec:
    """Of a model that has some, in all layers alike."""
    return next(layer.moe for layer in spec.layers if layer.moe)


def text_part(view: ConfigView) -> ConfigView:
    """The language model's section of a config whose checkpoint also sees or hears."""
    keys = ("eos_token_id", "bos_token_id", "dtype", "torch_dtype", "tie_word_embeddings")
    inherited = {key: view.values[key] for key in keys if view.has(key)}
    text = view.section("text_config")
    return ConfigView({**inherited, **text.values, "architecture": view.get("architecture")}, text.where)


def with_states(layers: Sequence[LayerSpec], states: Iterable[StateSpec | None]) -> tuple[LayerSpec, ...]:
    """The layers, one value each: a mixer with a running state in the place of attention, or None."""
    return tuple(
        layer if state is None else replace(layer, cache=None, state=state)
        for layer, state in zip(layers, states, strict=True)
    )


def with_experts(
    layers: Sequence[LayerSpec], moe: Callable[[int], MoESpec | None], dense: int | None = None
) -> tuple[LayerSpec, ...]:
    """The layers, each with the experts that `moe` says for its number. dense: width of the others, None as usual."""
    found = [(layer, moe(index)) for index, layer in enumerate(layers)]
    return tuple(replace(layer, moe=one, intermediate_size=None if one else dense) for layer, one in found)


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


def quantisation(view: ConfigView) -> str | None:
    """How the checkpoint's weights are quantised, None where they are not."""
    places = (view, view.section("text_config")) if isinstance(view.get("text_config"), dict) else (view,)
    found = next((place.section(QUANTISED) for place in places if place.has(QUANTISED)), None)
    return None if found is None else str(found.get("quant_method", "unknown"))


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
