"""What is declared about the package agrees: version, requirements, tested versions, checks before a commit."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from typer.testing import CliRunner

import kvtrove

ROOT = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    split = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in split}


def requirements(*extras: str) -> list[str]:
    """What the package needs at run time and for these extras."""
    optional = PYPROJECT["project"]["optional-dependencies"]
    found = [*PYPROJECT["project"]["dependencies"], *(text for extra in extras for text in optional[extra])]
    return [text for text in found if not text.startswith("kvtrove[")]


def imported(folder: str) -> set[str]:
    """Distributions that the Python files of a folder import, at whatever depth of a function."""
    names: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    owners = importlib.metadata.packages_distributions()
    return {canonicalize_name(owners[name][0]) for name in names - sys.stdlib_module_names if name in owners}


def test_one_place_states_the_version() -> None:
    assert importlib.metadata.version("kvtrove") == kvtrove.__version__
    assert "version" not in PYPROJECT["project"]


def test_the_changelog_knows_the_version() -> None:
    assert f"## {kvtrove.__version__}" in (ROOT / "CHANGELOG.md").read_text()


EVERYTHING = [*PYPROJECT["build-system"]["requires"], *requirements("server", "bench", "test", "dev")]


@pytest.mark.parametrize("text", EVERYTHING)
def test_every_requirement_has_a_tested_version_that_satisfies_it(text: str) -> None:
    requirement = Requirement(text)
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("src/kvtrove", ["server", "bench", "plot", "hub", "tiers", "hf"]),
        ("tests", ["server", "bench", "plot", "tiers", "test"]),
        ("examples", []),
        ("benchmarks", ["server", "bench", "plot", "test"]),
        ("training", ["test"]),
    ],
)
def test_what_is_imported_is_declared(folder: str, extras: list[str]) -> None:
    """A package that only happens to be installed is missing on the next machine."""
    declared = {canonicalize_name(Requirement(text).name) for text in requirements(*extras)}
    undeclared = imported(folder) - declared - {"kvtrove"}
    assert not undeclared, f"{folder} imports {undeclared}: add them to pyproject.toml and constraints.txt"


def test_the_build_environment_stays_small() -> None:
    """The extension uses no torch headers, so that building it never downloads torch."""
    names = {Requirement(text).name for text in PYPROJECT["build-system"]["requires"]}
    assert names == {"scikit-build-core", "nanobind"}


def test_the_hooks_before_a_commit_run_the_tools_of_make_lint() -> None:
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    hooks = re.findall(r"entry: \.venv/bin/(\S+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert sorted(hooks) == sorted(re.findall(r"\$\(BIN\)/(\S+)", lint))


# ---- files that start it elsewhere ----


def test_every_path_that_packaging_names_exists() -> None:
    dockerfile = (ROOT / "packaging/Dockerfile").read_text()
    copied = [
        words.split()[1:-1] for words in dockerfile.splitlines() if words.startswith("COPY ") and "--from" not in words
    ]
    assert all((ROOT / name).exists() for names in copied for name in names)
    compose = (ROOT / "packaging/compose.yaml").read_text()
    mounted = re.findall(r"(\.\.?/[\w./-]+):/", compose)
    assert len(mounted) == 4
    assert all((ROOT / "packaging" / name).is_file() for name in mounted)


@pytest.mark.parametrize("file", ["Dockerfile", "compose.yaml", "kvtrove.service"])
def test_the_flags_that_packaging_names_exist(file: str) -> None:
    from kvtrove.cli.main import app

    text = (ROOT / "packaging" / file).read_text()
    ours = [line for line in text.splitlines() if "kvtrove" in line and not line.startswith("#")]
    flags = set(re.findall(r"(--(?:host|config|response-cache))\b", "\n".join([*ours, text])))
    assert flags
    help_text = CliRunner().invoke(app, ["serve", "--help"]).output
    assert all(flag in help_text for flag in flags)


def test_a_release_has_the_version_of_its_tag(tmp_path: Path) -> None:
    for name in ("packaging/version-from-tag", "src/kvtrove/__init__.py", "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "CHANGELOG.md").write_text("## 9.8.7\n")
    sources = tmp_path / "src/kvtrove/__init__.py"

    def of(tag: str) -> int:
        return subprocess.run([tmp_path / "packaging/version-from-tag", tag], capture_output=True).returncode

    unchanged = sources.read_text()
    assert (of("main"), sources.read_text()) == (0, unchanged), "a branch has the version of the sources"
    assert (of("v9.8.6"), sources.read_text()) == (1, unchanged), "a release without changes is refused"
    assert of("v9.8.7") == 0
    version = PYPROJECT["tool"]["dynamic-metadata"][0]
    assert (version["field"], version["input"]) == ("version", "src/kvtrove/__init__.py"), "the wheel's is read there"
    assert '__version__ = "9.8.7"' in sources.read_text().splitlines()
