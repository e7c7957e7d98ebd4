"""Everything that `kvtrove plan` says, as one JSON object."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from kvtrove.plan.equivalents import KTransformers, llama_cpp, serve_command, vllm
from kvtrove.plan.kv import classic_agrees, classic_bytes
from kvtrove.plan.planner import Plan

if TYPE_CHECKING:
    from kvtrove.plan.load import LoadEstimate
    from kvtrove.plan.presets import Preset


def plan_report(plan: Plan, kt: KTransformers) -> dict[str, Any]:
    """kv_bytes_per_token and kv_constant_bytes are exact sizes of one sequence; the ledger counts whole blocks."""
    model = plan.model
    command, why_not = serve_command(plan)
    report: dict[str, Any] = {
        "model": model.name,
        "architecture": model.architecture,
        "parameters": model.parameters.total,
        "weights_exact": model.exact_weights,
        "assumed": model.assumed,
        "cache": plan.cache,
        "stored_as": plan.stored_as,
        "kv_bytes_per_token": plan.kv.per_token,
        "kv_constant_bytes": plan.kv.constant,
        "block_size": plan.wishes.block_size,
        "block_bytes": plan.fitting.cache.block_bytes,
        "num_blocks": plan.num_blocks,
        "checkpoint_bytes": plan.fitting.cache.mark_bytes,
        "checkpoint_tokens": plan.checkpoint_tokens,
        "context": plan.context,
        "users": plan.users,
        "max_context": plan.max_context,
        "max_users": plan.max_users,
        "ledger": plan.ledger.as_json(),
        "frontier": [{"users": users, "context": context} for users, context in plan.frontier],
        "formats": [{**asdict(choice), "kv": asdict(choice.kv)} for choice in plan.formats],
        "command": command,
        "ktransformers": {
            **asdict(kt),
            "needed": kt.needed,
            "simple_rule": kt.simple_rule,
            "recommended": kt.recommended,
            "problems": kt.problems(),
        },
        "llama_cpp": llama_cpp(plan),
        "vllm": vllm(plan),
    }
    if why_not:
        report["why_no_command"] = why_not
    if classic_agrees(model, plan.fitting.cache):
        report["classic_bytes"] = classic(plan)
    return report


def classic(plan: Plan) -> int:
    """2 x layers x tokens x hidden x batch x bytes for the plan's users and context."""
    element = plan.kv.per_token // (2 * plan.model.num_layers * plan.model.hidden_size)
    return classic_bytes(plan.model.num_layers, plan.context, plan.model.hidden_size, plan.users, element)


def preset_report(presets: list[Preset]) -> list[dict[str, Any]]:
    return [
        {
            "name": preset.name,
            "memory": preset.memory,
            "context": preset.plan.context if preset.plan else None,
            "users": preset.plan.users if preset.plan else None,
            "ledger": preset.plan.ledger.as_json() if preset.plan else None,
            "command": serve_command(preset.plan)[0] if preset.plan else None,
            "why": preset.why,
        }
        for preset in presets
    ]


def load_report(at_rate: LoadEstimate | None, most: LoadEstimate, best: LoadEstimate | None) -> dict[str, Any]:
    """at_rate: the wished rate. most: the largest sustained. best: the largest within the limits on TTFT and TPOT."""
    return {
        "at_rate": None if at_rate is None else asdict(at_rate),
        "max_rate": asdict(most),
        "max_rate_within_slo": None if best is None else asdict(best),
    }
