"""What one sequence hands to the runner: slices of its tokens, its block tables, how to draw the next tokens."""

from __future__ import annotations

from array import array
from dataclasses import replace

from kvtrove.request import Guide
from kvtrove.scheduler.output import NO_ENDS, NO_TOKENS, PoolSpec, SampleSpec, ScheduledSequence
from kvtrove.scheduler.sequence import Sequence


def scheduled_sequence(seq: Sequence, num: int, drafts: array[int] = NO_TOKENS) -> ScheduledSequence:
    """The next `num` tokens of `seq`; it samples when these are its last ones, and only then may drafts follow."""
    start = seq.kv.num_computed
    stop = start + num
    last, pooling = stop == len(seq.tokens), seq.request.pooling
    sample = sample_spec(seq) if last and pooling is None else None
    kv = seq.kv
    work = ScheduledSequence(seq.id, seq.tokens[start:stop], kv.num_held, kv.block_ids(), sample, seat=kv.seat)
    if seq.request.compactor is not None:
        work.shift, work.packed = kv.shift, kv.packed
        window = kv.compacts_at - seq.request.compactor.window  # the first token whose queries it looks at
        work.observe = max(0, stop - max(start, window))
    if drafts and sample is not None:
        work.verify = draft_specs(seq, sample, drafts)
        work.tokens.extend(drafts[: len(work.verify)])
    work.adapter = seq.request.adapter
    if pooling is not None:
        work.pool = PoolSpec(pooling, seq.request.pool_carry, last)
    if seq.request.wants_prompt_logprobs:
        work.prompt_logprobs = seq.request.params.prompt_logprobs
        work.prompt_targets = seq.request.prompt[start + 1 : stop + 1]
    return work


def sample_spec(seq: Sequence) -> SampleSpec:
    """One stream per sequence; all `n` of them at once for the first token, which is drawn before the fork.

    While nothing but the position changes from step to step, the last step's object serves again: that step is over.
    """
    if seq.steady_spec is not None:
        seq.steady_spec.position = seq.num_output
        return seq.steady_spec
    request, params, position, guide = seq.request, seq.request.params, seq.num_output, seq.guide
    forks = position == 0 and params.n > 1 and not request.beam
    spec = SampleSpec(
        params,
        request.seed,
        tuple(range(params.n)) if forks else (seq.index,),
        position,
        request.prompt,
        seq.output if params.penalised else NO_TOKENS,
        _banned(seq, position),
        2 * params.beam_width,
        None if guide is None else guide.mask(),
        request.notes,
    )
    if not (forks or spec.banned or params.penalised or request.beam or guide is not None):
        seq.steady_spec = spec
    return spec


def draft_specs(seq: Sequence, sample: SampleSpec, drafts: array[int]) -> tuple[SampleSpec, ...]:
    """How to draw after each draft, as if it and those before it had been drawn. A grammar ends them where it forbids
    the next."""
    guide: Guide | None = None if seq.guide is None else seq.guide.copy()
    specs, allowed, output = [], sample.allowed, sample.output
    for place, token in enumerate(drafts, 1):
        if guide is not None and allowed is not None:
            if not allowed[token // 32] >> (token % 32) & 1:
                break
            guide.accept(token)
            allowed = guide.mask()
        if sample.params.penalised:
            output = output + array("i", [token])
        position = sample.position + place
        specs.append(replace(sample, position=position, output=output, banned=_banned(seq, position), allowed=allowed))
    return tuple(specs)


def _banned(seq: Sequence, position: int) -> frozenset[int]:
    """End tokens before min_tokens; a grammar alone says where its text may end."""
    too_short = position < seq.request.params.min_tokens and seq.guide is None
    return seq.request.end_token_ids if too_short else NO_ENDS
