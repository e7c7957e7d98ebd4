"""The identity of a checkpoint: what cached K/V depend on beside tokens and cache format. No torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from kvtrove.models.gguf.header import gguf_file, read_header
from kvtrove.models.spec import ModelSpec

SAMPLES, SAMPLE_BYTES = 64, 4096


def model_fingerprint(
    directory: Path, spec: ModelSpec, precision: str, max_model_len: int, load_format: str = "auto"
) -> bytes:
    """32 bytes over config.json (or what a GGUF file says in its place), the precision, the weight files, and whether
    the served context stretches rope.

    Reading tens of gigabytes at every start would be slow, so of each weight file its size, its first pages (the header
    with all names, shapes and offsets) and 64 pages spread evenly over it are hashed: any retraining changes them all.
    """
    stretched = any(layer.rope.stretches(max_model_len) for layer in spec.layers)
    digest = hashlib.sha256(f"{precision} {stretched}".encode())
    if load_format == "dummy":  # random weights follow from the config alone, which may be a file of any name
        _add(digest, b"random weights")
        _add(digest, (directory if directory.is_file() else directory / "config.json").read_bytes())
        return digest.digest()
    gguf = gguf_file(directory)
    if gguf is None:
        _add(digest, (directory / "config.json").read_bytes())
        files = sorted(directory.glob("*.safetensors"))
    else:
        _add(digest, str(spec).encode())  # the metadata, as far as it says how the model computes
        files = [*read_header(gguf).files]
    for path in files:
        _add(digest, path.name.encode())
        size = path.stat().st_size
        _add(digest, str(size).encode())
        with path.open("rb") as file:
            for i in range(SAMPLES):
                file.seek(i * max(0, size - SAMPLE_BYTES) // (SAMPLES - 1))
                _add(digest, file.read(SAMPLE_BYTES))
    return digest.digest()


def _add(digest: hashlib._Hash, part: bytes) -> None:
    digest.update(len(part).to_bytes(8, "little") + part)
