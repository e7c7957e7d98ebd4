"""The demo model as it is trained: a Llama in plain torch, with Hugging Face's names, ready to be saved."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    vocab_size: int = 8192
    hidden_size: int = 256
    intermediate_size: int = 640
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 64
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 4608

    def config(self) -> dict[str, object]:
        """config.json of the Hugging Face directory."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            **asdict(self),
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "attention_bias": False,
            "mlp_bias": False,
            "pad_token_id": 0,
            "eos_token_id": 2,
            "torch_dtype": "bfloat16",
        }


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        hidden, wide = shape.hidden_size, shape.num_attention_heads * shape.head_dim
        narrow = shape.num_key_value_heads * shape.head_dim
        self.shape = shape
        self.input_layernorm = nn.RMSNorm(hidden, shape.rms_norm_eps)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(hidden, wide, bias=False),
                "k_proj": nn.Linear(hidden, narrow, bias=False),
                "v_proj": nn.Linear(hidden, narrow, bias=False),
                "o_proj": nn.Linear(wide, hidden, bias=False),
            }
        )
        self.post_attention_layernorm = nn.RMSNorm(hidden, shape.rms_norm_eps)
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(hidden, shape.intermediate_size, bias=False),
                "up_proj": nn.Linear(hidden, shape.intermediate_size, bias=False),
                "down_proj": nn.Linear(shape.intermediate_size, hidden, bias=False),
            }
        )

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [B, T, hidden]; cos, sin: [T, head_dim]."""
        x = x + self._attend(self.input_layernorm(x), cos, sin)
        h = self.post_attention_layernorm(x)
        mlp = self.mlp
        return x + mlp["down_proj"](F.silu(mlp["gate_proj"](h)) * mlp["up_proj"](h))

    def _attend(self, h: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        attn, heads = self.self_attn, (-1, self.shape.head_dim)
        q, k, v = (attn[name](h).unflatten(-1, heads).transpose(1, 2) for name in ("q_proj", "k_proj", "v_proj"))
        group = self.shape.num_attention_heads // self.shape.num_key_value_heads
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return attn["o_proj"](mixed.transpose(1, 2).flatten(2))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x: [B, heads, T, head_dim]; the two halves of a head turn together, as in Hugging Face's Llama."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Model(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.rope_theta = 1_000_000.0
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(shape.vocab_size, shape.hidden_size),
                "layers": nn.ModuleList(Layer(shape) for _ in range(shape.num_hidden_layers)),
                "norm": nn.RMSNorm(shape.hidden_size, shape.rms_norm_eps),
            }
        )
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5 * (1 if "embed" not in name else 0.5))
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        """tokens: [B, T] int64; wanted: [B, T] bool. Logits [wanted.sum(), vocab]."""
        cos, sin = self._angles(tokens.shape[1], tokens.device)
        x = self.model["embed_tokens"](tokens)
        for layer in self.model["layers"]:
            x = layer(x, cos, sin)
        return F.linear(self.model["norm"](x[wanted]), self.model["embed_tokens"].weight)

    def _angles(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        half = torch.arange(0, self.shape.head_dim, 2, device=device) / self.shape.head_dim
        angles = torch.outer(torch.arange(length, device=device).float(), self.rope_theta**-half)
        angles = torch.cat((angles, angles), -1)
        return angles.cos(), angles.sin()
