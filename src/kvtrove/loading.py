"""Starting up: weights, memory, arena, backend. What an Engine does once, before its first step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from kvtrove.attention.backend import AttentionBackend, AttentionLayer
from kvtrove.attention.cpu import CpuBackend
from kvtrove.attention.reference import ReferenceBackend
from kvtrove.config import ConfigError, EngineConfig, Environment, parse_size, parse_tokens
from kvtrove.kv.arena import Arena
from kvtrove.kv.formats import engine_format
from kvtrove.models.cache import cache_spec
from kvtrove.models.loader import Progress, load_model
from kvtrove.models.spec import ModelSpec
from kvtrove.plan.capacity import Capacity, readable
from kvtrove.plan.memory import available_bytes
from kvtrove.plan.source import read_model
from kvtrove.plan.startup import StartSettings, plan_start
from kvtrove.runner.model_runner import ModelRunner, attention_layers

log = logging.getLogger(__name__)


def load_runner(
    config: EngineConfig, spec: ModelSpec, token_text: Callable[[int], str], progress: Progress | None
) -> tuple[ModelRunner, Capacity]:
    """A runner ready for its first step, and what its cache holds."""
    device, directory = _device(config.device), Path(config.model)
    dtype = compute_dtype(config, spec)
    kv_dtype = dtype if config.kv_cache_dtype == "auto" else config.kv_cache_dtype
    cache = cache_spec(spec, engine_format(kv_dtype), config.block_size)
    settings = StartSettings(
        config.max_num_seqs,
        config.max_num_batched_tokens,
        None if config.kv is None else parse_size(config.kv, "kv"),
        config.num_blocks,
        None if config.max_model_len is None else parse_tokens(config.max_model_len),
    )
    capacity, ledger = plan_start(read_model(directory, dtype), cache, _free_bytes(device), settings)
    length = capacity.max_model_len
    model = load_model(directory, spec, getattr(torch, dtype), device, progress, max_model_len=length)
    log.info(
        "KV cache: %s = %d blocks of %d tokens; context %d of the model's %d tokens",
        *(readable(capacity.num_blocks * cache.block_bytes), capacity.num_blocks, cache.block_size),
        *(capacity.max_model_len, spec.max_position),
    )
    log.info("memory: %s", ledger.sentence())
    arena = Arena(cache, capacity.num_blocks, device)
    layers = tuple(attention_layers(model, cache, arena))
    return ModelRunner(
        model, cache, arena, choose_backend(config.attention_backend, layers, device), token_text
    ), capacity


def choose_backend(wanted: str, layers: Sequence[AttentionLayer], device: str) -> AttentionBackend:
    """The CPU kernels where they serve every layer, else the reference; the log says which, and why not the kernels.

    wanted: "auto", or a backend's name. Raises ConfigError when "cpu" is asked for and cannot serve.
    """
    if wanted == "reference":
        return ReferenceBackend()
    try:
        backend = CpuBackend(Environment.read().isa)
    except ImportError as error:
        reasons = [str(error)]
    else:
        reasons = [reason for layer in layers for reason in backend.reasons_against(layer, device)]
    if not reasons:
        log.info("attention: CPU kernels (%s)", backend.isa)
        return backend
    if wanted == "cpu":
        raise ConfigError(
            f"attention_backend: 'cpu' cannot serve this model, 'reference' can: {'; '.join(reasons[:3])}"
        )
    log.info("attention: plain torch, because %s", "; ".join(reasons[:3]))
    return ReferenceBackend()


def compute_dtype(config: EngineConfig, spec: ModelSpec) -> str:
    return spec.dtype if config.dtype == "auto" else config.dtype


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted.startswith("cuda"):
        count = torch.cuda.device_count()
        if int(wanted.partition(":")[2] or 0) >= count:
            raise ConfigError(f"device: {wanted!r} does not exist, torch sees {count} CUDA devices; cpu always works")
    return wanted


def _free_bytes(device: str) -> int:
    if device == "cpu":
        return available_bytes()
    free: Any = torch.cuda.mem_get_info(torch.device(device))[0]
    return int(free)
