"""Types of the extension module that CMake builds from cpu/."""

def copy_rows(arena: object, pairs: object, num_threads: int = 0) -> None: ...
def isa(wanted: str = "auto") -> str: ...

class AttentionLayer:
    def __init__(
        self,
        k: object,
        v: object,
        k_scale: object | None,
        v_scale: object | None,
        stored: str,
        shape: dict[str, object],
    ) -> None: ...

class AttentionBatch:
    def __init__(self, query_start: object, start: object, block_table: object, slots: object) -> None: ...

Address = tuple[int, int, str]

class AttentionKernel:
    def __init__(self, isa: str = "auto", num_threads: int = 0) -> None: ...
    def store(self, layer: AttentionLayer, batch: AttentionBatch, k: Address, v: Address) -> None: ...
    def attend(self, layer: AttentionLayer, batch: AttentionBatch, q: Address, out: Address, lse: int = 0) -> None: ...
    @property
    def scratch_bytes(self) -> int: ...
