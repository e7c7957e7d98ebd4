"""The chat on a real terminal: typed lines, streamed answers, Ctrl-C and Ctrl-D as the keyboard sends them."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CTRL_C, CTRL_D, UP = b"\x03", b"\x04", b"\x1b[A"
PATIENCE = 60  # seconds; a first answer includes loading torch


class Terminal:
    """`kvtrove <args>` as the foreground process of a terminal of its own."""

    def __init__(self, args: list[str], environment: dict[str, str]) -> None:
        self.pid, self.screen = pty.fork()
        if self.pid == 0:  # the child: nothing of pytest may run here
            try:
                os.execve(sys.executable, [sys.executable, "-m", "kvtrove", *args], environment)
            finally:
                os._exit(127)
        self.text = ""
        self.code: int | None = None

    def type(self, keys: bytes) -> None:
        os.write(self.screen, keys)

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait until `pattern` is on the screen; forgets everything up to its end."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.text)):
            if not self._read(deadline):
                raise AssertionError(f"{pattern!r} never came; the screen is {self.text!r}")
        self.text = self.text[found.end() :]
        return found

    def prompt(self) -> None:
        """Wait for the prompt, and until the process sleeps in front of it.

        Python's readline misses a Ctrl-C that comes between drawing the prompt and waiting for a key.
        """
        self.expect("> ")
        stat = Path(f"/proc/{self.pid}/stat")
        deadline = time.monotonic() + PATIENCE
        while stat.read_text().rpartition(")")[2].split()[0] != "S" and time.monotonic() < deadline:
            time.sleep(0.02)

    def wait(self) -> int:
        """Read to the end; returns the exit code."""
        deadline = time.monotonic() + PATIENCE
        while self._read(deadline):
            pass
        _, status = os.waitpid(self.pid, 0)
        self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self.screen], [], [], max(0.0, deadline - time.monotonic()))
        try:
            data = os.read(self.screen, 4096) if ready else b""
        except OSError:  # Linux says so when the other end of a terminal is closed
            data = b""
        self.text += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)

    def close(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.screen)


@pytest.fixture
def terminal(environment: dict[str, str]) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def start(*args: str, term: str = "dumb") -> Terminal:
        opened.append(Terminal(list(args), environment | {"TERM": term, "NO_COLOR": "1", "INPUTRC": "/dev/null"}))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


TURN = r"turn (\d+): ([\d,]+) prompt tokens, ([\d,]+) reused \(\d+ %\), [\d,]+ computed, [\d.]+ s to first token"


def test_a_conversation_at_the_keyboard(terminal: Callable[..., Terminal]) -> None:
    chat = terminal("chat", "--max-tokens", "12", "--block-size", "8", "--seed", "1")
    chat.expect(r"/help lists the commands[^>]*> ")
    chat.type(b"hello there\n")
    assert chat.expect(TURN)[3] == "0", "nothing was cached before the first turn"
    chat.prompt()
    chat.type(UP + b"\n")  # the line before, from the history
    assert int(chat.expect(TURN)[3]) > 0
    chat.prompt()
    chat.type(b"/sta\t\n")  # Tab completes a command
    chat.expect(r"2 turns: .*\ncache: [\d,]+ blocks, 0 used, [1-9][\d,]* cached, [\d,]+ free")
    chat.type(b"/rest\n")
    chat.expect(r"/rest is no command; /help lists them")
    chat.type(b"/quit\n")
    chat.expect(r"2 turns: ")
    assert chat.wait() == 0


def test_ctrl_c_stops_the_answer_and_then_leaves(terminal: Callable[..., Terminal]) -> None:
    chat = terminal(
        "chat", "--max-tokens", "100000", "--ignore-eos", "--temperature", "0", "--check", "2", "--block-size", "8"
    )
    chat.prompt()
    chat.type(b"talk for ever\n")
    chat.expect(r"talk for ever\n[^\n]*\S")  # the answer has begun
    chat.type(CTRL_C)
    chat.expect(TURN)
    chat.expect("stopped; the answer so far stays in the conversation")
    chat.prompt()
    chat.type(b"/stats\n")
    chat.expect(r"cache: [\d,]+ blocks, 0 used,")  # the aborted request holds nothing
    chat.prompt()
    chat.type(b"and once more\n")
    chat.expect(r"once more\n[^\n]*\S")
    chat.type(CTRL_C)
    assert int(chat.expect(TURN)[3]) >= 8, "the engine goes on, and what was computed before Ctrl-C is reused"
    chat.prompt()
    chat.type(CTRL_C)
    chat.expect(r"2 turns: ")
    assert chat.wait() == 0
    assert "Traceback" not in chat.text


def test_ctrl_d_leaves(terminal: Callable[..., Terminal]) -> None:
    chat = terminal("chat")
    chat.prompt()
    chat.type(CTRL_D)
    chat.expect(r"0 turns: ")
    assert chat.wait() == 0


def test_ctrl_c_in_generate_is_exit_code_130_without_traceback(terminal: Callable[..., Terminal]) -> None:
    batch = terminal("generate", "demo", *["endless"] * 64, "--max-tokens", "4000", "--ignore-eos", term="xterm")
    batch.expect(r"generating .* 0/64 in 0 tokens/s")
    batch.type(CTRL_C)
    assert batch.wait() == 130
    assert "Traceback" not in batch.text
