"""`kvtrove eval`: compare caches of one model with its exact cache, weights with its floats, or models with it."""

from __future__ import annotations

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvtrove.cli.flags import flag, setting, spread
from kvtrove.cli.options import OptionalModel, QuietFlag
from kvtrove.cli.output import INTERRUPTED, check_folders, console, write_json
from kvtrove.cli.text import say
from kvtrove.config import ConfigError, EngineConfig, parse_tokens
from kvtrove.names import find_model

if TYPE_CHECKING:
    from kvtrove.evaluate.evaluation import Evaluation
    from kvtrove.evaluate.settings import Settings

_text, _recall = functools.partial(flag, "Text"), functools.partial(flag, "Recall")
_fit, _engine = functools.partial(flag, "Choice"), functools.partial(flag, "Engine")
_output = functools.partial(flag, "Output")


@dataclass(frozen=True)
class TextOptions:
    """Fields of evaluate.settings.Settings, as text."""

    text: Annotated[str | None, _text("FILE", "UTF-8. Default: docstrings of Python's standard library.")] = None
    text_tokens: Annotated[str, _text("N", "Read at most N tokens of it.")] = "8192"
    context: Annotated[str | None, _text("N", "Cut it into segments of N tokens. Default: 2048 or what fits.")] = None


@dataclass(frozen=True)
class RecallOptions:
    """Fields of evaluate.settings.Settings, as text."""

    lengths: Annotated[
        str | None, _recall("N,N,...", "Tokens of a dialogue. Default: those of 512,1k,2k,4k that fit.")
    ] = None
    depths: Annotated[str, _recall("X,X,...", "Where the fact stands: 0 is first, 1 last.")] = "0,0.25,0.5,0.75,1"
    samples: Annotated[int, _recall("N", "Dialogues per length and depth.")] = 5
    needle: Annotated[str | None, _recall("FILE", "Your own fact, question and fillers, as TOML or JSON.")] = None
    answer_tokens: Annotated[int, _recall("N", "Longest answer.")] = 32
    seed: Annotated[int, _recall("N", "Of the dialogues.")] = 0


@dataclass(frozen=True)
class EvalEngineOptions:
    """Fields of evaluate.settings.Settings."""

    chunk: Annotated[int, _engine("N", "Tokens in one step at most.")] = 128
    dtype: Annotated[str, setting("dtype", "Engine")] = EngineConfig.dtype
    device: Annotated[str, setting("device", "Engine")] = EngineConfig.device
    block_size: Annotated[int, setting("block_size", "Engine")] = EngineConfig.block_size
    rounds: Annotated[int, _engine("N", "Measurements of speed, of which the median counts.")] = 3


@dataclass(frozen=True)
class FitOptions:
    """Fields of evaluate.settings.Settings."""

    fit_bits: Annotated[
        float | None, _fit("BITS", "Choose a format for each layer, so that an element of K and V takes BITS at most.")
    ] = None
    max_kl: Annotated[
        float | None, _fit("NATS", "Choose a format for each layer, as small as a mean KL of NATS allows.")
    ] = None
    least_top1: Annotated[
        float, _fit("SHARE", "Caches with fewer equal likeliest tokens are named, and warned of when an engine starts.")
    ] = 0.9


