"""What a checkpoint recommends is what a request gets that does not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kvtrove.models.spec import ModelError
from kvtrove.text.generation_config import sampling_defaults


def write(directory: Path, config: dict[str, Any]) -> Path:
    (directory / "generation_config.json").write_text(json.dumps(config))
    return directory


def test_only_what_says_how_to_draw_is_read(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path) == {}
    config = {"eos_token_id": 2, "temperature": 0.6, "top_p": 0.9, "top_k": 20, "min_p": None, "max_length": 20}
    assert sampling_defaults(write(tmp_path, config)) == {"temperature": 0.6, "top_p": 0.9, "top_k": 20}


def test_no_sampling_is_greedy(tmp_path: Path) -> None:
    assert sampling_defaults(write(tmp_path, {"do_sample": False, "temperature": 0.6})) == {"temperature": 0.0}
    assert sampling_defaults(write(tmp_path, {"do_sample": True})) == {}


@pytest.mark.parametrize("config", [{"temperature": -1}, {"top_p": 2.0}, {"temperature": "hot"}])
def test_a_value_that_cannot_be_one_names_the_file(tmp_path: Path, config: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"generation_config\.json: "):
        sampling_defaults(write(tmp_path, config))
