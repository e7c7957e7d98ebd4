"""Progress on stderr, on a terminal only: loading a model, and batches that take longer than a moment."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

SHOW_AFTER = 0.5  # seconds: what is faster needs no bar


def _bar(*columns: TextColumn | MofNCompleteColumn) -> Progress:
    left, *right = columns
    return Progress(left, BarColumn(), *right, TimeRemainingColumn(), console=Console(stderr=True), transient=True)


@contextmanager
def loading(enabled: bool) -> Iterator[Callable[[str, int, int], None] | None]:
    """A callback (what, done, total) that draws one bar per `what`; None when nothing may be drawn."""
    if not (enabled and sys.stderr.isatty()):
        yield None
        return
    tasks: dict[str, TaskID] = {}
    with _bar(TextColumn("{task.description}"), TextColumn("{task.percentage:>3.0f} %")) as bar:

        def report(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield report


class BatchBar:
    """Finished requests of a batch and the tokens per second that went in and came out."""

    def __init__(self, total: int, enabled: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.enabled = enabled and total > 0 and sys.stderr.isatty()
        self.clock = clock
        self.start = clock()
        self.done = self.tokens_in = self.tokens_out = 0
        self._bar: Progress | None = None

    def finished(self, tokens_in: int, tokens_out: int) -> None:
        """One request more is done: its prompt and output tokens."""
        self.done += 1
        self.tokens_in += tokens_in
        self.tokens_out += tokens_out

    def refresh(self) -> None:
        """Draw what changed; to be called once per step."""
        elapsed = self.clock() - self.start
        if not self.enabled or elapsed < SHOW_AFTER:
            return
        if self._bar is None:
            rates = TextColumn("in {task.fields[rate_in]:,.0f} tokens/s, out {task.fields[rate_out]:,.0f} tokens/s")
            self._bar = _bar(TextColumn("generating"), MofNCompleteColumn(), rates)
            self._bar.add_task("generating", total=self.total, rate_in=0.0, rate_out=0.0)
            self._bar.start()
        rate_in, rate_out = self.tokens_in / elapsed, self.tokens_out / elapsed
        self._bar.update(self._bar.task_ids[0], completed=self.done, rate_in=rate_in, rate_out=rate_out)

    def __enter__(self) -> BatchBar:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
