"""Trains the demo model and writes it as a Hugging Face directory.

    python training/train.py --out build/demo            from the beginning, or from where an interrupted run stopped
    python training/train.py --out build/demo --export src/kvtrove/demo/model      writes what was trained so far
    python training/train.py --out build/mqa --model mqa --until 75                goes on with a converted model

Sequences grow from stage to stage. Step n draws its data from seed n, so a resumed run sees what it would have seen.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from data import Dialogues, Mix
from head_start import head_start
from model import Model, Shape
from muon import Muon
from recall import recall
from tokenizer import make_tokenizer, save_tokenizer


@dataclass(frozen=True)
class Stage:
    """length: tokens of a sequence; count: sequences of a step.

    rope_theta: grows with the sequences, so that what matches by content turns less over the longest of them.
    """

    length: int
    count: int
    steps: int
    mix: Mix = field(default_factory=Mix)
    rope_theta: float = 1_000_000.0


RECALL = Mix(copying=0.05, prose=0.04, emphasis=4, unknown=0)
PLAIN = replace(RECALL, loose=False)
STAGES = (
    Stage(128, 32, 400, Mix(copying=0.3)),
    Stage(256, 16, 500),
    Stage(512, 8, 250, Mix(copying=0.05, emphasis=4)),
    Stage(512, 8, 150, RECALL),
    Stage(1024, 4, 350, RECALL),
    Stage(1024, 4, 250, PLAIN),
    Stage(2048, 2, 100, PLAIN),
    Stage(4608, 1, 1000, PLAIN, rope_theta=2_000_000.0),
)
STEPS = sum(stage.steps for stage in STAGES)
MATRICES, REST = 0.005, 0.0015  # learning rates of Muon and of AdamW
WARM_UP, DECAY = 50, 0.4  # steps; share of the steps at the end
CHECK = 50  # steps between two checkpoints
UPTRAINING = Stage(1024, 4, STEPS, PLAIN, rope_theta=2_000_000.0)
UPTRAINING_RATE = 0.3  # of the learning rates


def stage_of(step: int, stages: Sequence[Stage] = STAGES) -> Stage:
    for stage in stages:
        if step < stage.steps:
            return stage
        step -= stage.steps
    raise IndexError("past the last step")


def learning_rate(step: int, steps: int = STEPS) -> float:
    """Share of the full rate: rises, stays, falls in a line to a twentieth. steps: in total."""
    left = (steps - step) / (steps * DECAY)
    return min(1.0, (step + 1) / min(WARM_UP, steps / 10), max(left, 0.05))


class Run:
    """A model, its optimizers and the folder that keeps them."""

    def __init__(self, out: Path, device: str, start: Path | None = None, steps: int = STEPS) -> None:
        """start: a folder with a model of this kind to go on with, for `steps` steps."""
        self.out, self.device = out, torch.device(device)
        self.stages, self.steps = STAGES if start is None else (replace(UPTRAINING, steps=steps),), steps
        out.mkdir(parents=True, exist_ok=True)
        if not (out / "tokenizer.json").exists():
            made = make_tokenizer() if start is None else Tokenizer.from_file(str(start / "tokenizer.json"))
            save_tokenizer(made, out)
        self.tokenizer = Tokenizer.from_file(str(out / "tokenizer.json"))
        torch.manual_seed(0)
        self.model = Model(Shape()) if start is None else load(start)
        if start is None:
            head_start(self.model)
        self.model.to(self.device)
        names = dict(self.model.named_parameters())
        inner = {name for name, weight in names.items() if weight.ndim == 2 and "embed" not in name}
        self.optimizers = {
            "muon": Muon((names[name] for name in names if name in inner), MATRICES),
            "adam": torch.optim.AdamW((names[name] for name in names if name not in inner), REST, (0.9, 0.95)),
        }
        share = 1.0 if start is None else UPTRAINING_RATE
        self.rates = {"muon": share * MATRICES, "adam": share * REST}
        self.step, self.seconds = 0, 0.0
        if (out / "progress.json").exists():
            self._load()

    def train(self, until: int) -> None:
        losses: list[float] = []
        while self.step < until:
            start = time.perf_counter()
            stage = stage_of(self.step, self.stages)
            self.model.rope_theta = stage.rope_theta
            losses.append(self._step(stage))
            self.seconds += time.perf_counter() - start
            self.step += 1
            if self.step % min(CHECK, max(1, self.steps // 5)) == 0 or self.step == until:
                self._log(sum(losses) / len(losses))
                losses.clear()
                self.save()

    def _step(self, stage: Stage) -> float:
        data = Dialogues(self.tokenizer, self.step, stage.mix)
        x, weights = (torch.from_numpy(array).to(self.device) for array in data.batch(stage.count, stage.length))
        mask = weights[:, 1:] > 0
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_bfloat16(self.device)):
            each = F.cross_entropy(self.model(x[:, :-1], mask).float(), x[:, 1:][mask], reduction="none")
            loss = (each * weights[:, 1:][mask]).sum() / weights[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rates[name] * learning_rate(self.step, self.steps)
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    def _log(self, loss: float) -> None:
        length = self._stage().length
        line = {
            "step": self.step,
            "length": length,
            "loss": round(loss, 4),
            "seconds": round(self.seconds),
            "recall": recall(self.model, self.tokenizer, length - 40, 40),
        }
        print(json.dumps(line), flush=True)
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _stage(self) -> Stage:
        """Of the last step that was done."""
        return stage_of(max(0, self.step - 1), self.stages)

    def save(self) -> None:
        """Weights and state first, the step last: what an interruption leaves is a whole checkpoint."""
        save_atomically(dict(self.model.state_dict()), self.out / f"weights-{self.step}.safetensors")
        save_atomically(self._state(), self.out / f"state-{self.step}.safetensors")
        progress = self.out / "progress.json.new"
        progress.write_text(json.dumps({"step": self.step, "seconds": self.seconds}))
        progress.replace(self.out / "progress.json")
        for old in self.out.glob("*-*.safetensors"):
            if not old.stem.endswith(f"-{self.step}"):
                old.unlink()

    def _state(self) -> dict[str, Tensor]:
        return {
            f"{name}.{number}.{key}": value
            for name, optimizer in self.optimizers.items()
            for number, state in optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }

    def _load(self) -> None:
        progress = json.loads((self.out / "progress.json").read_text())
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.model.load_state_dict(load_file(self.out / f"weights-{self.step}.safetensors"))
        states: dict[str, dict[int, dict[str, Tensor]]] = {name: {} for name in self.optimizers}
        for key, value in load_file(self.out / f"state-{self.step}.safetensors").items():
            name, number, field = key.split(".")
            states[name].setdefault(int(number), {})[field] = value
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(optimizer.state_dict() | {"state": states[name]})

    def export(self, directory: Path) -> None:
        """An ordinary Hugging Face directory in bf16."""
        save_tokenizer(self.tokenizer, directory)
        weights = {name: value.to(torch.bfloat16).contiguous() for name, value in self.model.state_dict().items()}
        save_file(weights, directory / "model.safetensors", {"format": "pt"})
        write_json(directory / "config.json", self.model.shape.config() | {"rope_theta": self._stage().rope_theta})
        write_json(directory / "generation_config.json", {"do_sample": False, "eos_token_id": [2], "pad_token_id": 0})


def load(directory: Path) -> Model:
    """A model as `export` writes it, perhaps with fewer kv heads since."""
    config = json.loads((directory / "config.json").read_text())
    model = Model(Shape(**{field.name: config[field.name] for field in fields(Shape)}))
    model.load_state_dict({name: value.float() for name, value in load_file(directory / "model.safetensors").items()})
    return model


def save_atomically(tensors: dict[str, Tensor], path: Path) -> None:
    new = path.with_suffix(".new")
    save_file({name: value.contiguous() for name, value in tensors.items()}, new)
    new.replace(path)


def write_json(path: Path, values: dict[str, object]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bf16 is quicker than fp32 here: on CUDA, and on processors with instructions for it."""
    return device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, required=True, help="checkpoints, log and tokenizer")
    options.add_argument("--export", type=Path, help="write the model here instead of training on")
    options.add_argument("--model", type=Path, help="go on with this folder's model, for as many steps as --until says")
    options.add_argument("--until", type=int, default=STEPS, help="stop after this step")
    options.add_argument("--threads", type=int, default=os.cpu_count())
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument(
        "--compile", action="store_true", help="fuse what lies between the products (needs a compiler)"
    )
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    run = Run(given.out, given.device, given.model, STEPS if given.model is None else given.until)
    if given.export:
        run.export(given.export)
        return
    if given.compile:
        for layer in run.model.model["layers"]:
            layer.compile(dynamic=False)
    run.train(given.until)


if __name__ == "__main__":
    main()
