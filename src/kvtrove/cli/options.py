"""Flags shared by the commands, each defined once.

A command takes a dataclass; `spread` turns every field of it into a flag and hands the command the filled dataclass:

    @spread
    def generate(model: ModelArgument, sampling: SamplingOptions, engine: EngineOptions) -> None: ...
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from kvtrove.request import SamplingParams

if TYPE_CHECKING:
    from kvtrove.llm import LLM

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Directory of a checkpoint, or `demo`: the embedded model.")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Machine-readable output, one JSON object per line.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]


CACHE_HELP = (
    "What it stores and keeps: auto (as the model), int8, k=int8+v=int4r, window=1024, ...; a wrong one lists all."
)


def _flag(panel: str, metavar: str | None, help: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, rich_help_panel=panel)


_engine = functools.partial(_flag, "Engine")
_cache = functools.partial(_flag, "Cache")
_drafts = functools.partial(_flag, "Drafts")
_sampling = functools.partial(_flag, "Sampling")


@dataclass(frozen=True)
class EngineOptions:
    """The settings of EngineConfig as flags; it checks the values."""

    kv: Annotated[str | None, _cache("SIZE", "Memory for the KV cache, for example 8GiB.")] = None
    max_model_len: Annotated[str | None, _engine("TOKENS", "Longest prompt and output together, such as 32k.")] = None
    dtype: Annotated[str, _engine("TYPE", "Of the weights: auto, bfloat16, float16 or float32.")] = "auto"
    weights: Annotated[str, _engine("TYPE", "auto, or int8: quantise matrices at load (CPU).")] = "auto"
    linear: Annotated[str, _engine("NAME", "What multiplies on a CPU: auto, own, torch or onednn.")] = "auto"
    threads: Annotated[int | None, _engine("N", "On a CPU; one a core that the process may use without it.")] = None
    device: Annotated[str, _engine("DEVICE", "auto, cpu, cuda or cuda:N.")] = "auto"
    cache: Annotated[str, _cache("RECIPE", CACHE_HELP)] = "auto"
    attention_backend: Annotated[str, _engine("NAME", "auto, cpu (kernels) or reference (plain torch).")] = "auto"
    huge_pages: Annotated[str, _engine("KIND", "Of weights and cache: auto, hugetlb (the system's pool) or off.")] = (
        "auto"
    )
    block_size: Annotated[int, _cache("N", "Tokens in a block of the cache.")] = 32
    num_blocks: Annotated[int | None, _cache("N", "Exact number of blocks instead of --kv.")] = None
    max_num_seqs: Annotated[int, _engine("N", "Sequences in one step at most.")] = 256
    max_num_batched_tokens: Annotated[int, _engine("N", "Tokens in one step at most.")] = 2048
    max_concurrent_prefills: Annotated[int, _engine("N", "Prompts that share a step.")] = 4
    max_prompt_seconds: Annotated[
        float, _engine("SECONDS", "What prompts may add to a step in which others decode; 0: no limit.")
    ] = 0.25
    enable_prefix_caching: Annotated[
        bool, _cache(None, "Reuse the blocks of prompts that begin alike.", "--prefix-caching/--no-prefix-caching")
    ] = True
    tokenizer: Annotated[str | None, _engine("DIR", "Where the tokenizer is, if not with the model.")] = None
    load_format: Annotated[
        str, _engine("KIND", "auto: the checkpoint's weights; dummy: random ones for a config.json.")
    ] = "auto"
    speculation: Annotated[
        str, _drafts("METHOD", "Drafts from prompt and output (ngram), or recent answers too (suffix); off.")
    ] = "off"
    num_speculative_tokens: Annotated[int, _drafts("N", "Drafts of a sequence in a step at most.")] = 12
    prompt_lookup_max: Annotated[int, _drafts("N", "Tokens compared at most to find a draft.")] = 32
    prompt_lookup_min: Annotated[int, _drafts("N", "Tokens that must match for a draft.")] = 2
    check: Annotated[int | None, _engine("LEVEL", "Check the cache's books: 0 never, 1 when idle, 2 always.")] = None

    def load(self, model: str, quiet: bool = False, **more: Any) -> LLM:
        """Start the engine on a directory or on the embedded model (`demo`)."""
        from kvtrove.llm import LLM

        return LLM(model_directory(model), use_tqdm_on_load=not quiet, **asdict(self), **more)


@dataclass(frozen=True)
class SamplingOptions:
    """The fields of SamplingParams that every command has; it checks the values. None is the checkpoint's default."""

    max_tokens: Annotated[int, _sampling("N", "Tokens to generate at most.")] = 128
    temperature: Annotated[float | None, _sampling("T", "0 always takes the likeliest token.")] = None
    top_p: Annotated[float | None, _sampling("P", "Draw from the likeliest tokens that sum to P.")] = None
    top_k: Annotated[int | None, _sampling("N", "Draw from the N likeliest tokens; 0 is all.")] = None
    min_p: Annotated[float | None, _sampling("P", "No tokens below P times the likeliest one's probability.")] = None
    seed: Annotated[int | None, _sampling("N", "Makes the result reproducible.")] = None
    stop: Annotated[list[str] | None, _sampling("TEXT", "Ends the output where TEXT would follow; repeatable.")] = None
    stop_token_ids: Annotated[
        list[int] | None, _sampling("ID", "A token that ends the output; repeatable.", "--stop-token-id")
    ] = None
    ignore_eos: Annotated[bool, _sampling(None, "Go on after the model's end token.", "--ignore-eos")] = False
    min_tokens: Annotated[int, _sampling("N", "No end token before N tokens.")] = 0
    repetition_penalty: Annotated[float | None, _sampling("X", "Above 1 makes tokens that occurred less likely.")] = (
        None
    )
    presence_penalty: Annotated[float, _sampling("X", "Taken off the logit of every token that occurred.")] = 0.0
    frequency_penalty: Annotated[float, _sampling("X", "Taken off once per occurrence.")] = 0.0

    def params(self, model: str, **more: Any) -> SamplingParams:
        """What was asked for, where nothing was what the checkpoint recommends, else the usual default."""
        from kvtrove.text.generation_config import sampling_defaults

        given = {name: value for name, value in asdict(self).items() if value is not None}
        return SamplingParams(**sampling_defaults(model_directory(model)) | given, **more)


def model_directory(model: str) -> str:
    """`demo` is the embedded model; everything else is a directory (`./demo` for one of that name)."""
    if model != "demo":
        return model
    from kvtrove.demo import demo_model_dir

    return str(demo_model_dir())


def spread(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` one flag per field of each of its dataclass parameters."""
    hints = get_type_hints(command, include_extras=True)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name in groups:
            parameters += _flags(groups[parameter.name])
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def with_flags(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    with_flags.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_flags.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_flags


def _flags(group: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(group)
    ]
