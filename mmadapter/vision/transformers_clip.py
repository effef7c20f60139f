"""A `transformers` CLIP folder's visual weights under open_clip's names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmadapter.errors import InputError

_PLAIN = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm": "ln_pre",  # sic: the name in transformers
    "post_layernorm": "ln_post",
}
_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def transformers_vision_config(folder: Path) -> dict[str, Any]:
    """`vision_config` of a `transformers` CLIP folder, with `hidden_act` filled in. Raises InputError otherwise."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"vision.pretrained={folder}: no readable config.json there ({error}).") from error
    vision = config.get("vision_config", config if config.get("model_type") == "clip_vision_model" else None)
    if vision is None:
        raise InputError(f"vision.pretrained={folder} is a {config.get('model_type')!r} model, not CLIP.")
    return {"hidden_act": "quick_gelu", "num_hidden_layers": 12} | vision  # the defaults of CLIPVisionConfig


def open_clip_state(folder: Path) -> dict[str, Tensor]:
    """The visual tower's tensors under open_clip's names, read from safetensors."""
    from safetensors.torch import load_file

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"vision.pretrained={folder}: no safetensors file there. Download the model in that format.")
    loaded: dict[str, Tensor] = {}
    for file in files:
        loaded |= load_file(file)
    vision = {name.removeprefix("vision_model."): tensor for name, tensor in loaded.items() if "text_model" not in name}
    return rename_visual_tensors(vision, transformers_vision_config(folder)["num_hidden_layers"])


def rename_visual_tensors(vision: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """`transformers` names (without `vision_model.`) to open_clip's: q, k, v rows stacked, the projection turned."""
    state: dict[str, Tensor] = {}
    for theirs, ours in _PLAIN.items():
        for end in ("", ".weight", ".bias"):
            if theirs + end in vision:
                state[ours + end] = vision[theirs + end]
    for index in range(blocks):
        source, target = f"encoder.layers.{index}.", f"transformer.resblocks.{index}."
        for theirs, ours in _BLOCK.items():
            for end in (".weight", ".bias"):
                state[target + ours + end] = vision[source + theirs + end]
        for end in ("weight", "bias"):
            parts = [vision[f"{source}self_attn.{name}_proj.{end}"] for name in "qkv"]
            state[f"{target}attn.in_proj_{end}"] = torch.cat(parts)
    if "visual_projection.weight" in vision:
        state["proj"] = vision["visual_projection.weight"].T.contiguous()
    return state
