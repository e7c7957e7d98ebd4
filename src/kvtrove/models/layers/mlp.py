"""Feed-forward layers: gated MLP (SwiGLU / GeGLU, arXiv 2002.05202) and mixture of experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from kvtrove.kernels import rows
from kvtrove.models.layers.linear import Joint, Product, Weights
from kvtrove.models.spec import Activation, ModelSpec, MoESpec

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


@dataclass(frozen=True, eq=False)
class MLP:
    """down(activation(gate(x)) * up(x))"""

    gate_up: Joint
    down: Product
    activation: Activation

    @classmethod
    def load(cls, weights: Weights, name: str, spec: ModelSpec, inner: int, bias: bool = False) -> MLP:
        """inner: width between the projections."""
        outer = spec.hidden_size
        return cls(
            gate_up=weights.joint({f"{name}.gate_proj": inner, f"{name}.up_proj": inner}, outer, bias),
            down=weights.linear(f"{name}.down_proj", (outer, inner), bias),
            activation=spec.activation,
        )

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x)
        gated = rows.GATES.get(self.activation)
        if gated and rows.serves(gate) and gate.stride() == up.stride():
            return self.down(gated(gate, up))
        gate = ACTIVATIONS[self.activation](gate)  # lets go of what it was: at most three are alive
        return self.down(gate * up)


@dataclass(frozen=True, eq=False)
class MixtureOfExperts:
    """Each token goes to the `top_k` experts that the router likes best; their outputs are summed by its weights."""

    router: Product
    experts: tuple[MLP, ...]
    spec: MoESpec
    shared: MLP | None = None
    correction: Tensor | None = None
    shared_gate: Product | None = None

    @classmethod
    def load(cls, weights: Weights, name: str, spec: ModelSpec, moe: MoESpec) -> MixtureOfExperts:
        return cls(
            weights.router(f"{name}.gate", (moe.num_experts, spec.hidden_size)),
            tuple(
                MLP.load(weights, f"{name}.experts.{i}", spec, moe.intermediate_size) for i in range(moe.num_experts)
            ),
            moe,
            MLP.load(weights, f"{name}.shared_experts", spec, moe.shared_size, spec.mlp_bias)
            if moe.shared_size
            else None,
            weights.take(f"{name}.gate.e_score_correction_bias", (moe.num_experts,)).float()
            if moe.scoring == "sigmoid"
            else None,
            weights.router(f"{name}.shared_expert_gate", (1, spec.hidden_size)) if moe.gated_shared else None,
        )

    def __call__(self, x: Tensor) -> Tensor:
        """x: [T, hidden_size]. Tokens are sorted by expert, so that each expert that is hit runs once."""
        weights, chosen = self._choose(self.router(x).float())
        by_expert = chosen.flatten().argsort(stable=True)
        loads = chosen.flatten().bincount(minlength=len(self.experts)).tolist()
        out = torch.zeros_like(x) if self.shared is None else self.shared(x)
        if self.shared_gate is not None:
            out = out * self.shared_gate(x).sigmoid()
        for expert, picks in zip(self.experts, by_expert.split(loads), strict=True):
            if len(picks):
                tokens = picks // self.spec.top_k
                mixed = expert(x[tokens]) * weights.flatten()[picks, None]
                out.index_add_(0, tokens, mixed.to(out.dtype))
        return out

    def _choose(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and numbers of the chosen experts, [T, top_k] each, of float32 logits [T, num_experts]."""
        spec = self.spec
        scores = logits.softmax(-1) if spec.scoring == "softmax" else logits.sigmoid()
        order = scores if self.correction is None else scores + self.correction
        if spec.top_groups < spec.groups:
            grouped = order.unflatten(-1, (spec.groups, -1))
            best = grouped.amax(-1) if spec.scoring == "softmax" else grouped.topk(2).values.sum(-1)
            kept = torch.zeros_like(best, dtype=torch.bool).scatter_(1, best.topk(spec.top_groups).indices, True)
            order = grouped.masked_fill(~kept[..., None], float("-inf")).flatten(1)
        chosen = order.topk(spec.top_k).indices
        weights = scores.gather(1, chosen)
        if spec.norm_topk:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights * spec.scale, chosen
