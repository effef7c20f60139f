"""Meta's LLaMA layout (`params.json`, `consolidated.*.pth`) to a `transformers` folder.

    mmadapter convert meta /models/7B /models/llama-7b-hf --tokenizer /models/tokenizer.model

Meta stores the two halves of each rotary pair side by side; `transformers` stores all first halves, then all second
ones. So the rows of wq and wk are permuted within each head; prompts are not, for they are inputs of wk, not rows.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from mmadapter.errors import InputError
from mmadapter.files import new_folder
from mmadapter.interop.command import command

# Where model-parallel files are joined: dimension by the end of the tensor's name; norms are the same in every file.
_JOINED = {
    0: ("output.weight", "wq.weight", "wk.weight", "wv.weight", "w1.weight", "w3.weight"),
    1: ("tok_embeddings.weight", "wo.weight", "w2.weight"),
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


def llama_settings(params: dict[str, Any], vocabulary: int, tokens: int = 2048) -> dict[str, Any]:
    """Keyword arguments of `transformers.LlamaConfig` for Meta's `params.json`.

    The feed-forward width is multiple_of * ceil(8 dim / 3 [* ffn_dim_multiplier] / multiple_of).
    """
    hidden = int(2 * 4 * params["dim"] / 3)
    if params.get("ffn_dim_multiplier") is not None:
        hidden = int(params["ffn_dim_multiplier"] * hidden)
    multiple = params["multiple_of"]
    return {
        "hidden_size": params["dim"],
        "intermediate_size": multiple * -(-hidden // multiple),
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params.get("n_kv_heads") or params["n_heads"],
        "rms_norm_eps": params["norm_eps"],
        "rope_theta": float(params.get("rope_theta", 10000.0)),
        "vocab_size": vocabulary,
        "max_position_embeddings": tokens,
        "tie_word_embeddings": False,
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


def read_meta_tensors(folder: Path) -> dict[str, Tensor]:
    """The whole model's tensors from all `consolidated.*.pth` of `folder`, model-parallel parts joined.

    Raises InputError for a missing or damaged file.
    """
    files = sorted(folder.glob("consolidated.*.pth"))
    if not files:
        raise InputError(f"{folder}: no consolidated.*.pth there. Meta's layout holds params.json beside them.")
    parts = [_load(file) for file in files]
    if len(parts) == 1:
        return parts[0]
    return {name: _join(name, [part[name] for part in parts]) for name in parts[0]}


def _load(file: Path) -> dict[str, Tensor]:
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises RuntimeError, EOFError, UnpicklingError, ... for damaged files
        raise InputError(
            f"{file} cannot be read: {error}. Compare it with checklist.chk, download it again."
        ) from error


def _join(name: str, parts: list[Tensor]) -> Tensor:
    for dimension, ends in _JOINED.items():
        if name.endswith(ends):
            return torch.cat(parts, dim=dimension)
    return parts[0]


def convert(source: Path, target: Path, tokenizer: Path | None = None, tokens: int = 2048) -> None:
    """Write `source` (Meta's layout) as a `transformers` folder `target`, whole or not at all.

    Raises InputError for bad input and for a target that exists.
    """
    with new_folder(target) as folder:
        _llama_of(source, tokens).save_pretrained(folder)
        if tokenizer is not None:
            _write_tokenizer(tokenizer, folder)


def _llama_of(source: Path, tokens: int) -> Any:
    """The `transformers` model with the tensors of `source`. Raises InputError for bad input."""
    from transformers import LlamaConfig, LlamaForCausalLM

    try:
        params = json.loads((source / "params.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{source / 'params.json'} cannot be read: {error}.") from error
    base = read_meta_tensors(source)
    try:
        config = LlamaConfig(**llama_settings(params, base["tok_embeddings.weight"].shape[0], tokens))
    except KeyError as error:
        raise InputError(
            f"{source}: {error.args[0]} is missing in params.json or in the weights. Is this Meta's LLaMA?"
        ) from error
    heads = params["n_heads"]
    state = rename_llama_tensors(base, heads, params.get("n_kv_heads") or heads)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise InputError(f"{source}: the weights do not fit params.json: {shorten(said, 400)}") from error
    return model


def _write_tokenizer(file: Path, folder: Path) -> None:
    """A SentencePiece `tokenizer.model` with the class that reads it (LLaMA 1 and 2)."""
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder with params.json and consolidated.*.pth")
    parser.add_argument("target", type=Path, help="folder to be written")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.model (default: beside or above the source)")
    parser.add_argument("--tokens", type=int, default=2048, help="context: 2048 for LLaMA 1, 4096 for LLaMA 2")
    given = parser.parse_args(arguments)
    beside = [given.source / "tokenizer.model", given.source.parent / "tokenizer.model"]
    tokenizer = given.tokenizer or next((file for file in beside if file.is_file()), None)

    def write() -> str:
        convert(given.source, given.target, tokenizer, given.tokens)
        return f"Wrote {given.target}. Use it: host.path={given.target}"

    return command(write, given.target)


if __name__ == "__main__":
    sys.exit(main())
