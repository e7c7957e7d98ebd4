"""POST /v1/completions: prompts as text or token ids, one or many, echo, logprobs, n, best_of, beams."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from fastapi import APIRouter, Request, Response

from kvtrove.request import CompletionOutput, RequestOutput, SamplingParams
from kvtrove.server.body import BodyRoute
from kvtrove.server.chat.keeping import soft_pins
from kvtrove.server.chat.prepare import streaming
from kvtrove.server.engine_thread import EngineRequest
from kvtrove.server.errors import ApiError, refused
from kvtrove.server.job import Job
from kvtrove.server.logprobs import completion_logprobs, joined
from kvtrove.server.protocol.completions import Completion, CompletionChoice, CompletionLogprobs, CompletionRequest
from kvtrove.server.respond import COMMENT, DONE, open_job, respond, sse
from kvtrove.server.routes.common import GENERATES, ServiceOf, UsageInStream, errors, notes_of
from kvtrove.server.routes.prompt_input import read_prompts
from kvtrove.server.service import Service

router = APIRouter(route_class=BodyRoute)


@router.post("/v1/completions", response_model=None, responses={200: {"model": Completion}, **errors(*GENERATES)})
async def completions(body: CompletionRequest, request: Request, service: ServiceOf) -> Response:
    """Continue a text."""
    service.check_model(body.model)
    endpoint = Completions(open_job(service, request, body), body)
    return await respond(request, endpoint.job, endpoint, bool(body.stream))


@dataclass(frozen=True)
class _Asked:
    """How a request's fields combine. num_tokens: of the answer that are shown, 0 where only the prompt counts."""

    n: int
    candidates: int
    num_tokens: int
    logprobs: int | None

    @classmethod
    def of(cls, body: CompletionRequest, service: Service, prewarms: bool) -> _Asked:
        n, best_of = body.n or 1, body.best_of or body.n or 1
        num_tokens = 16 if body.max_tokens is None else body.max_tokens
        if best_of < n:
            raise refused(f"best_of: {best_of} is less than n ({n})", "best_of")
        if body.stream and best_of > n and not body.use_beam_search:
            raise refused("best_of: the best are known at the end only, so they cannot be streamed", "best_of")
        if num_tokens == 0 and not body.echo and not prewarms:
            raise refused("max_tokens: 0 makes sense with echo or prompt_cache_options.prewarm only", "max_tokens")
        if body.suffix:
            raise refused("suffix: this model continues texts, it does not fill gaps", "suffix")
        if (body.logprobs or 0) > service.limits.max_logprobs:
            raise refused(f"logprobs: at most {service.limits.max_logprobs} are allowed", "logprobs")
        if prewarms:
            return cls(1, 1, 0, None)
        return cls(n, best_of, num_tokens, body.logprobs)

    def params(self, body: CompletionRequest, service: Service) -> SamplingParams:
        beams = self.candidates if body.use_beam_search else 0
        params = body.sampling_params(
            service.limits,
            service.sampling_defaults,
            n=self.n if beams else self.candidates,
            beam_width=beams,
            max_tokens=max(1, self.num_tokens),
            logprobs=self.logprobs,
            prompt_logprobs=self.logprobs if body.echo else None,
        )
        return streaming(params, bool(body.stream))


