"""Starting up: weights, memory, arena, backend. What an Engine does once, before its first step."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kvtrove import kernels
from kvtrove.attention.backend import AttentionBackend, AttentionLayer
from kvtrove.attention.cells import CellsBackend
from kvtrove.attention.cpu import CpuBackend
from kvtrove.attention.reference import ReferenceBackend
from kvtrove.config import ConfigError, EngineConfig, Environment, parse_size, parse_tokens
from kvtrove.kernels.cores import find_cores
from kvtrove.kv.arena import Arena
from kvtrove.kv.compaction.compactor import Rolling, context_shift
from kvtrove.kv.mark_rules import MarkRules
from kvtrove.kv.moved import reasons_against_moving
from kvtrove.kv.recipe import recipe
from kvtrove.kv.spec import KVCacheSpec
from kvtrove.models.cache import cache_spec
from kvtrove.models.decoder import Model
from kvtrove.models.gguf.stored import kept_weights
from kvtrove.models.integers_config import keeps_bits
from kvtrove.models.loader import Progress, load_model
from kvtrove.models.lora import adapter_bytes
from kvtrove.models.precision import Precision
from kvtrove.models.products import Products
from kvtrove.models.spec import ModelSpec
from kvtrove.plan.activations import StepLimits
from kvtrove.plan.capacity import Capacity, readable
from kvtrove.plan.gathering import gathering_bytes
from kvtrove.plan.ledger import Ledger
from kvtrove.plan.memory import available_bytes
from kvtrove.plan.process import return_large_buffers
from kvtrove.plan.source import read_model
from kvtrove.plan.startup import StartSettings, plan_start, settle
from kvtrove.runner.model_runner import ModelRunner, attention_layers
from kvtrove.scheduler.drafts import Drafter, DraftRules
from kvtrove.warmup import warm_up

log = logging.getLogger(__name__)
MIN_SHIFTED = 64
"""Tokens of the shortest context that is shifted: less than a sentence would be left."""
ROW_COST = {"portable": 0.14, "avx2": 0.14, "avx512": 0.05, "amx": 0.03}
"""What another row adds to a step, in steps of one row: means over 12 more of SmolLM2-135M on one core."""


@dataclass(frozen=True)
class Loaded:
    """A runner ready for its first step, what its cache holds, and where the memory of its device goes."""

    runner: ModelRunner
    capacity: Capacity
    ledger: Ledger
    mark_rules: MarkRules
    products: Products
    """Makes what is loaded later, for adapters."""


def load_runner(
    config: EngineConfig,
    spec: ModelSpec,
    token_text: Callable[[int], str],
    progress: Progress | None,
    exact: KVCacheSpec | None = None,
    model: Model | None = None,
) -> Loaded:
    """Plans, loads, and with `config.warm_up` measures the largest steps and corrects the plan by them.

    exact: the cache that the recipe changes; None is in the dtype of the weights. model: loaded by an engine with the
    same dtype, device and max_model_len; None loads the checkpoint.
    """
    wanted = recipe(config.cache)
    device, directory = choose_device(config.device), Path(config.model)
    if device == "cpu":
        return_large_buffers()
    precision = choose_precision(config, spec)
    isa = Environment.read().isa
    if device == "cpu":
        _set_threads(config.threads)
    products = Products(precision, device, config.linear, isa)
    cache = wanted(exact or cache_spec(spec, precision.dtype, config.block_size, precision.activations))
    rules = MarkRules.parse(config.marks, cache)
    settings = StartSettings(
        config.max_logit_rows,
        config.max_num_batched_tokens,
        None if config.kv is None else parse_size(config.kv, "kv"),
        config.num_blocks,
        None if config.max_model_len is None else parse_tokens(config.max_model_len),
        2 * config.max_num_seqs if cache.states and config.speculation != "off" else config.max_num_seqs,
    )
    planned = read_model(directory, precision.dtype, weights=precision.weights, activations=precision.activations)
    adapters = sum(adapter_bytes(Path(path)) for _, path in config.adapters)
    capacity, ledger = plan_start(planned, cache, free_bytes(device) - adapters, settings)
    length = capacity.max_model_len
    cache = _with_shift(cache, length, config.context_shift)
    if config.cache_reuse and (reasons := reasons_against_moving(cache)):
        raise ConfigError(f"cache_reuse: {reasons[0]}; leave it out")
    if device == "cpu":
        with contextlib.suppress(ImportError):  # choose_backends says what follows from that
            kernels.set_huge_pages(config.huge_pages)
    if model is None:
        model = load_model(directory, spec, products, progress, max_model_len=length, load_format=config.load_format)
        log.info("%s; linear layers: %s; %d threads", precision, products.summary(), torch.get_num_threads())
        if device == "cpu":
            _say_where_weights_lie(config.huge_pages)
        if device == "cpu" and not products.same_in_every_batch:
            log.info(
                "last bits may depend on the batch: only bf16, int8 and int4 weights are multiplied by own kernels"
            )
    arena = Arena(cache, capacity.num_blocks, device, config.huge_pages, config.max_num_seats)
    layers = tuple(attention_layers(model, cache, arena))
    backends = _in_cells(choose_backends(config.attention_backend, layers, device), layers)
    runner = ModelRunner(model, cache, arena, backends, token_text)
    loaded = Loaded(runner, capacity, ledger, rules, products)
    if config.warm_up:
        log.info("memory as planned: %s", ledger.sentence())
        loaded = _warmed_up(loaded, settings)
    capacity = loaded.capacity
    log.info(
        "KV cache: %s = %d blocks of %d tokens; context %d of the model's %d tokens",
        *(readable(capacity.num_blocks * cache.block_bytes), capacity.num_blocks, cache.block_size),
        *(capacity.max_model_len, spec.max_position),
    )
    log.info("memory: %s", loaded.ledger.sentence())
    return loaded


def _set_threads(wanted: int | None) -> None:
    """ConfigError for more than there are processors: such threads wait for one another."""
    usable = find_cores().usable
    if wanted is not None and wanted > usable:
        raise ConfigError(
            f"threads: {wanted} is more than the number of processors that this process may use; {usable} works"
        )
    kernels.set_threads(wanted or min(kernels.threads(), torch.get_num_threads(), usable))


def _with_shift(cache: KVCacheSpec, max_model_len: int, wanted: bool) -> KVCacheSpec:
    """The cache of an engine that shifts contexts, or whose sequences give up tokens: these fit into the context.

    ConfigError where that cannot be.
    """
    least = MIN_SHIFTED if wanted else 0
    if wanted and cache.compactor is not None:
        raise ConfigError(
            f"context_shift: {cache.compactor.id.partition('/')[0]} drops tokens already, which does not go with it; "
            "leave one of them out"
        )
    if max_model_len < least:
        raise ConfigError(f"context_shift: a context of {max_model_len} tokens is too short, take at least {least}")
    if wanted:
        cache = replace(cache, compactor=context_shift(0, max_model_len))
        if reasons := cache.check():
            raise ConfigError(f"context_shift: {reasons[0]}")
    rolling = cache.compactor
    if isinstance(rolling, Rolling) and rolling.capacity > max_model_len:
        raise ConfigError(
            f"cache: {rolling.sinks} + {rolling.capacity - rolling.sinks} tokens are more than the context holds, "
            f"{max_model_len}; take streaming={rolling.sinks}+{max(1, max_model_len - rolling.sinks)}, or less"
        )
    return cache


def _say_where_weights_lie(wanted: str) -> None:
    """In huge pages or not; a warning where they were wanted and most weights lie in small ones."""
    try:
        huge, total = kernels.huge_page_bytes()
    except ImportError:
        return
    if total:
        log.info("packed weights: %s of %s in huge pages", readable(huge), readable(total))
    if wanted != "off" and huge < total / 2:
        log.warning(
            "huge_pages: this system gives %s of %s for packed weights, so decoding takes up to half as long again; "
            "'echo madvise > /sys/kernel/mm/transparent_hugepage/enabled' allows them, or set pages aside in "
            "/proc/sys/vm/nr_hugepages and start with huge_pages=hugetlb",
            *(readable(huge) if huge else "none", readable(total)),
        )


def choose_backends(wanted: str, layers: Sequence[AttentionLayer], device: str) -> tuple[AttentionBackend, ...]:
    """One per layer: the CPU kernels where they serve it, else the reference; the log says which, where and why.

    wanted: "auto", or a backend's name. Raises ConfigError when "cpu" is asked for and cannot serve.
    """
    reference = ReferenceBackend()
    if wanted == "reference":
        return (reference,) * len(layers)
    try:
        kernel = CpuBackend(Environment.read().isa)
    except ImportError as error:
        if wanted == "cpu":
            raise ConfigError(f"attention_backend: 'cpu' cannot serve this model, 'reference' can: {error}") from error
        log.info("attention: plain torch, because %s", error)
        return (reference,) * len(layers)
    reasons = {layer.index: kernel.reasons_against(layer, device) for layer in layers}
    against = [reason for found in reasons.values() for reason in found]
    if against and wanted == "cpu":
        raise ConfigError(
            f"attention_backend: 'cpu' cannot serve this model, 'reference' can: {'; '.join(against[:3])}"
        )
    foreign = [index for index, found in reasons.items() if found]
    if len(foreign) < len(layers):
        log.info("attention: CPU kernels (%s)", kernel.isa)
    if foreign and device == "cpu":
        log.warning(
            "attention: %s read by plain torch, several times as slow as kernels: %s",
            "the only layer is" if len(layers) == 1 else f"{len(foreign)} of {len(layers)} layers are",
            against[0],
        )
    elif foreign:
        log.info("attention: plain torch, because %s", against[0])
    return tuple(reference if reasons[layer.index] else kernel for layer in layers)


def _in_cells(backends: Sequence[AttentionBackend], layers: Sequence[AttentionLayer]) -> tuple[AttentionBackend, ...]:
    """The backends of layers whose heads keep different numbers of tokens."""
    cut = {backend: CellsBackend(backend) for backend in backends}
    return tuple(cut[b] if layer.cells else b for b, layer in zip(backends, layers, strict=True))


def _warmed_up(loaded: Loaded, settings: StartSettings) -> Loaded:
    """Another cache, for which nothing has to be loaded again, where the measured step leaves less room for it."""
    runner, capacity, ledger = loaded.runner, loaded.capacity, loaded.ledger
    cached = capacity.num_blocks // runner.cache.num_growing * runner.cache.block_size
    limits = StepLimits(settings.max_num_batched_tokens, settings.max_num_seqs, capacity.max_model_len, cached)
    log.info("warming up: the largest steps are run and measured")
    measured = warm_up(runner, limits)
    if measured is None:
        log.warning("the warm-up could not be measured here; the plan stands as it was computed")
        return loaded
    gathering = gathering_bytes(runner.cache, runner.model.spec.num_heads, capacity.max_model_len)
    ledger = ledger.with_measured(max(measured.activations, gathering), measured.process)
    settled, ledger = settle(capacity, ledger, runner.cache, settings)
    if settled != capacity:
        log.warning("a step takes more than planned, so the cache gets %d blocks", settled.num_blocks)
        old = runner.arena
        arena = Arena(runner.cache, settled.num_blocks, old.device, old.huge_pages, len(old.seats))
        model = runner.model.serving(settled.max_model_len)
        runner = ModelRunner(model, runner.cache, arena, runner.backends, runner.token_text)
    return Loaded(runner, settled, ledger, loaded.mark_rules, loaded.products)


def choose_precision(config: EngineConfig, spec: ModelSpec) -> Precision:
    """In which numbers the engine keeps and computes the model. ConfigError when the settings contradict each other.

    A processor without bf16 instructions multiplies bf16 at a tenth of its float32 speed, and widening an element in a
    register is free: "auto" then keeps bf16 weights and computes in float32. A GGUF file that is quantised stays so on
    a CPU, unless the settings ask for numbers that its products cannot have.
    """
    cpu, weights = choose_device(config.device) == "cpu", config.weights
    stored = _stored(Path(config.model)) if weights in ("auto", "gguf") and config.load_format != "dummy" else "auto"
    if weights == "gguf" and stored == "auto":
        raise ConfigError(
            f"weights: gguf keeps the bits of a quantised GGUF file, of GPTQ, AWQ, compressed-tensors and MXFP4; "
            f"{config.model} is none of them: take int4"
        )
    own = config.linear in ("auto", "own")
    if weights == "auto" and config.dtype == "auto" and cpu and own:
        weights = stored
    quantised = weights != "auto"
    if quantised and not cpu:
        raise ConfigError(f"weights: {weights} runs on the CPU only: --device cpu, or leave weights at auto")
    dtype = spec.dtype if config.dtype == "auto" else config.dtype
    activations = dtype
    slow = dtype == "bfloat16" and not has_bf16_instructions(Environment.read().isa)
    if config.dtype == "auto" and cpu and own and (slow or quantised):
        activations = "float32"
        if slow:
            log.info("this processor has no bf16 instructions: weights and cache stay bf16, activations are float32")
    if dtype == "float16" and spec.norms == "sandwich":
        raise ConfigError(
            f"dtype: activations of {spec.architecture} pass 65,504, the largest float16: --dtype bfloat16 or float32"
        )
    if quantised and activations == "float16":
        raise ConfigError(f"dtype: float16 does not go with {weights} weights: --dtype auto, float32 or bfloat16")
    return Precision(dtype, activations, weights)


def _stored(path: Path) -> str:
    """The setting `weights` that keeps the bits of a checkpoint: "gguf" where it is quantised, else "auto"."""
    return "gguf" if keeps_bits(path) else kept_weights(path)


def has_bf16_instructions(isa: str) -> bool:
    """isa: as for `kernels.isa`."""
    return kernels.isa(isa) in ("avx512", "amx")


def drafter(config: EngineConfig) -> Drafter | None:
    """What proposes drafts under these settings."""
    if config.speculation == "off":
        return None
    longest, least = config.prompt_lookup_max, config.prompt_lookup_min
    row_cost = ROW_COST.get(kernels.isa(Environment.read().isa), DraftRules.row_cost)
    return Drafter(DraftRules(config.num_speculative_tokens, longest, least, config.speculation == "suffix", row_cost))


def choose_device(wanted: str) -> str:
    """What "auto" stands for here. ConfigError for a CUDA device that does not exist."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda"):
        count = torch.cuda.device_count()
        if int(wanted.partition(":")[2] or 0) >= count:
            raise ConfigError(f"device: {wanted!r} does not exist, torch sees {count} CUDA devices; cpu always works")
    return wanted


def free_bytes(device: str) -> int:
    """Bytes that can still be taken there."""
    if device == "cpu":
        return available_bytes()
    free: Any = torch.cuda.mem_get_info(torch.device(device))[0]
    return int(free)
