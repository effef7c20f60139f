"""Meta's LLaMA layout (`params.json`, `consolidated.*.pth`) to a `transformers` folder.

    mmadapter convert meta /models/7B /models/llama-7b-hf --tokenizer /models/tokenizer.model

Meta stores the two halves of each rotary pair side by side; `transformers` stores all first halves, then all second
ones. So the rows of wq and wk are permuted within each head. Prompts are not: they are inputs of wk, not rows of it.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from mmadapter.errors import InputError
from mmadapter.files import new_folder, read_object
from mmadapter.interop.command import command
from mmadapter.interop.vocabulary import byte_level, letters_of_bytes, merges_by_rank, name_for_all_versions, surround

NEEDED = ("dim", "n_layers", "n_heads", "multiple_of", "norm_eps")
PARAMS = (  # every key of params.json that is known here
    *NEEDED,
    *("n_kv_heads", "vocab_size", "ffn_dim_multiplier", "rope_theta"),
    *("use_scaled_rope", "rope_scaling_factor"),  # Llama 3.1 and later
    *("max_seq_len", "max_batch_size"),  # for Meta's own program; they do not change what the model computes
)
_TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+=* \d+\s")
# Where model-parallel files are joined: dimension by the end of the tensor's name; norms are the same in every file,
# and the embeddings are split by width (LLaMA 1 and 2) or by rows of the vocabulary (Llama 3), as their shapes say.
_JOINED = {
    0: ("output.weight", "wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight"),
    1: ("wo.weight", "w2.weight"),
}
_NAMES = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_OUTER = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}


def llama_settings(params: dict[str, Any], vocabulary: int, tokens: int | None = None) -> dict[str, Any]:
    """Keyword arguments of `transformers.LlamaConfig` for Meta's `params.json`.

    The feed-forward width is multiple_of * ceil(8 dim / 3 [* ffn_dim_multiplier] / multiple_of). The factor of the
    scaled rotary is 32 up to width 3072 (Llama 3.2 1B and 3B), else 8. `tokens` None: the context of the release that
    has such settings (Llama 3.1 131,072, Llama 3 8,192, else 2,048 as LLaMA 1).
    """
    hidden = int(2 * 4 * params["dim"] / 3)
    if params.get("ffn_dim_multiplier") is not None:
        hidden = int(params["ffn_dim_multiplier"] * hidden)
    multiple, theta = params["multiple_of"], float(params.get("rope_theta") or 10000.0)
    scaling = {}
    if params.get("use_scaled_rope"):
        factor = params.get("rope_scaling_factor") or (32 if params["dim"] <= 3072 else 8)
        scaling = {"rope_scaling": llama3_rotary(float(factor))}
    return {
        "hidden_size": params["dim"],
        "intermediate_size": multiple * -(-hidden // multiple),
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params.get("n_kv_heads") or params["n_heads"],
        "rms_norm_eps": params["norm_eps"],
        "rope_theta": theta,
        "vocab_size": vocabulary,
        "max_position_embeddings": tokens or (131072 if scaling else 8192 if theta == 500000 else 2048),
        "tie_word_embeddings": False,
        **scaling,
    }


def llama3_rotary(factor: float) -> dict[str, Any]:
    """`rope_scaling` of `transformers` for Llama 3.1 and later: frequencies with less than one turn in the original
    context are divided by `factor`, those with more than four turns are kept, and between them it is blended."""
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


def rows_to_halves(weight: Tensor, heads: int) -> Tensor:
    """(heads * head_dim, width) with neighbouring rotary pairs -> all first halves, then all second ones, per head."""
    rows, width = weight.shape
    return weight.view(heads, rows // heads // 2, 2, width).transpose(1, 2).reshape(rows, width)


def rename_llama_tensors(base: dict[str, Tensor], heads: int, kv_heads: int) -> dict[str, Tensor]:
    """Meta's tensor names and row order to those of `transformers`' LlamaForCausalLM."""
    state: dict[str, Tensor] = {}
    for name, tensor in base.items():
        if name == "rope.freqs" or name.endswith("inner_attention.rope.freqs"):
            continue  # derived, not learned
        parts = name.split(".")
        if parts[0] == "layers":
            inner = ".".join(parts[2:-1])
            if inner in ("attention.wq", "attention.wk"):
                tensor = rows_to_halves(tensor, heads if inner.endswith("wq") else kv_heads)
            state[f"model.layers.{parts[1]}.{_NAMES[inner]}.{parts[-1]}"] = tensor
        else:
            state[f"{_OUTER[parts[0]]}.{parts[-1]}"] = tensor
    return state


def read_meta_tensors(folder: Path, width: int) -> dict[str, Tensor]:
    """The whole model's tensors from all `consolidated.*.pth` of `folder`, model-parallel parts joined.

    `width` is the model's: it tells how the embeddings were split. Raises InputError for a missing or damaged file.
    """
    files = sorted(folder.glob("consolidated.*.pth"))
    if not files:
        raise InputError(f"{folder}: no consolidated.*.pth there. Meta's layout holds params.json beside them.")
    parts = [_load(file) for file in files]
    if len(parts) == 1:
        return parts[0]
    for file, part in zip(files, parts, strict=True):
        if differing := sorted(part.keys() ^ parts[0].keys()):
            raise InputError(
                f"{file} and {files[0]} are not parts of one model: only one of them has {differing[0]} "
                f"({len(differing)} such). Fetch them again."
            )
    try:
        return {name: _join(name, [part[name] for part in parts], width) for name in parts[0]}
    except (RuntimeError, IndexError) as error:
        raise InputError(f"{folder}: its {len(files)} parts do not fit together ({_shortened(error)}).") from error


def _load(file: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ... for damaged files
        raise InputError(
            f"{file} cannot be read: {_shortened(error)}. Compare it with checklist.chk, download it again."
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds a {type(content).__name__} and not tensors by their names. Is it Meta's?")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            kind = str(tensor.dtype) if isinstance(tensor, Tensor) else type(tensor).__name__
            raise InputError(f"{file}: {str(name)[:80]!r} is {kind} and no tensor of floating-point numbers.")
    return content


def _join(name: str, parts: list[Tensor], width: int) -> Tensor:
    if name == "tok_embeddings.weight":
        return torch.cat(parts, dim=0 if parts[0].shape[1] == width else 1)
    for dimension, ends in _JOINED.items():
        if name.endswith(ends):
            return torch.cat(parts, dim=dimension)
    return parts[0]


def convert(source: Path, target: Path, tokenizer: Path | None = None, tokens: int | None = None) -> None:
    """Write `source` (Meta's layout) as a `transformers` folder `target`, whole or not at all.

    Raises InputError for bad input and for a target that exists.
    """
    with new_folder(target) as folder:
        model = _llama_of(source, tokens)
        model.save_pretrained(folder)
        if tokenizer is not None:
            _write_tokenizer(tokenizer, folder, model.config.max_position_embeddings > 8192)


def _llama_of(source: Path, tokens: int | None) -> Any:
    """The `transformers` model with the tensors of `source`. Raises InputError for bad input."""
    from transformers import LlamaConfig, LlamaForCausalLM

    params = read_object(source / "params.json", "Fetch Meta's file again.")
    if unknown := sorted(set(params) - set(PARAMS)):
        raise InputError(
            f"{source / 'params.json'} has settings that are not known here: {', '.join(unknown)}. They may change "
            f"what the model computes, so it is not converted. Known: {', '.join(PARAMS)} (text models, not quantised)."
        )
    if missing := [name for name in NEEDED if params.get(name) is None]:
        raise InputError(f"{source}: {', '.join(missing)} is missing in params.json. Is this Meta's LLaMA?")
    if wrong := list(_wrong_params(params)):
        raise InputError(f"{source / 'params.json'}: {'; '.join(wrong)}. Fetch Meta's file again.")
    base = read_meta_tensors(source, params["dim"])
    if "tok_embeddings.weight" not in base:
        raise InputError(f"{source}: tok_embeddings.weight is missing in the weights. Is this Meta's LLaMA?")
    rows = base["tok_embeddings.weight"].shape[0]
    if params.get("vocab_size", -1) not in (-1, rows):
        raise InputError(
            f"{source}: params.json says {params['vocab_size']} tokens, but the embeddings have {rows} rows. "
            "Are all its consolidated.*.pth there?"
        )
    if unknown := [name for name in base if not _is_known(name)]:
        raise InputError(
            f"{source}: the weights hold {len(unknown)} tensors that a LLaMA does not have, the first: "
            f"{unknown[0][:80]!r}. Is this Meta's LLaMA (a text model, not quantised)?"
        )
    config = LlamaConfig(**llama_settings(params, rows, tokens))
    if "output.weight" not in base:
        config.tie_word_embeddings = True
        base["output.weight"] = base["tok_embeddings.weight"]
    heads = params["n_heads"]
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    try:
        state = rename_llama_tensors(base, heads, params.get("n_kv_heads") or heads)
        model.load_state_dict(state, strict=True, assign=True)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{source}: the weights do not fit params.json: {_shortened(error)}") from error
    model.tie_weights()
    return model


def _wrong_params(params: dict[str, Any]) -> Iterator[str]:
    """What is wrong with each value of params.json."""
    counts = {"dim": 2**20, "n_layers": 1000, "n_heads": 2**16, "multiple_of": 2**20, "n_kv_heads": 2**16}
    for name, most in counts.items():
        value = params.get(name, 1)
        if not (type(value) is int and 1 <= value <= most) and not (name == "n_kv_heads" and value is None):
            yield f"{name} is {shorten(repr(value), 60)}, allowed: a whole number from 1 to {most:,}"
    for name in ("norm_eps", "ffn_dim_multiplier", "rope_theta", "rope_scaling_factor"):
        value = params.get(name)
        if value is not None and not (type(value) in (int, float) and 0 < value < 1e12):
            yield f"{name} is {shorten(repr(value), 60)}, allowed: a number above 0"
    if type(params.get("use_scaled_rope", False)) is not bool:
        yield f"use_scaled_rope is {shorten(repr(params['use_scaled_rope']), 60)}, allowed: true or false"
    if type(params.get("vocab_size", -1)) is not int:
        yield f"vocab_size is {shorten(repr(params['vocab_size']), 60)}, allowed: a whole number (-1: as the weights)"
    dim, heads, groups = (params.get(name) for name in ("dim", "n_heads", "n_kv_heads"))
    if type(dim) is int and type(heads) is int and heads > 0 and (dim % heads or dim // heads % 2):
        yield f"n_heads is {heads}: dim, {dim}, must be n_heads times an even number"
    if type(heads) is int and type(groups) is int and groups > 0 and heads % groups:
        yield f"n_kv_heads is {groups}, which does not divide n_heads, {heads}"


def _is_known(name: str) -> bool:
    """Whether `rename_llama_tensors` has a place for a tensor of Meta's."""
    if name == "rope.freqs" or name.endswith("inner_attention.rope.freqs"):
        return True
    parts = name.split(".")
    if parts[0] == "layers":
        return len(parts) > 3 and parts[1].isdecimal() and ".".join(parts[2:-1]) in _NAMES
    return len(parts) == 2 and parts[0] in _OUTER


def _shortened(error: Exception) -> str:
    return shorten(" ".join(str(error).split()), 400)


def _write_tokenizer(file: Path, folder: Path, scaled: bool) -> None:
    """Meta's `tokenizer.model` as `transformers` reads it: SentencePiece's (LLaMA 1 and 2) as it is, tiktoken's
    (Llama 3; lines of a token in base 64 and its rank) as tokenizer.json. Raises InputError for what is neither."""
    if not file.is_file():
        raise InputError(f"{file}: no such file. Give the model's tokenizer.model: --tokenizer FILE")
    if _TIKTOKEN_LINE.match(file.read_bytes()[:1000]):
        _llama3_tokenizer(file, scaled).save_pretrained(folder)
        name_for_all_versions(folder)
        return
    shutil.copyfile(file, folder / "tokenizer.model")
    settings = {
        "tokenizer_class": "LlamaTokenizer",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
        "legacy": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2), encoding="utf-8")


