"""The documentation is true: every console and python block of the quickstart runs and prints what it says.

Lines of a console block that start with "$ " are commands. The other lines must come out of the command above them, in
this order; numbers may differ, and "…" stands for any text.
"""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUICKSTART = Path(__file__).parents[2] / "docs" / "quickstart.md"
CHECKPOINTS = QUICKSTART.with_name("checkpoints.md")
TIERS = QUICKSTART.with_name("tiers.md")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", QUICKSTART.read_text(encoding="utf-8"), re.M | re.S)


def commands(block: str) -> list[tuple[str, list[str]]]:
    """(command, lines that it prints according to the page)."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def pattern(line: str) -> str:
    """A regular expression for a printed line: any number for a number, any text for "…"."""
    parts = re.split(r"(…|\d[\d,.]*)", line.strip())
    kinds = {"…": ".*"}
    return "".join(kinds.get(p, r"\d[\d,.]*" if p[:1].isdigit() else re.escape(p)) for p in parts)


def check_printed(expected: list[str], printed: list[str]) -> None:
    rest = iter(printed)
    for line in expected:
        if line.strip() != "…":
            assert any(re.fullmatch(pattern(line), got.strip()) for got in rest), f"{line!r} is not in {printed}"


@pytest.fixture
def here(tmp_path: Path, demo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder, with a checkpoint in it."""
    (tmp_path / "my-model").symlink_to(demo_dir)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", blocks("console"), ids=lambda block: commands(block)[0][0][:40])
def test_a_console_block(block: str, run: Callable[..., Any], shell: Callable[..., Any], here: Path) -> None:
    for command, expected in commands(block):
        name, *args = shlex.split(command)
        result = run(*args) if name == "kvtrove" and not {"|", ">"} & set(args) else shell(command, cwd=here)
        refused = bool(expected) and expected[0].startswith("error: ")
        assert result.code == (2 if refused else 0), result.err
        check_printed(expected, result.out.splitlines() + result.err.splitlines())


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.splitlines()[0])
def test_a_python_block(block: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "script.py").write_text(block)
    runpy.run_path("script.py")
    assert capsys.readouterr().out


def test_the_page_of_tiers_from_top_to_bottom(
    run: Callable[..., Any], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its blocks share a folder: what one fills, the next one lists."""
    found = re.findall(r"^```(console|python)\n(.*?)^```$", TIERS.read_text(encoding="utf-8"), re.M | re.S)
    assert {language for language, _ in found} == {"console", "python"}
    for language, block in found:
        if language == "python":
            (here / "script.py").write_text(block)
            runpy.run_path("script.py")
            assert capsys.readouterr().out == "True\n"
            continue
        for command, expected in commands(block):
            result = run(*shlex.split(command)[1:])
            assert result.code == 0, result.err
            check_printed(expected, result.out.splitlines())


def test_the_page_of_checkpoints(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [block] = re.findall(r"^```python\n(.*?)^```$", CHECKPOINTS.read_text(encoding="utf-8"), re.M | re.S)
    (here / "script.py").write_text(block)
    runpy.run_path("script.py")
    assert capsys.readouterr().out.splitlines()[-1] == "20 True"


def test_the_page_has_blocks_to_run() -> None:
    assert len(blocks("console")) >= 6
    assert len(blocks("python")) >= 1


def test_a_page_that_lies_is_found() -> None:
    check_printed(["turn 2: 60 tokens …"], ["hello", "turn 3: 1,024 tokens at all"])
    with pytest.raises(AssertionError, match="is not in"):
        check_printed(["turn 2: 60 tokens"], ["turn 2: 60 words"])
    with pytest.raises(AssertionError, match="is not in"):
        check_printed(["b", "a"], ["a", "b"])
