"""`kvtrove cache`: a directory is listed, checked, moved and emptied without an engine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvtrove.kv.tiers.disk import DiskSettings, DiskStore
from kvtrove.kv.tiers.store import Found
from tests.tiers.rows import get, known, put, row

Run = Callable[..., Any]


@pytest.fixture
def tier(tmp_path: Path) -> str:
    """A directory with 20 rows of one model and 5 of another."""
    path = str(tmp_path / "tier")
    for numbers, name, spec in ((range(20), "int8/1", b"\x01"), (range(20, 25), "int4r/1", b"\x02")):
        store = opened(path, name, spec)
        put(store, numbers)
        store.close()
    return path


def opened(path: str, name: str, spec: bytes) -> DiskStore:
    return DiskStore(DiskSettings(path, 64 << 20), name, spec)


def damage(path: str) -> None:
    file = sorted(Path(path).glob("*.rows"))[0]
    content = bytearray(file.read_bytes())
    content[3 * 8192 + 1000] ^= 1
    file.write_bytes(content)


def test_list_counts_by_model_and_format(run: Run, tier: str) -> None:
    result = run("cache", "list", tier)
    assert result.code == 0
    assert "25 rows in 2 segments" in result.out or "25 rows in 1 segment" in result.out
    assert "int8/1 (010000000000): 20 rows" in result.out
    assert "int4r/1 (020000000000): 5 rows" in result.out
    families = json.loads(run("cache", "list", tier, "--json").out)["families"]
    assert [(family["format"], family["rows"]) for family in families] == [("int8/1", 20), ("int4r/1", 5)]


def test_verify_finds_damage_and_repairs_it(run: Run, tier: str) -> None:
    assert run("cache", "verify", tier).code == 0
    damage(tier)
    found = run("cache", "verify", tier)
    assert found.code == 1
    assert "1 row damaged: run again with --repair" in found.out
    assert run("cache", "verify", tier, "--repair").code == 0
    assert json.loads(run("cache", "verify", tier, "--json").out) == {"rows": 24, "nbytes": 24 * 5000, "damaged": 0}


def test_rows_travel_in_a_file(run: Run, tier: str, tmp_path: Path) -> None:
    damage(tier)
    file, other = str(tmp_path / "rows.kvtrove"), str(tmp_path / "other")
    assert "24 rows" in run("cache", "export", tier, file).out
    assert run("cache", "export", tier, file).code == 2  # never over another file
    assert "24 rows" in run("cache", "import", other, file).out
    assert "24 were there already" in run("cache", "import", other, file).out
    store = opened(other, "int8/1", b"\x01")
    assert known(store, [2, 3, 4]) == [Found.HERE, Found.MISSING, Found.HERE]
    assert get(store, [0, 19])[1] == [row(0), row(19)]
    store.close()


def test_an_import_keeps_within_its_size_and_refuses_what_is_none(run: Run, tier: str, tmp_path: Path) -> None:
    file, other = tmp_path / "rows.kvtrove", str(tmp_path / "other")
    run("cache", "export", tier, str(file))
    assert "15 did not fit" in run("cache", "import", other, str(file), "--size", str(10 * (8192 + 64))).out
    assert sum(path.stat().st_size for path in Path(other).iterdir()) <= 10 * (8192 + 64) + 64
    (tmp_path / "text").write_text("hello")
    refused = run("cache", "import", other, str(tmp_path / "text"))
    assert refused.code == 2
    assert "was not written by kvtrove cache export" in refused.err


def test_clear_empties_and_an_engine_that_runs_is_not_disturbed(run: Run, tier: str) -> None:
    store = opened(tier, "int8/1", b"\x01")
    refused = run("cache", "clear", tier)
    assert refused.code == 2
    assert "stop the engine first" in refused.err
    assert get(store, [0])[0].ok
    store.close()
    assert "25 rows deleted" in run("cache", "clear", tier).out
    assert ": 0 rows" in run("cache", "list", tier).out


def test_a_directory_that_is_no_tier_is_never_touched(run: Run, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    for command in ("list", "verify", "clear"):
        assert run("cache", command, str(tmp_path)).code == 2
        assert run("cache", command, str(tmp_path / "nowhere")).code == 2
    assert not (tmp_path / "nowhere").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
