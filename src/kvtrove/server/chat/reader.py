"""One choice of an answer: the engine's outputs in, events and the reason of its end out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from kvtrove.request import CompletionOutput
from kvtrove.server.chat.answer import AnswerParser
from kvtrove.server.chat.events import CallBegins, ChatEvent, Reasoning
from kvtrove.server.job import Job


class ChoiceReader:
    """Turns the outputs of one choice into events.

    remember: told of the answer's tokens once it has ended. job: whose reasoning tokens it counts.
    """

    def __init__(self, parser: AnswerParser, remember: Callable[[Sequence[int]], None], job: Job) -> None:
        self._parser, self._remember, self._job = parser, remember, job
        self._token_ids: list[int] = []
        self._reasoning: list[str] = []
        self.finished = self.called = False

    def read(self, output: CompletionOutput) -> list[ChatEvent]:
        """What is new in `output`, the rest of it at the end. Nothing once it has ended."""
        if self.finished:
            return []
        self._token_ids += output.token_ids
        events = self._parser.push(output.text)
        if output.finished or self._parser.satisfied:
            events += self._parser.finish()
            self.finished = True
        self.called = self.called or any(isinstance(event, CallBegins) for event in events)
        self._reasoning += [event.text for event in events if isinstance(event, Reasoning)]
        if self.finished:
            self._end(output)
        return events

    def ended(self, output: CompletionOutput) -> CompletionOutput:
        """The output, with an end where the reader has seen enough."""
        return replace(output, finish_reason="stop") if self.finished and not output.finished else output

    def finish_reason(self, output: CompletionOutput) -> str | None:
        """OpenAI's word for how the choice ended."""
        if output.finish_reason == "stop" and self.called:
            return "tool_calls"
        return output.finish_reason

    def _end(self, output: CompletionOutput) -> None:
        self._job.reasoning_tokens += self._num_reasoning()
        by_string = isinstance(output.stop_reason, str)
        if output.finished and not by_string:
            self._remember(self._token_ids[:-1] if output.finish_reason == "stop" else self._token_ids)

    def _num_reasoning(self) -> int:
        """Tokens of the thought and its marks; of one that went on to the end, all."""
        if not self._reasoning:
            return 0
        if self._parser.inside:
            return len(self._token_ids)
        tokenizer = self._job.service.tokenizer
        close = tokenizer.backend.token_to_id(self._parser.closing_mark) if self._parser.closing_mark else None
        if close in self._token_ids:
            return self._token_ids.index(close) + 1
        thought = tokenizer.encode("".join(self._reasoning), add_special_tokens=False)
        return min(len(thought), len(self._token_ids))
