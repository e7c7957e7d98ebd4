"""Types of the extension module that CMake builds from cpu/."""

def copy_rows(arena: object, pairs: object, num_threads: int = 0) -> None: ...
def threads() -> int: ...
def set_threads(threads: int) -> None: ...
def isa(wanted: str = "auto") -> str: ...
def set_huge_pages(kind: str) -> None: ...
def page_ranges() -> list[tuple[int, int]]: ...
def run_at_peak(isa: str, rounds: int) -> float: ...
def rms_norm(x: int, y: int, weight: int, is_bf16: bool, wide: bool, rows: int, size: int, eps: float) -> None: ...
def add_rms_norm(
    x: int, added: int, y: int, weight: int, is_bf16: bool, wide: bool, rows: int, size: int, eps: float
) -> None: ...
def silu_and_mul(gate: int, up: int, y: int, is_bf16: bool, rows: int, size: int, stride: int) -> None: ...
def gelu_tanh_and_mul(gate: int, up: int, y: int, is_bf16: bool, rows: int, size: int, stride: int) -> None: ...
def race(
    weights: int, size: int, places: int, keys: int, draws: int, most: int, candidates: int, counts: int
) -> None: ...
def limit(scaled: int, weights: int, top_k: int, top_p: int, rows: int, size: int) -> None: ...

class PackedWeights:
    nbytes: int
    def __init__(self, outputs: int, inputs: int, kind: str, isa: str) -> None: ...
    def fill(self, first_output: int, source: object) -> None: ...
    def multiply(self, x: int, y: int, is_bf16: bool, rows: int, bias: int) -> None: ...
    width: int
    def multiply_heads(self, x: int, y: int, is_bf16: bool, rows: int, heads: int, each: int) -> None: ...
    def gather(self, ids: int, count: int, y: int, is_bf16: bool) -> None: ...

Norm = tuple[int, float, bool]

class Between:
    outputs: int
    def __init__(
        self,
        o: PackedWeights,
        o_bias: int,
        gate_up: PackedWeights | None,
        gate_up_bias: int,
        down: PackedWeights | None,
        down_bias: int,
        next: PackedWeights | None,
        next_bias: int,
        norm: Norm,
        next_norm: Norm,
        o_norm: Norm,
        down_norm: Norm,
        gelu: bool,
    ) -> None: ...
    def run(self, x: int, mixed: int, out: int, is_bf16: bool, rows: int) -> None: ...

class AttentionLayer:
    def __init__(
        self,
        k: dict[str, object],
        v: dict[str, object],
        shape: dict[str, object],
        select: dict[str, object] | None,
    ) -> None: ...

class AttentionBatch:
    def __init__(self, query_start: object, start: object, block_table: object, slots: object) -> None: ...

Address = tuple[int, int, str]
Angles = tuple[int, int, int, str]

class AttentionKernel:
    def __init__(self, isa: str = "auto", num_threads: int = 0) -> None: ...
    def store(
        self, layer: AttentionLayer, batch: AttentionBatch, k: Address, v: Address, angles: Angles | None = None
    ) -> None: ...
    def rotate(self, layer: AttentionLayer, batch: AttentionBatch, q: Address, angles: Angles) -> None: ...
    def attend(
        self,
        layer: AttentionLayer,
        batch: AttentionBatch,
        q: Address,
        out: Address,
        lse: int = 0,
        earlier: tuple[int, int] | None = None,
    ) -> None: ...
    def run(
        self,
        layer: AttentionLayer,
        batch: AttentionBatch,
        q: Address,
        k: Address | None,
        v: Address | None,
        out: Address,
        angles: Angles | None,
    ) -> None: ...
    def read(self, layer: AttentionLayer, keys: bool, slots: object, to: int) -> None: ...
    def move(self, layer: AttentionLayer, from_slots: object, to: object) -> None: ...
    @property
    def scratch_bytes(self) -> int: ...

class Decoder:
    outputs: int
    def __init__(self, kernel: AttentionKernel) -> None: ...
    def add(
        self,
        layer: AttentionLayer,
        between: Between,
        group: int,
        parts: int,
        rope: int,
        stores: bool,
        q_norm: int,
        q_eps: float,
        q_wide: bool,
        k_norm: int,
        k_eps: float,
        k_wide: bool,
    ) -> None: ...
    def run(
        self,
        x: int,
        projected: int,
        out: int,
        is_bf16: bool,
        batches: list[AttentionBatch],
        angles: list[Angles],
    ) -> None: ...
