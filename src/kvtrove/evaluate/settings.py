"""What may be asked of an evaluation; checked once."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvtrove.config import WEIGHTS, ConfigError, EngineConfig, nearest
from kvtrove.kv.recipe import in_layers, recipe

EXACT = "exact"
"""The cache that all are compared with: K and V in the dtype of activations, and all that the model reads."""
DEFAULT = ("fp32", "bf16", "fp16", "int8", "window=256", "window=1024")
USUAL_PARTS = ("text", "recall", "speed")
PARTS = (*USUAL_PARTS, "turns")
LENGTHS = (512, 1024, 2048, 4096)
CONTEXT = 2048
LEAST_TOP1 = 0.9


@dataclass(frozen=True)
class Settings:
    """model: a local Hugging Face directory, or a GGUF file. caches: recipes. parts: what is measured.

    weights: how matrices are stored (`EngineConfig.weights`); each is compared, with the exact cache, with the floats
        of the checkpoint.
    models: other checkpoints with the same tokenizer; each is compared, with its exact cache, with `model`.

    text: a UTF-8 file; None is held-out prose of the demo model. text_tokens: how much of it is read at most, in
        segments of `context` tokens; None is CONTEXT, or all that the model can hold if that is less.
    lengths: tokens of a dialogue with room for its answer; None is those of LENGTHS that the model can hold.
    depths: 0 states the fact first, 1 last. samples: dialogues per length and depth, equal for all configurations.
    needle: a user's own dialogues (sources.py); None is the demo model's world. answer_tokens: longest answer.
    seed: of the dialogues. rounds: measurements of speed, of which the median counts.
    chunk: tokens computed in a step at most, so that all but the first of them read a cache that was written before.
    fit_bits, max_kl: caches are formats to choose from for each layer, under that many bits per element or that mean
        KL (fit.py); what is chosen is compared.
    least_top1: the model does not bear a cache with less agreement.
    """

    model: str
    caches: tuple[str, ...] = DEFAULT
    parts: tuple[str, ...] = USUAL_PARTS
    text: str | None = None
    text_tokens: int = 8192
    context: int | None = None
    lengths: tuple[int, ...] | None = None
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    samples: int = 5
    needle: str | None = None
    answer_tokens: int = 32
    seed: int = 0
    rounds: int = 3
    chunk: int = 128
    dtype: str = "auto"
    device: str = "auto"
    block_size: int = EngineConfig.block_size
    weights: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    fit_bits: float | None = None
    max_kl: float | None = None
    least_top1: float = LEAST_TOP1

    @property
    def fits(self) -> bool:
        return self.fit_bits is not None or self.max_kl is not None

    def __post_init__(self) -> None:
        for name in self.caches:
            recipe(name)
        for kind in self.weights:
            if kind not in WEIGHTS[1:]:
                raise ConfigError(f"weights: {kind!r} is not one of {', '.join(WEIGHTS[1:])}")
        for part in self.parts:
            if part not in PARTS:
                raise ConfigError(f"parts: {part!r} is not known{nearest(part, PARTS)}; there are {', '.join(PARTS)}")
        least = {"text_tokens": 2, "samples": 1, "answer_tokens": 1, "rounds": 1, "chunk": 1, "context": 2}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name}: {value} must be at least {low}")
        for name in ("parts", "lengths", "depths"):
            if getattr(self, name) == ():
                raise ConfigError(f"{name}: the list is empty; give at least one value")
        for name in ("fit_bits", "max_kl"):
            if (bound := getattr(self, name)) is not None and bound <= 0:
                raise ConfigError(f"{name}: {bound:g} must be above 0, such as {4.5 if name == 'fit_bits' else 0.01}")
        if not 0 <= self.least_top1 <= 1:
            raise ConfigError(f"least_top1: {self.least_top1:g} must lie between 0 and 1, such as {LEAST_TOP1}")
        if self.fits:
            self._check_fit()
        for depth in self.depths:
            if not 0 <= depth <= 1:
                raise ConfigError(f"depths: {depth:g} must lie between 0 (first) and 1 (last)")

    def _check_fit(self) -> None:
        if self.fit_bits is not None and self.max_kl is not None:
            raise ConfigError("max_kl: give fit_bits or max_kl, not both")
        if "text" not in self.parts:
            raise ConfigError("parts: layers are judged by text; leave it among the parts")
        for name in self.caches:
            in_layers(name, [0])

    def resolved(self, longest: int) -> Settings:
        """With what depends on a model whose context holds `longest` tokens."""
        context = min(CONTEXT, longest) if self.context is None else self.context
        lengths = self.lengths or tuple(n for n in LENGTHS if n <= longest) or (longest,)
        for name, value in (("context", context), ("lengths", max(lengths))):
            if value > longest:
                raise ConfigError(f"{name}: {value} tokens are more than the {longest} that the model can hold")
        return replace(self, context=context, lengths=lengths)

    def engine(self, max_model_len: int, stored: str, weights: str = "auto") -> EngineConfig:
        """Of every engine that is compared. Without prefix cache: no result may depend on what ran before it.

        stored: dtype of the checkpoint. Where weights are compared, "auto" ones are floats, also those of a GGUF file.
        """
        floats = bool(self.weights) and weights == "auto" and self.dtype == "auto"
        return EngineConfig(
            self.model,
            dtype=stored if floats else self.dtype,
            weights=weights,
            device=self.device,
            block_size=self.block_size,
            max_model_len=max_model_len,
            max_num_seqs=min(self.chunk, 16),
            max_num_batched_tokens=self.chunk,
            enable_prefix_caching=False,
        )
