"""`kvtrove pull`: fetch a checkpoint into the cache folder that all Hugging Face libraries share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kvtrove.cli.output import extra
from kvtrove.config import ConfigError
from kvtrove.names import REPOSITORY, SHORT_NAMES

CHECKPOINT = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model")
"""What of a repository is fetched: no pickled weights, no pictures."""


def pull(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="ORG/NAME, ORG/NAME:Q4_K_M for a GGUF file, or a short name.")
    ],
) -> None:
    """Download a model from Hugging Face. HF_HOME, HF_ENDPOINT, HF_TOKEN and proxies count as usual.

    Example: kvtrove pull HuggingFaceTB/SmolLM2-135M-Instruct
    """
    found = REPOSITORY.fullmatch(SHORT_NAMES.get(name.lower(), name))
    if found is None:
        raise ConfigError(f"{name}: write ORG/NAME as on Hugging Face, or one of {', '.join(SHORT_NAMES)}")
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"pull needs huggingface_hub, which is not installed: {extra('hub')}; "
            f"or fetch it elsewhere with `hf download {found['id']}`"
        ) from error
    typer.echo(_fetched(snapshot_download, found["id"], found["revision"], found["file"]))
    typer.echo(f"kvtrove run {name}", err=True)


def _fetched(download: Any, repository: str, revision: str | None, file: str | None) -> Path:
    patterns = list(CHECKPOINT) if file is None else ["*.json", f"*{file}*.gguf", f"*{file.lower()}*.gguf"]
    try:
        return Path(download(repository, revision=revision, allow_patterns=patterns))
    except Exception as error:  # whatever its HTTP client, the disk and the hub's answers raise
        reason = str(error).strip().splitlines()
        raise ConfigError(
            f"{repository}: cannot be fetched: {reason[0] if reason else type(error).__name__}"
        ) from error
