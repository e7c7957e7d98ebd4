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
from kvtrove.models.layers.norm import RMSNorm
from kvtrove.models.spec import Activation, ClampedGate, ModelSpec, MoESpec

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
}


@dataclass(frozen=True, eq=False)
class MLP:
    """down(activation(gate(x)) * up(x)), or what `clamped` says instead.

    cutoff: standard deviations above the mean of a token's gates that are subtracted first; what is negative then
    becomes zero (Gemma 3n).
    """

    gate_up: Joint
    down: Product
    activation: Activation
    clamped: ClampedGate | None = None
    cutoff: float | None = None

    @classmethod
    def load(
        cls,
        weights: Weights,
        name: str,
        spec: ModelSpec,
        inner: int,
        bias: bool = False,
        clamped: ClampedGate | None = None,
        sparsity: float = 0.0,
    ) -> MLP:
        """inner: width between the projections. sparsity: share of gates that become zero."""
        outer = spec.hidden_size
        deviations = float(torch.special.ndtri(torch.tensor(sparsity)))
        return cls(
            gate_up=weights.joint({f"{name}.gate_proj": inner, f"{name}.up_proj": inner}, outer, bias),
            down=weights.linear(f"{name}.down_proj", (outer, inner), bias),
            activation=spec.activation,
            clamped=clamped,
            cutoff=deviations if sparsity else None,
        )

    @property
    def plain(self) -> bool:
        """Whether gates go through the activation alone."""
        return self.clamped is None and self.cutoff is None

    def __call__(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x)
        if self.clamped is not None:
            limit, alpha = self.clamped.limit, self.clamped.alpha
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
            return self.down((up + 1) * (gate * torch.sigmoid(gate * alpha)))
        if self.cutoff is not None:
            gate = F.relu(gate - (gate.mean(-1, keepdim=True) + gate.std(-1, keepdim=True, correction=0) * self.cutoff))
        gated = rows.GATES.get(self.activation)
        if gated and rows.serves(gate) and gate.stride() == up.stride():
            return self.down(gated(gate, up))
        gate = ACTIVATIONS[self.activation](gate)  # lets go of what it was: at most three are alive
        return self.down(gate * up)


@dataclass(frozen=True, eq=False)
class MixtureOfExperts:
    """Each token goes to the `top_k` experts that the router likes best; their outputs are summed by its weights.

    correction: added to scores for the choice alone. expert_scale: multiplies weights. Both float32 [num_experts].
    """

    router: Product
    experts: tuple[MLP, ...]
    spec: MoESpec
    shared: MLP | None = None
    correction: Tensor | None = None
    expert_scale: Tensor | None = None
    shared_gate: Product | None = None

    @classmethod
    def load(cls, weights: Weights, name: str, spec: ModelSpec, moe: MoESpec) -> MixtureOfExperts:
        return cls(
            weights.router(f"{name}.gate", (moe.num_experts, spec.hidden_size), moe.bias),
            tuple(
                MLP.load(weights, f"{name}.experts.{i}", spec, moe.intermediate_size, moe.bias, moe.clamped)
                for i in range(moe.num_experts)
            ),
            moe,
            MLP.load(weights, f"{name}.shared_experts", spec, moe.shared_size, spec.mlp_bias)
            if moe.shared_size
            else None,
            weights.take(f"{name}.gate.e_score_correction_bias", (moe.num_experts,)).float() if moe.corrected else None,
            weights.take(f"{name}.gate.expert_scale", (moe.num_experts,)).float() if moe.beside else None,
            weights.router(f"{name}.shared_expert_gate", (1, spec.hidden_size)) if moe.shared_gate else None,
        )

    def __call__(self, x: Tensor, routed_by: Tensor | None = None) -> Tensor:
        """x: [T, hidden_size]. Tokens are sorted by expert, so that each expert that is hit runs once.

        routed_by: what the router reads instead of x.
        """
        weights, chosen = self._choose(self.router(x if routed_by is None else routed_by).float())
        by_expert = chosen.flatten().argsort(stable=True)
        loads = chosen.flatten().bincount(minlength=len(self.experts)).tolist()
        out = torch.zeros_like(x) if self.shared is None else self.shared(x)
        if self.shared_gate is not None:
            out = out * self.shared_gate(x).sigmoid()
        for expert, picks in zip(self.experts, by_expert.split(loads), strict=True):
            if len(picks):
                tokens, share = picks // self.spec.top_k, weights.flatten()[picks, None]
                read = x[tokens]
                mixed = expert((read * share).to(x.dtype)) if self.spec.scales_input else expert(read) * share
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
        if self.expert_scale is not None:
            weights = weights * self.expert_scale[chosen]
        return weights * spec.scale, chosen


@dataclass(frozen=True, eq=False)
class ExpertsBeside:
    """norm(dense(y)) + norm(experts(norm(x))), y being a norm of x: both read the layer side by side (Gemma 4)."""

    dense: MLP
    experts: MixtureOfExperts
    dense_norm: RMSNorm
    before: RMSNorm
    after: RMSNorm
    router_norm: RMSNorm

    @classmethod
    def load(cls, weights: Weights, name: str, spec: ModelSpec, moe: MoESpec, inner: int) -> ExpertsBeside:
        """name: of the layer. inner: width of the dense network."""

        def norm(part: str) -> RMSNorm:
            return RMSNorm.load(weights.take, f"{name}.{part}", spec.hidden_size, spec)

        scale = weights.take(f"{name}.mlp.gate.scale", (spec.hidden_size,)).float() * spec.hidden_size**-0.5
        return cls(
            dense=MLP.load(weights, f"{name}.mlp", spec, inner, spec.mlp_bias),
            experts=MixtureOfExperts.load(weights, f"{name}.mlp", spec, moe),
            dense_norm=norm("post_feedforward_layernorm_1"),
            before=norm("pre_feedforward_layernorm_2"),
            after=norm("post_feedforward_layernorm_2"),
            router_norm=RMSNorm(scale, spec.norm_eps, wide=True),
        )

    def __call__(self, y: Tensor, x: Tensor) -> Tensor:
        """[T, hidden_size] each."""
        return self.dense_norm(self.dense(y)) + self.after(self.experts(self.before(x), self.router_norm(x)))


Network = MLP | MixtureOfExperts | ExpertsBeside
"""What a layer has behind its attention."""
