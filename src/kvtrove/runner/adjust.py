"""What a request does to logits before a token is chosen: allow, ban, bias, penalise."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kvtrove.runner.logprobs import LARGEST
from kvtrove.runner.ranking import EXCLUDED
from kvtrove.scheduler.output import SampleSpec

T = TypeVar("T")
Cells = tuple[Tensor, Tensor]  # (rows [C], columns [C]) of logits [R, V]


def adjusts(spec: SampleSpec) -> bool:
    """Whether `adjusted` changes this row at all."""
    params = spec.params
    limited = params.allowed_token_ids is not None or spec.allowed is not None
    return bool(limited or spec.banned or params.logit_bias or params.penalised)


def adjusted(logits: Tensor, specs: Sequence[SampleSpec]) -> tuple[Tensor, list[int]]:
    """A copy of logits [R, V]: tokens allowed, biased, banned, then penalised; and the rows left without any token.

    Such a row, of a request whose rules contradict each other, keeps its best raw one, so that the others can be drawn.
    """
    work = logits.clone()
    for row, s in enumerate(specs):
        if s.params.allowed_token_ids is not None:
            work[row].masked_fill_(_forbidden(s, work), EXCLUDED)
        if s.params.logit_bias:
            work[row].index_add_(0, *_bias(s, work))
    ban(work, specs)
    _penalise_repetition(work, specs)
    _penalise_output(work, specs)
    lost = (work.amax(-1) == EXCLUDED).nonzero().squeeze(1)
    if len(lost):
        work[lost, logits[lost].argmax(-1)] = 0.0
    return work, lost.tolist()


def ban(work: Tensor, specs: Sequence[SampleSpec]) -> None:
    """Exclude each row's banned tokens, and those that its grammar does not allow, in place."""
    for row, s in enumerate(specs):
        if s.banned:
            work[row].index_fill_(0, _banned(s, work), EXCLUDED)
        if s.allowed is not None:
            bits = np.unpackbits(s.allowed.view(np.uint8), count=work.shape[1], bitorder="little")
            work[row].masked_fill_(torch.from_numpy(bits == 0).to(work.device), EXCLUDED)


def _once(make: Callable[[SampleSpec, Tensor], T]) -> Callable[[SampleSpec, Tensor], T]:
    """Made at the first draw of a request, and kept in its notes: a list may name all of a vocabulary."""

    @functools.wraps(make)
    def kept(spec: SampleSpec, like: Tensor) -> T:
        made: T | None = spec.notes.get(make.__name__)
        if made is None:
            made = spec.notes[make.__name__] = make(spec, like)
        return made

    return kept


@_once
def _forbidden(spec: SampleSpec, work: Tensor) -> Tensor:
    """bool [V]: all but `allowed_token_ids`."""
    mask = torch.ones(work.shape[-1], dtype=torch.bool)
    mask[torch.tensor(spec.params.allowed_token_ids)] = False
    return mask.to(work.device)


@_once
def _bias(spec: SampleSpec, work: Tensor) -> tuple[Tensor, Tensor]:
    """Ids int64 [B] and what is added to their logits [B]."""
    bias = spec.params.logit_bias or {}
    return torch.tensor(list(bias), device=work.device), torch.tensor(list(bias.values())).to(work)


@_once
def _banned(spec: SampleSpec, work: Tensor) -> Tensor:
    """int64 [B]."""
    return torch.tensor(list(spec.banned), device=work.device)


def _penalise_repetition(work: Tensor, specs: Sequence[SampleSpec]) -> None:
    """Divide positive, multiply negative logits of tokens in prompt or output (Keskar et al., arXiv 1909.05858)."""
    penalty = torch.tensor([s.params.repetition_penalty for s in specs], dtype=work.dtype, device=work.device)
    seen = [() if s.params.repetition_penalty == 1.0 else _ids(s.prompt, s.output) for s in specs]
    rows, columns = _cells(work, seen)
    values, strength = work[rows, columns], penalty[rows]
    # A token seen twice is written twice, with the same value.
    changed = torch.where(values > 0, values / strength, values * strength).clamp_(-LARGEST, LARGEST)
    work[rows, columns] = changed.masked_fill_(values == EXCLUDED, EXCLUDED)


def _penalise_output(work: Tensor, specs: Sequence[SampleSpec]) -> None:
    """Subtract presence_penalty once and frequency_penalty per occurrence from tokens of the output (as OpenAI)."""
    rows, columns, amounts = [], [], []
    for row, s in enumerate(specs):
        presence, frequency = s.params.presence_penalty, s.params.frequency_penalty
        if (presence or frequency) and len(s.output):
            tokens, counts = np.unique(_ids(s.output), return_counts=True)
            rows.append(np.full(len(tokens), row))
            columns.append(tokens)
            amounts.append(presence + frequency * counts)
    if rows:
        cells = [torch.from_numpy(np.concatenate(part)).to(work.device) for part in (rows, columns)]
        work[cells[0], cells[1]] -= torch.from_numpy(np.concatenate(amounts)).to(work)


def _ids(*parts: array[int]) -> NDArray[np.int64]:
    return np.concatenate([np.frombuffer(part, dtype=np.dtype(part.typecode)) for part in parts]).astype(np.int64)


def _cells(work: Tensor, columns: Iterable[Sequence[int] | NDArray[np.int64]]) -> Cells:
    """Indices of columns[r] in every row r."""
    parts = [np.asarray(ids, dtype=np.int64) for ids in columns]
    rows = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return torch.from_numpy(rows).to(work.device), torch.from_numpy(np.concatenate(parts)).to(work.device)
