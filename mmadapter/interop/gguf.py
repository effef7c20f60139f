"""A GGUF file (llama.cpp's format, quantised or not) to a `transformers` folder.

    mmadapter convert gguf model.Q4_K_M.gguf /models/my-model

`transformers` reads such files itself, but leaves out what it has no name for (the scaled rotary of Llama 3.1), and its
older versions write another end token. So the settings, the names and the tokenizer are made here from the file, and a
key or tensor without a place is refused. The package `gguf` is used for the arithmetic of the quantised blocks alone.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from mmadapter.errors import InputError, is_out_of_memory
from mmadapter.files import new_folder
from mmadapter.interop.command import command
from mmadapter.interop.meta import llama3_rotary, rows_to_halves
from mmadapter.interop.vocabulary import (
    CUTS,
    LLAMA3_CUTS,
    byte_level,
    name_for_all_versions,
    sentence_pieces,
    surround,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # kinds of tokens in `tokenizer.ggml.token_type`

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_FOUR_NORMS = {  # Gemma 2 and 3 have a norm before and one behind each half of a block
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


@dataclass(frozen=True)
class Architecture:
    """How a family of GGUF files differs from the plain one."""

    model_type: str  # of `transformers`
    names: dict[str, str]  # tensors of a block, GGUF's name -> `transformers`'
    neighbours: bool = False  # rotary pairs stand side by side in wq and wk, as Meta has them
    norms_plus_one: bool = False  # the file has 1 + w, where `transformers` has w


ARCHITECTURES = {  # by `general.architecture`
    "llama": Architecture("llama", _BLOCK, neighbours=True),  # Mistral, too
    "qwen2": Architecture("qwen2", _BLOCK),
    "qwen3": Architecture("qwen3", _BLOCK),
    "gemma": Architecture("gemma", _BLOCK, norms_plus_one=True),
    "gemma2": Architecture("gemma2", _BLOCK | _FOUR_NORMS, norms_plus_one=True),
    "gemma3": Architecture("gemma3_text", _BLOCK | _FOUR_NORMS, norms_plus_one=True),
    "phi3": Architecture("phi3", _BLOCK | {"ffn_up": "mlp.gate_up_proj"}),
}
_SETTINGS = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.key_length": "head_dim",
    "rope.freq_base": "rope_theta",
}
_NEEDED = [key for key in _SETTINGS if key not in ("attention.head_count_kv", "attention.key_length", "rope.freq_base")]
_ALSO_READ = ("vocab_size", "attention.value_length", "rope.dimension_count")  # compared with the tensors' shapes
_ROPE_SCALING = ("rope.scaling.type", "rope.scaling.factor", "rope.scaling.original_context_length")
_OWN_SETTINGS = {  # of some families only
    "gemma2": {
        "attention.sliding_window": "sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    "gemma3": {"attention.sliding_window": "sliding_window", "rope.freq_base_swa": "rope_local_base_freq"},
    "phi3": {"attention.sliding_window": "sliding_window"},
}
_FRACTIONS = ("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.scaling.factor")  # no whole numbers
_WITHOUT_EFFECT = ("rope.scaling.finetuned", "tensor_data_layout")  # how it was trained; a name of the row order


class GgufFile:
    """Metadata and tensors of a GGUF file. Raises InputError where it is no GGUF file, or not whole."""

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            raise InputError(
                f"{file}: no such file. Give a file of llama.cpp's format: mmadapter convert gguf FILE OUT"
            )
        with open(file, "rb") as opened:
            if (start := opened.read(4)) != b"GGUF":
                raise InputError(f"{file} is not a GGUF file: it begins with {start!r}, not with b'GGUF'.")
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise InputError("GGUF files need the package gguf: pip install 'mmadapter[gguf]'") from error
        try:
            reader = GGUFReader(file)
            self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        except (ValueError, IndexError, KeyError, OverflowError, MemoryError, TypeError, UnicodeDecodeError) as error:
            raise InputError(f"{file} is damaged or not whole ({error}). Fetch it again.") from error
        if reader.byte_order == "S":  # swapped: the package gguf reads numbers in this machine's order all the same
            raise InputError(
                f"{file} is written in another order of bytes than this machine's. Convert it once: "
                f"gguf-convert-endian {file} {sys.byteorder}"
            )
        self.file, self.fields = file, reader.fields
        if (self.get("split.count") or 1) > 1:
            raise InputError(
                f"{file} is one of {self.get('split.count')} parts. Put them together first (llama.cpp: "
                "llama-gguf-split --merge FIRST_PART WHOLE.gguf), then convert the whole file."
            )

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key of the metadata. Raises InputError for a text that is not UTF-8."""
        try:
            return self.fields[key].contents() if key in self.fields else default
        except UnicodeDecodeError as error:
            raise InputError(f"{self.file} is damaged: {key} is not UTF-8 ({error}). Fetch it again.") from error

    def tensor(self, name: str) -> Tensor:
        """A tensor in float32, in torch's order of dimensions."""
        import numpy
        from gguf.quants import dequantize

        stored = self.tensors[name]
        try:
            values = dequantize(stored.data, stored.tensor_type)
        except NotImplementedError as error:
            raise InputError(
                f"{self.file}: {name} is stored as {stored.tensor_type.name}, which the package gguf cannot read. "
                "Take another quantisation of this model (Q4_K_M, Q8_0, F16)."
            ) from error
        shape = tuple(int(size) for size in reversed(stored.shape))
        return torch.from_numpy(numpy.array(values, dtype=numpy.float32)).view(shape)


