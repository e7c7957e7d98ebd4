"""A conversation and the exact tokens of its past."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtrove.request import CompletionOutput

if TYPE_CHECKING:
    from kvtrove.llm import LLM, TokensPrompt


@dataclass(frozen=True)
class Turn:
    """A user's message, its answer, and prompt + answer of that turn as text and as the tokens in the cache."""

    user: str
    answer: str
    context: str
    context_ids: list[int]


class Conversation:
    """Turns that share one growing context.

    An answer's tokens are kept as the model drew them. Encoding its text again may cut the text elsewhere, and from
    there on the prefix cache, which compares tokens, could reuse nothing:

        tokens of a prompt   | context_ids of the last turn, as drawn | encoded now: end of answer, new message |
                             0                                        len(context_ids)
    """

    def __init__(self, llm: LLM, system: str | None = None) -> None:
        self.llm = llm
        self.system = system
        self.turns: list[Turn] = []

    def prompt(self, user: str) -> TokensPrompt:
        """The prompt that asks `user` after all turns so far. Changes nothing."""
        rendered = self.llm.chat_prompt([*self._messages(), {"role": "user", "content": user}])
        last = self.turns[-1] if self.turns else None
        if last is None or not rendered["prompt"].startswith(last.context):
            return rendered  # a first turn, another system prompt, or a template that rewrites earlier turns
        rest = self.llm.get_tokenizer().encode(rendered["prompt"][len(last.context) :], add_special_tokens=False)
        return {"prompt": rendered["prompt"], "prompt_token_ids": last.context_ids + rest}

    def record(self, user: str, prompt: TokensPrompt, answer: CompletionOutput) -> None:
        """Append a turn. A final end token is left to the template, which writes it as text."""
        ended_by_token = answer.finish_reason == "stop" and not isinstance(answer.stop_reason, str)
        drawn = answer.token_ids[:-1] if ended_by_token else answer.token_ids
        context_ids = prompt["prompt_token_ids"] + list(drawn)
        self.turns.append(Turn(user, answer.text, prompt["prompt"] + answer.text, context_ids))

    def undo(self) -> bool:
        """Take the last turn back; False when there is none."""
        return bool(self.turns and self.turns.pop())

    def reset(self) -> None:
        self.turns.clear()

    def _messages(self) -> list[dict[str, str]]:
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for turn in self.turns:
            messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.answer}]
        return messages