class Completions:
    """The endpoint of one request."""

    keep_alive = COMMENT

    def __init__(self, job: Job, body: CompletionRequest) -> None:
        self.job, self.body = job, body

    async def submit(self) -> None:
        body, service = self.body, self.job.service
        self.asked = _Asked.of(body, service, self.job.prewarms)
        params = self.asked.params(body, service)
        self.prompts = await read_prompts(body.prompt, service, "prompt", special=body.add_special_tokens is not False)
        for prompt in self.prompts:
            service.refuse_unless_it_fits(len(prompt.token_ids), params.max_tokens, "prompt")
        guide = await service.guide(body.grammar(), params)
        if guide is not None and guide.relaxed:
            self.job.notes["relaxed"] = list(guide.relaxed)
        salt = self.job.caller.tenant.cache_salt(body.cache_salt)
        pins = soft_pins(body)
        requests = [
            EngineRequest(
                f"{self.job.key}-{i}",
                p.token_ids,
                params,
                p.text,
                salt,
                guide and guide.copy(),
                soft_pins=pins,
                session=body.prompt_cache_key or "",
            )
            for i, p in enumerate(self.prompts)
        ]
        await self.job.submit(requests)

    async def answer(self) -> Completion:
        outputs = await self.job.final()
        choices = await self.job.service.in_pool(self._ranked, outputs)
        return cast(Completion, self._envelope(choices) | {"usage": self.job.usage()} | notes_of(self.job))

    def _ranked(self, outputs: Sequence[RequestOutput]) -> list[CompletionChoice]:
        """All choices, of which thousands of log-probabilities may take a while to write."""
        choices = []
        for index, output in enumerate(outputs):
            drawn = not self.body.use_beam_search  # beams come ranked
            best = (
                sorted(output.outputs, key=_likeliest_first)
                if drawn and self.asked.candidates > self.asked.n
                else output.outputs
            )
            echo = self._echo(index, output)
            for rank, one in enumerate(best[: self.asked.n]):
                choices.append(self._choice(index * self.asked.n + rank, one, echo))
        return choices

    async def events(self) -> AsyncGenerator[str, None]:
        usage = UsageInStream(self.job, self.body.stream_options)
        streams: dict[int, _ChoiceStream] = {}
        async for index, output in self.job.outputs():
            choices = []
            for one in output.outputs:
                number = index * self.asked.n + one.index
                stream = streams.setdefault(number, _ChoiceStream())
                if stream.has_news(one):
                    choices.append(self._choice(number, one, stream.echo(self, index, output), stream))
            for choice in choices:
                yield sse(self._envelope([choice]) | usage.of_chunk())
        if last := usage.at_end() | notes_of(self.job):
            yield sse(self._envelope([]) | last)
        yield DONE

    def error_event(self, error: ApiError) -> str:
        return sse(error.body) + DONE

    def _envelope(self, choices: list[CompletionChoice]) -> dict[str, Any]:
        return {
            "id": f"cmpl-{self.job.key}",
            "object": "text_completion",
            "created": self.job.created,
            "model": self.body.model or self.job.service.model_name,
            "choices": choices,
        }

    def _echo(self, index: int, output: RequestOutput) -> tuple[str, CompletionLogprobs | None]:
        """Text and logprobs of the prompt, as far as they are shown."""
        if not self.body.echo:
            return "", None
        prompt, tokenizer = self.prompts[index], self.job.service.tokenizer
        text = prompt.text
        if text is None:
            text = tokenizer.decode(prompt.token_ids, skip_special_tokens=False)
        if output.prompt_logprobs is None:
            return text, None
        return text, completion_logprobs(prompt.token_ids, output.prompt_logprobs, tokenizer.token_text, 0)

    def _choice(
        self,
        number: int,
        output: CompletionOutput,
        echo: tuple[str, CompletionLogprobs | None],
        stream: _ChoiceStream | None = None,
    ) -> CompletionChoice:
        text, before = echo
        shown = self.asked.num_tokens > 0
        logprobs = None
        if self.asked.logprobs is not None:
            tokens, entries = (output.token_ids, output.logprobs or []) if shown else ([], [])
            offset = len(text) if stream is None else stream.offset
            logprobs = completion_logprobs(tokens, entries, self.job.service.tokenizer.token_text, offset)
            if stream is not None:
                stream.offset += sum(map(len, logprobs["tokens"]))
            if before is not None:
                logprobs = joined(before, logprobs)
        choice: CompletionChoice = {
            "index": number,
            "text": text + output.text if shown else text,
            "logprobs": logprobs,
            "finish_reason": output.finish_reason if shown else output.finish_reason and "length",
        }
        if shown and output.stop_reason is not None:
            choice["stop_reason"] = output.stop_reason
        return choice


class _ChoiceStream:
    """Where the stream of one choice is. offset: characters of the tokens whose logprobs were sent."""

    def __init__(self) -> None:
        self.offset = 0
        self._begun = self._ended = False

    def has_news(self, output: CompletionOutput) -> bool:
        if self._ended or not (output.text or output.token_ids or output.finished):
            return False
        self._ended = output.finished
        return True

    def echo(self, endpoint: Completions, index: int, output: RequestOutput) -> tuple[str, CompletionLogprobs | None]:
        """The prompt, before the first text."""
        if self._begun:
            return "", None
        self._begun = True
        text, logprobs = endpoint._echo(index, output)
        self.offset = len(text)
        return text, logprobs


def _likeliest_first(output: CompletionOutput) -> float:
    """Highest log-probability per token first, as OpenAI ranks best_of."""
    return -(output.cumulative_logprob or 0.0) / max(1, len(output.token_ids))
