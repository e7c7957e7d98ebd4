"""What a chat does at a terminal: where lines end, and what becomes of keys that come too early."""

from __future__ import annotations

import itertools
import os
import pty
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from kvtrove.cli.chat_view import TextView, TurnStats
from kvtrove.cli.terminal import Wrapped, unechoed

WIDTH = 20


def wrapped(pieces: list[str]) -> str:
    seen: list[str] = []
    lines = Wrapped(seen.append, lambda: WIDTH)
    for piece in pieces:
        lines.piece(piece)
    lines.close()
    return "".join(seen)


_words = st.lists(st.text("abc", min_size=1, max_size=12), min_size=1, max_size=12)


@given(_words, st.lists(st.integers(0, 99), max_size=9))
def test_words_stay_whole_however_the_text_comes(words: list[str], cuts: list[int]) -> None:
    text = " ".join(words)
    ends = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    shown = wrapped([text[start:end] for start, end in itertools.pairwise(ends)])
    assert shown == wrapped([text])
    assert all(len(line) <= WIDTH for line in shown.split("\n"))
    assert shown.replace("\n", " ") == text, "a line ends between words, in the place of the space"


def test_what_no_space_parts_does_not_wait() -> None:
    for text in ("\u65e5" * 30, "a" * 50):
        seen: list[str] = []
        lines = Wrapped(seen.append, lambda: WIDTH)
        lines.piece(text)
        assert cell_len("".join(seen)) > WIDTH
        assert "\n" not in "".join(seen), "the terminal breaks it"
    assert wrapped(["if x:\n", "    y = 1\n"]) == "if x:\n    y = 1\n", "code keeps its indentation"


def test_keys_are_not_drawn_over_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, keyboard = pty.openpty()
    with os.fdopen(keyboard) as typed:
        monkeypatch.setattr("sys.stdin", typed)
        before = termios.tcgetattr(typed)
        with unechoed():
            assert not termios.tcgetattr(typed)[3] & termios.ECHO
            assert termios.tcgetattr(typed)[3] & termios.ISIG, "Ctrl-C interrupts"
        assert termios.tcgetattr(typed) == before
    os.close(screen)


def test_a_quiet_chat_is_the_answers_alone(capsys: pytest.CaptureFixture[str]) -> None:
    view = TextView(echo_questions=False, quiet=True)
    view.piece("Hello.")
    view.turn(1, "Hi", "Hello.", TurnStats(3, 0, 2, 0.1, 0.2, "stop"))
    assert capsys.readouterr().out == "Hello.\n"
