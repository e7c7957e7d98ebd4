"""Settings: one frozen dataclass, validated once, and the one table of environment variables.

Sizes are bytes and are written the way people write them (``"8GiB"``, ``"512MB"``); token counts accept ``"32k"``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from kvtrove.foreign import setting_of
from kvtrove.sizes import ConfigError, nearest, parse_size, parse_tokens

__all__ = ["ConfigError", "nearest", "parse_size", "parse_tokens"]

DTYPES = ("auto", "bfloat16", "float16", "float32")
SHORT_DTYPES = {
    "bf16": "bfloat16",
    **dict.fromkeys(("fp16", "f16", "half"), "float16"),
    **dict.fromkeys(("fp32", "f32", "float"), "float32"),
}
"""Other spellings of a dtype -> the one that settings use."""
WEIGHTS = ("auto", "int8", "int4", "gguf")
LINEAR = ("auto", "torch", "onednn", "own")
ATTENTION_BACKENDS = ("auto", "reference", "cpu")
HUGE_PAGES = ("auto", "hugetlb", "off")
SPECULATION = ("off", "ngram", "suffix")
EVICTION = ("lru", "s3fifo", "sieve", "lfu", "gdsf", "workload")
POOLING = ("auto", "last", "mean", "cls")
SCORING = ("auto", "cosine", "yes-no")
CHECK_LEVELS = (0, 1, 2)
LOAD_FORMATS = ("auto", "safetensors", "dummy")
MOST_THREADS = 1024
"""What the pool of the kernels holds. An engine that starts also refuses more than there are processors."""

CACHE_ALIASES = ("kv_cache_dtype", "cache_type_k", "cache_type_v")
"""What vLLM and llama.cpp call the storage of K and V: flags and settings that become a recipe."""


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _setting(
    default: Any,
    help: str,
    metavar: str | None = None,
    *,
    panel: str = "Engine",
    choices: tuple[str, ...] = (),
    least: int | None = None,
    flag: str | None = None,
) -> Any:
    """A field that is a flag of the command line as well, written nowhere else: `kvtrove.cli.flags` makes it of this.

    help: text of the flag, in which {choices} stands for the values. least: of a count; a smaller one is refused.
    flag: its name where that is not the field's.
    """
    words = ", ".join(choices[:-1]) + f" or {choices[-1]}" if choices else ""
    about = {"help": help.format(choices=words), "metavar": metavar, "panel": panel, "flag": flag}
    return field(default=default, metadata=about | {"choices": choices, "least": least})


@dataclass(frozen=True)
class EngineConfig:
    """Everything an engine needs to start.

    model: a local Hugging Face directory (config.json, *.safetensors, tokenizer.json), or a GGUF file.
    chat_template: a Jinja template, or the file that holds one, in place of the checkpoint's own.
    load_format: "dummy" draws random weights for a config.json (`model` may be the file itself) to measure a model
        without its checkpoint; without a tokenizer its prompts are token ids. "auto" and "safetensors" read weights.
    dtype: of weights and activations; "auto" takes the checkpoint's own. On a CPU that multiplies bf16 slowly, auto
        leaves bf16 weights as they are and computes in float32.
    weights: "int8" quantises the matrices of linear layers at load (CPU): half the memory and half the time of bf16;
        "int4" with a scale and a minimum for 32 inputs: a third of both. "gguf" keeps the bits of a quantised
        file (GGUF, GPTQ, AWQ, compressed-tensors); "auto" does so where they are quantised.
    linear: what multiplies on a CPU: own (kernels), torch or onednn. With "auto", bf16, int8 and int4 weights take own:
        an answer has the same tokens alone and in any batch. float32 and float16 take torch, which does not promise it.
    threads: that kernels and torch use on the CPU, in all engines of the process; None is one a core that the process
        may use, or OMP_NUM_THREADS. More than there are processors for the process are refused.
    device: "auto" (cuda when torch sees one, else cpu), "cpu", "cuda", "cuda:1".
    kv: memory for the KV cache in bytes, or "8GiB"; None takes a safe share of what is free.
    num_blocks: an exact number of blocks instead of `kv` (tests, benchmarks).
    cache: what the cache stores and keeps, as a recipe (`kvtrove.kv.recipe`): "auto" is what the model computes and
        reads, "int8" half of its bytes, "k=int8+v=int4r" K and V apart, "window=1024" only the last tokens.
    context_shift: when a context is full, half of what is behind its first `n_keep` tokens (a field of requests) leaves
        and the rest moves up, as in llama.cpp, so that an answer goes on; it is approximate.
    cache_reuse: runs of at least so many tokens that the cache has at other positions, or behind other tokens, are
        taken over, their keys turned, instead of computed, as in llama.cpp; 0 never. It is approximate.
    attention_backend: "auto" takes the fastest that serves the model here, "reference" plain torch, "cpu" the kernels.
    huge_pages: of weights and cache on a CPU. "auto" asks the system for transparent ones; "hugetlb" takes those of the
        pool in /proc/sys/vm/nr_hugepages, as long as it lasts; "off" leaves small ones (to compare).
    max_model_len: longest prompt + output in tokens, or "32k"; None takes the model's own, or what the pool can hold.
    max_num_seqs: sequences computed in one step at most.
    max_num_batched_tokens: token budget of a step.
    max_prompt_seconds: what prompts may add to a step in which others decode; 0 sets no limit but the token budget.
    max_concurrent_prefills: prompts that share the budget of a step when it is too small for all; later ones wait.
    eviction: who leaves the cache first when it is full (docs/eviction.md); "workload" learns which prompts come back.
    marks: where checkpoints of running states are made, for models whose layers have such states, so that prompts can
        go on from there: "auto", "off", or some of end, messages, branches, every:4096 (`kvtrove.kv.marks`).
    tier: where sealed blocks are kept below the pool, and found again when it has lost them (docs/tiers.md).
    kv_dir: short for a last tier "disk:DIR".
    checkpoint_dir: where sequences are kept as files (docs/checkpoints.md); DIR/checkpoints of `kv_dir` without it.
    backup_interval: tokens of an answer after which what an unfinished request has drawn is kept there, so that the
        same request continues after a crash; 0 keeps nothing.
    lora_modules: low-rank adapters, NAME=PATH or vLLM's JSON; requests choose one by name (docs/adapters.md).
    warm_up: run and measure the largest possible steps at start (`kvtrove serve` does), so that no request can be the
        first to find that memory does not suffice. It takes from a fraction of a second to a few seconds.
    speculation: what drafts tokens that a step then checks: "ngram" looks them up in prompt and output, "suffix" also
        in recent answers to the same tenant; "off". Tokens are the same, there are more of them in a step.
    num_speculative_tokens: drafts of a sequence in a step at most; fewer when they are not worth their time.
    prompt_lookup_max, prompt_lookup_min: most tokens that are compared, and fewest that must match, for a draft.
    pooling: what makes a vector of a text; "auto" is what the checkpoint says, else the last token.
    scoring: how well a document answers a query: the cosine of their vectors, or the probability that the model answers
        yes when asked; "auto" asks models that are made for it (docs/embeddings.md).
    """

    model: str
    tokenizer: str | None = _setting(None, "Where the tokenizer is, if not with the model.", "DIR")
    chat_template: str | None = _setting(None, "File or text in place of the model's own template.", "FILE")
    load_format: str = _setting(
        "auto", "{choices}; dummy draws random weights for a config.json.", "KIND", choices=LOAD_FORMATS
    )
    dtype: str = _setting("auto", "Of the weights: {choices}.", "TYPE", choices=DTYPES)
    weights: str = _setting(
        "auto", "auto, int8 or int4: quantise matrices at load (CPU); gguf.", "TYPE", choices=WEIGHTS
    )
    linear: str = _setting("auto", "What multiplies on a CPU: {choices}.", "NAME", choices=LINEAR)
    threads: int | None = _setting(None, "On a CPU; one a core that the process may use without it.", "N")
    device: str = _setting("auto", "auto, cpu, cuda or cuda:N.", "DEVICE")
    kv: int | str | None = _setting(None, "Memory for the KV cache, for example 8GiB.", "SIZE", panel="Cache")
    num_blocks: int | None = _setting(None, "Exact number of blocks instead of --kv.", "N", panel="Cache", least=1)
    cache: str = _setting(
        "auto",
        "What is stored and kept: auto, int8, k=int8+v=int4r, window=1024, ...; a wrong one lists all.",
        "RECIPE",
        panel="Cache",
    )
    context_shift: bool = _setting(False, "Full contexts drop their older half and go on.", panel="Cache")
    cache_reuse: int = _setting(
        0, "Least run of a prompt to take over from other positions; 0: none.", "TOKENS", panel="Cache", least=0
    )
    block_size: int = _setting(32, "Tokens in a block of the cache.", "N", panel="Cache", least=1)
    max_model_len: int | str | None = _setting(None, "Longest prompt and output together, such as 32k.", "TOKENS")
    max_num_seqs: int = _setting(256, "Sequences in one step at most.", "N", least=1)
    max_num_batched_tokens: int = _setting(2048, "Tokens in one step at most.", "N", least=1)
    max_concurrent_prefills: int = _setting(4, "Prompts that share a step.", "N", least=1)
    max_prompt_seconds: float = _setting(
        0.25, "What prompts may add to a step in which others decode; 0: no limit.", "SECONDS"
    )
    enable_prefix_caching: bool = _setting(
        True, "Reuse the blocks of prompts that begin alike.", panel="Cache", flag="prefix-caching"
    )
    eviction: str = _setting("lru", "Who leaves the cache first: {choices}.", "NAME", panel="Cache", choices=EVICTION)
    marks: str = _setting(
        "auto",
        "Checkpoints of states: auto, off, or some of end, messages, branches, every:4096, with commas.",
        "WHERE",
        panel="Cache",
    )
    tier: str | tuple[str, ...] = _setting(
        (),
        "Below the cache, fastest first: ram:8GiB, disk:/path,100GiB or redis://host; repeatable.",
        "TIER",
        panel="Cache",
    )
    kv_dir: str | None = _setting(
        None, "Keep the cache in this directory too: warm after a restart.", "DIR", panel="Cache"
    )
    checkpoint_dir: str | None = _setting(
        None, "Where sequences are kept as files; DIR/checkpoints of --kv-dir without it.", "DIR", panel="Cache"
    )
    backup_interval: int = _setting(
        0,
        "Tokens after which an unfinished answer is kept, to continue after a crash; 0: never.",
        "TOKENS",
        panel="Cache",
        least=0,
    )
    lora_modules: str | tuple[str, ...] = _setting(
        (), "An adapter as PEFT saves it, for requests to MODEL:NAME; repeatable.", "NAME=PATH"
    )
    seed: int | None = None
    check: int | None = _setting(None, "Check the cache's books: 0 never, 1 when idle, 2 always.", "LEVEL")
    warm_up: bool = False
    attention_backend: str = _setting("auto", "{choices}.", "NAME", choices=ATTENTION_BACKENDS)
    huge_pages: str = _setting("auto", "Of weights and cache: {choices}.", "KIND", choices=HUGE_PAGES)
    speculation: str = _setting(
        "off",
        "Drafts from prompt and output (ngram), or recent answers too (suffix); off.",
        "METHOD",
        panel="Drafts",
        choices=SPECULATION,
    )
    num_speculative_tokens: int = _setting(12, "Drafts of a sequence in a step at most.", "N", panel="Drafts", least=1)
    prompt_lookup_max: int = _setting(32, "Tokens compared at most to find a draft.", "N", panel="Drafts", least=1)
    prompt_lookup_min: int = _setting(2, "Tokens that must match for a draft.", "N", panel="Drafts", least=1)
    pooling: str = _setting("auto", "Of vectors: {choices} token.", "NAME", panel="Vectors", choices=POOLING)
    scoring: str = _setting("auto", "Of documents: {choices}.", "NAME", panel="Vectors", choices=SCORING)

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", SHORT_DTYPES.get(self.dtype, self.dtype))
        if not self.model:
            raise ConfigError("model: give the directory of a checkpoint")
        for setting in fields(self):
            value, choices, least = getattr(self, setting.name), *map(setting.metadata.get, ("choices", "least"))
            if choices and value not in choices:
                raise ConfigError(f"{setting.name}: {value!r} is not one of {', '.join(choices)}")
            if least is not None and value is not None and not (_whole(value) and value >= least):
                raise ConfigError(f"{setting.name}: {value!r} must be a whole number of at least {least}")
        object.__setattr__(self, "tier", tuple([self.tier] if isinstance(self.tier, str) else self.tier))
        modules = [self.lora_modules] if isinstance(self.lora_modules, str) else self.lora_modules
        object.__setattr__(self, "lora_modules", tuple(modules))
        if len(dict(self.adapters)) < len(modules):
            raise ConfigError("lora_modules: two adapters have one name")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(f"device: {self.device!r} is not one of auto, cpu, cuda, cuda:N")
        if not 0 <= self.max_prompt_seconds <= 3600:
            raise ConfigError(f"max_prompt_seconds: {self.max_prompt_seconds!r} must lie between 0 (no limit) and 3600")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens: {self.max_num_batched_tokens} is smaller than max_num_seqs "
                f"({self.max_num_seqs}), so not every running sequence could advance; raise it to {self.max_num_seqs}"
            )
        if self.backup_interval and not (self.checkpoint_dir or self.kv_dir):
            raise ConfigError(
                f"backup_interval: {self.backup_interval} needs a place for its files; give kv_dir or checkpoint_dir"
            )
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise ConfigError(
                f"prompt_lookup_min: {self.prompt_lookup_min} is more than prompt_lookup_max ({self.prompt_lookup_max})"
            )
        if self.kv is not None and self.num_blocks is not None:
            raise ConfigError("kv and num_blocks say the same thing twice; give one of them")
        if self.kv is not None:
            object.__setattr__(self, "kv", parse_size(self.kv, "kv"))
        if self.max_model_len is not None:
            object.__setattr__(self, "max_model_len", parse_tokens(self.max_model_len, "max_model_len"))
        if self.threads is not None and not (_whole(self.threads) and 1 <= self.threads <= MOST_THREADS):
            raise ConfigError(
                f"threads: {self.threads!r} is not a whole number between 1 and {MOST_THREADS}; leave it out for one "
                "a core"
            )
        if not isinstance(self.warm_up, bool):
            raise ConfigError(f"warm_up: {self.warm_up!r} is not one of True, False")
        check = Environment.read().check if self.check is None else self.check
        if check not in CHECK_LEVELS:
            raise ConfigError(f"check: {check!r} is not one of 0 (off), 1 (when idle), 2 (every step)")
        object.__setattr__(self, "check", check)

    @property
    def adapters(self) -> list[tuple[str, str]]:
        """Name and path of each of `lora_modules`. ConfigError for one that says neither."""
        return [_adapter(module) for module in self.lora_modules]

    @property
    def max_logit_rows(self) -> int:
        """Rows of logits of a step at most: one per sequence, or those of one with all its drafts."""
        return max(self.max_num_seqs, 1 + self.num_speculative_tokens if self.speculation != "off" else 0)

    @property
    def max_num_seats(self) -> int:
        """Sequences that hold blocks at once at most: those that run, and as many that others keep (benchmarks do).

        A seat takes memory only once it is used, the first ones first.
        """
        return 2 * self.max_num_seqs + 2

    @classmethod
    def from_kwargs(cls, model: str, **settings: Any) -> tuple[EngineConfig, list[str]]:
        """A config from keyword arguments under our or vLLM's names, and the names that were ignored.

        A name that only vLLM knows is ignored where it asks for nothing (None, a parallel size of 1).
        Raises ConfigError for a name that neither knows, with the nearest known one.
        """
        known = {f.name for f in fields(cls)}
        kept: dict[str, Any] = {}
        ignored = []
        settings |= cache_words({name: settings.pop(name, None) for name in CACHE_ALIASES}, settings.get("cache"))
        drafts = speculative(settings.pop("speculative_config", None))
        if twice := sorted(drafts.keys() & settings.keys()):
            raise ConfigError(f"speculative_config and {twice[0]} say the same thing twice; give one of them")
        for name, value in (settings | drafts).items():
            theirs, sets_nothing = setting_of(name)
            ours = name if name in known else theirs or name
            if ours in kept:
                raise ConfigError(f"{ours} and {name} say the same thing twice; give one of them")
            if ours in known:
                kept[ours] = value
            elif sets_nothing or value is None or (name.endswith("_parallel_size") and value == 1):
                ignored.append(name)
            else:
                raise ConfigError(f"unknown setting {name!r}{nearest(name, known)}")
        return cls(model, **kept), ignored


def _adapter(module: str) -> tuple[str, str]:
    """NAME=PATH, or {"name": ..., "path": ...} as vLLM also takes it."""
    name, _, path = module.partition("=")
    if module.lstrip().startswith("{"):
        try:
            given = json.loads(module)
            name, path = given["name"], given["path"]
        except (ValueError, KeyError) as error:
            raise ConfigError(f'lora_modules: {module:.200} is not {{"name": ..., "path": ...}}') from error
    if not (isinstance(name, str) and isinstance(path, str) and name and path) or ":" in name:
        raise ConfigError(f"lora_modules: {module!r:.200} is not NAME=PATH (a name without a colon)")
    return name, path


def cache_words(foreign: Mapping[str, Any], cache: Any) -> dict[str, Any]:
    """{"cache": a recipe} of vLLM's and llama.cpp's settings. ConfigError when two of them say how to store a side."""
    given = {name: str(value) for name, value in foreign.items() if value not in (None, "auto")}
    if not given:
        return {}
    if cache not in (None, "auto"):
        raise ConfigError(f"cache and {next(iter(given))} say the same thing twice; give one of them")
    if "kv_cache_dtype" in given and len(given) > 1:
        raise ConfigError("kv_cache_dtype and cache_type_k or _v say the same thing twice; give one of them")
    sides = {"kv_cache_dtype": "", "cache_type_k": "k=", "cache_type_v": "v="}
    return {"cache": "+".join(f"{sides[name]}{value}" for name, value in given.items())}


def speculative(config: Any) -> dict[str, Any]:
    """Our settings of vLLM's `speculative_config`. ConfigError for what needs a draft model, or is unknown."""
    if config is None:
        return {}
    if not isinstance(config, Mapping):
        raise ConfigError(f"speculative_config: {config!r} is not a dict such as {{'method': 'ngram'}}")
    known = ("num_speculative_tokens", "prompt_lookup_max", "prompt_lookup_min")
    for name in config:
        if name not in ("method", *known):
            raise ConfigError(
                f"speculative_config: {name!r} has no meaning here{nearest(name, known)}; drafts need no model: "
                "method 'ngram' or 'suffix'"
            )
    method = config.get("method")
    if method not in SPECULATION[1:]:
        raise ConfigError(f"speculative_config: method {method!r} is not one of {', '.join(SPECULATION[1:])}")
    return {"speculation": method} | {name: config[name] for name in known if config.get(name) is not None}


