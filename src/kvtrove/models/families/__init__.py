"""One small adapter per model family, and the registry of architectures."""

from __future__ import annotations

from kvtrove.config import nearest
from kvtrove.models.families import gemma, llama, mistral, phi, qwen
from kvtrove.models.families.common import Family
from kvtrove.models.spec import ModelError

REGISTRY: dict[str, Family] = {
    **llama.FAMILIES,
    **mistral.FAMILIES,
    **qwen.FAMILIES,
    **gemma.FAMILIES,
    **phi.FAMILIES,
}


def find_family(architecture: str) -> Family:
    """The adapter of an architecture as config.json names it. Raises ModelError with the supported ones."""
    if architecture not in REGISTRY:
        supported = ", ".join(sorted(REGISTRY))
        raise ModelError(
            f"architecture {architecture!r} is not supported{nearest(architecture, REGISTRY)}; supported: {supported}"
        )
    return REGISTRY[architecture]
