"""KVTrove: an LLM inference engine built around its KV cache.

The public names below are loaded when they are first used, so that `import kvtrove` and `kvtrove plan` stay light.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvtrove.config import ConfigError, EngineConfig
    from kvtrove.engine import Engine
    from kvtrove.llm import LLM, LoRARequest
    from kvtrove.models.spec import ModelError
    from kvtrove.request import CompletionOutput, PoolingParams, RequestError, RequestOutput, SamplingParams

__version__ = "0.1.0"
__all__ = [
    "LLM",
    "CompletionOutput",
    "ConfigError",
    "Engine",
    "EngineConfig",
    "LoRARequest",
    "ModelError",
    "PoolingParams",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
]

_HOME = MappingProxyType(
    {
        "LLM": "kvtrove.llm",
        "CompletionOutput": "kvtrove.request",
        "ConfigError": "kvtrove.config",
        "Engine": "kvtrove.engine",
        "EngineConfig": "kvtrove.config",
        "LoRARequest": "kvtrove.llm",
        "ModelError": "kvtrove.models.spec",
        "PoolingParams": "kvtrove.request",
        "RequestError": "kvtrove.request",
        "RequestOutput": "kvtrove.request",
        "SamplingParams": "kvtrove.request",
    }
)


# Idle threads of torch's OpenMP sleep soon, unless the user says how they wait or torch is there already: they would
# keep cores busy for milliseconds after each loop, which kernels and other processes need. The number outlasts what
# lies between two loops of a step, as that of the kernels' own threads does.
if "torch" not in sys.modules and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ["GOMP_SPINCOUNT"] = "3000"


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'kvtrove' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
