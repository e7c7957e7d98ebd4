"""The command line as users meet it: in this process (fast) or as a process of its own (real exit codes and pipes)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

import kvtrove

SOURCE = Path(kvtrove.__file__).parent.parent


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def demo_dir() -> Path:
    from kvtrove.demo import demo_model_dir

    return demo_model_dir()


@pytest.fixture
def checkpoint(demo_dir: Path, tmp_path: Path) -> Path:
    """A copy of the embedded model that a test may damage."""
    return Path(shutil.copytree(demo_dir, tmp_path / "checkpoint"))


@pytest.fixture
def run() -> Callable[..., Result]:
    """`run("generate", "demo", "hi", input=..., env=...)` inside this process."""
    from kvtrove.cli.main import app

    def call(*args: str, input: str | None = None, env: Mapping[str, str] | None = None) -> Result:
        result = CliRunner().invoke(app, list(args), input=input, env=dict(env or {}))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception  # what would be a traceback for the user is a failure of the test
        return Result(result.exit_code, result.stdout, result.stderr)

    return call


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a child process in which `kvtrove` and `python` are those under test."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, module in (("kvtrove", "-m kvtrove"), ("python", "")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        script.chmod(0o755)
    search = {"PATH": str(folder), "PYTHONPATH": str(SOURCE)}
    joined = {name: os.pathsep.join(filter(None, [first, os.environ.get(name)])) for name, first in search.items()}
    return {**os.environ, **joined, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}


@pytest.fixture
def shell(environment: dict[str, str], tmp_path: Path) -> Callable[..., Result]:
    """`shell("kvtrove generate demo hi | head -1")` as real processes in an empty folder."""
    folder = tmp_path / "here"
    folder.mkdir()

    def call(command: str, cwd: Path = folder, timeout: float = 120, **env: str) -> Result:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command],
            cwd=cwd,
            env=environment | env,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call
