"""What is declared about the package agrees: version, requirements, tested versions, checks before a commit."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import kvtrove

ROOT = Path(__file__).parents[2]
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    split = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in split}


def requirements() -> list[str]:
    project = PYPROJECT["project"]
    extras = [text for texts in project["optional-dependencies"].values() for text in texts]
    return [*PYPROJECT["build-system"]["requires"], *project["dependencies"], *extras]


def test_one_place_states_the_version() -> None:
    assert importlib.metadata.version("kvtrove") == kvtrove.__version__
    assert "version" not in PYPROJECT["project"]


def test_the_changelog_knows_the_version() -> None:
    assert f"## {kvtrove.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("text", requirements())
def test_every_requirement_has_a_tested_version_that_satisfies_it(text: str) -> None:
    requirement = Requirement(text)
    assert requirement.specifier.contains(pins()[canonicalize_name(requirement.name)])


def test_the_build_environment_stays_small() -> None:
    """The extension uses no torch headers, so that building it never downloads torch."""
    names = {Requirement(text).name for text in PYPROJECT["build-system"]["requires"]}
    assert names == {"scikit-build-core", "nanobind"}


def test_the_hooks_before_a_commit_run_the_tools_of_make_lint() -> None:
    lint = (ROOT / "Makefile").read_text().split("\nlint:")[1].split("\n\n")[0]
    hooks = re.findall(r"entry: \.venv/bin/(\S+)", (ROOT / ".pre-commit-config.yaml").read_text())
    assert sorted(hooks) == sorted(re.findall(r"\$\(BIN\)/(\S+)", lint))
