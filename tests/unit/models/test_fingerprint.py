"""What changes the identity of a checkpoint, and what does not."""

from __future__ import annotations

import shutil

import pytest

from kvtrove.models.config_reader import read_spec
from kvtrove.models.fingerprint import model_fingerprint


@pytest.fixture
def copy(checkpoints, tmp_path):
    def make(family):
        directory = tmp_path / family
        shutil.copytree(checkpoints.get(family), directory)
        return directory

    return make


def fingerprint(directory, dtype="float32", served=64):
    return model_fingerprint(directory, read_spec(directory), dtype, served)


def test_a_copy_has_the_same_identity(copy, checkpoints):
    assert fingerprint(copy("llama")) == fingerprint(checkpoints.get("llama"))


def test_one_changed_weight_changes_it(copy):
    directory = copy("llama")
    before = fingerprint(directory)
    path = directory / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert fingerprint(directory) != before


def test_config_and_dtype_change_it(copy):
    directory = copy("llama")
    before = fingerprint(directory)
    assert fingerprint(directory, "bfloat16") != before
    config = directory / "config.json"
    config.write_text(config.read_text().replace("{", '{"note": 1,', 1))
    assert fingerprint(directory) != before


def test_the_tokenizer_does_not(copy):
    directory = copy("llama")
    before = fingerprint(directory)
    (directory / "tokenizer.json").unlink()
    assert fingerprint(directory) == before


def test_a_context_that_stretches_rope_changes_it(checkpoints):
    """phi3_long was trained on 32 tokens: a longer served context rotates all keys by other angles."""
    directory = checkpoints.get("phi3_long")
    assert fingerprint(directory, served=20) == fingerprint(directory, served=32)
    assert fingerprint(directory, served=33) != fingerprint(directory, served=32)
    assert fingerprint(checkpoints.get("llama"), served=33) == fingerprint(checkpoints.get("llama"), served=32)
