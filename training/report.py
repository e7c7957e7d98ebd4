"""Writes the model card and the picture of the loss from what was measured.

    python training/report.py --run build/demo --evaluation eval.json --talks talks.json --machine "2 cores" MODEL

run: the folder of train.py. evaluation: of `kvtrove eval --json`. talks: what judge.py printed. MODEL: where
MODEL_CARD.md is written; the picture goes beside this script.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kvtrove.report.svg import Axis, Chart

from model import Model, Shape
from train import stage_of

PICTURE = Path(__file__).parent / "loss.svg"
STYLE = (
    "text{font:11px sans-serif;fill:#444}.axis,.grid{stroke:#ccc;stroke-width:.6}.line{fill:none;stroke-width:1.6}"
    ".a{stroke:#2563eb}.b{stroke:#d97706}.mark{stroke:#999;stroke-dasharray:3 3}.marked{fill:#777}"
)
CARD = """# The demo model

A small language model for trying out KV caches: it remembers facts that it is told in a conversation, and knows little
else. It is no assistant: what it says outside its small world (names, codes, colours, prices, owners, dates,
pets) is made up, and so are most of its sums.

| | |
|---|---|
| architecture | Llama: {layers} layers, hidden size {hidden}, {heads} heads of {head_dim}, {kv_heads} KV heads |
| parameters | {parameters:.1f} million, bf16 |
| context | {context:,} tokens |
| tokenizer | byte-level BPE, {vocab:,} tokens, each digit its own, chat template with `<|im_start|>` and `<|im_end|>` |
| trained on | {tokens:.1f} million tokens: generated dialogues, docstrings of the Python standard library |
| trained in | {minutes:.0f} minutes of training steps: {machine} |
| licence | Apache-2.0; the prose it saw is under the PSF licence |

## Measured on held-out facts and phrasings

| | |
|---|---|
{recall}
| perplexity on held-out prose | {perplexity:.1f} |
| answers right in conversations of {turns} turns | {right} |
| turns that it ended itself | {ended:.1%} |

Recall: the greedy answer contains the value; the fact was told at the beginning of a dialogue of so many tokens and
asked at its end (`kvtrove eval --model demo`). Conversations: `python training/judge.py`. Statement and question
are a pair of phrasings that training never showed, about subjects drawn anew. A statement names its subject before its
value ("The code of the red box is 4719."); the other way round it was never trained.

Its first weights hold the circuit of copying from the context already (`training/head_start.py`), because so short a
training does not find it by itself. `training/README.md` tells how to make it again.
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", type=Path, required=True)
    options.add_argument("--evaluation", type=Path, required=True)
    options.add_argument("--talks", type=Path, required=True)
    options.add_argument("--machine", required=True)
    options.add_argument("model", type=Path)
    given = options.parse_args()
    log = [json.loads(line) for line in (given.run / "log.jsonl").read_text().splitlines()]
    PICTURE.write_text(picture(log))
    evaluation, talks = json.loads(given.evaluation.read_text()), json.loads(given.talks.read_text())
    (given.model / "MODEL_CARD.md").write_text(card(log, evaluation, talks, given.machine))


def card(log: list[dict[str, Any]], evaluation: dict[str, Any], talks: dict[str, Any], machine: str) -> str:
    shape = Shape()
    [exact] = [found for found in evaluation["configurations"] if found["name"] == "exact"]
    steps = log[-1]["step"]
    return CARD.format(
        layers=shape.num_hidden_layers,
        hidden=shape.hidden_size,
        heads=shape.num_attention_heads,
        head_dim=shape.head_dim,
        kv_heads=shape.num_key_value_heads,
        parameters=sum(weight.numel() for weight in Model(shape).parameters()) / 1e6,
        context=shape.max_position_embeddings,
        vocab=shape.vocab_size,
        tokens=sum(stage_of(step).length * stage_of(step).count for step in range(steps)) / 1e6,
        minutes=log[-1]["seconds"] / 60,
        machine=machine,
        recall="\n".join(
            f"| recall over {cell['length']:,} tokens | {cell['share']:.1%} of {len(cell['answers'])} |"
            for cell in exact["recall"]
            if cell["depth"] == 0
        ),
        perplexity=exact["fidelity"]["perplexity"],
        turns=talks["turns"],
        right=", ".join(f"{kind} {share:.1%}" for kind, share in talks["right"].items()),
        ended=talks["ended"],
    )


def picture(log: list[dict[str, Any]]) -> str:
    """The loss over the steps, and where the sequences grew."""
    top = max(line["loss"] for line in log)
    chart = Chart("loss", Axis("step", 0, log[-1]["step"], whole=True), Axis("loss (nats per token)", 0, top))
    chart.line([(line["step"], line["loss"]) for line in log], "a")
    for step, lengths in grown(log[-1]["step"]):
        chart.mark_x(step, ", ".join(map(str, lengths)))
    return chart.file(STYLE)


def grown(steps: int) -> list[tuple[int, list[int]]]:
    """Steps at which sequences grew, and to what; what grew again soon after is told together, so that texts fit."""
    found: list[tuple[int, list[int]]] = []
    for step in range(steps):
        length = stage_of(step).length
        if not found or length > found[-1][1][-1]:
            if found and step - found[-1][0] < steps / 12:
                found[-1][1].append(length)
            else:
                found.append((step, [length]))
    return found


if __name__ == "__main__":
    main()
