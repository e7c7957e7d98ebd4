"""Names that people give models -> where the files lie: a path, `demo`, a short name, or ORG/NAME of Hugging Face.

Nothing is downloaded here: a checkpoint is looked up in the cache folder that every Hugging Face library shares, and
the error for one that is absent says how it gets there (`kvtrove pull`, in `kvtrove.cli.pull`).
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from kvtrove.config import ConfigError, nearest
from kvtrove.demo import demo_model_dir
from kvtrove.store import GET, PUBLISHED, stored_model

DEMO = "demo"
SHORT_NAMES = {
    "gemma3": "google/gemma-3-1b-it",
    "llama3.2": "meta-llama/Llama-3.2-1B-Instruct",
    "mistral": "mistralai/Mistral-7B-Instruct-v0.3",
    "phi4-mini": "microsoft/Phi-4-mini-instruct",
    "qwen2.5": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen3": "Qwen/Qwen3-0.6B",
    "smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm3": "HuggingFaceTB/SmolLM3-3B",
}
"""What one types instead of ORG/NAME. `models.toml` in `settings_folder` adds more: `name = "ORG/NAME or path"`."""

REPOSITORY = re.compile(r"(?P<id>[\w][\w.-]*/[\w][\w.-]*)(?:@(?P<revision>[\w./-]+))?(?::(?P<file>[\w.-]+))?")
"""ORG/NAME, ORG/NAME@REVISION, or ORG/NAME:Q4_K_M for the GGUF file of a repository that has this in its name."""


def find_model(name: str | Path, environ: Mapping[str, str] = os.environ) -> Path:
    """The folder or file of a model. ConfigError says what to do when there is none.

    A folder or file of that name wins, but `demo` is always the embedded model (`./demo` for a folder of that name).
    """
    text = str(name)
    if text == DEMO:
        return demo_model_dir()
    path = Path(text).expanduser()
    if path.exists():
        return path
    if (stored := stored_model(text.lower(), environ)) is not None:
        return stored
    known = SHORT_NAMES | _own_names(environ)
    meant = known.get(text.lower(), text)
    if meant != text and Path(meant).expanduser().exists():
        return Path(meant).expanduser()
    found = REPOSITORY.fullmatch(meant)
    if found is None or text.startswith((".", "/", "~")):
        names, beside = [DEMO, *known], _beside(path)
        hint = "" if beside or "/" in text else f"{nearest(text, names)}; known names are {', '.join(names)}"
        raise ConfigError(f"{text}: there is no such folder, and no .gguf file{beside}{hint}")
    folder = _snapshot(found["id"], found["revision"] or "main", environ)
    if folder is None or (not (folder / "config.json").exists() and not any(folder.glob("*.gguf"))):
        cache = hub_folder(environ)
        raise ConfigError(
            f"{meant}: there is no such folder{_beside(path)}, and it is not in the Hugging Face cache ({cache}); "
            f"`kvtrove pull {meant}` or `hf download {found['id']}` puts it there"
            + (f", and `{GET} {text.lower()}` fetches it with pip, in 4 bits" if text.lower() in PUBLISHED else "")
        )
    return folder if found["file"] is None else _gguf(folder, meant, found["file"])


def _beside(path: Path) -> str:
    """The tail of a message about a path that is not there: a model of a similar name in the same folder."""
    try:
        found = [one.name for one in path.parent.iterdir() if one.suffix == ".gguf" or (one / "config.json").exists()]
    except OSError:
        return ""
    return nearest(path.name, found, alike=0.75)


def display_name(name: str | Path) -> str:
    """What to call a model: the name as given, or for a path the name of its folder or file."""
    path = Path(name).expanduser()
    if str(name) == DEMO or not path.exists():
        return str(name)
    if path.resolve() == demo_model_dir().resolve():
        return DEMO
    return path.resolve().stem if path.suffix == ".gguf" else path.resolve().name


def hub_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the Hugging Face libraries keep checkpoints, as huggingface_hub finds it."""
    if cache := environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    base = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environ.get("HF_HOME") or f"{base}/huggingface").expanduser() / "hub"


def cached_repositories(environ: Mapping[str, str] = os.environ) -> list[str]:
    """ORG/NAME of every checkpoint in the cache folder."""
    folders = sorted(hub_folder(environ).glob("models--*--*"))
    return [folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders]


def settings_folder(environ: Mapping[str, str] = os.environ) -> Path:
    return Path(environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "kvtrove"


def _own_names(environ: Mapping[str, str]) -> dict[str, str]:
    path = settings_folder(environ) / "models.toml"
    try:
        return {name.lower(): str(target) for name, target in tomllib.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _snapshot(repository: str, revision: str, environ: Mapping[str, str]) -> Path | None:
    """The folder of one revision: refs/<branch> names the commit whose files lie in snapshots/<commit>."""
    folder = hub_folder(environ) / f"models--{repository.replace('/', '--')}"
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _gguf(folder: Path, name: str, part: str) -> Path:
    files = sorted(folder.glob("*.gguf"))
    fitting = [file for file in files if part.lower() in file.name.lower()]
    if not fitting:
        raise ConfigError(f"{name}: none of its files has {part!r} in its name: {', '.join(f.name for f in files)}")
    return fitting[0]
