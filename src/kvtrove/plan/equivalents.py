"""The plan in the settings of other engines, and the command that starts this one with it."""

from __future__ import annotations

from dataclasses import dataclass

from kvtrove.config import EngineConfig
from kvtrove.kv.formats.words import names_elsewhere
from kvtrove.kv.recipe import EXACT, recipe
from kvtrove.kv.spec import Codec
from kvtrove.models.families import REGISTRY
from kvtrove.plan.capacity import readable
from kvtrove.plan.planner import Plan

KT_PAGE = 256
"""Tokens per page of KTransformers' cache: `cache_lens` is rounded up to it."""


@dataclass(frozen=True)
class KTransformers:
    """Settings of its balance_serve backend. prompt_tokens + max_new_tokens of every user share `cache_lens` slots."""

    cache_lens: int
    max_new_tokens: int
    max_batch_size: int
    prompt_tokens: int = 0

    @property
    def needed(self) -> int:
        """Slots that a full batch really takes: prompts count too."""
        return self.max_batch_size * (self.prompt_tokens + self.max_new_tokens)

    @property
    def simple_rule(self) -> int:
        """The rule of its documentation, cache_lens > max_batch_size x max_new_tokens, which forgets the prompts."""
        return self.max_batch_size * self.max_new_tokens

    @property
    def recommended(self) -> int:
        """Twice the simple rule, as its documentation advises: 4 x 16,224 = 64,896, recommended 129,792."""
        return 2 * self.simple_rule

    def problems(self) -> list[str]:
        """Why a full batch would not fit, with the number that does."""
        if self.cache_lens >= self.needed:
            return []
        most = self.cache_lens // (self.prompt_tokens + self.max_new_tokens)
        return [
            f"cache_lens {self.cache_lens} holds {most} of {self.max_batch_size} requests of {self.prompt_tokens} "
            f"prompt + {self.max_new_tokens} new tokens: set it to {_pages(self.needed)}"
        ]

    @property
    def arguments(self) -> str:
        flags = {name: getattr(self, name) for name in ("cache_lens", "max_new_tokens", "max_batch_size")}
        return " ".join(f"--{name} {value}" for name, value in flags.items())


def ktransformers(plan: Plan, prompt: int, new: int) -> KTransformers:
    """prompt, new: tokens of one request; together at most the plan's context."""
    return KTransformers(_pages(plan.users * (prompt + new)), new, plan.users, prompt)


def _pages(tokens: int) -> int:
    return -(-tokens // KT_PAGE) * KT_PAGE


def llama_cpp(plan: Plan) -> str:
    """Of `llama-server`: its context is shared by all parallel slots."""
    k, v = ((names_elsewhere(side)[1] or "f16") for side in _sides(plan))
    attention = " -fa on" if {k, v} & {"q8_0", "q4_0"} else ""
    return (
        f"llama-server -c {plan.users * plan.context} -np {plan.users} "
        f"-b {plan.wishes.max_num_batched_tokens} -ctk {k} -ctv {v}{attention}"
    )


def _sides(plan: Plan) -> tuple[Codec | None, Codec | None]:
    """How most layers store K and V."""
    formats = [layer.format for layer in plan.fitting.cache.layers if layer.source is None]
    usual = max(dict.fromkeys(formats), key=formats.count)
    return usual.k, usual.v or usual.k


def vllm(plan: Plan) -> str:
    kinds = {names_elsewhere(side)[0] for side in _sides(plan)}
    kind = (kinds.pop() if len(kinds) == 1 and plan.cache != EXACT else "") or "auto"
    ranks = f" --tensor-parallel-size {plan.wishes.tensor_parallel}" if plan.wishes.tensor_parallel > 1 else ""
    return (
        f"vllm serve {plan.model.name} --max-model-len {plan.context} --max-num-seqs {plan.users} "
        f"--kv-cache-memory-bytes {plan.ledger.kv} --kv-cache-dtype {kind} --block-size {plan.wishes.block_size} "
        f"--max-num-batched-tokens {max(plan.users, plan.wishes.max_num_batched_tokens)}{ranks}"
    )


def serve_command(plan: Plan) -> tuple[str | None, str]:
    """(the command that starts the engine as planned, "") or (None, why this engine cannot)."""
    reasons = []
    if plan.model.spec is None:
        quantised = plan.model.architecture in REGISTRY
        what = f"quantised weights of this kind ({plan.model.dtype})" if quantised else plan.model.architecture
        reasons.append(f"it does not run {what}")
    if plan.wishes.tensor_parallel > 1:
        reasons.append("it runs on one device")
    if reasons:
        return None, f"KVTrove cannot serve this plan: {' and '.join(reasons)}"
    words = [
        f"kvtrove serve {_quoted(plan.model.name)}",
        f"--kv {_size_of(plan)}",
        f"--max-model-len {plan.context}",
        f"--max-num-seqs {plan.users}",
    ]
    budget = max(plan.users, plan.wishes.max_num_batched_tokens)
    for name, value in (("max_num_batched_tokens", budget), ("block_size", plan.wishes.block_size)):
        if value != getattr(EngineConfig, name):
            words.append(f"--{name.replace('_', '-')} {value}")
    if plan.model.spec is not None and plan.model.dtype != plan.model.spec.dtype:
        words.append(f"--dtype {plan.model.dtype}")
    if plan.model.precision and plan.model.precision.quantised:
        words.append(f"--weights {plan.model.precision.weights}")
    if (name := recipe(plan.cache).name) != EXACT:
        words.append(f"--cache {name}")
    return " ".join(words), ""


def _size_of(plan: Plan) -> str:
    """`--kv` that gives exactly the plan's blocks: in a short unit when rounding up gives no more blocks."""

    def gives(nbytes: int) -> bool:
        return plan.fitting.blocks_in(nbytes, plan.users) == plan.num_blocks

    nbytes = plan.kv_bytes
    short = readable(nbytes)
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if short.endswith(unit) and gives(int(float(short.removesuffix(unit)) * size)):
            return short
        rounded = -(-nbytes // size)
        if gives(rounded * size):
            return f"{rounded}{unit}"
    return str(nbytes)


def _quoted(name: str) -> str:
    return f"'{name}'" if any(c in name for c in " '\"$&|;<>()") else name
