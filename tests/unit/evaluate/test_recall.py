"""The dialogues of the grid: where the fact stands, how long they are, and that only length and depth differ."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest

from kvtrove.config import ConfigError
from kvtrove.evaluate.recall import RecallCell, messages, recall_cells
from kvtrove.evaluate.settings import Settings
from kvtrove.evaluate.sources import Stated

FACT = Stated("the code is 77", "noted", "which code", "77")


@dataclass
class Numbered:
    """Fillers that count upwards, three words each with their answer."""

    seed: int
    count: int = 0

    def fact(self) -> Stated:
        return Stated(f"the code is 77{self.seed}", "noted", "which code", f"77{self.seed}")

    def filler(self) -> tuple[str, str]:
        self.count += 1
        return f"filler {self.count}", "yes"


def render(dialogue: Sequence[Mapping[str, str]]) -> list[int]:
    """One token per word."""
    return [zlib.crc32(word.encode()) % 1000 for message in dialogue for word in message["content"].split()]


def cells(lengths: tuple[int, ...], depths: tuple[float, ...], samples: int = 2) -> list[RecallCell]:
    settings = Settings("m", lengths=lengths, depths=depths, samples=samples, answer_tokens=10)
    return recall_cells(settings, Numbered, render)


@pytest.mark.parametrize(("depth", "place"), [(0.0, 0), (0.25, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_the_fact_stands_at_its_depth(depth: float, place: int) -> None:
    dialogue = messages(FACT, [(f"f{i}", "yes") for i in range(4)], depth)
    said = [message["content"] for message in dialogue if message["role"] == "user"]
    assert said.index("the code is 77") == place
    assert said[-1] == "which code"
    assert [message["role"] for message in dialogue] == ["user", "assistant"] * 5 + ["user"]


def test_a_dialogue_is_as_long_as_fits_beside_its_answer() -> None:
    for cell in cells((40, 61, 100), (0.0, 0.5)):
        for question in cell.questions:
            assert cell.length - 10 - 3 < len(question.prompt) <= cell.length - 10


def test_the_grid_has_a_cell_for_every_length_and_depth() -> None:
    found = cells((100, 40), (1.0, 0.0), samples=3)
    assert {(cell.length, cell.depth) for cell in found} == {(40, 0.0), (40, 1.0), (100, 0.0), (100, 1.0)}
    assert [[question.value for question in cell.questions] for cell in found] == [["770", "771", "772"]] * 4


def test_a_sample_differs_between_cells_in_length_and_depth_alone() -> None:
    short, long = cells((40, 100), (1.0,))
    [(one, other), *_] = zip(short.questions, long.questions, strict=True)
    fillers = len(one.prompt) - len(render(messages(FACT, [], 0.0)))
    assert other.prompt[:fillers] == one.prompt[:fillers]


def test_a_cell_is_known_by_what_goes_into_it() -> None:
    [cell], [again] = cells((40,), (0.5,)), cells((40,), (0.5,))
    assert cell.key == again.key
    others = [*cells((41,), (0.5,)), *cells((40,), (0.0,)), *cells((40,), (0.5,), samples=3)]
    assert len({cell.key, *(other.key for other in others)}) == 4


def test_a_length_without_room_for_the_fact_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"lengths: .* has 7 tokens, and 6 are left .* lengths of at least 71"):
        cells((16,), (0.5,))
