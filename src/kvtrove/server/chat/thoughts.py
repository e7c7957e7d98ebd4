"""Thoughts: what a reasoning model writes before its answer, and how it is told from the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvtrove.config import ConfigError, nearest
from kvtrove.server.chat.events import ChatEvent, Reasoning, Text


@dataclass(frozen=True)
class ThoughtFormat:
    """A thought stands between `open` and `close`. aliases: vLLM's names of parsers that read this form.

    Empty marks: thoughts are told apart by something else (harmony's channels), or not at all (none).
    """

    name: str
    open: str = ""
    close: str = ""
    aliases: tuple[str, ...] = ()


_THINK_ALIASES = (
    *("deepseek_r1", "deepseek_v3", "deepseek_v4", "qwen3", "glm45", "glm47", "holo2", "minimax_m2", "nemotron_v3"),
    *("olmo3", "step3", "step3p5", "ernie45", "kimi_k2", "mimo", "hunyuan_a13b", "poolside_v1"),
)
_FORMATS = (
    ThoughtFormat("none"),
    ThoughtFormat("harmony", aliases=("openai_gptoss", "gpt_oss")),
    ThoughtFormat("mistral", "[THINK]", "[/THINK]"),
    ThoughtFormat("seed_oss", "<seed:think>", "</seed:think>"),
    ThoughtFormat("minimax_m3", "<mm:think>", "</mm:think>"),
    ThoughtFormat("hunyuan", "<think:opensource>", "</think:opensource>", ("hy_v3",)),
    ThoughtFormat("cohere", "<|START_THINKING|>", "<|END_THINKING|>", ("cohere_command3", "cohere_command4")),
    ThoughtFormat("gemma4", "<|channel>thought", "<channel|>"),
    ThoughtFormat("apriel", "Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    ThoughtFormat("granite", "Here is my thought process:", "Here is my response:"),
    ThoughtFormat("think", "<think>", "</think>", _THINK_ALIASES),
)
THOUGHTS: Mapping[str, ThoughtFormat] = {name: f for f in _FORMATS for name in (f.name, *f.aliases)}


def thoughts_named(name: str) -> ThoughtFormat | None:
    """The format of this name or alias, None for `auto`. ConfigError for others."""
    if name == "auto":
        return None
    if name not in THOUGHTS:
        known = ", ".join(["auto", *(f.name for f in _FORMATS)])
        raise ConfigError(
            f"reasoning_parser: {name!r} is not one of {known}, or vLLM's name of one{nearest(name, THOUGHTS)}"
        )
    return THOUGHTS[name]


def detect_thoughts(template: str) -> ThoughtFormat | None:
    """The format whose marks a chat template has, if any."""
    if "<|channel|>" in template and "analysis" in template:
        return THOUGHTS["harmony"]
    return next((f for f in _FORMATS if f.close and f.close in template), None)


def opens_thought(format: ThoughtFormat, prompt: str, prefill: str | None = None) -> bool:
    """Whether an answer to this prompt begins inside a thought: the template, or the text to continue, opened one."""
    if not format.open:
        return False
    if prefill is not None and format.open in prefill:
        return format.close not in prefill[prefill.rindex(format.open) :]
    return prompt.rstrip().endswith(format.open)


def closes_thought(format: ThoughtFormat, prompt: str) -> bool:
    """Whether the prompt ends behind a thought, which templates write where none is wanted."""
    return bool(format.close) and prompt.rstrip().endswith(format.close)


class ThoughtSplitter:
    """Parts an answer into its thought and the rest. However it is cut into pieces, the result is the same.

        <think> hm, easy </think> \n\n 42        the space around a thought belongs to neither part
        ^ start ^ thought         ^ gap  ^ answer

    Only the beginning of an answer can be a thought: what mentions the marks later is content.
    """

    def __init__(self, format: ThoughtFormat, is_open: bool) -> None:
        self._format = format
        self._state = "start" if format.open else "answer"
        self._held = ""
        self._is_open = is_open
        self._begun = False  # some of the thought has been told
        self.closing_mark = format.close

    @property
    def inside(self) -> bool:
        """Whether what comes next belongs to a thought, as far as can be told."""
        return self._state == "thought" or (self._state == "start" and self._is_open)

    def push(self, text: str) -> list[ChatEvent]:
        events: list[ChatEvent] = []
        rest, self._held = self._held + text, ""
        while rest:
            rest = getattr(self, f"_in_{self._state}")(rest, events)
        return events

    def finish(self) -> list[ChatEvent]:
        """What was held back. A closing mark that was cut short is neither thought nor answer."""
        held, self._held = self._held, ""
        if self._state == "start" and not self._is_open:
            return [Text(held)] if held else []
        if self._state not in ("start", "thought"):
            return []
        told = without_partial(held, (self._format.close,)).rstrip()
        told = told if self._begun else told.lstrip()
        return [Reasoning(told)] if told else []

    def _in_start(self, text: str, events: list[ChatEvent]) -> str:
        start = text.lstrip()
        if start.startswith(self._format.open):
            self._state = "thought"
            return start[len(self._format.open) :]
        if self._format.open.startswith(start):  # also when it is empty
            self._held = text
            return ""
        self._state = "thought" if self._is_open else "answer"
        return text

    def _in_thought(self, text: str, events: list[ChatEvent]) -> str:
        before, mark, rest = text.partition(self._format.close)
        told = (before if mark else without_partial(before, (self._format.close,))).rstrip()
        self._held = "" if mark else before[len(told) :]
        shown = told if self._begun else told.lstrip()
        if shown:
            events.append(Reasoning(shown))
            self._begun = True
        if mark:
            self._state = "gap"
        return rest

    def _in_gap(self, text: str, events: list[ChatEvent]) -> str:
        rest = text.lstrip()
        if rest:
            self._state = "answer"
        return rest

    def _in_answer(self, text: str, events: list[ChatEvent]) -> str:
        events.append(Text(text))
        return ""


def without_partial(text: str, marks: tuple[str, ...]) -> str:
    """`text` without an end that may be the beginning of one of the marks."""
    longest = max(map(len, marks), default=0)
    for length in range(min(longest - 1, len(text)), 0, -1):
        if any(mark.startswith(text[-length:]) for mark in marks):
            return text[:-length]
    return text
