"""What one sequence hands to the runner: slices of its tokens, its block tables, how to draw the next token."""

from __future__ import annotations

from kvtrove.scheduler.output import NO_ENDS, NO_TOKENS, SampleSpec, ScheduledSequence
from kvtrove.scheduler.sequence import Sequence


def scheduled_sequence(seq: Sequence, num: int) -> ScheduledSequence:
    """The next `num` tokens of `seq`; it samples when these are its last ones."""
    start = seq.kv.num_computed
    stop = start + num
    sample = sample_spec(seq) if stop == len(seq.tokens) else None
    work = ScheduledSequence(seq.id, seq.tokens[start:stop], start, seq.kv.block_ids(), sample)
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
    too_short = position < params.min_tokens and guide is None  # a grammar alone says where its text may end
    forks = position == 0 and params.n > 1 and not request.beam
    spec = SampleSpec(
        params,
        request.seed,
        tuple(range(params.n)) if forks else (seq.index,),
        position,
        request.prompt,
        seq.output if params.penalised else NO_TOKENS,
        request.end_token_ids if too_short else NO_ENDS,
        2 * params.beam_width,
        None if guide is None else guide.mask(),
        request.notes,
    )
    if not (forks or too_short or params.penalised or request.beam or guide is not None):
        seq.steady_spec = spec
    return spec
