"""From tokens to what the caller sees: text that only grows, logprobs, deltas. One RequestText per request."""

from __future__ import annotations

from operator import attrgetter

from kvtrove.request import CompletionOutput, RequestOutput
from kvtrove.scheduler.sequence import Request, Sequence
from kvtrove.text.detokenizer import IncrementalDetokenizer
from kvtrove.text.tokenizer import Tokenizer

_index = attrgetter("index")


class RequestText:
    """Text state of one request. `update` detokenises the news, `output` reports them."""

    def __init__(self, request: Request, prompt: str | None, tokenizer: Tokenizer) -> None:
        self.request, self.prompt, self.tokenizer = request, prompt, tokenizer
        self._prompt_ids = request.prompt.tolist()
        self._texts: dict[int, IncrementalDetokenizer] = {}  # by index of the sequence, as all below
        self._read: dict[int, int] = {}  # output tokens that the detokenizer has seen
        self._told: dict[int, tuple[int, int]] = {}  # (characters, tokens) reported so far, for deltas

    def update(self) -> list[tuple[Sequence, str, int]]:
        """Detokenise what all sequences appended since.

        Returns those in which a stop string was found, the string, and the number of output tokens that completed it.
        """
        if (
            self.request.error is not None
            or not self.request.params.detokenize
            or (self.request.beam and not self.request.finished)
        ):
            return []
        stopped = []
        for seq in self.request.sequences:
            if seq.num_output > self._read.get(seq.index, 0):
                found = self._push(seq)
                if found is not None:
                    stopped.append((seq, found, self._read[seq.index]))
        return stopped

    def _push(self, seq: Sequence) -> str | None:
        text = self._texts.get(seq.index)
        if text is None:
            text = self._texts[seq.index] = self._detokenizer()
        news = seq.tokens[len(self._prompt_ids) + self._read.get(seq.index, 0) :].tolist()
        read = seq.num_output
        if seq.finish_reason == "stop" and not self.request.params.include_stop_str_in_output:
            news = news[:-1]  # the token that ended the sequence is not part of its text
        found = None
        for count, token in enumerate(news, self._read.get(seq.index, 0) + 1):
            found = text.push([token])
            if found is not None:
                read = count  # a step of several tokens may go on behind the string
                break
        self._read[seq.index] = read
        if seq.finish_reason is not None and found is None:
            text.finish()
        return found

    def _detokenizer(self) -> IncrementalDetokenizer:
        params = self.request.params
        return IncrementalDetokenizer(
            self.tokenizer,
            self._prompt_ids,
            stop=tuple(params.stop or ()),
            include_stop=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
            skip_special_tokens=params.skip_special_tokens,
            shown=params.shown_token_ids,
        )

    def output(self) -> RequestOutput | None:
        """What to report after a step: None while there is nothing that the request wants to hear."""
        request = self.request
        finished = request.finished
        if not finished and (request.params.output_kind == "final_only" or request.beam):
            return None
        return RequestOutput(
            request_id=request.id,
            prompt=self.prompt,
            prompt_token_ids=self._prompt_ids,
            outputs=[] if request.error else [self._completion(seq) for seq in sorted(request.sequences, key=_index)],
            finished=finished,
            num_cached_tokens=request.num_cached_tokens or 0,
            prompt_logprobs=request.prompt_logprobs,
            metrics=request.metrics,
            pooled=request.pooled,
            error=request.error,
        )

    def _completion(self, seq: Sequence) -> CompletionOutput:
        text = self._texts[seq.index].text if seq.index in self._texts else ""
        tokens = seq.output.tolist()
        logprobs = None if seq.logprobs is None else list(seq.logprobs)
        if self.request.params.output_kind == "delta":
            characters, seen = self._told.get(seq.index, (0, 0))
            self._told[seq.index] = (len(text), len(tokens))
            text, tokens, logprobs = text[characters:], tokens[seen:], logprobs and logprobs[seen:]
        return CompletionOutput(
            index=seq.index,
            text=text,
            token_ids=tokens,
            cumulative_logprob=seq.cumulative_logprob,
            logprobs=logprobs,
            finish_reason=seq.finish_reason,
            stop_reason=seq.stop_reason,
        )
