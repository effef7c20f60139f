"""Loading the visual tower of a CLIP model through open_clip, with the activation that its weights need.

OpenAI's weights were trained with QuickGELU (x * sigmoid(1.702 x)); in a plain GELU model they give wrong features
without any error. So: a tag says it, a TorchScript file says it, a `transformers` folder says it, and where nothing
says it the user has to.
"""

from __future__ import annotations

import difflib
import json
import logging
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from mmadapter.errors import InputError
from mmadapter.vision.transformers_clip import open_clip_state, transformers_vision_config

TINY_CLIP = Path(__file__).parents[1] / "tiny" / "clip"
CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"


def load_visual_tower(model: str | None, pretrained: str | None, quick_gelu: bool | None = None) -> nn.Module:
    """The frozen visual tower named by `vision.model` and `vision.pretrained`, in float32 and evaluation mode.

    `model`: an open_clip model name, a folder in open_clip's layout, or "tiny". `pretrained`: an open_clip tag, a
    weight file or a `transformers` CLIP folder. Raises InputError for anything that cannot be loaded exactly.
    """
    folder = open_clip_folder(model)
    if folder is not None:
        tower = _from_open_clip_folder(folder, quick_gelu)
    elif pretrained is None:
        raise InputError(
            "vision.pretrained is not set. Give an open_clip tag (openai), a weight file, or a transformers folder."
        )
    elif Path(pretrained).is_dir():
        tower = _from_transformers_folder(model, Path(pretrained), quick_gelu)
    elif Path(pretrained).is_file():
        tower = _from_file(model, Path(pretrained), quick_gelu)
    else:
        tower = _from_tag(model, pretrained, quick_gelu)
    return tower.requires_grad_(False).float().eval()


class TowerShape(NamedTuple):
    """Sizes of a visual tower."""

    blocks: int
    scale: int  # numbers per token and block
    tokens: int  # per image, the class token among them


def tower_shape(model: str | None, project_scales: bool) -> TowerShape:
    """The sizes of a tower, from its configuration alone: no weights are read."""
    folder = open_clip_folder(model)
    config = _folder_config(folder) if folder is not None else _named_config(model)
    vision = config["vision_cfg"]
    if not isinstance(vision.get("layers"), int) or "width" not in vision or vision.get("timm_model_name"):
        raise InputError(f"vision.model={model} is not a ViT of open_clip's own; multi-scale features need one.")
    scale = config["embed_dim"] if project_scales else vision["width"]
    return TowerShape(vision["layers"], scale, 1 + _patches(vision))


