"""Which models there are, what each takes, and whose metrics are whose."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtrove.config import ConfigError
from kvtrove.demo import demo_model_dir
from kvtrove.fleet.budget import LEAST_CACHE, base_bytes, divide
from kvtrove.fleet.metrics import merged
from kvtrove.fleet.models_file import ModelEntry, read_models

MIB = 2**20


def write(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "models.toml"
    file.write_text(text)
    return file


def test_a_file_of_models(tmp_path: Path) -> None:
    text = """
        [small]
        model = "demo"
        aliases = ["a", "b"]
        preload = true
        idle = 5
        kv = "64MiB"
        enable_prefix_caching = false
        cache_report = true
        lora_modules = ["a=/a", "b=/b"]
        [other]
        model = "/x"
    """
    small, other = read_models(write(tmp_path, text))
    lora = ["--lora-modules", "a=/a", "--lora-modules", "b=/b"]
    assert (small.name, small.model, small.aliases, small.preload, small.idle) == ("small", "demo", ("a", "b"), True, 5)
    assert small.kv == 64 * MIB
    assert small.flags() == ["--kv", "64MiB", "--no-prefix-caching", "--cache-report", *lora]
    assert other == ModelEntry("other", "/x")
    assert other.kv is None


def test_a_directory_of_models(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "notes").mkdir()
    (tmp_path / "c-q4.gguf").write_bytes(b"GGUF")
    assert [entry.name for entry in read_models(tmp_path)] == ["a", "b", "c-q4"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no model"),
        ("a = ", "is not TOML"),
        ("a = 1", r"\[a\] must be a table"),
        ("[a]", "has no model"),
        ('[a]\nmodel = "x"\nkvv = "1GiB"', "unknown setting 'kvv' .did you mean 'kv'"),
        ('[a]\nmodel = "x"\nkv = "much"', r"\[a\] kv: cannot read 'much'"),
        ('[a]\nmodel = "x"\naliases = "y"', "aliases must be a list"),
        ('[a]\nmodel = "x"\nidle = -1', "idle: -1 must be a number of seconds"),
        ('[a]\nmodel = "x"\npreload = 1', "preload must be true or false"),
        ('[a]\nmodel = "x"\ndtype = ["y"]', "dtype must be one value, not list"),
        ('[a]\nmodel = "x"\naliases = ["b"]\n[b]\nmodel = "y"', r"'b' names both \[a\] and \[b\]"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_models(write(tmp_path, text))


def test_memory_is_divided(tmp_path: Path) -> None:
    """Caches share what is left when all models fit; else each gets what is free beside it alone."""
    a, b, c = ModelEntry("a", "x"), ModelEntry("b", "x"), ModelEntry("c", "x", settings={"kv": "100MiB"})
    bases = {"a": 500 * MIB, "b": 700 * MIB, "c": 300 * MIB}
    needs = divide([a, b, c], bases, 2000 * MIB)
    assert {name: need.kv // MIB for name, need in needs.items()} == {"a": 200, "b": 200, "c": 100}
    assert sum(need.total for need in needs.values()) <= 2000 * MIB
    apart = divide([a, b, c], bases, 1000 * MIB)
    assert {name: need.kv // MIB for name, need in apart.items()} == {"a": 200, "b": 120, "c": 100}
    assert max(need.total for need in apart.values()) <= 1000 * MIB
    with pytest.raises(ConfigError, match=r"\[b\] takes 700MiB beside its cache of 64MiB.* or --memory 764MiB"):
        divide([a, b, c], bases, 710 * MIB)
    assert LEAST_CACHE == 64 * MIB


def test_what_a_model_takes_beside_its_cache() -> None:
    plain = base_bytes(ModelEntry("a", "demo"), demo_model_dir())
    fewer = base_bytes(ModelEntry("a", "demo", settings={"max_num_seqs": 4}), demo_model_dir())
    assert 512 * MIB < fewer < plain < 2048 * MIB


def test_metrics_of_all_models_stay_in_their_families() -> None:
    one = '# HELP x X.\n# TYPE x counter\nx_total 1.0\nx_total{a="b"} 2.0\n# HELP y Y.\n# TYPE y gauge\ny NaN\n'
    text = merged({"a": one, 'b"': "# HELP x X.\n# TYPE x counter\nx_total 3.0\n"})
    assert text == (
        "# HELP x X.\n# TYPE x counter\n"
        'x_total{model="a"} 1.0\nx_total{model="a",a="b"} 2.0\nx_total{model="b\\""} 3.0\n'
        '# HELP y Y.\n# TYPE y gauge\ny{model="a"} NaN\n'
    )
