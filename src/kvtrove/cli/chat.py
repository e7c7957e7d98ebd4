"""`kvtrove chat`: talk to a model, and see after every turn how much of the context the cache still had."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from kvtrove.cli.chat_view import JsonView, TextView, Totals, TurnStats, View, cache_line
from kvtrove.cli.conversation import Conversation
from kvtrove.cli.flags import spread
from kvtrove.cli.options import CHAT, EngineOptions, JsonFlag, OptionalModel, QuietFlag, SamplingOptions
from kvtrove.cli.terminal import typed_lines, unechoed
from kvtrove.request import RequestError, RequestOutput, SamplingParams

if TYPE_CHECKING:
    from kvtrove.llm import LLM, TokensPrompt

DEMO_QUESTIONS = (
    "Remember that the code of the red box is 4719.",
    "My name is Clara.",
    "The name of the turtle of Victor is Kavole.",
    "How are you?",
    "What is the code of the red box?",
    "What is the name of the turtle of Victor?",
    "Do you know my name?",
    "/reset",
    "Remember that the code of the red box is 4719.",
)


@spread
def chat(
    sampling: SamplingOptions,
    engine: EngineOptions,
    model: OptionalModel = "demo",
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Play a scripted conversation.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Talk to a model. Lines come from the keyboard, or from stdin when that is a pipe; /help lists the commands."""
    params = sampling.params(model, CHAT)
    llm = engine.load(model, quiet)
    typed = not demo and sys.stdin.isatty()
    view = JsonView() if json else TextView(echo_questions=not typed, quiet=quiet)
    session = Session(llm, params, view, Conversation(llm, system), interactive=typed)
    if not quiet:
        view.note(_introduction(model))
    session.run(typed_lines(session.commands) if typed else DEMO_QUESTIONS if demo else _lines_of_stdin())
    if not quiet:
        session.summary()


def _introduction(model: str) -> str:
    """The embedded model introduces itself; it knows what it is."""
    if model != "demo":
        return f"Chatting with {model}. /help lists the commands."
    from kvtrove.demo import greeting

    return f"{greeting()} /help lists the commands; `kvtrove serve` offers the same model over HTTP."


def _lines_of_stdin() -> Iterator[str]:
    for line in sys.stdin:
        yield line.rstrip("\n")


class Session:
    """One chat: takes lines, asks the model, keeps the counts. Commands begin with a slash.

    interactive: a refused message is reported and Ctrl-C stops one answer; otherwise both end the session.
    """

    def __init__(
        self, llm: LLM, params: SamplingParams, view: View, conversation: Conversation, interactive: bool = True
    ) -> None:
        self.llm, self.params, self.view, self.conversation = llm, params, view, conversation
        self.interactive = interactive
        self.stats: list[TurnStats] = []
        self.commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "/help": ("this list", self._help),
            "/stats": ("tokens reused and computed, blocks of the cache", lambda _: self._show_stats()),
            "/undo": ("take the last turn back", lambda _: self._undo()),
            "/reset": ("forget the conversation (its blocks stay cached)", lambda _: self._reset()),
            "/system": ("TEXT: set the system prompt; without TEXT, remove it", self._set_system),
            "/quit": ("leave", lambda _: None),
        }

    def run(self, lines: Iterable[str]) -> None:
        """Take lines until they end or /quit."""
        for line in lines:
            words = line.strip()
            if words == "/quit":
                return
            try:
                self.take(words)
            except RequestError as error:
                if not self.interactive:
                    raise
                self.view.note(str(error))

    def take(self, line: str) -> None:
        """One command or one message."""
        if not line.startswith("/"):
            if line:
                self.ask(line)
            return
        name, _, argument = line.partition(" ")
        if name not in self.commands:
            raise RequestError(f"{name} is no command; /help lists them")
        self.commands[name][1](argument.strip())

    def ask(self, user: str) -> None:
        """Stream the answer to `user`. When Ctrl-C stops it, what was said so far stays in the conversation."""
        prompt = self.conversation.prompt(user)
        self._check_room(len(prompt["prompt_token_ids"]))
        self.view.question(user)
        start = time.monotonic()
        output, first = self._stream(prompt)
        if output is None:
            self.view.note("stopped before the first token; your message is not part of the conversation")
            return
        answer = output.outputs[0]
        self.conversation.record(user, prompt, answer)
        tokens = (len(output.prompt_token_ids), output.num_cached_tokens, len(answer.token_ids))
        wait = None if first is None else first - start
        stats = TurnStats(*tokens, wait, time.monotonic() - start, answer.finish_reason or "abort")
        self.stats.append(stats)
        self.view.turn(len(self.stats), user, answer.text, stats)
        self._say_why_cut(stats)

    def _stream(self, prompt: TokensPrompt) -> tuple[RequestOutput | None, float | None]:
        """The last state of the answer (None: no token came) and the time of its first token."""
        output, first, num_shown = None, None, 0
        try:
            with unechoed(), closing(self.llm.stream(prompt, self.params)) as states:
                for state in states:
                    if not state.outputs or not state.outputs[0].token_ids:
                        continue
                    output = state
                    first = time.monotonic() if first is None else first
                    self.view.piece(output.outputs[0].text[num_shown:])
                    num_shown = len(output.outputs[0].text)
        except KeyboardInterrupt:
            if not self.interactive:
                raise
        return output, first

    def summary(self) -> None:
        self.view.summary(Totals.of(self.stats), self.llm.llm_engine.stats().kv)

    def _check_room(self, num_tokens: int) -> None:
        limit = self.llm.llm_engine.max_model_len
        if num_tokens >= limit:
            raise RequestError(
                f"context full: the conversation with this message has {num_tokens:,} tokens, "
                f"the context holds {limit:,} with the answer; "
                "/undo takes the last turn back, /reset starts again, --max-model-len sets the limit"
            )

    def _say_why_cut(self, stats: TurnStats) -> None:
        """An answer that ended early says so."""
        limit = self.llm.llm_engine.max_model_len
        if stats.finish_reason == "abort":
            self.view.note("stopped; the answer so far stays in the conversation")
        elif stats.finish_reason == "length" and stats.prompt_tokens + stats.output_tokens >= limit:
            self.view.note(f"context full: the answer was cut at {limit:,} tokens; /undo or /reset makes room")
        elif stats.finish_reason == "length":
            self.view.note(f"the answer was cut at --max-tokens {self.params.max_tokens}")

    # ---- commands ----

    def _help(self, _: str) -> None:
        self.view.note("\n".join(f"{name:8} {what}" for name, (what, _) in self.commands.items()))
        self.view.note("Ctrl-C   stops an answer; at the prompt it leaves")

    def _show_stats(self) -> None:
        if self.stats:
            self.view.note(f"last turn: {self.stats[-1].line()}")
        self.view.note(Totals.of(self.stats).line())
        self.view.note(cache_line(self.llm.llm_engine.stats().kv))

    def _undo(self) -> None:
        self.view.note("took the last turn back" if self.conversation.undo() else "there is no turn to take back")

    def _reset(self) -> None:
        self.conversation.reset()
        self.view.note("new conversation")

    def _set_system(self, text: str) -> None:
        self.conversation.system = text or None
        self.view.note(
            "system prompt set; the next turn is computed from the start" if text else "system prompt removed"
        )
