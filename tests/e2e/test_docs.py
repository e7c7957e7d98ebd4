"""A newcomer's walk: the pages are true. Their commands and scripts run, in order, and print what the pages say.

A page has a folder of its own with a checkpoint in it, and all pages share one server, which the first `kvtrove serve`
starts. Terminals are 80 columns wide, and nothing that a command prints is cut to fit.
"""

from __future__ import annotations

import json
import re
import runpy
import shlex
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from kvtrove.bench.engine import limits
from kvtrove.cli import output
from kvtrove.cli.main import app
from kvtrove.config import Environment
from kvtrove.doctor import speed
from kvtrove.foreign import FLAGS
from tests.pages import ROOT, Block, blocks, check_printed, pages
from tests.server.live import LiveServer, running_server
from tests.unit.plan.configs import LLAMA_31_8B

HERE = (
    "docs/cache-formats.md",
    "docs/checkpoints.md",
    "docs/quickstart.md",
    "docs/watching.md",
    "docs/settings.md",
    "docs/server.md",
    "docs/planner.md",
    "docs/models.md",
    "docs/embeddings.md",
)
ELSEWHERE = {
    "docs/benchmarking.md": "tests/e2e/test_bench_serve.py",
    "docs/evaluation.md": "tests/e2e/test_evaluate.py",
    "docs/tiers.md": "tests/e2e/test_docs.py",
    "README.md": "make itself",
}
ADDRESS = "http://127.0.0.1:8000"


class Reader:
    """Runs what a page tells to run. printed: what came, by command, with the page's own address."""

    def __init__(
        self, run: Callable[..., Any], shell: Callable[..., Any], folder: Path, start: Callable[..., str]
    ) -> None:
        self.run, self.shell, self.folder, self.start = run, shell, folder, start

    def follow(self, block: Block) -> None:
        for command, expected in block.commands:
            words = shlex.split(command)
            starts = words[:2] == ["kvtrove", "serve"] and "--print-config" not in words
            if starts and not expected[0].startswith("error: "):
                check_printed(expected, self.start(words[2:]).splitlines(), block.within)
                continue
            address = self.start(None) if ADDRESS in command else ADDRESS
            command = command.replace(ADDRESS, address)
            result = self._result(command)
            refused = bool(expected) and expected[0].startswith("error: ")
            assert result.code == (2 if refused else 0), result.err
            printed = (result.out + result.err).replace(address, ADDRESS)
            assert "…" not in printed, f"{command} cuts what it prints"
            check_printed(expected, printed.splitlines(), block.within)

    def _result(self, command: str) -> Any:
        """Of ours, in this process and into a file where it says so; of any other, from a shell."""
        program, *words = shlex.split(command)
        if program != "kvtrove" or "|" in words:
            return self.shell(command, cwd=self.folder)
        if ">" not in words:
            return self.run(*words)
        result = self.run(*words[: words.index(">")])
        (self.folder / words[-1]).write_text(result.out)
        return replace(result, out="")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """start(flags): what the server printed, with the page's address. start(None): its address."""
    with ExitStack() as stack:
        running: list[tuple[LiveServer, str]] = []

        def once(flags: list[str] | None) -> str:
            if not running:
                assert flags, "no block before this one starts a server"
                server = stack.enter_context(running_server(tmp_path_factory.mktemp("server"), *flags))
                assert server.process.stdout is not None
                lines = [server.first_line, *(server.process.stdout.readline() for _ in range(2))]
                running.append((server, "".join(lines).replace(server.url, ADDRESS)))
            server, printed = running[0]
            return server.url if flags is None else printed

        yield once