def convert(file: Path, target: Path, dtype: str = "float32", ignore: tuple[str, ...] = ()) -> str:
    """Write a GGUF file as a `transformers` folder `target`, whole or not at all; says what it is.

    Quantised numbers are exact in `dtype` "float32" only; "bfloat16" halves the folder. `ignore` are keys of the file
    that are without effect, as the user says. Raises InputError for bad input and for a target that exists.
    """
    from transformers import GenerationConfig

    gguf = GgufFile(file)
    if (name := gguf.get("general.architecture", "(none)")) not in ARCHITECTURES:
        raise InputError(
            f"{file} holds a model of the family {name!r}, which cannot be a host. Supported: "
            f"{', '.join(ARCHITECTURES)} (Mistral's are called llama)."
        )
    with new_folder(target) as folder:
        try:
            model = _model_of(gguf, name, DTYPES[dtype], ignore)
            tokenizer = tokenizer_of(gguf)
        except InputError:
            raise
        except Exception as error:  # values of the wrong kind, in whatever the file holds
            if is_out_of_memory(error):
                raise
            said = shorten(" ".join(str(error).split()), 300)
            raise InputError(
                f"{file}: its settings, tensors or tokenizer do not fit together ({type(error).__name__}: {said}). "
                "Fetch it again, or take another file of this model."
            ) from error
        ends = [gguf.get("tokenizer.ggml.eos_token_id"), gguf.get("tokenizer.ggml.eot_token_id")]
        ends = list(dict.fromkeys(end for end in ends if end is not None))  # of a text, and of a turn
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=ends if len(ends) > 1 else tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model.save_pretrained(folder, max_shard_size="5GB")
        tokenizer.save_pretrained(folder)
        name_for_all_versions(folder)
    config = model.config
    size = sum(parameter.numel() for parameter in model.parameters())
    template = "with a chat template" if tokenizer.chat_template else "no chat template"
    return (
        f"Wrote {target}: {config.model_type}, {config.num_hidden_layers} layers, width {config.hidden_size}, "
        f"{size:,} parameters in {dtype}, {config.vocab_size} tokens, {template}; "
        f"licence as the file says: {gguf.get('general.license', 'unknown')}. Use it: host.path={target}"
    )


def _model_of(gguf: GgufFile, name: str, dtype: torch.dtype, ignore: tuple[str, ...]) -> Any:
    """The `transformers` model with the file's tensors. Raises InputError for a key or tensor without a place."""
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture = ARCHITECTURES[name]
    if "token_embd.weight" not in gguf.tensors:
        raise InputError(f"{gguf.file}: it has no token_embd.weight. Is it a whole language model?")
    settings = settings_of(gguf, name, ignore)
    config = AutoConfig.for_model(architecture.model_type, **settings)
    config.dtype = dtype
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    wanted = model.state_dict()
    state: dict[str, Tensor] = {}
    for stored in gguf.tensors:
        if stored == "rope_freqs.weight":
            continue  # read by settings_of
        place = _place_of(stored, architecture)
        if place is None or place not in wanted:
            raise InputError(f"{gguf.file}: {stored} has no place in a {architecture.model_type} of `transformers`.")
        tensor = gguf.tensor(stored)
        if architecture.neighbours and place.endswith(("q_proj.weight", "k_proj.weight")):
            heads = settings["num_attention_heads" if "q_proj" in place else "num_key_value_heads"]
            tensor = rows_to_halves(tensor, heads)
        if architecture.norms_plus_one and place.endswith("norm.weight"):
            tensor = tensor - 1
        state[place] = tensor.to(dtype).contiguous()
    if settings["tie_word_embeddings"]:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    try:
        model.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        said = shorten(" ".join(str(error).split()), 400)
        raise InputError(f"{gguf.file}: the tensors do not fit the file's settings: {said}") from error
    model.tie_weights()
    return model


