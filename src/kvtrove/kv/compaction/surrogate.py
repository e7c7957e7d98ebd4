"""What a model would read of a text if it repeated it, predicted from the keys and values that it has anyway.

KVzip (`reconstruct`) lets the model repeat a text to find that out. Fast KVzip (arXiv 2601.17668) and KVzap (arXiv
2601.07891) predict its scores from hidden states. These are gone when a prompt has been computed; keys and values are
linear functions of them, and each head's own suffice:

    log score  ~  a . key before its rotation  +  b . value  +  c log|key|  +  d log|value|  +  e       a row of `gate`

`kvtrove calibrate --surrogate` fits these rows, one a head, to the scores of a model (`evaluate.surrogate`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kvtrove.kv.compaction.scores import TINY, Seen
from kvtrove.kv.formats.calibration import Calibration

if TYPE_CHECKING:
    from torch import Tensor

CONSTANT = 3
"""Weights of a row beside those of a key and a value."""
LEAST = 1e-20
"""Scores are not told apart below: float32 has no logarithm of 0."""


def gate_name(layer: int) -> str:
    """In a calibration: float32 [heads, k_dim + v_dim + CONSTANT]."""
    return f"gate.{layer}"


def features(k: Tensor, v: Tensor, turn: Callable[[Tensor, Tensor], Tensor], positions: Tensor) -> Tensor:
    """What a row of a gate is multiplied by: float32 [heads, n, k_dim + v_dim + CONSTANT].

    k: [n, heads, k_dim], rotated. v: [n, heads, v_dim]. turn: as of `Seen`. positions: int64 [n], of these tokens.
    """
    n, heads, k_dim = k.shape
    v_dim = v.shape[2]
    before = turn(k, -positions[:, None].expand(n, heads))
    found = before.new_empty((heads, n, k_dim + v_dim + CONSTANT)).float()
    found[..., :k_dim] = before.transpose(0, 1)
    found[..., k_dim : k_dim + v_dim] = v.transpose(0, 1)
    found[..., -3] = found[..., :k_dim].norm(dim=-1).clamp(min=TINY).log()
    found[..., -2] = found[..., k_dim : k_dim + v_dim].norm(dim=-1).clamp(min=TINY).log()
    found[..., -1] = 1
    return found


def surrogate(seen: Seen, calibration: Calibration) -> Tensor:
    """The logarithm of the score that KVzip would find, as the gate of `calibration` predicts it: float32
    [heads, held]. Knows no question.
    """
    assert seen.v is not None, "it reads values"
    assert seen.turn is not None
    gate = calibration.tensor(gate_name(seen.layer), seen.k)
    positions = seen.k.new_ones(len(seen.k)).int().cumsum(0) - 1
    scores: Tensor = (features(seen.k, seen.v, seen.turn, positions) @ gate[:, :, None])[..., 0]
    return scores
