"""Fields that several routes share, and the objects that several answers hold."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NotRequired

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema
from typing_extensions import TypedDict

from kvtrove.request import RequestError, SamplingParams
from kvtrove.server.guidance import Grammar, Kind
from kvtrove.server.protocol.fail_fast import fail_fast
from kvtrove.server.settings import Limits

log = logging.getLogger(__name__)


def _whole(value: Any) -> Any:
    """3.0 is an integer to JSON Schema, and what languages with one type of number send."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_whole)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]  # without _whole: there may be a million
Seed = Annotated[Integer, Field(ge=-(2**63), le=2**64 - 1)]
Count = Annotated[Integer, Field(ge=0, le=2**31 - 1)]


HARMLESS = {
    *("audio", "client_metadata", "context_management", "extra_body", "inference_geo", "metadata", "prediction"),
    *("prompt_cache_retention", "reasoning_effort", "safety_identifier", "service_tier", "store", "thinking", "user"),
    "verbosity",
}
"""Fields of the providers that a server of one model may pass over in silence."""


class Bounded(BaseModel):
    """A model that is wrong with its first wrong item: a million of them would take minutes to describe."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return fail_fast(handler(source))


class Body(Bounded):
    """A request. Types are strict; fields that nobody knows are ignored, and listed in the debug log."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, protected_namespaces=())

    def model_post_init(self, _: Any) -> None:
        if self.model_extra and log.isEnabledFor(logging.DEBUG):
            log.debug("%s: ignored unknown fields: %s", type(self).__name__, ", ".join(sorted(self.model_extra)))

    @property
    def unknown(self) -> list[str]:
        """Fields that nobody here knows, without those that change no answer."""
        return sorted((self.model_extra or {}).keys() - HARMLESS)

    def given(self, *names: str) -> dict[str, Any]:
        """Those of the fields that are not None."""
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class Part(Bounded):
    """A piece of a request, with whatever else its sender put in."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class StreamOptions(Part):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class JsonSchema(Part):
    name: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Part):
    """schema: beside json_object, as llama.cpp and others take it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")


class StructuredOutputs(Part):
    """vLLM's field: exactly one of these."""

    json_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: Annotated[list[str], Field(min_length=1)] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class PromptCacheOptions(Part):
    """How long the prompt leaves the cache last, and where it ends.

    ttl: such as "30m", or seconds. mode: `explicit` keeps only what stands before a `prompt_cache_breakpoint`. prewarm:
    the prompt is computed, and nothing is answered. comparison_response_id: the answer with whose request this one is
    compared.
    """

    ttl: str | float | None = None
    mode: Literal["implicit", "explicit"] | None = None
    prewarm: bool | None = None
    comparison_response_id: str | None = None


