"""A host's config.json, checked before `transformers` builds a model of it: anybody may have written it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmadapter.errors import InputError
from mmadapter.files import read_object

log = logging.getLogger(__name__)

COUNTS = (  # whole numbers from 1; null where the family has a default
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("head_dim", "vocab_size", "max_position_embeddings", "sliding_window"),
)
ABOVE_ZERO = (
    *("rms_norm_eps", "layer_norm_eps", "rope_theta", "rope_local_base_freq", "query_pre_attn_scalar"),
    *("attn_logit_softcapping", "final_logit_softcapping", "partial_rotary_factor", "rotary_pct"),
)
SWITCHES = ("tie_word_embeddings", "attention_bias", "mlp_bias", "use_parallel_residual")
MOST_LAYERS = 1000
LARGEST_COUNT = 2**31 - 1


def read_host_config(folder: Path) -> dict[str, Any]:
    """The content of config.json. Raises InputError that names the file and the fields that cannot be."""
    file = folder / "config.json"
    config = read_object(file, "Download the model again.")
    if not isinstance(config.get("model_type", ""), str):
        raise InputError(f"{file}: model_type is {_shown(config['model_type'])}; it must be a text, such as llama.")
    config.setdefault("model_type", "(none)")
    if wrong := list(_wrong_fields(config)):
        raise InputError(f"{file}: {'; '.join(wrong)}. Correct the file, or download the model again.")
    if "auto_map" in config:
        log.warning(
            "%s names code of its own (auto_map). It is not run: `transformers`' own %s is used.",
            file,
            config["model_type"],
        )
    return config


def _wrong_fields(config: dict[str, Any]) -> Iterator[str]:
    """What is wrong with each field, as "hidden_size is 'big', allowed: a whole number from 1"."""
    known = {name: value for name, value in config.items() if value is not None}
    for name in COUNTS:
        most = MOST_LAYERS if name == "num_hidden_layers" else LARGEST_COUNT
        if name in known and not (type(known[name]) is int and 1 <= known[name] <= most):
            yield f"{name} is {_shown(known[name])}, allowed: a whole number from 1 to {most:,}"
    for name in ABOVE_ZERO:
        if name in known and not (type(known[name]) in (int, float) and 0 < known[name] < 1e30):
            yield f"{name} is {_shown(known[name])}, allowed: a number above 0"
    for name in SWITCHES:
        if name in known and type(known[name]) is not bool:
            yield f"{name} is {_shown(known[name])}, allowed: true or false"
    if type(known.get("hidden_act", "")) is not str:
        yield f"hidden_act is {_shown(known['hidden_act'])}, allowed: the name of an activation"
    for name in ("rope_scaling", "rope_parameters", "quantization_config"):
        if type(known.get(name, {})) is not dict:
            yield f"{name} is {_shown(known[name])}, allowed: an object or null"

    # What must divide.
    sizes = {name: known[name] for name in COUNTS if type(known.get(name)) is int and known[name] > 0}
    heads, groups, width = (sizes.get(name) for name in ("num_attention_heads", "num_key_value_heads", "hidden_size"))
    if heads and groups and heads % groups:
        yield f"num_key_value_heads is {groups}, which does not divide num_attention_heads, {heads}"
    if heads and width and "head_dim" not in known and width % heads:
        yield f"num_attention_heads is {heads}, which does not divide hidden_size, {width}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
