"""Calibrations: files that are what they say, rotations that turn nothing but the axes, and what they are worth."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kvtrove.config import ConfigError
from kvtrove.demo import demo_model_dir
from kvtrove.evaluate.calibrate import calibrate, rotation, write
from kvtrove.kv.arena import Arena
from kvtrove.kv.formats.calibration import read_calibration
from kvtrove.kv.formats.dense import dense
from kvtrove.kv.recipe import recipe
from kvtrove.kv.spec import KVCacheSpec, LayerKV


def exact(dim: int, layers: int = 2) -> KVCacheSpec:
    return KVCacheSpec(tuple(LayerKV(i, 2, dim, dim, dense("float32")) for i in range(layers)), 16, "float32")


def written(path: Path, dim: int = 32, layers: int = 2) -> str:
    torch.manual_seed(dim)
    names = [f"{side}.{layer}" for side in "kv" for layer in range(layers)]
    write({name: rotation(x @ x.T) for name in names for x in (torch.randn(dim, dim).double(),)}, str(path))
    return str(path)


@pytest.mark.parametrize("dim", [8, 24, 64, 80])
def test_a_rotation_is_orthogonal(dim: int) -> None:
    x = torch.randn(dim, dim, dtype=torch.float64)
    found = rotation(x @ x.T).double()
    torch.testing.assert_close(found @ found.T, torch.eye(dim, dtype=torch.float64), atol=dim * 2**-23, rtol=0)


def test_a_file_is_read_as_it_was_written_and_its_digest_enters_the_fingerprint(tmp_path: Path) -> None:
    one, other = written(tmp_path / "a.safetensors"), written(tmp_path / "b.safetensors", layers=3)
    calibration = read_calibration(one)
    assert calibration.shapes["v.1"] == (32, 32)
    assert calibration.tensor("v.1", torch.zeros(1)).shape == (32, 32)
    first, second = (recipe(f"oscar={path}")(exact(32)) for path in (one, other))
    assert first.fingerprint != second.fingerprint


def test_wrong_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    good = Path(written(tmp_path / "good.safetensors"))
    content = good.read_bytes()
    (tmp_path / "short").write_bytes(content[: len(content) // 2])
    (tmp_path / "header").write_bytes(content[:20])
    (tmp_path / "changed").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (tmp_path / "other").write_text("not a calibration")
    for name, message in {
        "missing": "cannot read the calibration .*kvtrove calibrate MODEL",
        "short": "is not what was written: its digest differs",
        "header": "is no complete calibration file",
        "changed": "is not what was written: its digest differs",
        "other": "is no complete calibration file",
    }.items():
        with pytest.raises(ConfigError, match=message):
            recipe(f"oscar={tmp_path / name}")
    with pytest.raises(ConfigError, match="layer 0: the calibration is for vectors of 32 elements, not 64"):
        recipe(f"oscar={good}")(exact(64))
    with pytest.raises(ConfigError, match=r"layer 2: the calibration has no rotation 'k\.2': it is that of another"):
        recipe(f"oscar={good}")(exact(32, layers=3))


def test_calibrating_measures_every_layer(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 40)
    found = calibrate(str(demo_model_dir()), str(text), 260, surrogate=True)
    assert {name.split(".")[0] for name in found} == {"k", "v", "q", "gate"}
    assert len({name.split(".")[1] for name in found}) == 4, "each of the demo model's layers"
    assert all(torch.isfinite(matrix).all() for matrix in found.values())


def test_a_rotation_of_its_own_errs_less_where_queries_look(tmp_path: Path) -> None:
    """Keys with large channels that no query looks at: what is wrong with a score is what counts."""
    torch.manual_seed(1)
    dim, count = 32, 64
    channels = torch.ones(dim)
    channels[::8] = 12.0
    keys, queries = torch.randn(count, 2, dim) * channels, torch.randn(500, dim) / channels
    moment = (queries.T @ queries / 500).double()
    write({f"{side}.0": rotation(moment) for side in "kv"}, str(tmp_path / "own"))
    errors = {}
    for words in (f"oscar={tmp_path / 'own'}", "kivi=2"):
        spec = recipe(words)(KVCacheSpec((LayerKV(0, 2, dim, dim, dense("float32")),), count, "float32"))
        layer, arena = spec.layers[0], Arena(spec, 2)
        layer.format.seal(keys[None], keys[None], arena.views(0), torch.tensor([1]))
        k, v = layer.format.decode(arena.views(0), torch.tensor([1]))
        for side, read in (("k", k), ("v", v)):
            errors[words[:5], side] = float(((read - keys) @ queries.T).square().mean())
    assert errors["oscar", "v"] < errors["kivi=", "v"], (
        "both per token, and without a rotation channels drown the others"
    )
