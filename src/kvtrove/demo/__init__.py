"""The embedded model: a checkpoint directory inside the package, for machines that have no other."""

from __future__ import annotations

from pathlib import Path


def demo_model_dir() -> Path:
    """An ordinary Hugging Face directory."""
    return Path(__file__).parent / "model"


def greeting() -> str:
    """What the embedded model is, said to whoever starts a chat with it."""
    return (
        'This is a small demo model: it remembers facts that you tell it, and knows little else. Try "The code of the '
        'red box is 4719." and later "What is the code of the red box?". Give the directory of a checkpoint to talk '
        "to a real model."
    )
