"""Tokenizers out of other programs' vocabularies (GGUF, tiktoken), made with the library `tokenizers`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

# How a byte-level vocabulary cuts a text before its merges, by llama.cpp's name: a regular expression, "digits" for
# GPT-2's with every digit alone, None for GPT-2's.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_CUTS = ("llama-bpe", "llama3", "llama-v3")
CUTS: dict[str, str | None] = {
    **dict.fromkeys(("gpt-2", "default"), None),
    "smollm": "digits",
    **dict.fromkeys(LLAMA3_CUTS, _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
    "tekken": _TEKKEN,
}


def byte_level(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], cut: str) -> Any:
    """Byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM): `cut` is a name of CUTS."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    # Llama 3 and Tekken take a piece that is a token as that token, even where merges do not lead to it.
    whole_first = cut in (*LLAMA3_CUTS, "tekken")
    tokenizer = Tokenizer(models.BPE(dict(vocabulary), list(merges), ignore_merges=whole_first))
    pattern = CUTS[cut]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern in (None, "digits"))
    if pattern is None:
        tokenizer.pre_tokenizer = last
    else:
        first = pre_tokenizers.Digits(True) if pattern == "digits" else pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, last])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def letters_of_bytes() -> dict[int, str]:
    """The printable letter that stands for each byte in a byte-level vocabulary (GPT-2): its own, where it has one."""
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(256 + place) for place, byte in enumerate(others)}


def sentence_pieces(
    tokens: Sequence[str], scores: Sequence[float], normal: Set[str], unknown: str | None, prefix: bool
) -> Any:
    """SentencePiece's BPE (Llama 1 and 2, Mistral, Gemma, Phi-3): of two neighbours, those that make the piece with the
    highest score are merged first. `normal` tokens are made of merges; `prefix`: a blank is put before a text."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    ranks = {token: (-score, index) for index, (token, score) in enumerate(zip(tokens, scores, strict=True))}
    model = models.BPE(
        {token: index for index, token in enumerate(tokens)},
        merges_by_rank({token: ranks[token] for token in normal}),
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer, blank = Tokenizer(model), normalizers.Replace(" ", "▁")
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blank])
        parts.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = blank
    tokenizer.decoder = decoders.Sequence(parts)
    return tokenizer


def merges_by_rank(ranks: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, the one of lowest rank first: what `tokenizers` wants of a vocabulary
    that only ranks its tokens."""
    pairs = [
        (rank, token[:cut], token[cut:])
        for token, rank in ranks.items()
        for cut in range(1, len(token))
        if token[:cut] in ranks and token[cut:] in ranks
    ]
    # Of the pairs that make the same token, the one whose parts were tokens first.
    pairs.sort(key=lambda pair: (pair[0], ranks[pair[1]], ranks[pair[2]]))
    return [(left, right) for _, left, right in pairs]


def surround(tokenizer: Any, first: str | None, last: str | None) -> None:
    """Put the token `first` before each text and `last` behind it; None: nothing."""
    from tokenizers import processors

    if first is None and last is None:
        return
    before, after = [first] if first else [], [last] if last else []
    one, other = ([*before, f"${name}", *after] for name in "AB")
    other = [f"{part}:1" for part in other]
    used = [(token, tokenizer.token_to_id(token)) for token in {*before, *after}]
    tokenizer.post_processor = processors.TemplateProcessing(one, one + other, used)


def name_for_all_versions(folder: Path) -> None:
    """Write the tokenizer's class by the name that both 4.57 and 5 of `transformers` know; 5 writes a newer name."""
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
