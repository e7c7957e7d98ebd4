"""How much each token of a prompt matters, by the published methods.

Scores are float32: in bf16 most of them tie. Tensors are used by their methods alone, so that this needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtrove.kv.compaction.budgets import Budgets, Everywhere, Pyramid

if TYPE_CHECKING:
    from torch import Tensor

POOL = 5
"""Neighbours whose scores SnapKV averages, so that what is kept are runs of tokens and not single ones."""
STATISTICS = 256
"""Last queries of a prompt that Expected Attention takes for typical; the paper takes all."""
AHEAD = 512
"""Positions behind the prompt over which it averages the rotation: a power of two."""
SINKS = 4
"""First tokens that it always keeps."""
RECENT = 32
"""Last tokens that always stay: a question that is dropped cannot be answered. The window of SnapKV's authors."""
FLOOR = 1e-2
"""What it adds to every probability, so that long values stay that nobody is expected to read."""
TINY = 1e-12
"""Least length of a vector that is normalised, as in torch."""


@dataclass(frozen=True)
class Seen:
    """What one layer shows of a sequence.

    k: [held, heads, k_dim], as attention reads them. attend: computes `probabilities`; None when no queries were asked
    for. v: [held, heads, v_dim]. queries: these, [w, num_heads, k_dim], at their positions. turn: keys or queries
    [n, heads, k_dim] and int64 [n, heads] -> the same, moved by so many positions. scale: of attention. given: scores
    that were found beforehand. layer: its number. shift: what positions are beyond places, for the last token.
    """

    k: Tensor
    attend: Callable[[], Tensor] | None = None
    v: Tensor | None = None
    queries: Tensor | None = None
    turn: Callable[[Tensor, Tensor], Tensor] | None = None
    scale: float = 1.0
    given: Tensor | None = None
    layer: int = 0
    shift: int = 0

    @property
    def probabilities(self) -> Tensor:
        """float32 [heads, shared, w, held], of the last w queries of each of the `shared` query heads that a key head
        serves.
        """
        assert self.attend is not None, "compactors that look at them have a window"
        return self.attend()


def keydiff(seen: Seen) -> Tensor:
    """Keys that differ most from the average direction of all (KeyDiff, arXiv 2504.15364). Knows no question.

    Minus the cosine between a key and the mean of all normalised keys, per head: float32 [heads, held].
    """
    k = seen.k.float()
    k = k / k.norm(dim=-1, keepdim=True).clamp(min=TINY)
    anchor = k.mean(0)
    anchor = anchor / anchor.norm(dim=-1, keepdim=True).clamp(min=TINY)
    scores: Tensor = -(k * anchor).sum(-1).T
    return scores.contiguous()


def snapkv(seen: Seen) -> Tensor:
    """What the last queries of the prompt attend to (SnapKV, arXiv 2404.14469): their mean attention, averaged over
    `POOL` neighbours and over the query heads of a key head: float32 [heads, held].

    The window's own tokens score 0; compactors keep them whatever the score.
    """
    probabilities, half = seen.probabilities, POOL // 2
    heads, _, w, held = probabilities.shape
    mean = probabilities.mean((1, 2))
    padded = mean.new_zeros(heads, held - w + 2 * half)
    padded[:, half : half + held - w] = mean[:, : held - w]
    scores = mean.new_zeros(heads, held)
    scores[:, : held - w] = padded.unfold(1, POOL, 1).mean(-1)
    return scores


def finch(seen: Seen) -> Tensor:
    """What a question at the end of the prompt attends to, each of its tokens by what it could have attended to (FINCH,
    arXiv 2408.00167): attention times the number of keys that a query sees, the mean over queries and query heads.

    float32 [heads, held], over the whole prompt at once, where the paper cuts it into chunks. Kept keys are turned
    to positions 0, 1, 2, ...: what is left is a shorter dense cache.
    """
    probabilities = seen.probabilities
    w, held = probabilities.shape[-2:]
    visible = probabilities.new_ones(w).cumsum(0) + (held - w)
    scores: Tensor = (probabilities * visible[:, None]).mean((1, 2))
    return scores


