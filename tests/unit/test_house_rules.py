"""Rules of the house that no linter knows. Each test names the offenders and what to do about them."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvtrove
from kvtrove.cli.main import COMMANDS, FILES

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src" / "kvtrove"
MODULES = sorted(SRC.rglob("*.py"))
MAX_LINES = 400

# Light by loading their heavy parts late, which the import contracts cannot see.
LAZY = (
    "kvtrove",
    "kvtrove.kernels",
    "kvtrove.cli.main",
    *(f"kvtrove.cli.{name}" for name in {*COMMANDS, *FILES.values()} - {*FILES}),
)


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SRC.parent).with_suffix("").parts).removesuffix(".__init__")


def torch_free_modules() -> list[str]:
    """The modules of the import contract in pyproject.toml, packages expanded."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = (c for c in contracts if c["name"] == "Metadata and text import no torch")
    roots = contract["source_modules"]
    found = [n for n in map(name_of, MODULES) if any(n == root or n.startswith(f"{root}.") for root in roots)]
    return sorted({*roots, *found, *LAZY})


@pytest.fixture(scope="module")
def import_errors() -> dict[str, str]:
    """What each torch-free module raises in one fresh process in which torch and the extras cannot be imported."""
    script = """
import importlib, json, sys
for name in ("torch", "fastapi", "starlette", "uvicorn", "llguidance", "httpx"):
    sys.modules[name] = None
errors = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        errors[name] = f"{type(error).__name__}: {error}"
print(json.dumps(errors))
"""
    command = [sys.executable, "-c", script, *torch_free_modules()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    errors: dict[str, str] = json.loads(done.stdout)
    return errors


@pytest.mark.parametrize("module", torch_free_modules())
def test_metadata_and_text_import_no_torch(module: str, import_errors: dict[str, str]) -> None:
    """`kvtrove plan` answers in a fraction of a second because nothing on its way loads torch."""
    assert module not in import_errors, import_errors[module]


def test_every_public_name_can_be_imported() -> None:
    assert {type(getattr(kvtrove, name)) for name in kvtrove.__all__} == {type}
    assert set(kvtrove.__all__) <= set(dir(kvtrove))


def test_an_unknown_public_name_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="module 'kvtrove' has no attribute 'LMM'; it has LLM, "):
        kvtrove.LMM  # noqa: B018


def test_a_file_answers_one_question() -> None:
    sources = [path for path in SRC.rglob("*") if path.suffix in {".py", ".cpp", ".h", ".cu"}]
    lengths = {relative(path): len(path.read_text().splitlines()) for path in sources}
    long = {path: length for path, length in lengths.items() if length > MAX_LINES}
    assert not long, f"split by concept what is longer than {MAX_LINES} lines: {long}"


PACKAGES = sorted({path.parent for path in MODULES} | {path for path in SRC.glob("*/") if path.name != "__pycache__"})


def test_every_package_folder_is_a_package() -> None:
    missing = [relative(path) for path in PACKAGES if any(path.glob("*.py")) and not (path / "__init__.py").exists()]
    assert not missing, f"without __init__.py type checker and import contracts overlook {missing}"


@pytest.mark.parametrize("package", [path for path in PACKAGES if path.parent == SRC], ids=lambda path: path.name)
def test_every_package_has_a_page_that_explains_it(package: Path) -> None:
    """What it is, its invariants, how to add one more of its kind. Nested packages are explained by their parent's."""
    page = package / "README.md"
    assert page.exists(), f"write {relative(page)}"
    assert len(page.read_text().splitlines()) >= 5, f"{relative(page)} is too short to say all that"


RUNS_CODE = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}  # reading these formats can run code
CALLS_CODE = {"eval", "exec", "__import__"}
LOADS_CODE = {("torch", "load"), ("yaml", "load"), ("yaml", "unsafe_load"), ("yaml", "full_load")}


