"""Finished results: kept whole, found again only where they belong, never lost to a broken file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kvtrove.config import ConfigError
from kvtrove.evaluate.store import FORMAT, Store


def test_what_was_put_is_found_again_in_another_process(tmp_path: Path) -> None:
    path = str(tmp_path / "state.json")
    Store(path, "a").put("cell 1", {"kl": [0.1 + 0.2, 1e-300]})
    found = Store(path, "a")
    assert found.get("cell 1") == {"kl": [0.1 + 0.2, 1e-300]}
    assert found.get("cell 2") is None


def test_a_fingerprint_sees_its_own_results_alone_and_keeps_those_of_others(tmp_path: Path) -> None:
    path = str(tmp_path / "state.json")
    Store(path, "a").put("cell", {"of": "a"})
    other = Store(path, "b")
    assert other.get("cell") is None
    other.put("cell", {"of": "b"})
    assert Store(path, "a").get("cell") == {"of": "a"}


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(None, "a")
    store.put("cell", {"x": 1})
    assert store.get("cell") == {"x": 1}
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    store = Store(str(path), "a")
    store.put("cell 1", {"x": 1})
    before = path.read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ConfigError, match=r"state: cannot write .*state\.json: No space left"):
        store.put("cell 2", {"x": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"format": "other/1", "runs": {}}', json.dumps({"format": FORMAT, "runs": [1]})]
)
def test_a_file_that_is_no_state_is_refused_and_left_alone(tmp_path: Path, content: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"state: .*state\.json is no state of `kvtrove eval`.*name another file"):
        Store(str(path), "a")
    assert path.read_text() == content