@spread
def evaluate(
    text: TextOptions,
    recall: RecallOptions,
    choice: FitOptions,
    engine: EvalEngineOptions,
    model: OptionalModel = "demo",
    cache: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RECIPE",
            help="A cache to compare, or a format to choose from, such as int8 or bf16+window=256; repeatable. "
            "A wrong one lists all.",
        ),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND", help="Weights to compare with the checkpoint's floats: int8, int4 or gguf; repeatable."
        ),
    ] = None,
    other: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL",
            help="Another checkpoint with this tokenizer to compare, such as one of `kvtrove convert`; repeatable.",
        ),
    ] = None,
    parts: Annotated[str, typer.Option(metavar="NAME,...", help="What to measure.")] = "text,recall,speed",
    json: Annotated[str | None, _output("FILE", "Write all figures and answers; - is stdout.")] = None,
    html: Annotated[str | None, _output("FILE", "Write a report with pictures, one page on its own.")] = None,
    state: Annotated[
        str | None, _output("FILE", "Keep finished cells here, and go on from them. Default: beside --json.")
    ] = None,
    quiet: QuietFlag = False,
) -> None:
    """Compare caches with the exact one, or weights with floats: KL, perplexity, recall of facts, bytes and speed.

    Ctrl-C, and the same command goes on later.

    Example: kvtrove eval demo --cache bf16 --cache window=256 --html report.html

    Example: kvtrove eval my-model --parts text --fit-bits 6 --cache int8 --cache int4r
    """
    check_folders(json, html, state)
    settings = _settings(model, cache, weights, other, parts, text, recall, choice, engine)
    kept = state if state is not None or json in (None, "-") else str(Path(json).with_suffix(".state.json"))
    result = _evaluate(settings, kept, quiet)
    _write(result, json, html)
    if not quiet or json != "-":
        _show(result, to_stderr=json == "-")
    if result.interrupted:
        _say_how_to_resume(result, kept)
        raise typer.Exit(INTERRUPTED)


def _settings(
    model: str,
    caches: list[str] | None,
    weights: list[str] | None,
    others: list[str] | None,
    parts: str,
    text: TextOptions,
    recall: RecallOptions,
    choice: FitOptions,
    engine: EvalEngineOptions,
) -> Settings:
    """Text to values; the dataclass checks them."""
    from kvtrove.evaluate.fit import CANDIDATES
    from kvtrove.evaluate.settings import DEFAULT, Settings

    lengths = None if recall.lengths is None else tuple(parse_tokens(n, "lengths") for n in recall.lengths.split(","))
    values = asdict(text) | asdict(recall) | asdict(choice) | asdict(engine)
    values["text_tokens"] = parse_tokens(text.text_tokens, "text_tokens")
    values["context"] = None if text.context is None else parse_tokens(text.context, "context")
    values |= {"lengths": lengths, "depths": _numbers(recall.depths, "depths")}
    names = tuple(part.strip() for part in parts.split(","))
    usual = CANDIDATES if choice.fit_bits or choice.max_kl else DEFAULT
    compared = tuple(caches or (() if weights or others else usual))
    values["weights"] = tuple(dict.fromkeys(weights or ()))
    values["models"] = tuple(dict.fromkeys(str(find_model(name)) for name in others or ()))
    return Settings(str(find_model(model)), compared, names, **values)


def _numbers(text: str, what: str) -> tuple[float, ...]:
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise ConfigError(
            f"{what}: cannot read {text!r}; write numbers with commas between, such as 0,0.5,1"
        ) from error


def _evaluate(settings: Settings, state: str | None, quiet: bool) -> Evaluation:
    from kvtrove.evaluate.evaluation import evaluate
    from kvtrove.progress import loading

    with loading(not quiet) as report:
        return evaluate(settings, state, report)


def _write(result: Evaluation, json: str | None, html: str | None) -> None:
    from kvtrove import __version__
    from kvtrove.evaluate.html import page
    from kvtrove.evaluate.results import as_json, prices
    from kvtrove.prices import save

    save(prices(result))
    if json is not None:
        write_json(as_json(result, __version__), json)
    if html is not None:
        Path(html).write_text(page(result), encoding="utf-8")


def _show(result: Evaluation, to_stderr: bool) -> None:
    from kvtrove.evaluate.tables import result_table

    console(to_stderr).print(result_table(result))


def _say_how_to_resume(result: Evaluation, state: str | None) -> None:
    done = f"{result.done} of {result.total} cells are done"
    if state is None:
        say(f"{done} and not kept; with --state FILE they would be", err=True)
    else:
        say(f"{done} and kept in {state}; the same command goes on from there", err=True)
