"""Small adapters in the form in which PEFT saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

RANK, ALPHA = 4, 6.0


def write_adapter(
    folder: Path, model: nn.Module, targets: tuple[str, ...], seed: int, rank: int = RANK, **config: Any
) -> dict[str, Tensor]:
    """For the linear layers of a transformers model whose names end in `targets`; returns what they add, by name."""
    generator = torch.Generator().manual_seed(seed)
    tensors, deltas = {}, {}
    scale = config.get("lora_alpha", ALPHA) / (rank**0.5 if config.get("use_rslora") else rank)
    for name, module in model.named_modules():
        if name.endswith(targets) and isinstance(module, nn.Linear):
            down = torch.randn(rank, module.in_features, generator=generator) * 0.2
            up = torch.randn(module.out_features, rank, generator=generator) * 0.2
            tensors[f"base_model.model.{name}.lora_A.weight"] = down
            tensors[f"base_model.model.{name}.lora_B.weight"] = up
            deltas[f"{name}.weight"] = scale * up @ down
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "r": rank, "lora_alpha": ALPHA, "bias": "none", "target_modules": list(targets)}
    (folder / "adapter_config.json").write_text(json.dumps(about | config))
    return deltas
