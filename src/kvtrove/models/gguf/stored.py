"""What a GGUF file is kept as in memory, for whoever plans and chooses. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kvtrove.models.gguf.header import GGUFHeader, TensorInfo, gguf_file, read_header

FLOATS = frozenset({"F32", "F16", "BF16"})
KINDS = {
    **{"Q4_0": "int4_symmetric", "Q4_1": "int4", "Q4_K": "int4_f32"},
    **{"Q8_0": "int8_groups", "Q5_0": "int8_groups", "IQ4_NL": "int8_groups"},
    **{"Q5_1": "int8_groups_f32", "Q5_K": "int8_groups_f32", "IQ4_XS": "int8_groups_f32"},
    **dict.fromkeys(FLOATS, "bf16"),
}
"""Type -> what products keep its matrices as, exactly. All others (Q6_K, MXFP4) are ROUNDED."""
ROUNDED = "int8_groups"
GROUP_BYTES = {
    **{"int4_symmetric": 16 + 2, "int4": 16 + 4, "int4_f32": 16 + 8},
    **{"int8_groups": 32 + 2, "int8_groups_f32": 32 + 8},
}
"""Of 32 inputs of an output, with their scale and minimum."""
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_NO_PRODUCT = (
    *("ffn_gate_inp", "shortconv.conv", "ssm_conv1d", "ssm_norm", "attn_k_b", "attn_v_b"),
    *("altup_router", "altup_correct", "altup_predict", ".bias", ".scale"),
)
_VECTORS = (".ssm_a", ".ssm_d")
"""Ends of names of tensors that have two dimensions in some files, one of size one."""


def kind_of(tensor: TensorInfo) -> str:
    return KINDS.get(tensor.type.name, ROUNDED)


def is_quantised(header: GGUFHeader) -> bool:
    """Whether matrices have fewer bits than a float."""
    return any(len(tensor.shape) > 1 and tensor.type.name not in FLOATS for tensor in header.tensors)


def kept_weights(path: Path) -> str:
    """The setting `weights` that keeps the bits of the file at `path`: "gguf", or "auto" where it is no such file."""
    file = gguf_file(path)
    return "gguf" if file is not None and is_quantised(read_header(file)) else "auto"


def kept_bytes(header: GGUFHeader) -> int:
    """Bytes of all weights as the setting "gguf" keeps them: vectors in float32, an embedding of its own in bf16."""
    return sum(_nbytes(header))


def _nbytes(header: GGUFHeader) -> Iterator[int]:
    tied = all(tensor.name != _HEAD for tensor in header.tensors)
    for tensor in header.tensors:
        outputs = tensor.num_elements // tensor.shape[0]
        kind = kind_of(tensor)
        vector = len(tensor.shape) == 1 or tensor.name.endswith(_VECTORS)
        if vector or any(part in tensor.name for part in _NO_PRODUCT):
            yield tensor.num_elements * 4
        elif kind == "bf16" or (tensor.name == _EMBEDDING and not tied):
            yield tensor.num_elements * 2
        else:
            yield outputs * -(-tensor.shape[0] // 32) * GROUP_BYTES[kind]
