"""Live figures on stderr while a load runs."""

from __future__ import annotations

import statistics
import sys
from collections import deque
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from kvtrove.bench.record import Record
from kvtrove.bench.settings import Load, seconds

REDRAW_EVERY = 0.5  # seconds; drawing takes time away from reading streams
RECENT = 200  # requests over which the live figures run


class Live:
    """A bar with what the last requests looked like: running, requests/s, tokens/s, TTFT, failures.

    Drawn by the events of the run itself, not by a thread of its own that would disturb their times.
    """

    def __init__(self, enabled: bool, clock: Callable[[], float], console: Console | None = None) -> None:
        self.clock = clock
        self.enabled = enabled and (console is not None or sys.stderr.isatty())
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._drawn = 0.0
        self._recent: deque[tuple[float, Record]] = deque(maxlen=RECENT)
        self.running = self.done = self.failed = 0
        self.start = 0.0

    def begin(self, load: Load, total: int | None) -> None:
        self.running = self.done = self.failed = 0
        self.start = self.clock()
        self._recent.clear()
        self._close()
        if self.enabled:
            columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[figures]}"))
            title = TextColumn("{task.description}")
            self._bar = Progress(title, *columns, console=self._console, auto_refresh=False, transient=True)
            self._bar.add_task(str(load), total=total, figures="")
            self._bar.start()

    def started(self) -> None:
        self.running += 1
        self._draw()

    def finished(self, record: Record) -> None:
        self.running -= 1
        self.done += 1
        self.failed += not record.ok
        self._recent.append((self.clock(), record))
        self._draw()

    def figures(self) -> str:
        """``12 running, 3.9 requests/s, 512 tokens/s, TTFT 210 ms, 2 failed``, over the last requests."""
        parts = [f"{self.running} running"]
        ok = [record for _, record in self._recent if record.ok]
        since = self._recent[0][0] if len(self._recent) == RECENT else self.start
        elapsed = self.clock() - since
        if ok and elapsed > 0:
            parts.append(f"{len(ok) / elapsed:.3g} requests/s")
            parts.append(f"{sum(record.output_tokens for record in ok) / elapsed:,.0f} tokens/s")
            parts.append(f"TTFT {seconds(statistics.median(record.ttft or 0.0 for record in ok))}")
        return ", ".join([*parts, *([f"{self.failed} failed"] if self.failed else [])])

    def _draw(self) -> None:
        now = self.clock()
        if self._bar is not None and now - self._drawn >= REDRAW_EVERY:
            self._drawn = now
            self._bar.update(self._bar.task_ids[0], completed=self.done, figures=self.figures())
            self._bar.refresh()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> Live:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._close()