def tova(seen: Seen) -> Tensor:
    """What the last query attends to, the mean over all heads (TOVA, arXiv 2401.06104): one choice for a layer.

    float32 [heads, held], of equal rows.
    """
    return seen.probabilities[:, :, -1].mean((0, 1)).expand(seen.k.shape[1], -1).contiguous()


def expected(seen: Seen) -> Tensor:
    """The attention that queries still to come will pay on average, times the length of the value (Expected Attention,
    arXiv 2510.00636). Knows no question.

    Queries before their rotation are taken for normal, with mean and covariance as the last `STATISTICS` of the prompt
    have them, and turned by the mean rotation of the next `AHEAD` positions: exp(q.k) then has a mean in closed form.
    float32 [heads, held]; the first `SINKS` tokens score as the best of the others.
    """
    q, k, v, turn = seen.queries, seen.k.float(), seen.v, seen.turn
    assert q is not None, "its window is not 0"
    assert v is not None
    assert turn is not None
    (w, num_heads, dim), (held, heads, _) = q.shape, k.shape
    back = k.new_ones((w, num_heads)).int().cumsum(0) + (held - w - 1)
    before = turn(q, -back).float().transpose(0, 1)  # [num_heads, w, dim]
    mean = before.mean(1, keepdim=True)
    spread = before - mean
    covariance = spread.mT @ spread / w
    rotation = _mean_rotation(turn, k.new_ones(dim).diag(), held)
    mean, covariance = mean @ rotation, rotation.mT @ covariance @ rotation
    keys = k[SINKS:].transpose(0, 1).repeat_interleave(num_heads // heads, 0)  # [num_heads, n, dim]
    logits = (keys @ mean.mT)[..., 0] * seen.scale + ((keys @ covariance) * keys).sum(-1) * (seen.scale**2 / 2)
    attention = logits.softmax(-1).view(heads, -1, held - SINKS).mean(1)
    scores = k.new_empty((heads, held))
    scores[:, SINKS:] = (attention + FLOOR) * v[SINKS:].float().norm(dim=-1).T
    scores[:, :SINKS] = scores[:, SINKS:].max()
    return scores


def _mean_rotation(turn: Callable[[Tensor, Tensor], Tensor], one: Tensor, first: int) -> Tensor:
    """Mean of the rotations by `first`, first + 1, ... of AHEAD positions, [dim, dim]; row i is where e_i goes.

    R^first (1 + R) (1 + R^2) (1 + R^4) ... / AHEAD: as many factors as AHEAD has bits. one: the unit matrix.
    """
    powers = [first, *(1 << bit for bit in range(AHEAD.bit_length() - 1))]
    steps = one.new_tensor(powers).int()[:, None].expand(-1, len(one))
    turned = turn(one.expand(len(powers), *one.shape), steps).float()
    found: Tensor = turned[0]
    for factor in turned[1:]:
        found = (found + found @ factor) / 2
    return found


def kvzip(seen: Seen) -> Tensor:
    """What the model read when it repeated the text (KVzip, arXiv 2505.23416; `reconstruct`): float32 [heads, held]."""
    assert seen.given is not None, "probes come first"
    return seen.given.clone()


@dataclass(frozen=True)
class Method:
    """score: float32 [heads, held]. window: last queries of a prompt that it reads. recent: last tokens that stay.
    contiguous: those that stay move together. budgets: None is the same for all heads. reconstructs: it
    scores prefixes on demand, beforehand. reads_values: it looks at V.
    """

    score: Callable[[Seen], Tensor]
    window: int
    recent: int
    contiguous: bool = False
    budgets: Budgets | None = None
    reconstructs: bool = False
    reads_values: bool = False


SCORES: Mapping[str, Method] = {
    "keydiff": Method(keydiff, 0, RECENT),
    "snapkv": Method(snapkv, RECENT, RECENT),
    "finch": Method(finch, RECENT, RECENT, contiguous=True),
    "tova": Method(tova, 1, 1),
    "pyramid": Method(snapkv, RECENT, RECENT, budgets=Pyramid()),
    "kvzip": Method(kvzip, 0, 0, budgets=Everywhere(), reconstructs=True),
    "expected": Method(expected, STATISTICS, RECENT, reads_values=True),
}
