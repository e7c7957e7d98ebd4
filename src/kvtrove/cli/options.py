"""Flags shared by the commands, each defined once."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvtrove.cli.flags import EngineSettings, flag
from kvtrove.names import find_model
from kvtrove.request import SamplingParams

if TYPE_CHECKING:
    from kvtrove.llm import LLM

NAMES = "Path, `demo`, ORG/NAME of Hugging Face, or a short name."
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=NAMES)]
OptionalModel = Annotated[str, typer.Argument(metavar="[MODEL]", help=NAMES)]
JsonFlag = Annotated[bool, typer.Option("--json", help="Machine-readable output, one JSON object per line.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]


_sampling = functools.partial(flag, "Sampling")


class EngineOptions(EngineSettings):
    """The settings of the engine that a command starts."""

    def load(self, model: str, quiet: bool = False, **more: Any) -> LLM:
        """Start the engine on the model of that name."""
        from kvtrove.llm import LLM

        return LLM(model, use_tqdm_on_load=not quiet, **self.values, **more)


COMPLETION: dict[str, Any] = {"max_tokens": 128}
CHAT: dict[str, Any] = {"max_tokens": None, "temperature": 0.7, "top_p": 0.9}
"""How tokens are drawn where neither flags nor the checkpoint say: at temperature 1, small models ramble."""


@dataclass(frozen=True)
class SamplingOptions:
    """The fields of SamplingParams that every command has; it checks the values. None is the checkpoint's default."""

    max_tokens: Annotated[
        int | None, _sampling("N", "Tokens to generate at most; 128, but in a chat what the context holds.")
    ] = None
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

    def params(self, model: str, usual: Mapping[str, Any], **more: Any) -> SamplingParams:
        """What was asked for, else what the checkpoint recommends, else what is `usual` for the command."""
        from kvtrove.text.generation_config import sampling_defaults

        given = {name: value for name, value in asdict(self).items() if value is not None}
        return SamplingParams(**{**usual, **sampling_defaults(find_model(model)), **given}, **more)
