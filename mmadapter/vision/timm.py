"""Frozen multi-scale features of any timm model (LLaMA-Adapter, section 3.3, with another encoder than CLIP).

timm's `forward_intermediates` gives what each block or stage computes. A transformer's blocks all see the same
positions, and most have a class token; a convolutional network's stages (or a pyramid transformer's) differ in size,
and their global feature is the average of their positions.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmadapter.errors import InputError
from mmadapter.vision.encoder import VisionEncoder, weights_digest
from mmadapter.vision.settings import TIMM_CONFIG, TIMM_WEIGHTS, TimmSettings, timm_folder

OPEN_CLIP_TRUNK = "visual.trunk."  # what open_clip writes before the names of a timm tower


class TimmEncoder(VisionEncoder):
    """A frozen timm model without its head.

    `layers` are blocks of a transformer or stages of a convolutional network, from 0. `tokens` "class" takes one vector
    of each, and joins them: the class token, or the mean of the positions where the model has none. "all" takes every
    token of the blocks, class token first (where there is one; registers are left out), and joins the blocks' along the
    channels; of stages, the positions of one, row by row. With `norm` each block's tokens pass the model's last norm.
    """

    settings: TimmSettings

    def __init__(self, settings: TimmSettings) -> None:
        super().__init__()
        self.settings = settings
        if missing := list(settings.missing_weights("vision")):
            raise InputError("\n".join(missing))
        named = _named(settings)
        self.model = _with_weights(named, _read_weights(named)).requires_grad_(False).float().eval()
        levels = _levels(named, settings.norm)
        self.layers = _chosen_layers(settings, levels, named.architecture)
        self.feature_shape = _shape(settings, self.layers, levels)
        prepared = _data_config(named)
        self._transform = _transform(prepared)
        self._facts = (
            *(named.architecture, sorted(named.arguments.items()), sorted(prepared.items())),
            *(self.layers, settings.norm, settings.tokens),
        )

    def preparation(self) -> Callable[[Image.Image], Tensor]:
        """Resized, cropped and normalised as timm's own evaluation of these weights does."""
        return self._transform

    def encode(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(next(self.model.parameters()).dtype)
        levels = _intermediates(self.model, pixels, self.layers, self.settings.norm)
        found = dict(zip(sorted(self.layers), levels, strict=True))
        chosen = [found[layer] for layer in self.layers]
        if self.settings.tokens == "class":
            return torch.cat([maps.mean((2, 3)) if first is None else first for maps, first in chosen], dim=-1)
        scales = []
        for maps, first in chosen:
            positions = maps.flatten(2).mT  # row by row
            scales.append(positions if first is None else torch.cat([first[:, None], positions], dim=1))
        return torch.cat(scales, dim=-1)

    def digest(self) -> str:
        return weights_digest(self.model, self._facts)

    def identity(self) -> dict[str, Any]:
        return {"layers": self.layers, "norm": self.settings.norm} | super().identity()


def feature_shape(settings: TimmSettings) -> tuple[int, ...]:
    """That of the encoder of these settings, from timm's model on the meta device: no weights are read."""
    named = _named(settings)
    levels = _levels(named, settings.norm)
    return _shape(settings, _chosen_layers(settings, levels, named.architecture), levels)


# Which model it is.


@dataclass(frozen=True)
class _Named:
    """A timm model as settings and folders name it."""

    architecture: str
    arguments: dict[str, Any]  # for timm.create_model
    config: dict[str, Any]  # timm's pretrained_cfg: how pictures are prepared, the classifier's name
    weights: Path | None


def _named(settings: TimmSettings) -> _Named:
    """What `model` and `pretrained` name. Raises InputError where timm has no such model, or the two differ."""
    import timm

    folder, told = settings.folder, {}
    name = settings.model if timm_folder(settings.model) is None else None
    where, arguments = "vision.model", dict[str, Any](num_classes=0)  # no head
    if folder is not None:
        told = _read_config(folder)
        architecture = told.get("architecture")
        if name is not None and name.partition(".")[0] != str(architecture).partition(".")[0]:
            raise InputError(
                f"vision.model={name}, but {folder / TIMM_CONFIG} says {architecture}. Leave vision.model away: the "
                "folder knows."
            )
        name, where, arguments = architecture, f"{folder / TIMM_CONFIG}: architecture", told["model_args"] | arguments
    base = str(name).partition(".")[0]
    if not timm.is_model(base):
        near = ", ".join(get_close_matches(base, timm.list_models(), n=6)) or "none"
        raise InputError(f"{where}={name}: timm has no such model. Near: {near}.")
    try:
        default = timm.get_pretrained_cfg(str(name))
    except RuntimeError as error:  # a tag that the model does not have
        raise InputError(f"{where}={name}: {error}") from error
    config = {} if default is None else {key: one for key, one in default.to_dict().items() if one is not None}
    config |= told.get("pretrained_cfg", {})
    if config.get("input_size", (3,))[0] != 3 or arguments.get("in_chans", 3) != 3:
        raise InputError(f"{where}={name} takes pictures of other than three channels. Take another model.")
    if settings.image_size is not None:
        config["input_size"] = (3, settings.image_size, settings.image_size)
        if config.get("fixed_input_size"):
            arguments["img_size"] = settings.image_size
    given = settings.pretrained
    return _Named(str(name), arguments, config, folder if given is None else Path(given).expanduser())


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        told = json.loads((folder / TIMM_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / TIMM_CONFIG} cannot be read: {error}.") from error
    if not isinstance(told, dict) or "architecture" not in told:
        kind = f" (it says model_type {told['model_type']})" if isinstance(told, dict) and "model_type" in told else ""
        raise InputError(f"{folder / TIMM_CONFIG} names no architecture of timm{kind}. Give a folder in timm's layout.")
    told.setdefault("model_args", {})
    if "pretrained_cfg" not in told:  # as timm wrote them before version 0.9
        told["pretrained_cfg"] = {key: one for key, one in told.items() if key not in ("architecture", "model_args")}
    return told


def _on_meta(named: _Named) -> nn.Module:
    import timm

    try:
        with torch.device("meta"):
            model = timm.create_model(named.architecture, pretrained=False, **named.arguments)
    except Exception as error:  # timm's models raise whatever they like for arguments that do not suit them
        raise InputError(f"timm cannot make {named.architecture} with {named.arguments}: {error}") from error
    if not hasattr(model, "forward_intermediates"):
        raise InputError(
            f"vision.model={named.architecture}: timm gives no features of its blocks or stages. Take another."
        )
    return model.eval()


# Weights.


def _read_weights(named: _Named) -> dict[str, Tensor]:
    """The tensors of the file or folder. What open_clip writes before a timm tower's names is taken away."""
    from timm.models import load_state_dict

    assert named.weights is not None  # else `missing_weights` has said so
    file = named.weights
    if file.is_dir():
        files = [file / name for name in (TIMM_WEIGHTS, "pytorch_model.bin") if (file / name).is_file()]
        if not files:
            raise InputError(
                f"{file / TIMM_WEIGHTS} is missing. A folder in timm's layout has it beside {TIMM_CONFIG}."
            )
        file = files[0]
    try:
        state = load_state_dict(str(file), device="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors each raise their own for a damaged or foreign file
        raise InputError(
            f"The weights at {file} cannot be loaded ({type(error).__name__}: {error}). Fetch the file again."
        ) from error
    trunk = {name.removeprefix(OPEN_CLIP_TRUNK): one for name, one in state.items() if name.startswith(OPEN_CLIP_TRUNK)}
    return trunk or state


def _with_weights(named: _Named, state: dict[str, Tensor]) -> nn.Module:
    """timm's model with these weights, each of which fits exactly; the classifier's are left out.

    timm itself renames what older files call otherwise, and fits position embeddings to another picture size.
    """
    import timm

    heads = named.config.get("classifier") or ()
    for head in (heads,) if isinstance(heads, str) else heads:
        state = {name: one for name, one in state.items() if name not in (f"{head}.weight", f"{head}.bias")}
    # with as many classes as the model has (none), timm demands that every name and shape fits
    overlay = {"state_dict": state, "num_classes": 0, "custom_load": False}
    try:
        return timm.create_model(
            named.architecture,
            pretrained=True,
            pretrained_cfg=named.config,
            pretrained_cfg_overlay=overlay,
            **named.arguments,
        )
    except Exception as error:  # RuntimeError of torch, KeyError of timm's renaming, ...
        said = " ".join(str(error).split())
        raise InputError(
            f"The weights at {named.weights} do not fit timm's {named.architecture}: "
            f"{said if len(said) < 700 else said[:700] + ' ...'} Name the model that they belong to."
        ) from error


# What the model gives, and what is taken of it.

Level = tuple[Tensor, Tensor | None]  # of a block or stage: (pictures, channels, rows, columns); the class token


def _intermediates(model: Any, pixels: Tensor, layers: list[int] | None, norm: bool) -> list[Level]:
    """What the blocks or stages of these numbers (None: all) compute, lowest first."""
    indices = None if layers is None else sorted(layers)
    arguments: dict[str, Any] = {"indices": indices, "norm": norm, "output_fmt": "NCHW"}
    with_tokens = "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters
    if with_tokens and getattr(model, "num_prefix_tokens", 0) > 0:
        arguments["return_prefix_tokens"] = True
    found = model.forward_intermediates(pixels, stop_early=True, intermediates_only=True, **arguments)
    has_class = getattr(model, "cls_token", None) is not None  # else what stands before the patches are registers
    pairs = [one if isinstance(one, tuple) else (one, None) for one in found]
    return [(maps, before[:, 0] if has_class and before is not None else None) for maps, before in pairs]


def _levels(named: _Named, norm: bool) -> list[Level]:
    """All blocks or stages, on the meta device: their shapes."""
    size = _data_config(named)["input_size"]
    try:
        return _intermediates(_on_meta(named), torch.zeros(1, *size, device="meta"), None, norm)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        rows, columns = size[1:]
        raise InputError(
            f"timm's {named.architecture} gives no features of {rows} x {columns} pixels with vision.norm="
            f"{str(norm).lower()} ({error}). Set another vision.image_size, vision.norm=false, or take another model."
        ) from error


def _are_stages(levels: list[Level]) -> bool:
    """Whether sizes differ from level to level: a convolutional network's stages, not a transformer's blocks."""
    return len({maps.shape for maps, _ in levels}) > 1


def _chosen_layers(settings: TimmSettings, levels: list[Level], architecture: str) -> list[int]:
    """The numbers of the blocks or stages. Raises InputError where there are none of these."""
    count, stages = len(levels), _are_stages(levels)
    one_stage = stages and settings.tokens == "all"
    if settings.layers is None:
        if one_stage:
            return [count - 1]
        return list(range(count)) if stages else sorted({(part * count + 3) // 4 - 1 for part in (1, 2, 3, 4)})
    what = "stage" if stages else "block"
    if beyond := [layer for layer in settings.layers if not 0 <= layer < count]:
        named = ", ".join(map(str, beyond))
        raise InputError(
            f"vision.layers={settings.layers}: {architecture} has no {what} {named}; they count 0 to {count - 1}."
        )
    if one_stage and len(settings.layers) > 1:
        raise InputError(
            f"vision.layers={settings.layers} with vision.tokens=all: the stages of {architecture} have different "
            f"numbers of positions, so tokens come from one. Set vision.layers=[{settings.layers[-1]}]"
        )
    return list(settings.layers)


def _shape(settings: TimmSettings, layers: list[int], levels: list[Level]) -> tuple[int, ...]:
    width = sum(levels[layer][0].shape[1] for layer in layers)
    maps, first = levels[layers[-1]]
    if settings.tokens == "class":
        return (width,)
    return (maps.shape[2] * maps.shape[3] + (first is not None), width)


# Preparation of pictures.


def _data_config(named: _Named) -> dict[str, Any]:
    """Size, resizing, crop, mean and standard deviation, as timm resolves them for evaluation."""
    from timm.data import resolve_data_config

    config = resolve_data_config(pretrained_cfg=named.config)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in config.items()}


def _transform(config: dict[str, Any]) -> Callable[[Image.Image], Tensor]:
    from timm.data import create_transform

    return create_transform(**config, is_training=False)
