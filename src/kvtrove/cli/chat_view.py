"""What a chat shows: as text for people, or as one JSON object per turn for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

import typer

from kvtrove.cli.terminal import Wrapped
from kvtrove.cli.text import counted, reuse, say, shown

if TYPE_CHECKING:
    from kvtrove.kv.stats import KVStats


@dataclass(frozen=True)
class TurnStats:
    """Tokens of one turn and its times in seconds; `finish_reason` is "abort" when it was interrupted."""

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    seconds_to_first_token: float | None
    seconds: float
    finish_reason: str

    def line(self) -> str:
        first = self.seconds_to_first_token
        wait = "" if first is None else f", {first:.2f} s to first token"
        return reuse(self.prompt_tokens, self.cached_tokens) + wait


@dataclass(frozen=True)
class Totals:
    """All turns of a session, those undone included: they were computed too."""

    turns: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int

    @classmethod
    def of(cls, turns: Iterable[TurnStats]) -> Totals:
        done = list(turns)
        sums = (sum(getattr(t, name) for t in done) for name in ("prompt_tokens", "cached_tokens", "output_tokens"))
        return cls(len(done), *sums)

    def line(self) -> str:
        asked = reuse(self.prompt_tokens, self.cached_tokens)
        return f"{counted(self.turns, 'turn')}: {asked}; {self.output_tokens:,} answered"


class View(Protocol):
    """Where a session's events go."""

    def note(self, text: str) -> None: ...
    def question(self, text: str) -> None: ...
    def piece(self, text: str) -> None: ...
    def turn(self, number: int, user: str, answer: str, stats: TurnStats) -> None: ...
    def summary(self, totals: Totals, cache: KVStats) -> None: ...


class TextView:
    """Answers as they come, the cache's part below each unless `quiet`; words stay whole on a terminal.

    echo_questions: nobody typed them here, so print them.
    """

    def __init__(self, echo_questions: bool, quiet: bool = False) -> None:
        self.echo_questions, self.quiet = echo_questions, quiet
        self._wrapped = Wrapped(lambda text: typer.echo(text, nl=False)) if sys.stdout.isatty() else None

    def note(self, text: str) -> None:
        say(text, "cyan", wrap=True)

    def question(self, text: str) -> None:
        if self.echo_questions:
            say(f"\n> {shown(text)}", "bold", wrap=True)

    def piece(self, text: str) -> None:
        if self._wrapped is None:
            typer.echo(text, nl=False)
        else:
            self._wrapped.piece(shown(text))

    def turn(self, number: int, user: str, answer: str, stats: TurnStats) -> None:
        if self._wrapped is not None:
            self._wrapped.close()
        typer.echo()
        if not self.quiet:
            say(f"turn {number}: {stats.line()}", "dim", wrap=True)

    def summary(self, totals: Totals, cache: KVStats) -> None:
        say(f"\n{totals.line()}\n{cache_line(cache)}", wrap=True)


class JsonView:
    """A line per turn, a line for the summary; notes go to stderr."""

    def note(self, text: str) -> None:
        typer.echo(text, err=True)

    def question(self, text: str) -> None:
        pass

    def piece(self, text: str) -> None:
        pass

    def turn(self, number: int, user: str, answer: str, stats: TurnStats) -> None:
        typer.echo(json.dumps({"turn": number, "user": user, "answer": answer, **asdict(stats)}, ensure_ascii=False))

    def summary(self, totals: Totals, cache: KVStats) -> None:
        typer.echo(json.dumps({"summary": asdict(totals), "cache": asdict(cache)}))


def cache_line(cache: KVStats) -> str:
    return f"cache: {cache.num_blocks:,} blocks, {cache.used:,} used, {cache.cached:,} cached, {cache.free:,} free"