def _patches(vision: dict[str, Any]) -> int:
    """Patches of one image; open_clip's own defaults stand where the configuration is silent."""
    size, patch = vision.get("image_size", 224), vision.get("patch_size", 16)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return (height // patch) * (width // patch)


def open_clip_folder(model: str | None) -> Path | None:
    """The folder in open_clip's layout that `vision.model` names; None where it is a name of open_clip's list."""
    if model is None:
        raise InputError("vision.model is not set. Give an open_clip model name, e.g. vision.model=ViT-L-14-quickgelu")
    if model == "tiny":
        return TINY_CLIP
    return Path(model) if (Path(model) / CONFIG_FILE).is_file() else None


def _folder_config(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_cfg"]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder / CONFIG_FILE} cannot be read: {error}. It must hold `model_cfg`.") from error


def _named_config(model: str | None) -> dict[str, Any]:
    import open_clip

    config = open_clip.get_model_config(model)
    if config is None:
        close = difflib.get_close_matches(str(model), open_clip.list_models(), n=6)
        raise InputError(f"vision.model={model}: open_clip has no such model. Near: {', '.join(close) or 'none'}")
    return config


def _build(config: dict[str, Any], weights: Any, quick_gelu: bool | None) -> nn.Module:
    """Build the whole CLIP model from its configuration, load `weights` exactly, keep the visual tower."""
    import open_clip

    settings = {key: value for key, value in config.items() if key != "custom_text"}
    if quick_gelu is not None:
        settings["quick_gelu"] = quick_gelu
    clip = open_clip.CustomTextCLIP(**settings) if config.get("custom_text") else open_clip.CLIP(**settings)
    if isinstance(weights, Path):
        open_clip.load_checkpoint(clip, str(weights), weights_only=True)
    else:
        missing, unexpected = clip.visual.load_state_dict(weights, strict=False)
        if missing or unexpected:
            raise RuntimeError(f"missing {missing[:3]}, unexpected {unexpected[:3]}")
    return clip.visual


def _from_open_clip_folder(folder: Path, quick_gelu: bool | None) -> nn.Module:
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise InputError(f"{weights} is missing. A folder in open_clip's layout holds it beside {CONFIG_FILE}.")
    return _loaded(folder, lambda: _build(_folder_config(folder), weights, quick_gelu))


def _from_transformers_folder(model: str | None, folder: Path, quick_gelu: bool | None) -> nn.Module:
    found = transformers_vision_config(folder)
    is_quick = found["hidden_act"] == "quick_gelu"
    if quick_gelu is not None and quick_gelu != is_quick:
        raise InputError(
            f"vision.quick_gelu={str(quick_gelu).lower()}, but {folder}/config.json says "
            f"hidden_act={found['hidden_act']}. Remove vision.quick_gelu: the folder knows."
        )
    config = _named_config(model)
    return _loaded(folder, lambda: _build(config, open_clip_state(folder), is_quick))


def _from_file(model: str | None, file: Path, quick_gelu: bool | None) -> nn.Module:
    import open_clip

    config = _named_config(model)
    if quick_gelu is None:
        if _is_torchscript(file) or config.get("quick_gelu"):
            quick_gelu = True
        elif f"{model}-quickgelu" in open_clip.list_models():
            raise InputError(
                f"vision.pretrained={file}: the file does not say whether its weights need QuickGELU, and "
                f"{model} exists with and without. OpenAI's weights: vision.model={model}-quickgelu "
                "(or vision.quick_gelu=true); most LAION weights: vision.quick_gelu=false."
            )
    return _loaded(file, lambda: _build(config, file, quick_gelu))


def _from_tag(model: str | None, tag: str, quick_gelu: bool | None) -> nn.Module:
    import open_clip

    config = _named_config(model)
    known = open_clip.list_pretrained_tags_by_model(model)
    if tag not in known:
        raise InputError(
            f"vision.pretrained={tag}: neither a file, nor a folder, nor a tag of {model}. "
            f"Tags: {', '.join(known) or 'none'}"
        )
    needs_quick = bool((open_clip.get_pretrained_cfg(model, tag) or {}).get("quick_gelu", False))
    if quick_gelu is not None and quick_gelu != needs_quick:
        raise InputError(f"vision.quick_gelu={str(quick_gelu).lower()}, but {model}/{tag} needs {needs_quick}.")
    if needs_quick and not config.get("quick_gelu"):
        logging.getLogger(__name__).info("%s/%s needs QuickGELU: switched on", model, tag)

    def load() -> nn.Module:
        clip = open_clip.create_model(model, pretrained=tag, force_quick_gelu=needs_quick)
        return clip.visual

    return _loaded(tag, load)


def _loaded(source: object, load) -> nn.Module:
    try:
        return load()
    except InputError:
        raise
    except Exception as error:  # open_clip, torch and safetensors each raise their own for a damaged or foreign file
        raise InputError(
            f"The CLIP weights at {source} cannot be loaded ({type(error).__name__}: {error}). "
            "Either the file is damaged: fetch it again; or it belongs to another vision.model."
        ) from error


def _is_torchscript(file: Path) -> bool:
    """OpenAI's own downloads are TorchScript archives (they hold a `constants.pkl` and code)."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any("/code/" in name for name in archive.namelist())
