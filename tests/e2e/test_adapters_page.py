"""docs/adapters.md is true: its server starts, and its scripts and commands run against it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import save_file

from kvtrove.models.layers.adapted import modules_of
from tests.pages import ROOT, blocks
from tests.server.live import SPEC, running_server

PAGE, ADDRESS = "docs/adapters.md", "http://127.0.0.1:8000"


def adapter(folder: Path) -> None:
    tensors = {}
    for name, (outputs, inputs) in modules_of(SPEC):
        if name.endswith("q_proj"):
            tensors[f"base_model.model.model.{name}.lora_A.weight"] = torch.ones(2, inputs)
            tensors[f"base_model.model.model.{name}.lora_B.weight"] = torch.ones(outputs, 2)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))


def test_the_page_from_top_to_bottom(demo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sql", "legal", "poems"):
        adapter(tmp_path / "adapters" / name)
    copytree(demo_dir, tmp_path / "base-model")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    serve = next(line for line in text.splitlines() if line.strip().startswith("kvtrove serve"))
    keys = {"KVTROVE_API_KEY": "none-but-the-tests", "KVTROVE_ADMIN_KEY": "none-but-the-operator"}
    with running_server(tmp_path, *shlex.split(serve)[2:], **keys) as server:
        for block in blocks(PAGE, "python", "sh"):
            script = (
                block.text.replace(ADDRESS, server.url)
                .replace('api_key="none"', f'api_key="{keys["KVTROVE_API_KEY"]}"')
                .replace("/srv/adapters", str(tmp_path / "adapters"))
            )
            if block.language == "python":
                exec(compile(script, PAGE, "exec"), {})
                continue
            done = subprocess.run(["bash", "-ec", script], env={**os.environ, **keys}, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert done.stdout.split(".")[:2] == [
                f"Success: LoRA adapter 'poems' {what} successfully" for what in ("added", "removed")
            ]
        with server.client(keys["KVTROVE_API_KEY"]) as client:
            assert [card["id"] for card in client.get("/v1/models").json()["data"]] == ["base-model", "sql", "legal"]
