"""What one sequence hands to the runner: slices of its tokens, its block tables, how to draw the next token."""

from __future__ import annotations

from array import array

from kvtrove.scheduler.output import SampleSpec, ScheduledSequence
from kvtrove.scheduler.sequence import Sequence


def scheduled_sequence(seq: Sequence, num: int) -> ScheduledSequence:
    """The next `num` tokens of `seq`; it samples when these are its last ones."""
    request, start = seq.request, seq.kv.num_computed
    reports = request.params.prompt_logprobs if request.wants_prompt_logprobs else None
    targets = request.prompt[start + 1 : start + num + 1] if reports is not None else array("i")
    sample = sample_spec(seq) if num == seq.num_uncomputed else None
    return ScheduledSequence(seq.id, seq.tokens[start : start + num], start, seq.kv.block_ids(), sample, reports, targets)


def sample_spec(seq: Sequence) -> SampleSpec:
    """One stream per sequence; all `n` of them at once for the first token, which is drawn before the fork."""
    request, params = seq.request, seq.request.params
    first = seq.num_output == 0 and not request.beam
    return SampleSpec(
        params=params,
        seed=request.seed,
        streams=tuple(range(params.n)) if first else (seq.index,),
        position=seq.num_output,
        prompt=request.prompt,
        output=seq.output if params.penalised else array("i"),
        banned=tuple(sorted(request.end_token_ids)) if seq.num_output < params.min_tokens else (),
        candidates=2 * params.beam_width,
    )
