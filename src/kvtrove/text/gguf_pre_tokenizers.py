"""How the vocabularies of GGUF files cut a text before its pieces are merged: `tokenizer.ggml.pre` -> expressions.

Byte-level vocabularies were trained on such pieces, so a merge never crosses their borders. Each expression isolates
what it matches, within the pieces that the one before left; what nothing matches is a piece as well. They are those of
the models' own tokenizer.json files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CASED = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
_CAPITALS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_CJK = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_HAN_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_NO_PUNCTUATION = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""


def _words(digits: str, letters: str = r"\p{L}+", contractions: str = f"{_CONTRACTIONS}|") -> str:
    """Contractions, words with one character before them, numbers, punctuation with the line's end, spaces."""
    mark = letters.removesuffix("+").strip("[]")
    return rf"{contractions}[^\r\n\p{{L}}\p{{N}}]?{letters}|{digits}| ?[^\s{mark}\p{{N}}]+[\r\n]*|{_SPACES}"


def _cased(digits: str, contractions: str = "") -> str:
    """Words that begin anew where small letters turn into capitals."""
    before = r"[^\r\n\p{L}\p{N}]?"
    words = f"{before}{_CASED}{contractions}|{before}{_CAPITALS}{contractions}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


_LETTERS_OF_DEEPSEEK = (
    "\\s?["
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af"
    "\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5"
    "\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba"
    "\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45"
    "\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe"
    "\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102"
    "\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3"
    "\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
    "]+"
)
_LLAMA3 = (_words(r"\p{N}{1,3}"),)
_QWEN2 = (_words(r"\p{N}"),)
_DIGITS_THEN_GPT2 = (r"\p{N}", _GPT2)
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    _CJK,
    rf"{_NO_PUNCTUATION}|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
)
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")

_BY_EXPRESSIONS: Mapping[Sequence[str], str] = {
    _LLAMA3: "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 dbrx smaug-bpe chatglm-bpe glm4 glm5",
    _QWEN2: "qwen2 deepseek-r1-qwen kormo f2llmv2 stablelm2 megrez hunyuan solar-open grok-2",
    (_words(r"\p{N}", r"[\p{L}\p{M}]+"),): "qwen35",
    (r"\p{N}{1,3}", _words(r"\p{N}+")): "minicpm5",
    (_words(r"\p{N}").replace(r"[\r\n]*", ""),): "seed-coder",
    (_GPT2,): "gpt-2 phi-2 mpt olmo jais trillion granite-docling exaone4 mellum gigachat a.x-4.0",
    _DIGITS_THEN_GPT2: "starcoder refact command-r smollm codeshell exaone minerva-7b mellum2",
    (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]"): "falcon",
    ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_HANGUL, r"\p{N}"): "deepseek-coder",
    (
        "[\r\n]",
        _LETTERS_OF_DEEPSEEK,
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
        r"\s+$",
        _HAN_HANGUL,
        r"\p{N}+",
    ): "deepseek-llm",
    _DEEPSEEK3: "deepseek-v3 hunyuan-dense joyai-llm hy_v4",
    (_cased(r"\p{N}"),): "tekken",
    (_cased(r"\p{N}{1,3}", f"{_CONTRACTIONS}?"),): "gpt-4o llama4 kanana2 minimax-m2 talkie",
    (_BLOOM,): "poro-chat bloom gpt3-finnish",
    (_BLOOM, r"\p{N}"): "viking",
    _DEFAULT: "default",
}
PATTERNS: Mapping[str, Sequence[str]] = {
    name: expressions for expressions, names in _BY_EXPRESSIONS.items() for name in names.split()
}
"""Name of a pre-tokenizer -> its expressions, in the order in which they cut."""

WHOLE_WORDS = frozenset(
    {*_BY_EXPRESSIONS[_LLAMA3].split(), "tekken", "minicpm5"} - {"dbrx", "smaug-bpe", "chatglm-bpe"}
)
"""Where a piece that is a token is taken as it is, without merging."""
BEGUN = WHOLE_WORDS - {"glm4", "glm5", "minicpm5"}
"""Where a text begins with BOS unless `tokenizer.ggml.add_bos_token` says otherwise."""
