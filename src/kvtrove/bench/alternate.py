"""Two commands run in turn, so that what comes and goes on the machine meets both alike."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from kvtrove.config import ConfigError

SIDES = ("a", "b")
"""Folders of the results, by side."""
_INTERRUPTED = 130
_OURS = (sys.executable, "-m", "kvtrove", "bench")


@dataclass(frozen=True)
class Alternation:
    """commands: words of both sides. `sides_of` makes them of what a person typed."""

    commands: tuple[list[str], list[str]]
    pairs: int
    folder: Path

    def run(self, random: Random, watch: Callable[[str, int, int], None]) -> bool:
        """Results into folder/a and folder/b; True when Ctrl-C ended it after whole pairs.

        A coin decides which side of a pair runs first: equal sides then differ by chance alone, whatever the first of
        two runs has over the second. watch(what, runs done, runs in total). ConfigError when a command fails.
        """
        for name in SIDES:
            (self.folder / name).mkdir(parents=True)
        for number in range(self.pairs):
            order = random.sample(range(2), 2)
            try:
                for done, side in enumerate(order):
                    watch("runs", 2 * number + done, 2 * self.pairs)
                    self._once(side, number)
            except KeyboardInterrupt:
                for side in order:
                    self._result(side, number).unlink(missing_ok=True)
                if number == 0:
                    raise
                return True
        return False

    def _result(self, side: int, number: int) -> Path:
        return self.folder / SIDES[side] / f"{number + 1:03}.json"

    def _once(self, side: int, number: int) -> None:
        words = [*self.commands[side], "--quiet", "--json", str(self._result(side, number))]
        done = subprocess.run(
            words, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if done.returncode == _INTERRUPTED:
            raise KeyboardInterrupt
        if done.returncode:
            said = done.stdout.strip().splitlines() or [f"exit code {done.returncode}"]
            raise ConfigError(f"side {SIDES[side]} failed: {said[-1].removeprefix('error: ')}")


def sides_of(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """`A -- B`: what follows `kvtrove bench` on each side, or begins with a path to another kvtrove.

    B that begins with a flag is A with these flags more; without B, A runs against itself.
    """
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "--":
            parts.append([])
        else:
            parts[-1].append(word)
    if len(parts) > 2 or not parts[0] or parts[0][0].startswith("-"):
        raise ConfigError(
            "give one or two commands of `kvtrove bench` with -- before each, such as "
            "`kvtrove bench alternate -- decode demo -- --cache int8`"
        )
    first, second = parts[0], parts[1] if len(parts) == 2 else []
    if not second or second[0].startswith("-"):
        second = [*first, *second]
    return _program(first), _program(second)


def _program(words: list[str]) -> list[str]:
    return list(words) if "/" in words[0] else [*_OURS, *words]