def _llama3_tokenizer(file: Path, scaled: bool) -> Any:
    """Llama 3's tokenizer from its file of ranks; `scaled`: of 3.1 or later, which names more of its special tokens."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    letters = letters_of_bytes()
    try:
        rows = [line.split() for line in file.read_bytes().splitlines() if line]
        ranks = {"".join(letters[byte] for byte in b64decode(token)): int(rank) for token, rank in rows}
    except ValueError as error:
        raise InputError(f"{file} is damaged: {error}. Compare it with checklist.chk, fetch it again.") from error
    tokenizer = byte_level(ranks, merges_by_rank(ranks), "llama-bpe")
    named = {0: "begin_of_text", 1: "end_of_text", 6: "start_header_id", 7: "end_header_id", 9: "eot_id"}
    if scaled:
        named |= {4: "finetune_right_pad_id", 5: "step_id", 8: "eom_id", 10: "python_tag"}
    unnamed = (number for number in range(256))
    special = [named.get(place) or f"reserved_special_token_{next(unnamed)}" for place in range(256)]
    tokenizer.add_special_tokens([AddedToken(f"<|{name}|>", normalized=False, special=True) for name in special])
    surround(tokenizer, "<|begin_of_text|>", None)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        clean_up_tokenization_spaces=False,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with params.json and consolidated.*.pth")
    parser.add_argument("target", type=Path, help="folder to be written")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.model (default: beside or above the source)")
    parser.add_argument(
        "--tokens",
        type=int,
        help="context: 4096 for Llama 2 (default: 131072 with a scaled rotary, 8192 for Llama 3, else 2048)",
    )
    given = parser.parse_args(arguments)
    beside = [given.source / "tokenizer.model", given.source.parent / "tokenizer.model"]
    tokenizer = given.tokenizer or next((file for file in beside if file.is_file()), None)

    def write() -> str:
        convert(given.source, given.target, tokenizer, given.tokens)
        without = "" if tokenizer else " It has no tokenizer: give one with --tokenizer, or set host.tokenizer=FOLDER."
        return f"Wrote {given.target}.{without} Use it: host.path={given.target}"

    return command(write, given.target)


if __name__ == "__main__":
    sys.exit(main())
