"""Every script in examples/ runs on the embedded model and shows what it promises."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
NUMBERS_THAT_PROVE_IT = {
    "generate.py": r"^ *(\d+) of +\d+ prompt tokens reused",
    "chat_reuse.py": r"prompt tokens, +(\d+) reused",
    "parallel_sampling.py": r"^ +(-\d+\.\d+): ",
    "shared_prefix.py": r"ms, +(\d+) of \d+ tokens reused",
}
ANSWERS = {
    "generate.py": "The name of the turtle of Victor is Kavole.",
    "chat_reuse.py": "The code of the red box is 4719.",
    "parallel_sampling.py": "I have written it down.",
    "shared_prefix.py": "The name of the turtle of Victor is Kavole.",
}


def test_every_example_is_listed() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(NUMBERS_THAT_PROVE_IT)


@pytest.mark.parametrize("name", NUMBERS_THAT_PROVE_IT)
def test_an_example_runs_and_its_numbers_grow(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", [name])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    out = capsys.readouterr().out
    numbers = [float(n) for n in re.findall(NUMBERS_THAT_PROVE_IT[name], out, re.M)]
    assert len(numbers) >= 2, out
    assert ANSWERS[name] in out, "the model answers from what it was told"
    if name == "parallel_sampling.py":
        assert numbers[0] > numbers[1], "the better beam comes first"
        assert out.count("\n  ") == 4 + 2
    else:
        assert numbers[0] == 0
        assert numbers == sorted(numbers)
        assert numbers[-1] > 0, "the cache was used"
