"""The whole evaluation of a tiny checkpoint: complete, interrupted, resumed, and what its settings refuse."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kvtrove.config import ConfigError
from kvtrove.evaluate.engines import Engines
from kvtrove.evaluate.evaluation import Evaluation, bytes_per_token, evaluate, fingerprint
from kvtrove.evaluate.results import as_json, rows
from kvtrove.evaluate.settings import Settings
from kvtrove.evaluate.store import Store
from tests.checkpoints import CORPUS, Checkpoints

NUM_CELLS = 2 + 4 + 1  # segments of text, recall, rounds


@pytest.fixture(scope="module")
def settings(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text("\n".join(3 * CORPUS), encoding="utf-8")
    needle = text.with_name("needle.json")
    statement, filler = "code {value} ok", ["block", "the cache"]
    needle.write_text(
        json.dumps({"statement": statement, "question": "code", "values": ["77", "55"], "filler": filler})
    )
    return Settings(
        str(checkpoints.get("llama")),
        caches=("bf16", "window=16"),
        text=str(text),
        text_tokens=120,
        context=64,
        lengths=(96, 160),
        depths=(0.0, 1.0),
        samples=1,
        needle=str(needle),
        answer_tokens=4,
        rounds=1,
        chunk=32,
    )


@pytest.fixture(scope="module")
def whole(settings: Settings) -> Evaluation:
    return evaluate(settings)


class Kept(list[str]):
    """The keys of all results that were computed. Ctrl-C follows when there are `stop_at`."""

    stop_at = 0


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    keys, put = Kept(), Store.put

    def spy(self: Store, key: str, value: dict[str, Any]) -> None:
        put(self, key, value)
        keys.append(key)
        if len(keys) == keys.stop_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "put", spy)
    return keys


def timeless(evaluation: Evaluation) -> list[Any]:
    return [replace(row, prefill=None, decode=None) for row in rows(evaluation)]


def test_everything_asked_for_is_measured(whole: Evaluation) -> None:
    assert (whole.done, whole.total, whole.interrupted) == (3 * NUM_CELLS, 3 * NUM_CELLS, False)
    exact, bf16, window = rows(whole)
    assert [exact.name, bf16.name, window.name] == ["exact", "bf16", "window=16"]
    for row in (exact, bf16, window):
        assert row.fidelity is not None
        assert row.fidelity.predictions == 63 + 55
        assert set(row.recall) == {(96, 0.0), (96, 1.0), (160, 0.0), (160, 1.0)}
        assert all(len(answers) == 1 for answers in row.answers.values())
        assert row.prefill is not None
        assert row.decode is not None
        assert row.prefill > 0 < row.decode


def test_the_exact_cache_differs_in_nothing_and_a_window_in_much(whole: Evaluation) -> None:
    exact, bf16, window = (row.fidelity for row in rows(whole))
    assert exact is not None
    assert bf16 is not None
    assert window is not None
    assert (exact.kl_mean, exact.kl_median, exact.kl_p99, exact.top1) == (0.0, 0.0, 0.0, 1.0)
    assert 0 < bf16.kl_mean < window.kl_mean
    assert window.top1 < 1
    assert math.isfinite(window.perplexity)


def test_bytes_per_token_are_those_of_the_blocks(whole: Evaluation) -> None:
    """3 layers, K and V, 2 heads of 16 elements; a window of 16 needs two blocks of 32 tokens at 64."""
    dense = 3 * 2 * 2 * 16 * 4
    assert whole.bytes_per_token == {"exact": dense, "bf16": dense / 2, "window=16": pytest.approx(dense)}


def test_a_window_needs_fewer_bytes_once_it_is_short(settings: Settings) -> None:
    """32 tokens touch at most 3 blocks of 16 tokens; a context of 256 has 16."""
    short = replace(settings, context=256, lengths=(256,), block_size=16, caches=("window=32",))
    found = bytes_per_token(Engines.start(short))
    assert found["window=32"] == found["exact"] * 3 / 16


@pytest.mark.parametrize("finished", [1, 11])
def test_an_interrupted_evaluation_goes_on_and_computes_nothing_twice(
    settings: Settings, whole: Evaluation, tmp_path: Path, kept: Kept, finished: int
) -> None:
    state, kept.stop_at = str(tmp_path / "state.json"), finished
    first = evaluate(settings, state)
    assert first.interrupted
    assert first.done == len(kept) == finished
    assert first.notes == [
        f"stopped by hand after {finished} of 21 cells; the figures are of what was measured until then"
    ]
    second = evaluate(settings, state)
    assert not second.interrupted
    assert len(kept) == len(set(kept)) == second.total
    assert timeless(second) == timeless(whole)
    assert as_json(evaluate(settings, state), "v") == as_json(second, "v")
    assert len(kept) == second.total


def test_weights_are_compared_with_the_floats_of_the_checkpoint(settings: Settings, checkpoints: Checkpoints) -> None:
    model = str(checkpoints.get("llama", dtype="bfloat16"))
    found = evaluate(replace(settings, model=model, parts=("text",), caches=(), weights=("int8", "int4")))
    exact, int8, int4 = rows(found)
    assert [exact.name, int8.name, int4.name] == ["exact", "weights=int8", "weights=int4"]
    for better, worse in ((exact, int8), (int8, int4)):
        assert better.fidelity is not None
        assert worse.fidelity is not None
        assert better.fidelity.kl_mean < worse.fidelity.kl_mean
        assert (better.weight_bytes or 0) > (worse.weight_bytes or 0) > 0
    with pytest.raises(ConfigError, match="weights: 'int3' is not one of int8, int4, gguf"):
        Settings(model, weights=("int3",))


def test_another_model_is_compared_and_its_results_are_its_own(settings: Settings, checkpoints: Checkpoints) -> None:
    """The same geometry, other weights: only the fingerprint tells the two apart."""
    asked = replace(settings, parts=("text",), caches=(), chunk=64)
    other, third = (str(checkpoints.get("llama", seed=seed)) for seed in (1, 2))
    exact, found = rows(evaluate(replace(asked, models=(other,))))
    assert found.name == f"model={other}"
    assert exact.fidelity is not None
    assert found.fidelity is not None
    alone = rows(evaluate(replace(asked, model=other)))[0].fidelity
    assert alone is not None
    assert (found.fidelity.perplexity, exact.fidelity.kl_mean) == (alone.perplexity, 0.0)
    assert found.fidelity.kl_mean > 0
    engines = [Engines.start(replace(asked, models=(path,))) for path in (other, third)]
    assert fingerprint(engines[0]) != fingerprint(engines[1])


def test_progress_is_told_per_kind_of_cell(settings: Settings, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    evaluate(replace(settings, parts=("text",), caches=()), report=lambda *news: told.append(news))
    assert told[-4:] == [("text", 0, 2), ("text", 1, 2), ("text", 1, 2), ("text", 2, 2)]
    assert {what for what, _, _ in told} == {"loading weights", "text"}


def test_more_lengths_and_caches_reuse_what_is_there(settings: Settings, tmp_path: Path, kept: Kept) -> None:
    state, small = str(tmp_path / "state.json"), replace(settings, parts=("text", "recall"), lengths=(96,), caches=())
    evaluate(small, state)
    assert len(kept) == 2 + 2
    larger = evaluate(replace(small, lengths=(96, 160), caches=("fp16",)), state)
    assert len(kept) == larger.total == 2 * (2 + 4)


@pytest.mark.parametrize(
    "change",
    [{"chunk": 16}, {"answer_tokens": 5}, {"block_size": 16}, {"dtype": "bfloat16"}, {"text_tokens": 63, "seed": 1}],
    ids=str,
)
def test_results_of_other_settings_are_not_reused(
    settings: Settings, tmp_path: Path, kept: Kept, change: dict[str, Any]
) -> None:
    state = str(tmp_path / "state.json")
    one = {"parts": ("text", "recall"), "text_tokens": 64, "lengths": (96,), "depths": (1.0,), "caches": ()}
    small = replace(settings, **one)
    evaluate(small, state)
    evaluate(replace(small, **change), state)
    assert len(kept) == 4


def test_another_model_does_not_see_these_results(
    settings: Settings, checkpoints: Checkpoints, tmp_path: Path, kept: Kept
) -> None:
    state, small = str(tmp_path / "state.json"), replace(settings, parts=("text",), caches=())
    evaluate(small, state)
    evaluate(replace(small, model=str(checkpoints.get("llama", seed=1))), state)
    assert len(kept) == 2 * 2


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer.json"])
def test_other_end_tokens_or_another_tokenizer_start_anew(
    settings: Settings, tmp_path: Path, kept: Kept, name: str
) -> None:
    state, copy = str(tmp_path / "state.json"), shutil.copytree(settings.model, tmp_path / "copy")
    small = replace(settings, model=str(copy), parts=("text",), caches=())
    evaluate(small, state)
    changed = json.loads((copy / name).read_text(encoding="utf-8"))
    if name == "generation_config.json":
        changed["eos_token_id"] = [2, 5]
    else:
        changed["added_tokens"].append(changed["added_tokens"][-1] | {"id": 299, "content": "<|new|>"})
    (copy / name).write_text(json.dumps(changed))
    evaluate(small, state)
    assert len(kept) == 2 * 2


def test_a_model_without_a_chat_template_is_compared_without_recall(
    settings: Settings, checkpoints: Checkpoints, tmp_path: Path
) -> None:
    bare = shutil.copytree(checkpoints.get("llama"), tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    found = evaluate(replace(settings, model=str(bare), parts=("text", "recall"), caches=()))
    assert found.notes == ["recall is left out: the model has no chat template to write dialogues with"]
    assert not found.interrupted
    assert [row.mean_recall for row in rows(found)] == [None]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"caches": ("bf61",)}, "did you mean 'bf16'"),
        ({"parts": ("txt",)}, r"parts: 'txt' is not known \(did you mean 'text'\?\); there are text, recall, speed"),
        ({"parts": ()}, "parts: the list is empty"),
        ({"lengths": ()}, "lengths: the list is empty"),
        ({"depths": (1.5,)}, "depths: 1.5 must lie between 0"),
        ({"depths": (math.nan,)}, "depths: nan must lie between 0"),
        ({"samples": 0}, "samples: 0 must be at least 1"),
        ({"chunk": 0}, "chunk: 0 must be at least 1"),
        ({"context": 1}, "context: 1 must be at least 2"),
        ({"text_tokens": 1}, "text_tokens: 1 must be at least 2"),
        ({"context": 513}, "context: 513 tokens are more than the 512 that the model can hold"),
        ({"lengths": (64, 4096)}, "lengths: 4096 tokens are more than the 512 that the model can hold"),
        ({"lengths": (24,)}, "lengths: a dialogue with nothing between statement and question has"),
        ({"text": "none.txt"}, "text: cannot read none.txt: No such file"),
        ({"needle": "none.toml"}, "needle: cannot read none.toml: No such file"),
        ({"dtype": "int3"}, "dtype: 'int3' is not one of auto"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: Settings, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(replace(settings, **change))


@pytest.mark.parametrize(("content", "message"), [(b"a", "leave nothing to predict"), (b"\xff\xfe\xff", "not UTF-8")])
def test_a_text_that_cannot_be_read_or_predicted_is_refused(
    settings: Settings, tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        evaluate(replace(settings, text=str(path)))


def test_what_depends_on_the_model_follows_its_context() -> None:
    assert Settings("m").resolved(4096).lengths == (512, 1024, 2048, 4096)
    assert Settings("m").resolved(1000).lengths == (512,)
    assert Settings("m").resolved(100).lengths == (100,)
    assert (Settings("m").resolved(100).context, Settings("m").resolved(9000).context) == (100, 2048)
