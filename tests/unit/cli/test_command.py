"""Flags from a file, printed as a file, and in other engines' spelling, on real commands."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from kvtrove.cli.main import app


def run(*args: str) -> Any:
    return CliRunner().invoke(app, list(args))


def printed(*args: str) -> dict[str, Any]:
    result = run(*args, "--print-config")
    assert result.exit_code == 0, result.output
    return tomllib.loads(result.stdout)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        (tmp_path / "settings.toml").write_text(text)
        return str(tmp_path / "settings.toml")

    return write


def test_print_config_prints_every_flag_and_reads_back(file: Callable[[str], str]) -> None:
    first = printed("serve", "demo", "-c", "4k", "--no-prefix-caching", "--cors-origin", "http://a")
    assert first["model"] == "demo"
    assert first["max-model-len"] == "4k"
    assert first["prefix-caching"] is False
    text = run("serve", "demo", "-c", "4k", "--no-prefix-caching", "--cors-origin", "http://a", "--print-config").stdout
    assert printed("serve", "--config", file(text)) == first


def test_a_secret_is_not_printed() -> None:
    text = run("serve", "--api-key", "hush-hush", "--print-config").stdout
    assert "hush-hush" not in text
    assert "# api-key is a secret" in text


def test_the_command_line_wins_and_tables_are_for_one_command(file: Callable[[str], str]) -> None:
    path = file('kv = "1GiB"\nmax_num_seqs = 8\nmodel = "qwen3"\n[serve]\nport = 9000\n[chat]\nsystem = "Hi"\n')
    serve = printed("serve", "--config", path, "--kv", "2GiB")
    assert (serve["kv"], serve["max-num-seqs"], serve["port"], serve["model"]) == ("2GiB", 8, 9000, "qwen3")
    assert printed("chat", f"--config={path}")["system"] == "Hi"


def test_a_file_of_another_command_sets_what_both_have(file: Callable[[str], str]) -> None:
    text = run("serve", "demo", "--kv", "1GiB", "--threads", "2", "--print-config").stdout
    result = run("chat", "--config", file(text), "--print-config")
    chat = tomllib.loads(result.stdout)
    assert (result.exit_code, chat["kv"], chat["threads"]) == (0, "1GiB", 2)
    assert " chat has no max-queue," in result.stderr
    own = run("chat", "--config", file("[chat]\nport = 1\n"))
    assert "unknown flag 'port'" in own.stderr, "what stands in the command's own table is meant for it"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "unknown flag 'prot' (did you mean 'port'?)"),
        ("port = ", "Invalid value"),
        ('port = "many"', "Invalid value for '--port'"),
    ],
)
def test_a_wrong_file_is_one_line(text: str, message: str, file: Callable[[str], str]) -> None:
    result = run("serve", "--config", file(text))
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_a_file_that_is_not_there() -> None:
    assert "there is no file nowhere.toml" in run("serve", "--config", "nowhere.toml").stderr


@pytest.mark.parametrize("command", ["eval", "serve", "chat", "run", "generate", "plan", "simulate", "explain"])
def test_every_command_takes_the_model_first_or_by_flag(command: str) -> None:
    more = {"generate": ["hi"], "simulate": ["--trace", "x"], "explain": ["a.json", "b.json"]}.get(command, [])
    by_flag = printed(command, *more, "--model", "qwen3")
    by_place = printed(command, *(["qwen3", *more] if command != "explain" else [*more, "qwen3"]))
    assert by_flag == by_place
    assert by_flag["model"] == "qwen3"
