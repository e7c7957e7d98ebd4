"""Vectors of prompts: hidden states after the last norm, of the last token, of the first, or their mean.

A mean is summed token by token in float64, so it has the same bits however the prompt was cut into steps.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from kvtrove.models.decoder import Model
from kvtrove.request import EngineError, PoolingParams
from kvtrove.scheduler.output import ScheduledSequence, SequenceResult

ROWS_AT_ONCE = 256
"""Rows of float64 that are held while they are summed."""


def pooled(s: ScheduledSequence, hidden: Tensor, model: Model) -> SequenceResult:
    """What a sequence with `pool` becomes in this step. hidden: [T, hidden_size] of its tokens."""
    assert s.pool is not None, "only a sequence that becomes a vector"
    params, carry = s.pool.params, s.pool.carry if s.start else None
    if params.token_ids:
        logits = model.logits(hidden[-1:], fine=True) if s.pool.last else None
        return _result(None if logits is None else _rows(logits[:, list(params.token_ids)])[0], None)
    if params.pooling == "last":
        return _result(shaped(_rows(hidden[-1:])[0], params) if s.pool.last else None, None)
    if params.pooling == "cls":
        first = _rows(hidden[:1])[0] if carry is None else carry
        return _result(shaped(first, params) if s.pool.last else None, first)
    total = np.zeros(hidden.shape[1]) if carry is None else carry
    for part in hidden.split(ROWS_AT_ONCE):
        total = np.add.reduce(np.vstack([total, _rows(part)]), axis=0)  # row by row: no pairs along this axis
    return _result(shaped(total / (s.start + len(hidden)), params) if s.pool.last else None, total)


def shaped(vector: NDArray[np.float64], params: PoolingParams) -> NDArray[np.float64]:
    """Cut to its first dimensions, then of length 1, as asked for. A vector of zeros stays one."""
    vector = vector[: params.dimensions]
    length = float(np.sqrt(vector @ vector))
    return vector / length if params.normalize and length > 0 else vector


def _rows(hidden: Tensor) -> NDArray[np.float64]:
    rows: NDArray[np.float64] = hidden.double().cpu().numpy()
    return rows


def _result(vector: NDArray[np.float64] | None, carry: NDArray[np.float64] | None) -> SequenceResult:
    if vector is not None and not np.isfinite(vector).all():
        error = EngineError("the model computed numbers that are not finite for this prompt, so it has no vector")
        return SequenceResult([], error=error)
    return SequenceResult([], pooled=None if vector is None else vector.astype(np.float32), pool_carry=carry)