@pytest.fixture
def here(tmp_path: Path, demo_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The reader's folder, with a checkpoint in it; a terminal of 80 columns; no time to measure the machine."""
    (tmp_path / "my-model").symlink_to(demo_dir)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    planned = tmp_path / "path/to/Llama-3.1-8B/config.json"
    planned.parent.mkdir(parents=True)
    planned.write_text(json.dumps(LLAMA_31_8B))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("KVTROVE_HOME", str(tmp_path / "kvtrove"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(output, "PIPE_WIDTH", 80)
    monkeypatch.setattr(speed, "SECONDS", 0.0)
    monkeypatch.setattr(limits, "READ_BYTES", 2**20)
    return tmp_path


@pytest.fixture
def reader(run: Callable[..., Any], shell: Callable[..., Any], here: Path, start: Callable[..., str]) -> Reader:
    return Reader(run, shell, here, start)


@pytest.mark.parametrize("page", HERE)
def test_a_page_from_top_to_bottom(
    page: str, reader: Reader, start: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    for block in blocks(page, "console", "python"):
        if block.language == "console":
            reader.follow(block)
        else:
            text = block.text.replace(ADDRESS, start(None)) if ADDRESS in block.text else block.text
            (reader.folder / "script.py").write_text(text)
            runpy.run_path("script.py")
            assert capsys.readouterr().out


def test_the_page_of_tiers_from_top_to_bottom(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    """Its blocks share a folder: what one fills, the next one lists."""
    for block in blocks("docs/tiers.md", "console", "python"):
        if block.language == "console":
            reader.follow(block)
        else:
            (reader.folder / "script.py").write_text(block.text)
            runpy.run_path("script.py")
            assert capsys.readouterr().out == "True\n"


def test_every_page_with_commands_is_followed_by_a_test() -> None:
    with_commands = {page for page in pages() if blocks(page, "console")}
    assert with_commands <= {*HERE, *ELSEWHERE}


# ---- what pages mention ----


def commands() -> Iterator[tuple[list[str], Any]]:
    """(words, command) of all, those of groups too."""
    root: Any = typer.main.get_command(app)
    for name in root.list_commands(None):
        command = root.get_command(None, name)
        yield [name], command
        for nested, one in getattr(command, "commands", {}).items():
            yield [name, nested], one


def flags(command: Any) -> set[str]:
    return {flag for parameter in command.params for flag in (*parameter.opts, *parameter.secondary_opts)}


def test_every_flag_of_every_command_can_be_read_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    for words, command in commands():
        text = CliRunner().invoke(app, [*words, "--help"]).stdout
        assert "…" not in text, words
        shown = {
            flag
            for parameter in command.params
            if not getattr(parameter, "hidden", False)
            for flag in (*parameter.opts, *parameter.secondary_opts)
            if flag.startswith("-")
        }
        assert not {flag for flag in shown if not re.search(rf"(?<![\w-]){flag}(?![\w-])", text)}, words
        assert max(map(len, text.splitlines())) <= 80, words


def test_every_flag_that_a_page_names_exists() -> None:
    known = (
        {flag for _, command in commands() for flag in flags(command)}
        | set(FLAGS)
        | {"--help", "--version", "--show-completion", "--install-completion"}
    )
    for script in (ROOT / "benchmarks").rglob("*.py"):
        known |= set(re.findall(r'"(--[a-z][\w-]*)"', script.read_text(encoding="utf-8")))
    unknown = {}
    for page in pages():
        text = (ROOT / page).read_text(encoding="utf-8")
        found = set(re.findall(r"`(--[a-z][\w-]*)", text))
        unknown[page] = sorted(found - known)
    assert not {page: names for page, names in unknown.items() if names}


def test_the_page_of_settings_has_every_flag_of_other_engines_and_every_variable() -> None:
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    missing = {flag for flag in FLAGS if f"`{flag}`" not in page}
    missing |= {f"KVTROVE_{field.name.upper()}" for field in fields(Environment)} - set(
        re.findall(r"KVTROVE_\w+", page)
    )
    assert not missing


@pytest.mark.parametrize("page", pages())
def test_commands_that_a_page_only_shows_are_understood(page: str) -> None:
    """They are parsed, with --print-config, which does nothing else."""
    for block in blocks(page, "text", "sh", ""):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = (
                shlex.split(line.removeprefix("$ "), comments=True)
                if line.removeprefix("$ ").startswith("kvtrove ")
                else []
            )
            if words and words[1] not in ("cache", "models", "bench", "[...]"):
                result = CliRunner().invoke(app, [*(w for w in words[1:] if w != "..."), "--print-config"])
                assert result.exit_code == 0, f"{line}: {result.output}"


def test_a_page_that_lies_is_found() -> None:
    check_printed(["turn 2: 60 tokens in 0.1 s …"], ["hello", "turn 2: 60 tokens in 7.25 s at all"])
    check_printed(["weights 9.3MiB"], ["weights 9.4MiB"], within=0.05)
    for expected, printed in (
        (["turn 2: 60 tokens"], ["turn 2: 60 words"]),
        (["turn 2: 60 tokens"], ["turn 2: 61 tokens"]),
        (["weights 9.3MiB"], ["weights 9.4MiB"]),
        (["weights 9.3MiB"], ["weights 10MiB"]),
        (["1,024 blocks, 0 used"], ["1,024 blocks, 1 used"]),
        (["b", "a"], ["a", "b"]),
    ):
        with pytest.raises(AssertionError, match="is not in"):
            check_printed(expected, printed)
    with pytest.raises(AssertionError, match="is not in"):
        check_printed(["weights 9.3MiB"], ["weights 10MiB"], within=0.05)
