"""Low rank: what lies in the basis comes back, what is stored shrinks with the rank, and files must fit the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kvtrove.config import ConfigError
from kvtrove.evaluate.calibrate import write
from kvtrove.kv.arena import Arena
from kvtrove.kv.formats.dense import dense
from kvtrove.kv.recipe import recipe
from kvtrove.kv.spec import KVCacheSpec, LayerKV

HEADS, DIM, BLOCK = 4, 16, 16
N = HEADS * DIM


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two groups of two heads in layer 0; its weights differ from element to element."""
    torch.manual_seed(0)
    path = str(tmp_path_factory.mktemp("lowrank") / "own.safetensors")
    names = ("k.0", "v.0")
    bases = {f"{name}.basis": torch.linalg.qr(torch.randn(2, N // 2, N // 2)).Q for name in names}
    write(bases | {f"{name}.weights": torch.rand(N) + 0.5 for name in names}, path)
    return path


def cache(words: str, dim: int = DIM, heads: int = HEADS, layer: int = 0) -> KVCacheSpec:
    return recipe(words)(KVCacheSpec((LayerKV(layer, heads, dim, dim, dense("float32")),), BLOCK, "float32"))


def stored_and_read(spec: KVCacheSpec, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    arena = Arena(spec, 3)
    spec.layers[0].format.encode(k, v, arena.views(0), torch.arange(BLOCK, BLOCK + len(k)))
    found = spec.layers[0].format.decode(arena.views(0), torch.tensor([1]))
    return found[0][: len(k)], found[1][: len(k)]


def test_vectors_within_the_basis_come_back(file: str) -> None:
    """Coefficients of the first 4 columns of each head, through weights and basis; float32 rounds each of 32 sums."""
    spec = cache(f"lowrank=4@{file}")
    codec = spec.layers[0].format.k
    basis, weights = (codec.calibration.tensor(f"k.0.{part}", torch.ones(1)) for part in ("basis", "weights"))  # type: ignore[union-attr]
    inside = torch.einsum("tgr,gnr->tgn", torch.randn(10, 2, 8), basis[..., :8]).flatten(1) / weights
    x = inside.unflatten(1, (HEADS, DIM))
    k, v = stored_and_read(spec, x, x)
    torch.testing.assert_close(k, x, atol=32 * 2**-22, rtol=0)
    assert (v - x).abs().max() > 0.1, "another side has another basis"


def test_every_rank_is_the_best_that_its_columns_allow(file: str) -> None:
    """Errors in the weighted space are what the left-out columns held, and shrink to nothing with the rank."""
    x, errors = torch.randn(16, HEADS, DIM), []
    for rank in (4, 8, 12, 16):
        k, _ = stored_and_read(cache(f"lowrank={rank}@{file}"), x, x)
        weights = cache(f"lowrank=1@{file}").layers[0].format.k.calibration.tensor("k.0.weights", x)  # type: ignore[union-attr]
        errors.append(float(((k - x).flatten(1) * weights).square().sum()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8 < 1 < errors[0]


@pytest.mark.parametrize(
    ("words", "bits"), [("lowrank=0.5@", 16), ("lowrank=4@", 8), ("lowrank=1.0@", 32), ("lowrank=0.5,int8@", 5)]
)
def test_memory_falls_with_the_rank(file: str, words: str, bits: float) -> None:
    """Per element of the exact cache's vectors in float32; int8 has a float16 for each head's 8 coefficients."""
    spec = cache(words + file)
    assert spec.block_bytes * 8 / (BLOCK * HEADS * 2 * DIM) == bits
    assert Arena(spec, 5).nbytes == 5 * spec.block_bytes


def test_what_is_stored_enters_the_fingerprint(file: str) -> None:
    words = ("lowrank=8@", "lowrank=4@", "lowrank=8,int8@", "lowrank=8,bf16@")
    assert len({cache(word + file).fingerprint for word in words}) == 4
    assert cache(f"lowrank=0.5@{file}").fingerprint == cache(f"lowrank=8@{file}").fingerprint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lowrank", r"lowrank= needs a share of each vector or a rank, .* such as lowrank=0\.5@FILE"),
        ("lowrank=0.5", "needs a share of each vector or a rank, and a calibration"),
        ("lowrank=1.5@FILE", "needs a share of each vector or a rank"),
        ("lowrank=half@FILE", "needs a share of each vector or a rank"),
        ("lowrank=0.5@missing", "cannot read the calibration 'missing': .*kvtrove calibrate"),
        (
            "lowrank=0.5,int9@FILE",
            r"coefficients cannot be stored as 'int9' \(did you mean 'int8'\?\); there are fp32,",
        ),
        ("lowrank=0.5,kivi@FILE", "coefficients cannot be stored as 'kivi'"),
        ("lowrank=17@FILE", "lowrank=17 is no rank of vectors of 16 elements: take 1 to 16, or a share as 0.5"),
        ("lowrank=0@FILE", "lowrank=0 is no rank of vectors of 16 elements"),
        ("lowrank=3,int4r@FILE", "int4r needs an even number of elements, not 3"),
        ("v=lowrank=4@FILE+adakv+snapkv=0.5", "calibrated for all heads together: its heads cannot keep different"),
    ],
)
def test_a_wrong_word_is_told_what_works(file: str, words: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cache(words.replace("FILE", file))


def test_a_file_of_another_model_is_refused(file: str, tmp_path: Path) -> None:
    for changes in ({"dim": 32}, {"heads": 2}, {"layer": 1}):
        with pytest.raises(ConfigError, match="it is that of another model or version; make it with"):
            cache(f"lowrank=0.5@{file}", **changes)
    (tmp_path / "short").write_bytes(Path(file).read_bytes()[:-4])
    with pytest.raises(ConfigError, match="its digest differs"):
        cache(f"lowrank=0.5@{tmp_path / 'short'}")
