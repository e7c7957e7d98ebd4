"""Gates: their scores against a formula of the test's own, how they are fitted, and which caches they serve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kvtrove.config import ConfigError, EngineConfig
from kvtrove.demo import demo_model_dir
from kvtrove.engine import Engine
from kvtrove.evaluate.calibrate import write
from kvtrove.evaluate.surrogate import Regression, fit_gate, rank_correlation, room_of
from kvtrove.evaluate.text import segments
from kvtrove.kv.compaction.budgets import Everywhere
from kvtrove.kv.compaction.compactor import AfterPrompt
from kvtrove.kv.compaction.scores import Seen
from kvtrove.kv.formats.calibration import calibration_bytes, read_calibration
from kvtrove.kv.formats.dense import Dense, dense
from kvtrove.kv.recipe import recipe
from kvtrove.kv.retention import SlidingWindow
from kvtrove.kv.spec import KVCacheSpec, KVFormat, LayerKV
from kvtrove.models.layers.rope import RotaryEmbedding
from kvtrove.plan.gathering import gathering_bytes

HELD, HEADS, K_DIM, V_DIM = 50, 2, 8, 12
FREQUENCY = 10_000.0 ** -(torch.arange(0, K_DIM, 2) / K_DIM)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gate(path: Path, layers: int = 2, heads: int = HEADS, seed: int = 0) -> str:
    write({f"gate.{i}": drawn(heads, K_DIM + V_DIM + 3, seed=seed + i) for i in range(layers)}, str(path))
    return str(path)


def cache(stored: KVFormat | None = None, **changed: object) -> KVCacheSpec:
    layers = [LayerKV(i, HEADS, K_DIM, V_DIM, stored or dense("float32"), **changed) for i in range(2)]  # type: ignore[arg-type]
    return KVCacheSpec(tuple(layers), 16, "float32")


def test_a_score_is_a_row_of_the_gate_times_key_value_and_their_lengths(tmp_path: Path) -> None:
    """Keys as complex numbers, turned back one by one: float64."""
    path = gate(tmp_path / "gate")
    k, v, weights = drawn(HELD, HEADS, K_DIM, seed=5), drawn(HELD, HEADS, V_DIM, seed=6), drawn(HEADS, 23, seed=1)
    made = recipe(f"surrogate=0.5@{path}").compactor
    assert isinstance(made, AfterPrompt)
    found = made.score(Seen(k, v=v, turn=RotaryEmbedding(FREQUENCY).turned, layer=1))
    expected = torch.empty(HEADS, HELD, dtype=torch.float64)
    for head in range(HEADS):
        for at in range(HELD):
            key, value, row = k[at, head].double(), v[at, head].double(), weights[head].double()
            pairs = torch.complex(key[:4], key[4:]) * torch.exp(-1j * at * FREQUENCY.double())
            before = torch.cat([pairs.real, pairs.imag])
            lengths = torch.stack([key.square().sum().sqrt().log(), value.square().sum().sqrt().log()])
            expected[head, at] = row[:8] @ before + row[8:20] @ value + row[20:22] @ lengths + row[22]
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)  # float32 angles of 50 positions


def test_another_gate_is_another_key_chain(tmp_path: Path) -> None:
    one, other = (recipe(f"surrogate=0.5@{gate(tmp_path / name, seed=i)}") for i, name in enumerate("ab"))
    assert isinstance(one.compactor, AfterPrompt)
    assert isinstance(other.compactor, AfterPrompt)
    assert one.compactor.id != other.compactor.id
    assert one.compactor.id == f"everywhere=0.2+surrogate=0.5@{read_calibration(str(tmp_path / 'a')).digest[:16]}/1"
    assert recipe(f"prefix+surrogate=0.5@{tmp_path / 'a'}").compactor == replace(one.compactor, on_demand=True)
    assert calibration_bytes(one(cache())) == 2 * HEADS * 23 * 4, "the ledger knows of it"
    scored = one(cache())
    made = replace(scored, compactor=replace(one.compactor, block_size=16, reads_values=False))
    more = gathering_bytes(scored, HEADS, 1000) - gathering_bytes(made, HEADS, 1000)
    assert more == 1000 * HEADS * (V_DIM + K_DIM + V_DIM) * 4, "and of values, and of what the gate is multiplied by"


@pytest.mark.parametrize("size", [8, 32, 64])
def test_every_head_keeps_the_first_and_the_last_tokens(size: int, tmp_path: Path) -> None:
    """Whatever the gate says: 32 of them."""
    made = recipe(f"surrogate=0.25@{gate(tmp_path / 'gate')}").compactor
    assert isinstance(made, AfterPrompt)
    made = replace(made, score=lambda seen: torch.arange(2.0)[:, None] * 9 + drawn(2, 1000, seed=1), block_size=size)
    scores = [made.scores(Seen(torch.empty(1000, HEADS, K_DIM)))] * 2
    assert scores[0].isinf().nonzero()[:, 1].tolist() == [*range(4), *range(972, 1000)] * 2
    counts = made.blocks(scores)
    share = made.kept(1000) - size
    assert counts[0][0] * size > 32 + share // 5 - size, (
        "of the head that nothing is expected of, and a fifth of its share"
    )
    assert counts[0][0] < counts[0][1]
    assert sum(map(sum, counts)) == 4 * share // size
    assert Everywhere(0.2).wanted(scores, 40, 32) == [[40, 40]] * 2, "as many, where these are all of a share"


def test_fitting_finds_the_weights_that_made_the_scores() -> None:
    """And leaves out what says nothing, as the formula of ridge regression has it."""
    x = torch.cat([3 + drawn(1, 400, 6, seed=1) * torch.tensor([1.0, 9, 1, 2, 0, 5]), torch.ones(1, 400, 1)], 2)
    wanted = torch.tensor([[0.5, -2.0, 0.0, 1.0, 0.0, 3.0, 7.0]])
    noise = drawn(1, 400, seed=2) / 10
    y = (x @ wanted[:, :, None])[..., 0] + noise
    fitted = Regression.of(1, 7)
    for part in (slice(150), slice(150, 400)):
        fitted.add(x[:, part], y[:, part])
    found = fitted.solved()
    torch.testing.assert_close(found[:, [0, 1, 2, 3, 5]], wanted[:, [0, 1, 2, 3, 5]], atol=0.02, rtol=0.01)
    centred = (x[0, :, :6] - x[0, :, :6].mean(0)).double()
    penalty = (1e-3 * centred.square().sum(0)).clamp(min=1e-9).sqrt().diag()
    rows = torch.cat([centred, penalty])  # the same as more rows, of which the scores are 0
    solved = torch.linalg.lstsq(rows, torch.cat([y[0] - y.mean(), torch.zeros(6)]).double()[:, None]).solution[:, 0]
    torch.testing.assert_close(found[0, :6].double(), solved, atol=1e-6, rtol=1e-5)


def test_rank_correlation_asks_for_the_order_alone() -> None:
    x = drawn(2, 100, seed=3)
    torch.testing.assert_close(rank_correlation(x, torch.stack([x[0].exp(), -x[1]])), torch.tensor([1.0, -1.0]))
    a, b = torch.tensor([[1.0, 2, 3, 4, 5]]), torch.tensor([[2.0, 1, 4, 3, 5]])
    assert rank_correlation(a, b).item() == pytest.approx(1 - 6 * 4 / (5 * 24)), "1 - 6 sum of d^2 / n (n^2 - 1)"


def test_a_gate_is_fitted_to_what_the_model_repeats() -> None:
    engine = Engine(EngineConfig(str(demo_model_dir()), num_blocks=40, max_num_seqs=1, max_num_batched_tokens=256))
    text = "\n\n".join(f"Paragraph {i} says that the {i * 37 % 91}th door is open." for i in range(60))
    parts = segments(engine.tokenizer, text, room_of(engine, 520), 520)
    found = fit_gate(engine, parts)
    assert [*found] == [f"gate.{i}{what}" for i in range(4) for what in ("", ".correlation")]
    assert all(one.shape == ((2,) if "corr" in name else (2, 64 + 64 + 3)) for name, one in found.items())
    agreed = torch.stack([one for name, one in found.items() if "corr" in name])
    assert agreed.mean() > 0.3, "fitted to 260 tokens, in others"
    assert engine.kv.stats().cached == 0
    again = fit_gate(engine, parts)
    assert all(torch.equal(again[name], one) for name, one in found.items()), "the same bits, the same keys of caches"
    with pytest.raises(ConfigError, match="are too few to fit a gate"):
        fit_gate(engine, parts[:3])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gate": {"layers": 1}}, r"has no gate of layer 1; make .* again with `kvtrove calibrate MODEL --surrogate"),
        ({"gate": {"heads": 3}}, r"has a gate \[3, 23\] of layer 0, of another model"),
        ({"retention": SlidingWindow(64)}, "layer 0 reads window=64 and not everything"),
        ({"stored": KVFormat(Dense("k", "float32"), None)}, "stores one latent vector for keys and values"),
        ({"words": "+kivi=2"}, "encodes whole blocks: take int8"),
    ],
)
def test_what_it_cannot_serve_is_refused(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = gate(tmp_path / "gate", **changed.pop("gate", {}))
    words = changed.pop("words", "")
    with pytest.raises(ConfigError, match=message):
        recipe(f"surrogate=0.5@{path}{words}")(cache(**changed))