def _place_of(stored: str, architecture: Architecture) -> str | None:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    name, _, end = stored.rpartition(".")
    if name.startswith("blk."):
        _, layer, inner = name.split(".", 2)
        return f"model.layers.{layer}.{architecture.names[inner]}.{end}" if inner in architecture.names else None
    return f"{_OUTER[name]}.{end}" if name in _OUTER else None


def settings_of(gguf: GgufFile, name: str, ignore: tuple[str, ...] = ()) -> dict[str, Any]:
    """Keyword arguments of the family's `transformers` configuration.

    Raises InputError for keys of the model that are missing, unknown (unless they are in `ignore`) or contradictory.
    """
    given = {key.removeprefix(f"{name}."): gguf.get(key) for key in gguf.fields if key.startswith(f"{name}.")}
    known = {**_SETTINGS, **_OWN_SETTINGS.get(name, {})}
    read = {*known, *_ALSO_READ, *_WITHOUT_EFFECT, *_ROPE_SCALING}
    if unknown := [f"{name}.{key}" for key in given if key not in read and f"{name}.{key}" not in ignore]:
        raise InputError(
            f"{gguf.file} has settings that are not known here: {', '.join(unknown)}. They may change what the model "
            f"computes. To convert without them: {' '.join(f'--ignore {key}' for key in unknown)}"
        )
    if missing := [f"{name}.{key}" for key in _NEEDED if key not in given]:
        raise InputError(f"{gguf.file}: {', '.join(missing)} is missing. Is it a whole language model?")
    if several := [f"{name}.{key}" for key in known if isinstance(given.get(key), list)]:
        raise InputError(f"{gguf.file}: {', '.join(several)} differs among layers, which no supported family does.")
    if wrong := [
        f"{name}.{key} is {shorten(repr(value), 60)}" for key, value in given.items() if not _is_size(key, value)
    ]:
        raise InputError(f"{gguf.file}: {', '.join(wrong)}; it must be a number above 0. Fetch the file again.")
    settings = {known[key]: value for key, value in given.items() if key in known}
    settings["rms_norm_eps"] = float(f"{settings['rms_norm_eps']:.6g}")  # 1e-05 was stored in float32
    settings.setdefault("num_key_value_heads", settings["num_attention_heads"])
    settings.setdefault("rope_theta", 10000.0)
    width, heads = settings["hidden_size"], settings["num_attention_heads"]
    rotated = given.get("rope.dimension_count")
    size = settings.setdefault("head_dim", (rotated if name == "llama" and rotated else None) or width // heads)
    if (values := given.get("attention.value_length", size)) != size:
        raise InputError(f"{gguf.file}: keys of {size} numbers and values of {values}: no supported family has that.")
    if name == "phi3":
        del settings["head_dim"]
        settings["partial_rotary_factor"] = (rotated or size) / size
    elif rotated not in (None, size):
        raise InputError(f"{gguf.file}: {name}.rope.dimension_count={rotated}, but heads have {size} numbers.")
    if name in ("gemma2", "gemma3"):  # scores are divided by the root of this, which files do not say
        is_27b = settings["num_hidden_layers"] == {"gemma2": 46, "gemma3": 62}[name]
        settings["query_pre_attn_scalar"] = width // heads if is_27b else size
    if (scaling := _rotary_scaling(gguf, given, settings)) is not None:
        settings["rope_scaling"] = scaling
    return settings | {
        "vocab_size": int(gguf.tensors["token_embd.weight"].shape[1]),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        **{f"{end}_token_id": gguf.get(f"tokenizer.ggml.{end}_token_id") for end in ("bos", "eos")},
        "pad_token_id": gguf.get("tokenizer.ggml.padding_token_id"),
    }


def _is_size(key: str, value: Any) -> bool:
    """Whether a setting of a model's sizes has a value that can be; of other settings it is not asked."""
    if key not in (*_SETTINGS, *_ALSO_READ, "rope.scaling.factor", "attention.sliding_window"):
        return True
    most = {"block_count": 1000}.get(key, 2**31)
    return type(value) in (int, float) and 0 < value <= most and (value == int(value) or key in _FRACTIONS)


def _rotary_scaling(gguf: GgufFile, given: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any] | None:
    """`rope_scaling` of `transformers`; None for the plain rotary.

    Llama 3.1's is stored as one divisor for each frequency; from the greatest all others follow, and are compared.
    """
    kind, factor = given.get("rope.scaling.type", "none"), given.get("rope.scaling.factor")
    if "rope_freqs.weight" in gguf.tensors:
        divisors = gguf.tensor("rope_freqs.weight").double()
        scaling = llama3_rotary(float(f"{divisors.max().item():.6g}"))
        size = settings["head_dim"]
        plain = settings["rope_theta"] ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        turns = scaling["original_max_position_embeddings"] * plain / (2 * math.pi)  # within the original context
        smooth = ((turns - low) / (high - low)).clamp(0, 1)
        expected = 1 / ((1 - smooth) / scaling["factor"] + smooth)
        if divisors.shape != expected.shape or (divisors / expected - 1).abs().max() > 1e-3:
            raise InputError(f"{gguf.file}: rope_freqs.weight is not Llama 3's scaled rotary, the only one known here.")
        return scaling
    if kind == "none" or factor is None:
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        original = given.get("rope.scaling.original_context_length") or settings["max_position_embeddings"] // factor
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": int(original)}
    raise InputError(f"{gguf.file}: rope.scaling.type={kind} is not known here; linear and yarn are.")


def tokenizer_of(gguf: GgufFile) -> Any:
    """The tokenizer that the file describes, as `transformers` takes it. Raises InputError for an unknown kind."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    kind, tokens = gguf.get("tokenizer.ggml.model"), gguf.get("tokenizer.ggml.tokens")
    if tokens is None or kind not in ("gpt2", "llama"):
        raise InputError(f"{gguf.file}: its tokenizer is of the kind {kind!r}; gpt2 and llama are known here.")
    cut, kinds = gguf.get("tokenizer.ggml.pre", "default"), gguf.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    scores, rows = gguf.get("tokenizer.ggml.scores"), int(gguf.tensors["token_embd.weight"].shape[1])
    named = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}  # GGUF's name -> `transformers`'
    ids = {ours: gguf.get(f"tokenizer.ggml.{theirs}_token_id") for theirs, ours in named.items()}
    lengths = {len(tokens), len(kinds), len(tokens if scores is None else scores)}
    if len(lengths) > 1 or len(tokens) > rows or any(one is not None and one >= len(tokens) for one in ids.values()):
        raise InputError(
            f"{gguf.file}: its tokenizer does not fit: {len(tokens)} tokens, {len(kinds)} kinds, "
            f"{'no' if scores is None else len(scores)} scores, {rows} rows of embeddings, special tokens {ids}."
        )
    special = {f"{name}_token": tokens[index] for name, index in ids.items() if index is not None}
    if kind == "gpt2":
        if cut not in CUTS:
            raise InputError(
                f"{gguf.file}: how its tokenizer cuts texts (tokenizer.ggml.pre={cut}) is not known here. Known: "
                f"{', '.join(CUTS)}."
            )
        merges = [(one[0], one[2]) for one in (text.partition(" ") for text in gguf.get("tokenizer.ggml.merges", []))]
        tokenizer = byte_level({token: index for index, token in enumerate(tokens)}, merges, cut)
    else:
        if scores is None:
            raise InputError(f"{gguf.file}: tokenizer.ggml.scores is missing.")
        normal = {token for token, of in zip(tokens, kinds, strict=True) if of == NORMAL}
        prefix = gguf.get("tokenizer.ggml.add_space_prefix", True)
        tokenizer = sentence_pieces(tokens, scores, normal, special.get("unk_token"), prefix)
    whole = list(zip(tokens, kinds, strict=True))  # never cut in a text
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text, of in whole if of == CONTROL]
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text, of in whole if of == USER_DEFINED])
    # Where the file does not say: SentencePiece's and Llama 3's vocabularies begin a text with a token.
    begins = gguf.get("tokenizer.ggml.add_bos_token", kind == "llama" or cut in LLAMA3_CUTS)
    first = special.get("bos_token") if begins else None
    last = special.get("eos_token") if gguf.get("tokenizer.ggml.add_eos_token") else None
    surround(tokenizer, first, last)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special)
    templates = {"default": gguf.get("tokenizer.chat_template")} | {
        name: gguf.get(f"tokenizer.chat_template.{name}") for name in gguf.get("tokenizer.chat_templates", [])
    }
    wrapped.chat_template = templates["default"] if len(templates) == 1 else templates
    return wrapped


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a .gguf file")
    parser.add_argument("target", type=Path, metavar="OUT", help="folder to be written")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights; float32 is exact")
    parser.add_argument("--ignore", action="append", default=[], metavar="KEY", help="a key of the file without effect")
    given = parser.parse_args(arguments)
    return command(lambda: convert(given.file, given.target, given.dtype, tuple(given.ignore)), given.target)


if __name__ == "__main__":
    sys.exit(main())
