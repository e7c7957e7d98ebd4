"""Ordinary English that every machine has: the documentation strings of Python's own standard library."""

from __future__ import annotations

import ast
import inspect
import sysconfig
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_SHORTEST = 80  # characters; shorter strings are hardly sentences
_HELD_OUT = 10  # one module in so many is never trained on


@cache
def paragraphs(split: str) -> tuple[str, ...]:
    """Paragraphs of one split ("train" or "heldout"), in the order of the file names; a module belongs to one split.

    What modules of both splits say in the same words is trained on, so it is not held out.
    """
    seen = set(paragraphs("train")) if split == "heldout" else set()
    library = Path(sysconfig.get_path("stdlib"))
    return tuple(
        paragraph
        for path in sorted((*library.glob("*.py"), *library.glob("*/*.py")))
        if _has_documentation(path.relative_to(library)) and split_of(path.stem) == split
        for paragraph in _paragraphs(path)
        if paragraph not in seen
    )


def split_of(module: str) -> str:
    """The split of a module, by its name alone."""
    return "heldout" if zlib.crc32(module.encode()) % _HELD_OUT == 0 else "train"


def _has_documentation(path: Path) -> bool:
    return path.parts[0] not in ("test", "tests", "site-packages", "idlelib", "turtledemo", "lib2to3", "__pycache__")


def _paragraphs(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for paragraph in inspect.cleandoc(ast.get_docstring(node) or "").split("\n\n"):
            text = " ".join(paragraph.split())
            if len(text) >= _SHORTEST and ">>>" not in text:
                yield text
