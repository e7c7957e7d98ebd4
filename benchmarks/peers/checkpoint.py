"""A Hugging Face checkpoint with random weights for a config.json, since other engines read models from disk.

    python benchmarks/peers/checkpoint.py config.json DIR [--seed 0]

Needs transformers. Weights are stored in the dtype that the config names. There is no tokenizer: prompts are token ids.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, set_seed


def write_checkpoint(config: Path, directory: Path, seed: int) -> int:
    """Number of parameters written. The directory must be new or empty."""
    if directory.exists() and any(directory.iterdir()):
        raise SystemExit(f"{directory} is not empty; give a new directory")
    values = json.loads(config.read_text())
    dtype = getattr(torch, str(values.get("dtype", values.get("torch_dtype", "float32"))))
    set_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values), dtype=dtype)
    model.save_pretrained(directory)
    return int(model.num_parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not args.config.is_file():
        parser.error(f"{args.config} is no file; give the config.json of a model, with its model_type")
    print(f"{write_checkpoint(args.config, args.directory, args.seed):,} parameters in {args.directory}")


if __name__ == "__main__":
    main()
