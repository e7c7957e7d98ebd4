"""Recall of a stated fact, as training watches it: right when the whole answer is the likeliest continuation."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer

from kvtrove.demo.world import Exchange, World

from model import Model


@torch.no_grad()
def recall(model: Model, tokenizer: Tokenizer, distance: int, samples: int) -> float:
    """Share of held-out facts that are answered word for word, `distance` tokens after they were told at most."""
    device = next(model.parameters()).device
    right = 0
    for seed in range(samples):
        prompt, answer = question(tokenizer, World(seed, "heldout"), distance)
        tokens = torch.tensor([prompt + answer], device=device)
        wanted = torch.zeros_like(tokens, dtype=torch.bool)
        wanted[0, len(prompt) - 1 : -1] = True
        with torch.compiler.set_stance("force_eager"):  # every prompt has a length of its own
            right += model(tokens, wanted).argmax(-1).tolist() == answer
    return right / samples


def question(tokenizer: Tokenizer, world: World, distance: int) -> tuple[list[int], list[int]]:
    """Tokens of a dialogue that tells a fact, goes on for `distance` tokens at most and asks; tokens of the answer."""
    fact = world.fact()
    end = tokenizer.encode(f"<|im_start|>user\n{fact.question}<|im_end|>\n<|im_start|>assistant\n").ids
    told, between = exchange(tokenizer, (fact.statement, fact.acknowledgement)), []
    while True:
        other = world.fact()
        for turn in (world.filler(), (other.statement, other.acknowledgement)):
            more = exchange(tokenizer, turn)
            if len(told) + len(between) + len(more) + len(end) > distance:
                return told + between + end, tokenizer.encode(f"{fact.answer}<|im_end|>").ids
            between += more


def exchange(tokenizer: Tokenizer, turn: Exchange) -> list[int]:
    user, assistant = turn
    text = f"<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{assistant}<|im_end|>\n"
    return tokenizer.encode(text).ids
