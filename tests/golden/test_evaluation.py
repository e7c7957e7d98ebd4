"""Perplexity and recall of `kvtrove eval`, recomputed with transformers alone from the same files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from kvtrove.demo import demo_model_dir
from kvtrove.evaluate.evaluation import evaluate
from kvtrove.evaluate.recall import RecallCell, recall_cells
from kvtrove.evaluate.results import Row, rows
from kvtrove.evaluate.settings import Settings
from kvtrove.evaluate.sources import world
from kvtrove.evaluate.text import read_text
from tests.checkpoints import Checkpoints
from tests.golden.harness import hugging_face

POINTS = 0.5  # of a hundred: what perplexity and recall may differ by
SIZES = Settings(
    "",
    caches=(),
    parts=("text", "recall"),
    text_tokens=1024,
    context=512,
    lengths=(256, 512),
    depths=(0.0, 0.5, 1.0),
    samples=2,
    answer_tokens=16,
    dtype="float32",  # both then round alike, so greedy answers are equal token for token
)


@pytest.fixture(scope="module", params=["demo", "tiny"])
def directory(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> Path:
    """The embedded model, and a checkpoint whose weights are drawn wide, so that every logit counts."""
    return demo_model_dir() if request.param == "demo" else checkpoints.get("llama")


@pytest.fixture(scope="module")
def found(directory: Path) -> Row:
    [exact] = rows(evaluate(replace(SIZES, model=str(directory))))
    return exact


@pytest.fixture(scope="module")
def reference(directory: Path) -> tuple[Any, Any]:
    return hugging_face(directory), AutoTokenizer.from_pretrained(directory)


@torch.no_grad()
def test_held_out_perplexity_agrees_with_transformers(found: Row, reference: tuple[Any, Any]) -> None:
    model, tokenizer = reference
    tokens = tokenizer(read_text(None), add_special_tokens=False)["input_ids"][: SIZES.text_tokens]
    segments = torch.tensor(tokens).split(SIZES.context or 0)
    loss = sum(float(model(s[None], labels=s[None]).loss) * (len(s) - 1) for s in segments)
    expected = math.exp(loss / sum(len(s) - 1 for s in segments))
    assert found.fidelity is not None
    assert found.fidelity.perplexity == pytest.approx(expected, rel=POINTS / 100)


@torch.no_grad()
def test_held_out_recall_agrees_with_transformers(found: Row, reference: tuple[Any, Any]) -> None:
    model, tokenizer = reference

    def render(messages: Sequence[Mapping[str, str]]) -> list[int]:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def answer(prompt: list[int]) -> str:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids, do_sample=False, max_new_tokens=SIZES.answer_tokens, attention_mask=torch.ones_like(ids)
        )
        return str(tokenizer.decode(out[0, len(prompt) :], skip_special_tokens=True))

    def recall(cell: RecallCell) -> float:
        return sum(q.value in answer(q.prompt) for q in cell.questions) / len(cell.questions)

    cells = recall_cells(SIZES, world, render)
    assert len(cells) == len(found.recall) == 6
    for cell in cells:
        assert 100 * found.recall[cell.length, cell.depth] == pytest.approx(100 * recall(cell), abs=POINTS)
    answers = [answer(question.prompt) for question in cells[-1].questions]
    assert found.answers[cells[-1].length, cells[-1].depth] == answers
