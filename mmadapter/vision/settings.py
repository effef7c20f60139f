"""conf/vision: the settings of image encoders, and what open_clip's small configuration files tell; loads no torch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

from mmadapter.errors import InputError
from mmadapter.hosts.settings import PREPARED, models_folder
from mmadapter.settings import choice, input_path, listing, number, plain, to_plain

TINY, TINY_CLIP = "tiny", Path(__file__).parents[1] / "tiny" / "clip"
AUTO_CACHE, FEATURES_FOLDER = "auto", "features"  # below runs_root
NO_CACHE = "False"  # what `vision.cache=false` is, where a text is expected
CONFIG_FILE = "open_clip_config.json"  # of a folder in open_clip's layout
ALLOWED_PREPROCESSING = {  # in preprocess_cfg of that file
    "mode": ("RGB",),
    "interpolation": ("bicubic", "bilinear", "random"),  # random is for training; evaluation takes bicubic
    "resize_mode": ("shortest", "longest", "squash"),
}
TIMM_CONFIG, TIMM_WEIGHTS = "config.json", "model.safetensors"  # of a folder in timm's layout
OF_ONE_MACHINE = ("enabled", "pretrained", "cache", "workers")  # keys that no adapter's card has


@dataclass
class VisionSettings:
    """The frozen image encoder."""

    SHAPE_NEEDS_TORCH: ClassVar[bool] = False  # then `feature_shape` is asked when the model is built, not before

    # false = text only: no encoder is loaded, no visual role is there; null = where the data have pictures
    enabled: bool | None = True
    encoder: str = "open_clip"  # which library the encoder is of; decides the other keys
    # folder for the features; auto = RUNS_ROOT/features, for all runs there; null = in memory; false = not kept
    cache: str | None = plain(AUTO_CACHE, influence=False)
    workers: int = number(0, at_least=0, influence=False)  # processes that read pictures ahead; 0 = the run itself

    def cached_below(self, runs_root: Path) -> Self:
        """These settings, with the folder that `cache=auto` stands for."""
        return replace(self, cache=str(runs_root / FEATURES_FOLDER)) if self.cache == AUTO_CACHE else self

    def feature_shape(self) -> tuple[int, ...]:
        """(features,) of one picture, or (tokens, features), without weights. Raises InputError for a wrong model."""
        raise NotImplementedError

    def missing_weights(self, key: str) -> Iterator[str]:
        """Messages about weights that are not there, for all but a dry run; `key` is where this object stands."""
        return iter(())

    def weights_to_name(self) -> str | None:
        """Which weights have to be named, as their place is not on an adapter's card; None: none have to."""
        return None

    def take_weights(self, place: str) -> None:
        """Let the weights come from `place`. Raises InputError where this encoder is not to be had from there."""
        raise InputError(f"vision={place} is given, but the encoder is {self.encoder}. Leave vision= away.")

    def portable(self) -> dict[str, Any]:
        """What an adapter's card says to build the encoder again: all but what holds on this machine only."""
        return {name: value for name, value in to_plain(self).items() if name not in OF_ONE_MACHINE}


