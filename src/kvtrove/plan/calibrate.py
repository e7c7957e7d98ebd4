"""Measured steps -> the coefficients of a calibration file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kvtrove.plan.cost import StepWork
from kvtrove.plan.hardware import StepFit


def fit_steps(samples: Sequence[tuple[StepWork, float]]) -> StepFit:
    """Least squares over measured (work, seconds), weighted by 1 / seconds so that short steps count as well.

    Coefficients that would be negative are left out and the others fitted again.
    """
    rows = np.array(
        [[1, w.tokens, w.cached_tokens, w.pairs, w.sequences, w.prompts] for w, _ in samples], dtype=np.float64
    )
    seconds = np.array([s for _, s in samples])
    weighted = rows / seconds[:, None]
    kept = [i for i in range(len(rows[0])) if rows[:, i].any()]
    while True:
        solution, *_ = np.linalg.lstsq(weighted[:, kept], np.ones(len(samples)), rcond=None)
        if (solution >= 0).all() or len(kept) == 1:
            break
        kept = [column for column, value in zip(kept, solution, strict=True) if value >= 0] or [0]
    values = dict(zip(kept, np.maximum(solution, 0.0).tolist(), strict=True))
    return StepFit(*(float(values.get(i, 0.0)) for i in range(len(rows[0]))))