def unsafe(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (f"{node.lineno}: import {a.name}" for a in names if a.name.split(".")[0] in RUNS_CODE)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in RUNS_CODE:
                yield f"{node.lineno}: from {module} import"
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{node.lineno}: {module}.{a.name}" for a in names if (module, a.name) in LOADS_CODE)
            case ast.Call(func=ast.Name(id=name)) if name in CALLS_CODE:
                yield f"{node.lineno}: {name}()"
            case ast.Attribute(value=ast.Name(id=owner), attr=attr) if (owner, attr) in LOADS_CODE:
                yield f"{node.lineno}: {owner}.{attr}"
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                yield f"{node.lineno}: allow_pickle=True"


MAKES_MUTABLE = {"list", "dict", "set", "bytearray", "defaultdict", "deque", "Counter", "OrderedDict", "array"}
MUTATES = {
    "add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "popleft", "remove",
    "setdefault", "update",
}  # fmt: skip


def is_mutable(value: ast.AST | None) -> bool:
    if isinstance(value, ast.Call):
        return getattr(value.func, "id", getattr(value.func, "attr", "")) in MAKES_MUTABLE
    return isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp)


def module_level_containers(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and is_mutable(node.value):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((target.id, node.lineno) for target in targets if isinstance(target, ast.Name))


def hidden_state(tree: ast.Module) -> Iterator[str]:
    """Variables that live in a module: containers that are no constants, constants that are changed, `global`."""
    tables = dict(module_level_containers(tree))
    for name, line in tables.items():
        if not (name.isupper() or name.startswith("__")):
            yield f"{line}: {name} is a container at module level; name it like a CONSTANT or pass it in"
    for node in ast.walk(tree):
        match node:
            case ast.Global(names=names):
                yield f"{node.lineno}: global {', '.join(names)}"
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()) if name in tables:
                yield f"{node.lineno}: {name}[...] is changed"
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=attr)) if name in tables and attr in MUTATES:
                yield f"{node.lineno}: {name}.{attr}()"


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_no_module_runs_stored_code_or_holds_state(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not [*unsafe(tree), *hidden_state(tree)]


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "from torch import load",
        "torch.load(path)",
        "yaml.load(text)",
        "eval(text)",
        "exec(text)",
        "np.load(path, allow_pickle=True)",
        "cache = {}",
        "queue: deque[int] = collections.deque()",
        "def f():\n    global x",
        "TABLE = {}\ndef f(): TABLE[1] = 2",
        "LIST = []\ndef f(): LIST.append(1)",
    ],
)
def test_the_rules_see_an_offence(code: str) -> None:
    tree = ast.parse(code)
    assert [*unsafe(tree), *hidden_state(tree)]


@pytest.mark.parametrize(
    "code", ["model.eval()", "re.compile('x')", "TABLE = {1: 2}\nTABLE[1]", "__all__ = ['x']", "def f(): x = []"]
)
def test_the_rules_let_ordinary_code_pass(code: str) -> None:
    tree = ast.parse(code)
    assert not [*unsafe(tree), *hidden_state(tree)]


# Each is written in two halves, so that this file does not contain what it looks for.
FOREIGN_WORDS = [
    "/wor" r"k/",
    r"\.\./sha" "red",
    r"/tm" r"p/\w",
    r"\bthe bri" r"ef\b",
    r"\bas an A" r"I\b",
    r"\bthis ses" r"sion\b",
    r"py" r"pi\.org",
    r"pythonhos" r"ted\.org",
    r"download\.pyt" r"orch\.org",
    r"\bTO" r"DO\b",
    r"\bFIX" r"ME\b",
]
TEXT = {".cfg", ".cpp", ".h", ".jinja", ".json", ".md", ".py", ".pyi", ".toml", ".txt", ".yaml", ".yml", ""}
NOT_OURS = {"LICENSE", "__pycache__", "results"}


def text_files() -> list[Path]:
    """The text files of the repository: its top level, and the folders that hold its work."""
    top = ["src", "tests", "docs", "benchmarks", "examples", "training", ".ci", ".github"]
    nested = [path for folder in top for path in (ROOT / folder).rglob("*")]
    files = [path for path in [*ROOT.glob("*"), *ROOT.glob(".*"), *nested] if path.is_file()]
    return sorted(path for path in files if path.suffix in TEXT and not NOT_OURS & set(path.relative_to(ROOT).parts))


def test_the_tree_speaks_of_the_product_alone() -> None:
    """No paths of one machine, no package hosts, no notes to self: those belong in an issue."""
    pattern = re.compile("|".join(FOREIGN_WORDS))
    offences = [
        f"{relative(path)}:{number}: {line.strip()[:100]}"
        for path in text_files()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not offences, "\n".join(offences)
