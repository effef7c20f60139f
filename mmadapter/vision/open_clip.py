"""Frozen multi-scale CLIP features: the tokens of several blocks, concatenated (LLaMA-Adapter, section 3.3).

The tower is open_clip's. Its weights come from a tag, a file, a folder in open_clip's layout or a `transformers`
folder, with the activation that they need: OpenAI's were trained with QuickGELU (x * sigmoid(1.702 x)) and give wrong
features in a plain GELU model without any error. A tag says which it is, and so do a TorchScript file and a
`transformers` folder. Where nothing says it, the user has to.
"""

from __future__ import annotations

import json
import logging
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmadapter.errors import InputError
from mmadapter.vision.encoder import VisionEncoder, weights_digest
from mmadapter.vision.settings import CONFIG_FILE, OpenClipSettings, open_clip_files

WEIGHTS_FILE = "open_clip_model.safetensors"


class OpenClipEncoder(VisionEncoder):
    """A frozen CLIP visual tower.

    `layers` are block numbers from 0. `tokens` "class" takes each block's class token, the global feature, and joins
    the blocks' to one vector; "all" takes every token, class token first, and joins the blocks' along the channels.
    With `project_scales` each token passes CLIP's own final norm and projection (768 numbers for ViT-L/14), without it
    the token is taken as it is (1024). The last block alone, all tokens, projected: what the released V2 model sees.
    `channel_order` "bgr" serves weights that were trained on swapped channels (the released V2 files).
    """

    settings: OpenClipSettings

    def __init__(self, settings: OpenClipSettings, tower: nn.Module | None = None) -> None:
        super().__init__()
        self.settings = settings
        own: Any = load_tower(settings) if tower is None else tower  # open_clip's VisionTransformer
        self.tower = own
        scale = own.proj.shape[1] if settings.project_scales else own.class_embedding.shape[0]
        width = scale * len(settings.layers)
        all_tokens = (own.positional_embedding.shape[0], width)
        self.feature_shape = (width,) if settings.tokens == "class" else all_tokens
        self._transform = _evaluation_transform(self.tower)

    def preparation(self) -> Callable[[Image.Image], Tensor]:
        """Resized, cropped and normalised as CLIP's own evaluation does, or as a folder's `preprocess_cfg` says."""
        return partial(_pixels, self._transform, self.settings.channel_order)

    def encode(self, pixels: Tensor) -> Tensor:
        indices = sorted(set(self.settings.layers))
        found = self.tower.forward_intermediates(
            pixels.to(self.tower.conv1.weight),
            indices=indices,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        tokens = {
            index: torch.cat([first, patches], dim=1)
            for index, first, patches in zip(
                indices, found["image_intermediates_prefix"], found["image_intermediates"], strict=True
            )
        }
        scales = [tokens[index] for index in self.settings.layers]  # (pictures, tokens, channels) each
        if self.settings.project_scales:
            scales = [self.tower.ln_post(scale) @ self.tower.proj for scale in scales]
        joined = torch.cat(scales, dim=-1)
        return joined[:, 0] if self.settings.tokens == "class" else joined

    def digest(self) -> str:
        it, prepared = self.settings, getattr(self.tower, "preprocess_cfg", None) or {}
        facts: tuple[Any, ...] = (it.layers, it.project_scales, it.channel_order, it.tokens)
        if fill := prepared.get("fill_color"):  # around a picture; the transform's text does not tell it
            facts = (*facts, fill)
        return weights_digest(self.tower, facts, self._transform)

    def identity(self) -> dict[str, Any]:
        names = ("layers", "project_scales", "channel_order")
        return {name: getattr(self.settings, name) for name in names} | super().identity()


def _pixels(transform: Callable[[Image.Image], Tensor], channel_order: str, image: Image.Image) -> Tensor:
    if channel_order == "bgr":
        image = Image.merge("RGB", image.split()[::-1])
    return transform(image)


def _evaluation_transform(tower: Any) -> Callable[[Image.Image], Tensor]:
    """CLIP's own, or what the folder or tag of the weights says."""
    from open_clip.transform import image_transform

    told = getattr(tower, "preprocess_cfg", None) or {}
    names = ("mean", "std", "interpolation", "resize_mode", "fill_color")
    given = {name: told[name] for name in names if told.get(name) is not None}
    # JSON's lists as open_clip's own tuples: the same preparation has the same text, and so the same digest
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return image_transform(tower.image_size, is_train=False, **given)


# Weights.


def load_tower(settings: OpenClipSettings) -> nn.Module:
    """The frozen visual tower that the settings name, in float32 and evaluation mode.

    Raises InputError for anything that cannot be loaded exactly.
    """
    config, folder = settings.model_config(), settings.folder
    if folder is None and settings.pretrained is None:
        raise InputError("\n".join(settings.missing_weights("vision")))
    source = folder if folder is not None else Path(str(settings.pretrained)).expanduser()
    try:
        if folder is not None:
            tower = _from_open_clip_folder(config, folder, settings.quick_gelu)
            vars(tower)["preprocess_cfg"] = settings.preprocessing()  # where open_clip itself writes a tag's
        elif source.is_dir():
            tower = _from_transformers_folder(config, source, settings.quick_gelu)
        elif source.is_file():
            tower = _from_file(config, source, settings)
        else:
            tower = _from_tag(config, settings)
    except InputError:
        raise
    except Exception as error:  # open_clip, torch and safetensors each raise their own for a damaged or foreign file
        raise InputError(
            f"The CLIP weights at {source} cannot be loaded ({type(error).__name__}: {error}). "
            "Either the file is damaged: fetch it again; or it belongs to another vision.model."
        ) from error
    return tower.requires_grad_(False).float().eval()


def _build(config: dict[str, Any], weights: Path | dict[str, Tensor], quick_gelu: bool | None) -> nn.Module:
    """Build the whole CLIP model from its configuration, load the weights exactly, keep the visual tower."""
    import open_clip

    values = {key: value for key, value in config.items() if key != "custom_text"}
    if quick_gelu is not None:
        values["quick_gelu"] = quick_gelu
    clip = open_clip.CustomTextCLIP(**values) if config.get("custom_text") else open_clip.CLIP(**values)
    if isinstance(weights, Path):
        open_clip.load_checkpoint(clip, str(weights), weights_only=True)
    else:
        clip.visual.load_state_dict(weights)
    return clip.visual


def _from_open_clip_folder(config: dict[str, Any], folder: Path, quick_gelu: bool | None) -> nn.Module:
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise InputError(f"{weights} is missing. A folder in open_clip's layout holds it beside {CONFIG_FILE}.")
    return _build(config, weights, quick_gelu)


def _from_file(config: dict[str, Any], file: Path, settings: OpenClipSettings) -> nn.Module:
    quick_gelu, model = settings.quick_gelu, settings.model
    if quick_gelu is None:
        if _is_torchscript(file) or config.get("quick_gelu"):
            quick_gelu = True
        elif f"{model}-quickgelu" in open_clip_files():
            raise InputError(
                f"vision.pretrained={file}: the file does not say whether its weights need QuickGELU, and "
                f"{model} exists with and without. OpenAI's weights: vision.model={model}-quickgelu "
                "(or vision.quick_gelu=true); most LAION weights: vision.quick_gelu=false."
            )
    return _build(config, file, quick_gelu)


def _is_torchscript(file: Path) -> bool:
    """OpenAI's own downloads are TorchScript archives (they hold a `constants.pkl` and code)."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())


def _from_tag(config: dict[str, Any], settings: OpenClipSettings) -> nn.Module:
    import open_clip

    model, tag = str(settings.model), str(settings.pretrained)
    known = open_clip.list_pretrained_tags_by_model(model)
    if tag not in known:
        raise InputError(
            f"vision.pretrained={tag}: neither a file, nor a folder, nor a tag of {model}. "
            f"Tags: {', '.join(known) or 'none'}"
        )
    needs_quick = bool((open_clip.get_pretrained_cfg(model, tag) or {}).get("quick_gelu", False))
    if settings.quick_gelu is not None and settings.quick_gelu != needs_quick:
        given = str(settings.quick_gelu).lower()
        raise InputError(f"vision.quick_gelu={given}, but {model}/{tag} needs {needs_quick}.")
    if needs_quick and not config.get("quick_gelu"):
        logging.getLogger(__name__).info("%s/%s needs QuickGELU: switched on", model, tag)
    return open_clip.create_model(model, pretrained=tag, force_quick_gelu=needs_quick).visual


# A `transformers` CLIP folder: its names -> open_clip's.

PLAIN_NAMES = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "pre_layrnorm": "ln_pre",  # sic: the name in transformers
    "post_layernorm": "ln_post",
}
BLOCK_NAMES = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def _from_transformers_folder(config: dict[str, Any], folder: Path, quick_gelu: bool | None) -> nn.Module:
    from safetensors.torch import load_file

    try:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"vision.pretrained={folder}: no readable config.json there ({error}).") from error
    vision = told.get("vision_config", told if told.get("model_type") == "clip_vision_model" else None)
    if vision is None:
        raise InputError(f"vision.pretrained={folder} is a {told.get('model_type')!r} model, not CLIP.")
    vision = {"hidden_act": "quick_gelu", "num_hidden_layers": 12} | vision  # the defaults of CLIPVisionConfig
    is_quick = vision["hidden_act"] == "quick_gelu"
    if quick_gelu is not None and quick_gelu != is_quick:
        raise InputError(
            f"vision.quick_gelu={str(quick_gelu).lower()}, but {folder}/config.json says "
            f"hidden_act={vision['hidden_act']}. Remove vision.quick_gelu: the folder knows."
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise InputError(f"vision.pretrained={folder}: no safetensors file there. Download the model in that format.")
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items() if "text_model" not in name}
    tensors = {name.removeprefix("vision_model."): tensor for name, tensor in tensors.items()}
    return _build(config, rename_visual_tensors(tensors, vision["num_hidden_layers"]), is_quick)


def rename_visual_tensors(vision: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """`transformers` names (without `vision_model.`) to open_clip's: q, k, v rows stacked, the projection turned."""
    state: dict[str, Tensor] = {}
    for theirs, ours in PLAIN_NAMES.items():
        for end in ("", ".weight", ".bias"):
            if theirs + end in vision:
                state[ours + end] = vision[theirs + end]
    for index in range(blocks):
        source, target = f"encoder.layers.{index}.", f"transformer.resblocks.{index}."
        for end in (".weight", ".bias"):
            for theirs, ours in BLOCK_NAMES.items():
                state[target + ours + end] = vision[source + theirs + end]
            parts = [vision[f"{source}self_attn.{name}_proj{end}"] for name in "qkv"]
            state[f"{target}attn.in_proj_{end[1:]}"] = torch.cat(parts)
    if "visual_projection.weight" in vision:
        state["proj"] = vision["visual_projection.weight"].T.contiguous()
    return state
