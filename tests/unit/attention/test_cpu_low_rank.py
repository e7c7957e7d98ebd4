"""Low rank on CPU kernels: the answers are those of the reference, whatever the level, the sides and what is read."""

from __future__ import annotations

import pytest
import torch

from kvtrove.attention import expand
from kvtrove.attention.cpu import CpuBackend
from kvtrove.attention.reference import ReferenceBackend
from kvtrove.evaluate.calibrate import write
from kvtrove.kv.retention import Full, Retention, SinksAndWindow, SlidingWindow
from tests.unit.attention.test_cpu_sealed import HERE, KV_HEADS, answers

DIM = 64
LARGEST = 5.0
"""No value is larger."""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Each head of keys has a basis of its own, both heads of values share one; no element weighs more than another."""
    torch.manual_seed(0)
    path = str(tmp_path_factory.mktemp("lowrank") / "any.safetensors")
    bases = {"k.0": torch.randn(KV_HEADS, DIM, DIM), "v.0": torch.randn(1, KV_HEADS * DIM, KV_HEADS * DIM)}
    write(
        {f"{name}.basis": torch.linalg.qr(x).Q for name, x in bases.items()}
        | {f"{name}.weights": torch.ones(KV_HEADS * DIM) for name in bases},
        path,
    )
    return path


def bound(rounding: float, largest: float = LARGEST) -> float:
    """How far answers may lie apart where coefficients, bases and vectors are rounded by `rounding` of a number each.

    Columns of a basis are orthonormal, so each rounding moves a vector by that much of its length at most (of a basis,
    whose roundings are independent, by less than twice). Scores, of queries and keys of a length of about
    sqrt(64) and a scale of 1 / 8, move by 8 times as much, values by their own length; errors of a score move an answer
    by as much of the largest value.
    """
    return 4 * rounding * (8 + 1) * largest


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("words", ["lowrank=0.5@FILE", "k=lowrank=24,int8@FILE+v=int4r", "k=int8+v=lowrank=1.0@FILE"])
def test_answers_are_those_of_the_reference(isa: str, words: str, file: str) -> None:
    """In float32 a basis is two numbers of bf16, which hold 16 bits. Queries meet int8 keys as they do in a cache."""
    expected, got = (
        answers(words.replace("FILE", file), backend, DIM, Full(), rope=True)
        for backend in (ReferenceBackend(), CpuBackend(isa, 2))
    )
    assert (got - expected).abs().max() <= bound(2.0**-17)


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ("lowrank=0.5@", SlidingWindow(50)),
        ("lowrank=0.5@", SinksAndWindow(3, 40)),
        ("first=32:bf16+lowrank=0.5@", Full()),
    ],
    ids=str,
)
def test_what_is_read_alone_is_expanded(words: str, rule: Retention, file: str) -> None:
    """In bf16, whose roundings are half a step of 8 bits."""
    expected, got = (
        answers(words + file, backend, DIM, rule, "bfloat16", rope=True)
        for backend in (ReferenceBackend(), CpuBackend())
    )
    assert (got - expected).abs().max() <= bound(2.0**-9)


def test_sides_without_a_path_say_why(file: str) -> None:
    for words, reason in (
        (f"k=lowrank=0.5@{file}+v=kivi=2", "layer 0: lowrank beside a format of whole blocks has no CPU kernel"),
        (f"lowrank=12@{file}", "layer 0: head_dim 12 is not a multiple of 8 up to 1024"),
    ):
        with pytest.raises(ValueError, match=reason):
            answers(words, CpuBackend(), DIM, Full(), rope=True)


def test_what_is_expanded_together_does_not_show(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three sequences at once and in one piece, or each alone and block by block: the same bits."""
    words = f"lowrank=0.5,int8@{file}"
    together = answers(words, CpuBackend(), DIM, Full(), "bfloat16", rope=True)
    monkeypatch.setattr(expand, "MAX_TOKENS", 1), monkeypatch.setattr(expand, "PIECE", 32)
    assert torch.equal(together, answers(words, CpuBackend(), DIM, Full(), "bfloat16", rope=True))