@dataclass
class OpenClipSettings(VisionSettings):
    """A CLIP visual tower through open_clip (V1 paper, section 3.3)."""

    # open_clip's name (ViT-L-14-quickgelu), a folder in its layout, or "tiny" = the shipped one
    model: str | None = None
    pretrained: str | None = input_path()  # weights file, transformers folder, or open_clip tag (downloads)
    layers: list[int] = listing()  # blocks, from 0, whose features are joined; paper: several, not stated which
    project_scales: bool = True  # each scale through CLIP's last norm and projection (1024 -> 768); false = raw
    tokens: str = choice("class", "all")  # class = global features (paper); all = class and patch tokens (released)
    quick_gelu: bool | None = None  # null = as the weights need it (OpenAI's: true); a contradiction is an error
    channel_order: str = choice("rgb", "bgr")  # of the pixels; bgr only for released checkpoints that were trained so

    @property
    def folder(self) -> Path | None:
        """The folder in open_clip's layout that `model` names; None where it is a name of open_clip's list."""
        return open_clip_folder(self.model)

    def contradictions(self, key: str) -> Iterator[str]:
        if not self.enabled:
            return
        try:
            tower = self.model_config()["vision_cfg"]
            self.preprocessing()
        except InputError as error:
            yield str(error)
            return
        if not self.layers:
            yield f"{key}.layers is empty: name the blocks whose features are used, e.g. {key}.layers=[3,7,11,15,19,23]"
        if len(set(self.layers)) != len(self.layers):
            yield f"{key}.layers={self.layers} names a block twice."
        if beyond := [layer for layer in self.layers if not 0 <= layer < tower["layers"]]:
            named = ", ".join(map(str, beyond))
            last = tower["layers"] - 1
            yield f"{key}.layers={self.layers}: {self.model} has no block {named}; they count 0 to {last}."

    def missing_weights(self, key: str) -> Iterator[str]:
        if not self.enabled or self.model is None or self.folder is not None:
            return
        given = self.pretrained
        if given is None:
            yield (
                f"{key}.pretrained is not set. Give a weights file, a transformers folder, or an open_clip tag, "
                f"which downloads: {key}.pretrained=openai"
            )
        elif ("/" in given or Path(given).suffix) and not Path(given).expanduser().exists():
            yield f"{key}.pretrained={given}: no such file or folder."

    def model_config(self) -> dict[str, Any]:
        """open_clip's configuration of the model. Raises InputError where there is none, or it is no ViT of its own."""
        if self.model is None:
            raise InputError(
                "vision.model is not set. Give open_clip's name, e.g. vision.model=ViT-L-14-quickgelu, "
                "or set vision=none"
            )
        listed = open_clip_files()
        file = listed.get(self.model) if self.folder is None else self.folder / CONFIG_FILE
        if file is None:
            near = ", ".join(get_close_matches(self.model, listed, n=6)) or "none"
            raise InputError(f"vision.model={self.model}: open_clip has no such model. Near: {near}.")
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            config = content if self.folder is None else content["model_cfg"]
            tower = config["vision_cfg"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file} cannot be read: {error}. It must hold a CLIP model's configuration.") from error
        if name := tower.get("timm_model_name"):
            weights = "WEIGHTS" if self.folder is None else self.folder / "open_clip_model.safetensors"
            raise InputError(
                f"vision.model={self.model} is not a ViT of open_clip's own, but timm's. Use it with "
                f"vision=timm vision.model={name} vision.pretrained={weights}"
            )
        if not isinstance(tower.get("layers"), int) or "width" not in tower:
            raise InputError(
                f"vision.model={self.model} is not a ViT of open_clip's own; multi-scale features need one."
            )
        return config

    def preprocessing(self) -> dict[str, Any]:
        """`preprocess_cfg` of a folder in open_clip's layout: mean, std, ... where they differ from CLIP's own.

        Empty for a name of open_clip's list (a tag brings its own, when its weights are loaded). Raises InputError for
        what open_clip would read otherwise than it stands there.
        """
        if self.folder is None:
            return {}
        file, image_size = self.folder / CONFIG_FILE, self.model_config()["vision_cfg"].get("image_size", 224)
        told = json.loads(file.read_text(encoding="utf-8")).get("preprocess_cfg") or {}
        wrong = [
            f"{key}={told[key]!r}, allowed: {', '.join(map(repr, allowed))}"
            for key, allowed in ALLOWED_PREPROCESSING.items()
            if told.get(key) is not None and told[key] not in allowed
        ]
        for key in ("mean", "std"):
            given = told.get(key, 0.0)
            values = given if isinstance(given, list) else [given] * 3
            if len(values) != 3 or not all(isinstance(value, int | float) for value in values):
                wrong.append(f"{key}={given!r}, allowed: a number, or one for each of red, green and blue")
        sizes = [size if isinstance(size, list) else [size, size] for size in (told.get("size"), image_size)]
        if told.get("size") is not None and sizes[0] != sizes[1]:
            wrong.append(f"size={told['size']}, but the model's image_size is {image_size}")
        if unknown := sorted(told.keys() - {*ALLOWED_PREPROCESSING, "mean", "std", "size", "fill_color"}):
            wrong.append(f"open_clip does not know {', '.join(unknown)}")
        if wrong:
            raise InputError(f"{file}: preprocess_cfg: {'; '.join(wrong)}. Correct the file.")
        said = {key: value for key, value in told.items() if value is not None and key not in ("size", "mode")}
        return {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}

    def weights_to_name(self) -> str | None:
        name = self.model or "a folder in open_clip's layout"
        return f"{name}, blocks {self.layers}"

    def take_weights(self, place: str) -> None:
        """`place` is a folder in open_clip's layout or "tiny", which say what they are; else weights (a file, a
        `transformers` folder, an open_clip tag) for the model that is named already."""
        if open_clip_folder(place) is not None:
            self.model, self.pretrained = place, None
        elif self.model is None or self.folder is not None:
            raise InputError(
                f"vision={place}: what the adapter was trained with was a folder in open_clip's layout "
                "(open_clip_config.json beside open_clip_model.safetensors), or its card is of an older version and "
                "does not say open_clip's name for the model. Give such a folder, or load the run folder."
            )
        else:
            self.pretrained = place

    def portable(self) -> dict[str, Any]:
        """`model` is null where a folder said what it is."""
        return super().portable() | ({} if self.folder is None else {"model": None})

    def feature_shape(self) -> tuple[int, ...]:
        """With all tokens the class token is one of them: (257, 1024) for ViT-L/14 at 224 pixels, as it is."""
        config = self.model_config()
        tower = config["vision_cfg"]
        width = (config["embed_dim"] if self.project_scales else tower["width"]) * len(self.layers)
        if self.tokens == "class":
            return (width,)
        size, patch = tower.get("image_size", 224), tower.get("patch_size", 16)  # open_clip's own defaults
        rows, columns = size if isinstance(size, list) else (size, size)
        return (1 + (rows // patch) * (columns // patch), width)


@dataclass
class TimmSettings(VisionSettings):
    """Any model of timm: multi-scale global features of a transformer's blocks or of a convolutional network's stages.

    Only timm knows what a model is, and it loads torch. So `vision/timm.py` checks `layers` on the meta device, before
    weights are read.
    """

    SHAPE_NEEDS_TORCH: ClassVar[bool] = True

    encoder: str = "timm"
    model: str | None = None  # timm's name (vit_small_patch14_dinov2), or a folder in timm's layout, with its weights
    pretrained: str | None = input_path()  # weights file, or a folder in timm's layout: config.json, model.safetensors
    layers: list[int] | None = None  # blocks or stages, from 0; null = four blocks spread evenly, or all stages
    norm: bool = True  # each block's tokens pass the model's own last norm, where it has one; false = as they are
    tokens: str = choice("class", "all")  # class = a vector a block or stage; all = class and patch tokens, positions
    image_size: int | None = number(None, at_least=1)  # pixels on each side; null = as the weights were trained

    @property
    def folder(self) -> Path | None:
        """The folder in timm's layout that `pretrained` or `model` names; None where neither does."""
        return timm_folder(self.pretrained) or timm_folder(self.model)

    def contradictions(self, key: str) -> Iterator[str]:
        if not self.enabled:
            return
        if self.model is None and self.pretrained is None:
            yield (
                f"{key}.model is not set. Give timm's name, e.g. {key}.model=vit_small_patch14_dinov2, a folder in "
                f"timm's layout ({TIMM_CONFIG}, {TIMM_WEIGHTS}), or set vision=none"
            )
        if self.layers is not None and not self.layers:
            yield f"{key}.layers is empty: name the blocks or stages whose features are used, or set {key}.layers=null"
        if self.layers is not None and len(set(self.layers)) != len(self.layers):
            yield f"{key}.layers={self.layers} names a block or stage twice."

    def missing_weights(self, key: str) -> Iterator[str]:
        if not self.enabled or (self.model is None and self.pretrained is None):
            return
        given = self.pretrained if self.pretrained is not None or self.folder else self.model
        place = Path(given or "").expanduser()
        if self.pretrained is None and self.folder is None and "/" not in str(self.model):
            yield (
                f"{key}.pretrained is not set. Give the weights of {self.model}: a file, or a folder in timm's layout "
                f"({TIMM_CONFIG}, {TIMM_WEIGHTS}): {key}.pretrained=FOLDER"
            )
        elif not place.exists() and place.name in PREPARED["vision"] and place.parent == models_folder():
            yield f"vision={place.name} is not there yet ({given}). Fetch it once: mmadapter pretrained {place.name}"
        elif not place.exists():
            yield f"{key}.{'model' if self.pretrained is None else 'pretrained'}={given}: no such file or folder."

    def weights_to_name(self) -> str | None:
        layers = "by default" if self.layers is None else self.layers
        return f"{self.model or 'a folder'} in timm's layout, layers {layers}, vision.tokens={self.tokens}"

    def take_weights(self, place: str) -> None:
        """`place` is a folder in timm's layout, which says what it is, or a weights file for the model named before."""
        if timm_folder(place) is None and (self.model is None or timm_folder(self.model) is not None):
            raise InputError(
                f"vision={place}: the adapter was trained with an encoder from a folder in timm's layout "
                f"({TIMM_CONFIG} beside {TIMM_WEIGHTS}). Give such a folder, or load the run folder."
            )
        if timm_folder(place) is not None and (self.model is None or "/" in self.model):
            self.model = None
        self.pretrained = place

    def portable(self) -> dict[str, Any]:
        """`model` is null where a folder said what it is."""
        return super().portable() | ({} if timm_folder(self.model) is None else {"model": None})

    def feature_shape(self) -> tuple[int, ...]:
        """Asked of timm's model on the meta device: this loads torch. Raises InputError for what timm cannot make."""
        from mmadapter.vision.timm import feature_shape

        return feature_shape(self)


def timm_folder(place: str | None) -> Path | None:
    """The folder in timm's layout at `place`, or None."""
    folder = None if place is None else Path(place).expanduser()
    return folder if folder is not None and (folder / TIMM_CONFIG).is_file() else None


def open_clip_folder(model: str | None) -> Path | None:
    """The folder in open_clip's layout that `model` names ("tiny": the shipped one), or None."""
    if model is None:
        return None
    folder = TINY_CLIP if model == TINY else Path(model).expanduser()
    return folder if (folder / CONFIG_FILE).is_file() else None


def open_clip_files() -> dict[str, Path]:
    """Model name -> configuration file, for every model that the installed open_clip knows (it is not imported)."""
    spec = find_spec("open_clip")
    if spec is None or spec.origin is None:
        return {}
    return {file.stem: file for file in sorted((Path(spec.origin).parent / "model_configs").glob("*.json"))}
