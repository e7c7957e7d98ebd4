"""A person's terminal: words stay whole at its edge, keys that come too early wait, and Tab completes commands."""

from __future__ import annotations

import re
import shutil
import sys
import termios
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.cells import cell_len


class Wrapped:
    """Text that comes in pieces, with line breaks between words. write: takes what is to be seen now.

    The last word of a piece waits for its end. Text without spaces (of wide characters, or longer than a line) does not
    wait: the terminal breaks it.
    """

    def __init__(self, write: Callable[[str], None], width: Callable[[], int] | None = None) -> None:
        self._write = write
        self._width = width or (lambda: shutil.get_terminal_size().columns)
        self._column = 0
        self._gap = self._word = ""

    def piece(self, text: str) -> None:
        for part in re.findall(r"[^ \n]+|[ \n]", text):
            if part == "\n":
                self.end()
                self._write("\n")
                self._column, self._gap = 0, ""
            elif part == " ":
                self.end()
                self._gap += part
            else:
                self._word += part
                if cell_len(self._word) > min(len(self._word), self._width() - 1):
                    self.end()

    def end(self) -> None:
        """Write the word that waits."""
        if not self._word:
            return
        wide, width = cell_len(self._word), self._width()
        if self._column > 0 and self._column + len(self._gap) + wide > width and self._gap:
            self._write("\n")
            self._column, self._gap = 0, ""
        self._write(self._gap + self._word)
        self._column = (self._column + len(self._gap) + wide - 1) % width + 1  # a full line breaks before the next word
        self._gap = self._word = ""

    def close(self) -> None:
        """The text has ended."""
        self.end()
        self._column, self._gap = 0, ""


@contextmanager
def unechoed() -> Iterator[None]:
    """Keys are not drawn and wait for the next prompt; Ctrl-C still interrupts. Nothing changes without a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    silent = termios.tcgetattr(keyboard)
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(keyboard, termios.TCSADRAIN, silent)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSADRAIN, before)


def typed_lines(commands: Iterable[str]) -> Iterator[str]:
    """Lines with editing, history and completion of commands, until Ctrl-D or Ctrl-C at the prompt."""
    import readline

    known = sorted(commands)

    def complete(text: str, number: int) -> str | None:
        found = [name for name in known if name.startswith(text)] if text.startswith("/") else []
        return found[number] if number < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    while True:
        try:
            yield input("\n> ")
        except (EOFError, KeyboardInterrupt):
            sys.stdout.write("\n")
            return
