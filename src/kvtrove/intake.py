"""What an engine takes in: a caller's tokens and parameters become a request of the scheduler, or are refused."""

from __future__ import annotations

import logging
import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace

from kvtrove.kv.chain import scoped
from kvtrove.kv.compaction.compactor import Compactor, context_shift
from kvtrove.models.spec import ModelSpec
from kvtrove.request import (
    INT32,
    Guide,
    PoolingParams,
    RequestError,
    RequestMetrics,
    SamplingParams,
    SoftPin,
    sampling_of,
)
from kvtrove.scheduler.sequence import Request
from kvtrove.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)
LEAST_SHIFT = 4
"""Tokens behind `n_keep` that can always leave, as in llama.cpp."""
MESSAGE_ENDS = (
    *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<turn|>", "<|end_of_text|>", "<|eot|>"),
    *("<|END_OF_TURN_TOKEN|>", "[/INST]", "[/SYSTEM_PROMPT]", "[/AVAILABLE_TOOLS]", "<|endofturn|>"),
)
"""Tokens that chat templates write behind a message, beside those that end an answer."""


class Intake:
    """Of one engine. max_model_len: tokens of prompt and output at most. seed: of the seeds of requests without one.

    compactor: what sequences give up of their tokens. shifts: it is a context shift, of each request with its n_keep.
    """

    def __init__(
        self,
        spec: ModelSpec,
        tokenizer: Tokenizer,
        max_model_len: int,
        seed: int | None,
        clock: Callable[[], float],
        *,
        can_draft: bool,
        compactor: Compactor | None = None,
        shifts: bool = False,
    ) -> None:
        self.compactor, self.shifts = compactor, shifts
        self.vocab_size, self.hidden_size = spec.vocab_size, spec.hidden_size
        self.max_model_len, self.clock, self.can_draft = max_model_len, clock, can_draft
        self.adapters: dict[str, bytes] = {}  # name -> digest
        self._end_token_ids = known_ends((*spec.eos_token_ids, *tokenizer.eos_token_ids), spec.vocab_size)
        self._message_ends = frozenset((*self._end_token_ids, *tokenizer.ids_of(MESSAGE_ENDS)))
        self._random = random.Random(seed)
        self._arrivals = 0

    def request(
        self,
        request_id: str,
        prompt: Sequence[int],
        asked: SamplingParams | PoolingParams,
        salt: str,
        guide: Guide | None,
        soft_pins: Sequence[SoftPin] = (),
        session: str = "",
        adapter: str = "",
    ) -> Request:
        """The request, with its place in the order of arrival. RequestError when it can never be served."""
        pooling, params = asked if isinstance(asked, PoolingParams) else None, sampling_of(asked)
        self._refuse_bad(prompt, params, pooling)
        self._refuse_unheld(params, exact=asked.exact_prefix)
        if adapter and adapter not in self.adapters:
            known = f"; there is {', '.join(self.adapters)}" if self.adapters else "; this engine has none"
            raise RequestError(f"adapter: {adapter!r:.100} is not here{known}", "model")
        longest = self.max_model_len
        if self.is_endless:
            longest = INT32 if params.max_tokens else max(longest, len(prompt) + 1)
        wanted = longest if params.max_tokens is None else len(prompt) + params.max_tokens
        own_ends = () if params.ignore_eos else self._end_token_ids
        borders = [i for i, token in enumerate(prompt, 1) if token in self._message_ends]
        pins = [_resolved(pin, borders) for pin in soft_pins]
        self._arrivals += 1
        return Request(
            id=request_id,
            arrival=self._arrivals,
            prompt=array("i", prompt),
            params=params,
            seed=params.seed if params.seed is not None else self._random.getrandbits(63),
            salt=self.scope(salt, adapter),
            max_len=min(longest, wanted),
            end_token_ids=frozenset(i for i in (*own_ends, *(params.stop_token_ids or ())) if 0 <= i < self.vocab_size),
            metrics=RequestMetrics(arrival_time=self.clock(), soft_pins=pins),
            guide=guide,
            borders=borders,
            session=session,
            pooling=pooling,
            compactor=self._compactor(prompt, params),
            exact=asked.exact_prefix,
            adapter=self.adapters[adapter] if adapter else b"",
        )

    def _compactor(self, prompt: Sequence[int], params: SamplingParams) -> Compactor | None:
        """What this request gives up of its tokens."""
        if not self.shifts:
            return self.compactor
        n_keep = len(prompt) if params.n_keep == -1 else params.n_keep or 0
        return context_shift(min(n_keep, self.max_model_len - LEAST_SHIFT), self.max_model_len)

    @property
    def is_endless(self) -> bool:
        """Whether an answer may pass the end of the context: a sequence never holds more tokens than that."""
        return self.compactor is not None and self.compactor.most(INT32) <= self.max_model_len

    @property
    def longest_prompt(self) -> int:
        """Tokens of a prompt and one of its answer at most. A context that shifts takes none that does not fit."""
        return INT32 if self.is_endless and not self.shifts else self.max_model_len

    def _refuse_unheld(self, params: SamplingParams, *, exact: bool) -> None:
        if params.n_keep and not self.shifts:
            raise RequestError(
                "n_keep: answers end where the context does; start the engine with context_shift=True "
                "(--context-shift), or leave it out",
                "n_keep",
            )
        on_demand = self.compactor is not None and self.compactor.on_demand
        if params.beam_width and (self.shifts or self.compactor is not None) and not (on_demand and exact):
            zero = "0, or set exact_prefix" if on_demand else "0"
            raise RequestError(
                f"beam_width: beams need every token of their sequence, and this cache drops some; leave it at {zero}",
                "beam_width",
            )

    def scope(self, salt: str, adapter: str) -> bytes:
        """What separates the cached blocks of a request from those of others. adapter: a known name, or empty."""
        return scoped(self.adapters[adapter] if adapter else b"", salt.encode())

    def _refuse_bad(self, prompt: Sequence[int], params: SamplingParams, pooling: PoolingParams | None) -> None:
        if not prompt:
            raise RequestError("the prompt is empty; give at least one token", "prompt")
        if pooling is not None and len(prompt) > self.max_model_len:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens; at most {self.max_model_len} fit into the context", "prompt"
            )
        if pooling is not None and (pooling.dimensions or 0) > self.hidden_size:
            raise RequestError(
                f"dimensions: {pooling.dimensions} are more than the model's {self.hidden_size}", "dimensions"
            )
        if pooling is None and len(prompt) >= self.longest_prompt:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens, the context holds {self.max_model_len} with at least one for "
                f"the answer: at most {self.max_model_len - 1} fit",
                "prompt",
            )
        if params.speculation and not self.can_draft:
            raise RequestError(
                "speculation: this engine drafts nothing; start it with speculation='ngram' (--speculation ngram), or "
                "leave it out",
                "speculation",
            )
        bias, allowed = params.logit_bias or (), params.allowed_token_ids or ()
        pooled = () if pooling is None else pooling.token_ids
        named = (("prompt", prompt), ("logit_bias", bias), ("allowed_token_ids", allowed), ("token_ids", pooled))
        for param, ids in named:
            for token_id in (min(ids, default=0), max(ids, default=0)):
                if not 0 <= token_id < self.vocab_size:
                    raise RequestError(
                        f"{param}: token id {token_id} is not in the vocabulary (0 to {self.vocab_size - 1})", param
                    )


def _resolved(pin: SoftPin, borders: Sequence[int]) -> SoftPin:
    """With the tokens of its prefix, where the ends of messages tell them; else it is the whole prompt."""
    if pin.behind is None or not 0 < pin.behind < len(borders):
        return replace(pin, behind=None)
    return replace(pin, num_tokens=borders[-1 - pin.behind], behind=None)


def known_ends(token_ids: Sequence[int], vocab_size: int) -> tuple[int, ...]:
    """The model's own end tokens. Some checkpoints name ids past the vocabulary, which it can never produce."""
    ends = dict.fromkeys(token_ids)
    unknown = [i for i in ends if not 0 <= i < vocab_size]
    if unknown:
        log.warning(
            "end tokens %s of the checkpoint lie past its vocabulary of %d and are ignored", *(unknown, vocab_size)
        )
    return tuple(i for i in ends if i not in unknown)