@dataclass(frozen=True)
class Environment:
    """Every environment variable the package reads. Anything else named KVTROVE_* is an error.

    KVTROVE_CHECK: invariant checks: 0 off, 1 when idle, 2 every step.
    KVTROVE_ISA: forces an instruction set of the CPU kernels.
    KVTROVE_LOG: log level of the `kvtrove` logger.
    KVTROVE_CACHE_LOG: what the engine logs of its cache: 0 nothing, 1 a line per step, 2 a picture of the pool as well.
    KVTROVE_HOME: folder for models of `kvtrove models get` and prices of `kvtrove eval`; ~/.cache/kvtrove without it.
    KVTROVE_API_KEY: key that opens the server. KVTROVE_ADMIN_KEY: key for its administrators.
    KVTROVE_TIER_KEY: secret that signs cached rows in Redis, the same for all engines that share them.
    """

    check: int = 0
    isa: str = "auto"
    log: str = "warning"
    cache_log: int = 0
    home: str | None = None
    api_key: str | None = field(default=None, repr=False)
    admin_key: str | None = field(default=None, repr=False)
    tier_key: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, environ: Mapping[str, str] = os.environ) -> Environment:
        known = {f"KVTROVE_{f.name.upper()}": f.name for f in fields(cls)}
        values: dict[str, Any] = {}
        for name, value in environ.items():
            if not name.startswith("KVTROVE_"):
                continue
            if name not in known:
                raise ConfigError(f"unknown environment variable {name}{nearest(name, known)}")
            values[known[name]] = value
        for level in {"check", "cache_log"} & values.keys():
            if values[level] not in ("0", "1", "2"):
                raise ConfigError(f"KVTROVE_{level.upper()}: {values[level]!r} is not one of 0, 1, 2")
            values[level] = int(values[level])
        if values.get("log", "info").lower() not in ("debug", "info", "warning", "error"):
            raise ConfigError(f"KVTROVE_LOG: {values['log']!r} is not one of debug, info, warning, error")
        return cls(**values)
