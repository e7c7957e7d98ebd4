"""Initial weights in which copying from the context is already laid out.

Recall needs two layers that play together: heads that look one, two and three tokens back, and heads that look for the
place that followed the same words before ("induction heads", Olsson et al., arXiv 2209.11895). By itself that pair
appears after hundreds of millions of tokens, all at once; a model that is trained on ten million must be born with it.
Training keeps and refines what is useful of it. Layers, by what their heads attend to:

    layer 0    head 0: one token back    head 1: two    head 2: three    head 3: four
    layer 1    the place whose last tokens are those before the present one; its token is copied towards the output

Looking back by position needs something constant to rotate: the first element of every embedding. Matching by content
must survive the rotation over thousands of tokens: it uses the slow half of the rotary frequencies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model import Layer, Model

CONSTANT = 0.5  # the first element of each embedding
FAST = 9  # rotary frequencies that tell positions apart
SHARPNESS = 0.6  # of looking back
WRITTEN = 0.09  # norm of the columns by which layer 0 writes what it saw: as large as an embedding
MATCH, COPY = 2.0, 0.12  # gains of matching (queries and keys) and of copying


@torch.no_grad()
def head_start(model: Model) -> None:
    shape = model.shape
    model.model["embed_tokens"].weight[:, 0] = CONSTANT
    for layer in model.model["layers"]:
        layer.self_attn["o_proj"].weight.mul_(0.2)
        layer.mlp["down_proj"].weight.mul_(0.2)
    first, second = model.model["layers"][0], model.model["layers"][1]
    frequencies = model.rope_theta ** -(torch.arange(0, shape.head_dim, 2) / shape.head_dim)
    written = _look_back(first, frequencies)
    _match(second, first, written)
    _copy(second)


def _look_back(layer: Layer, frequencies: Tensor) -> list[Tensor]:
    """Head h looks h + 1 tokens back and writes that token into directions of its own, [hidden, head_dim] per head."""
    attn, dim = layer.self_attn, layer.shape.head_dim
    half, written = dim // 2, []
    attn["q_proj"].weight.zero_()
    attn["k_proj"].weight.zero_()
    for head in range(layer.shape.num_attention_heads):
        turn = -(head + 1) * frequencies[:FAST]
        attn["q_proj"].weight[head * dim : head * dim + FAST, 0] = SHARPNESS * turn.cos()
        attn["q_proj"].weight[head * dim + half : head * dim + half + FAST, 0] = SHARPNESS * turn.sin()
        directions = torch.linalg.qr(torch.randn(layer.shape.hidden_size, dim)).Q
        directions[0] = 0
        attn["o_proj"].weight[:, head * dim : (head + 1) * dim] = WRITTEN * directions
        written.append(directions)
    for head in range(layer.shape.num_key_value_heads):
        attn["k_proj"].weight[head * dim : head * dim + FAST, 0] = SHARPNESS
    attn["v_proj"].weight[:, 0] = 0
    attn["v_proj"].weight[dim:] = attn["v_proj"].weight[:dim].repeat(layer.shape.num_key_value_heads - 1, 1)
    return written


def _match(layer: Layer, before: Layer, written: list[Tensor]) -> None:
    """Keys hold the tokens before their place, queries those up to theirs, one place earlier: equal where they repeat.

    Key/value head 0 matches the present token and the one before, head 1 the one and the two before.
    """
    attn, dim = layer.self_attn, layer.shape.head_dim
    half, quarter = dim // 2, dim // 4
    slow = torch.cat((torch.arange(quarter, half), torch.arange(half + quarter, dim)))
    group = layer.shape.num_attention_heads // layer.shape.num_key_value_heads
    values = before.self_attn["v_proj"].weight.unflatten(0, (-1, dim))
    for kv_head in range(layer.shape.num_key_value_heads):
        newer = values[0] if kv_head == 0 else written[0].T
        older = written[kv_head].T
        queries = MATCH * torch.cat((newer[:quarter], older[quarter : 2 * quarter]))
        keys = MATCH * torch.cat((written[kv_head].T[:quarter], written[kv_head + 1].T[quarter : 2 * quarter]))
        attn["k_proj"].weight[kv_head * dim + slow] = keys
        for head in range(kv_head * group, (kv_head + 1) * group):
            attn["q_proj"].weight[head * dim + slow] = queries
    attn["q_proj"].weight[:, 0] = attn["k_proj"].weight[:, 0] = 0


def _copy(layer: Layer) -> None:
    """What a head reads of a token it writes back where it came from, so that the output names that token."""
    attn, shape = layer.self_attn, layer.shape
    group, dim = shape.num_attention_heads // shape.num_key_value_heads, shape.head_dim
    attn["v_proj"].weight[:, 0] = 0
    for head in range(shape.num_attention_heads):
        kv_head = head // group
        values = attn["v_proj"].weight[kv_head * dim : (kv_head + 1) * dim]
        attn["o_proj"].weight[:, head * dim : (head + 1) * dim] = COPY * values.T
