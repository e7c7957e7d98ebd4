"""Two commands in turn: who runs when, what is kept, and what a person typed for it."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from kvtrove.bench.alternate import Alternation, sides_of
from kvtrove.config import ConfigError

STAND_IN = """#!/bin/sh
for last; do :; done
echo "$1" >> {log}
echo '{{}}' > "$last"
[ "$(wc -l < {log})" != {ends} ] || {{ echo 'error: no room'; exit {code}; }}
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def alternation(log: Path, pairs: int, ends: int = 0, code: int = 0) -> Alternation:
    """Of a program that notes its first word, writes its result, and at its `ends`-th run exits with `code`."""
    program = log.parent / "program"
    program.write_text(STAND_IN.format(log=log, ends=ends, code=code))
    program.chmod(0o755)
    return Alternation(([str(program), "A"], [str(program), "B"]), pairs, log.parent / "out")


def kept(log: Path) -> list[str]:
    return sorted(str(path.relative_to(log.parent / "out")) for path in (log.parent / "out").rglob("*.json"))


def test_each_pair_has_both_sides_in_an_order_of_chance(log: Path) -> None:
    seen: list[int] = []
    assert not alternation(log, 8).run(Random(1), lambda what, done, total: seen.append(done))
    order = log.read_text().split()
    turns = {"".join(order[at : at + 2]) for at in range(0, 16, 2)}
    assert turns == {"AB", "BA"}
    assert seen == list(range(16))
    assert kept(log) == [f"{side}/{number:03}.json" for side in "ab" for number in range(1, 9)]


def test_ctrl_c_keeps_whole_pairs(log: Path) -> None:
    assert alternation(log, 8, ends=4, code=130).run(Random(1), lambda *_: None)
    assert kept(log) == ["a/001.json", "b/001.json"]


def test_ctrl_c_in_the_first_pair_keeps_nothing(log: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        alternation(log, 8, ends=2, code=130).run(Random(1), lambda *_: None)
    assert kept(log) == []


def test_a_command_that_fails_ends_it_with_its_error(log: Path) -> None:
    with pytest.raises(ConfigError, match=r"side [ab] failed: no room"):
        alternation(log, 8, ends=3, code=2).run(Random(1), lambda *_: None)


def test_what_a_person_types() -> None:
    def typed(words: str) -> tuple[list[str], list[str]]:
        first, second = sides_of(words.split())
        return first[-2:], second[-2:]

    assert typed("decode demo -- prefill demo") == (["decode", "demo"], ["prefill", "demo"])
    assert typed("decode demo -- --cache int8") == (["decode", "demo"], ["--cache", "int8"])
    assert sides_of(["decode", "demo", "--", "--batch", "2"])[1][-4:] == ["decode", "demo", "--batch", "2"]
    assert typed("decode demo") == (["decode", "demo"],) * 2
    assert sides_of(["/old/bin/kvtrove", "bench", "decode"])[0] == ["/old/bin/kvtrove", "bench", "decode"]
    for wrong in ("", "--cache int8", "-- decode demo", "a -- b -- c"):
        with pytest.raises(ConfigError, match="give one or two commands"):
            sides_of(wrong.split())