class CacheControl(Part):
    """Anthropic's mark behind what is to be kept."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class CacheFields(Body):
    """How a request uses the prefix cache.

    cache_salt: only requests with the same one share cached blocks. prompt_cache_key: names the conversation, whose
    blocks leave the cache last for a while. prompt_cache_retention: OpenAI's older word for how long. priority: is
    accepted; an engine serves first come, first served. cache_report: the answer's `kvtrove` object says what was
    reused, and why no more. stable_prefix: volatile lines at the head of the system message go behind the conversation.
    exact_prefix: nothing approximate is reused: no prefix that was compacted for all, no text that moved.
    """

    prompt_field: ClassVar[str] = "messages"

    cache_salt: Annotated[str, Field(min_length=1, max_length=512)] | None = None
    prompt_cache_key: Annotated[str, Field(max_length=512)] | None = None
    prompt_cache_options: PromptCacheOptions | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    priority: Integer | None = None
    cache_report: bool | None = None
    stable_prefix: bool | None = None
    exact_prefix: bool | None = None

    @property
    def limit_field(self) -> str:
        """The field that holds the most tokens of an answer."""
        return "max_tokens"


class SamplingFields(CacheFields):
    """OpenAI's sampling parameters, vLLM's additions, and llama.cpp's `grammar`. None is the default."""

    model: str | None = None
    user: str | None = None
    n: Annotated[Integer, Field(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: Integer | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    length_penalty: float | None = None
    seed: Seed | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Count | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[TokenId] | None = None
    skip_special_tokens: bool | None = None
    use_beam_search: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Annotated[list[str], Field(min_length=1)] | None = None
    guided_grammar: str | None = None
    grammar_: str | None = Field(None, alias="grammar")
    speculation: bool | None = None
    n_keep: int | None = None

    def sampling_params(self, limits: Limits, defaults: Mapping[str, Any], **more: Any) -> SamplingParams:
        """The engine's parameters; `more` are those that each route reads in its own way. RequestError past a limit.

        defaults: fields of SamplingParams that the checkpoint recommends where the request says nothing.
        """
        width = more.get("beam_width") or more.get("n") or self.n or 1
        if width > limits.max_n:
            raise RequestError(f"n: {width} sequences are more than the {limits.max_n} allowed", "n")
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stops) > limits.max_stops:
            raise RequestError(f"stop: {len(stops)} strings are more than the {limits.max_stops} allowed", "stop")
        if any(len(stop) > limits.max_stop_chars for stop in stops):
            raise RequestError(f"stop: a string has more than {limits.max_stop_chars} characters", "stop")
        given = self.given(
            *("n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty"),
            *("frequency_penalty", "length_penalty", "seed", "stop", "stop_token_ids", "include_stop_str_in_output"),
            *("ignore_eos", "min_tokens", "allowed_token_ids", "skip_special_tokens", "speculation", "n_keep"),
            "exact_prefix",
        )
        return SamplingParams(**dict(defaults) | given | {"logit_bias": self._logit_bias()} | more)

    def grammar(self) -> Grammar | None:
        """What the output must look like. RequestError when two fields say so, or one says it badly."""
        found = [*self._response_format(), *self._structured()]
        if len(found) > 1:
            raise RequestError(
                f"{found[1].param} and {found[0].param} both say what to write; give one", found[1].param
            )
        return found[0] if found else None

    def _response_format(self) -> Iterator[Grammar]:
        wanted = self.response_format
        if wanted is None or wanted.type == "text":
            return
        if wanted.type == "json_object":
            yield Grammar("json_schema", wanted.schema_ or {"type": "object"}, "response_format")
        elif wanted.json_schema is None or wanted.json_schema.schema_ is None:
            raise RequestError("response_format: json_schema needs a schema", "response_format")
        else:
            lenient = wanted.json_schema.strict is not True
            yield Grammar("json_schema", wanted.json_schema.schema_, "response_format", lenient)

    def _structured(self) -> Iterator[Grammar]:
        inner = self.structured_outputs
        given: list[tuple[Kind, Any, str]] = [
            ("json_schema", _schema(self.guided_json, "guided_json"), "guided_json"),
            ("regex", self.guided_regex, "guided_regex"),
            ("choice", self.guided_choice, "guided_choice"),
            ("lark", self.guided_grammar, "guided_grammar"),
            ("lark", self.grammar_, "grammar"),
        ]
        if inner is not None:
            given += [
                ("json_schema", {"type": "object"} if inner.json_object else None, "structured_outputs"),
                ("json_schema", _schema(inner.json_, "structured_outputs"), "structured_outputs"),
                ("regex", inner.regex, "structured_outputs"),
                ("choice", inner.choice, "structured_outputs"),
                ("lark", inner.grammar, "structured_outputs"),
            ]
        yield from (Grammar(kind, value, param) for kind, value, param in given if value is not None)

    def _logit_bias(self) -> dict[int, float] | None:
        if not self.logit_bias:
            return None
        if not all(key.isdecimal() and key.isascii() and len(key) < 10 for key in self.logit_bias):
            raise RequestError('logit_bias: the keys must be token ids, such as "42"', "logit_bias")
        return {int(key): value for key, value in self.logit_bias.items()}


def _schema(value: Any, param: str) -> Any:
    """A JSON schema, which may come as text."""
    if not isinstance(value, str):
        return value
    try:
        schema = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{param}: not a JSON schema: {error}", param) from error
    if not isinstance(schema, dict):
        raise RequestError(f"{param}: a JSON schema is an object, not {type(schema).__name__}", param)
    return schema


class PromptTokensDetails(TypedDict):
    cached_tokens: int


class CompletionTokensDetails(TypedDict):
    reasoning_tokens: int
    accepted_prediction_tokens: NotRequired[int]
    rejected_prediction_tokens: NotRequired[int]


class Usage(TypedDict):
    """Tokens. `cached_tokens` of the prompt were reused, the others computed; `reasoning_tokens` belong to thoughts.

    Drafts that were right are part of the completion, rejected ones are not; both are told of requests that had drafts.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class ErrorDetail(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """The top-level type is always "error"."""

    type: NotRequired[str]
    error: ErrorDetail
