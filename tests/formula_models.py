"""A tiny host and a tiny CLIP whose weights are a formula: the same numbers on every machine and in every version.

`python -m tests.formula_models` writes tests/golden/version_0_2 anew: adapters of today's version and what they
compute. That is for a new format only: what is stored there, every later version must load to the same numbers.
"""

from __future__ import annotations

import json
import shutil
import sys
import zlib
from pathlib import Path

import numpy
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import mmadapter
from mmadapter.hosts.settings import HostConf
from mmadapter.methods import AdapterConf
from mmadapter.methods.settings import (
    BiasScaleConf,
    EarlyFusionConf,
    LoraConf,
    MethodConf,
    NormsConf,
    ProjectionConf,
    PromptsConf,
)
from mmadapter.model import AdaptedModel
from mmadapter.vision.settings import OpenClipSettings, VisionSettings

STORED = Path(__file__).parent / "golden" / "version_0_2"
WIDTH, INNER, LAYERS, KEYS, VOCABULARY = 16, 24, 3, 8, 64
METHODS: dict[str, dict[str, MethodConf]] = {
    "v1_visual": {"prompts": PromptsConf(length=3, layers=2), "projection": ProjectionConf(hidden=4)},
    "v2": {
        "prompts": PromptsConf(length=3, layers=2),
        "early_fusion": EarlyFusionConf(layers=1),
        "projection": ProjectionConf(hidden=4, tokens=2),
        "bias_scale": BiasScaleConf(),
        "norms": NormsConf(),
    },
    "lora": {"lora": LoraConf(rank=2, alpha=4)},
}
ROWS = torch.tensor([[1, 5, 9, 14, 20, 7], [1, 8, 6, 22, 11, 30]])
QUESTION, ANSWER = "what colour is the circle", "red and blue ."


def numbers(name: str, shape: tuple[int, ...], size: float) -> Tensor:
    """Numbers between -size and size that look like noise: whole-number arithmetic, so the same everywhere."""
    count = int(numpy.prod(shape))
    places = numpy.arange(count, dtype=numpy.uint64) + numpy.uint64(zlib.crc32(name.encode()))
    mixed = places * numpy.uint64(2654435761) % numpy.uint64(2**32)
    mixed = (mixed ^ (mixed >> numpy.uint64(15))) * numpy.uint64(2246822519) % numpy.uint64(2**32)
    values = (mixed.astype(numpy.float64) / 2**31 - 1) * size
    return torch.from_numpy(values.astype(numpy.float32)).view(shape)


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights of these names and shapes: norms about 1, matrices and the rest about 0."""
    found = {}
    for name, shape in shapes.items():
        is_norm = len(shape) == 1 and name.endswith("weight")
        found[name] = numbers(name, shape, 0.1 if is_norm else 0.4) + (1 if is_norm else 0)
    return found


def host_tensors() -> dict[str, Tensor]:
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, WIDTH),
        "model.norm.weight": (WIDTH,),
    }
    for layer in range(LAYERS):
        of = {"q_proj": (WIDTH, WIDTH), "k_proj": (KEYS, WIDTH), "v_proj": (KEYS, WIDTH), "o_proj": (WIDTH, WIDTH)}
        below = {f"self_attn.{name}.weight": shape for name, shape in of.items()}
        below |= {f"mlp.{name}_proj.weight": (INNER, WIDTH) for name in ("gate", "up")}
        below |= {"mlp.down_proj.weight": (WIDTH, INNER)}
        below |= {f"{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in below.items()}
    return filled(shapes) | {"lm_head.weight": numbers("lm_head", (VOCABULARY, WIDTH), 1.0)}


def write_models(folder: Path) -> Path:
    """The host and the CLIP tower as folders `host` and `clip` below `folder`."""
    import open_clip

    for name in ("host", "clip"):
        shutil.copytree(STORED / name, folder / name)
    save_file(host_tensors(), folder / "host" / "model.safetensors", metadata={"format": "pt"})
    tower = json.loads((folder / "clip" / "open_clip_config.json").read_text())["model_cfg"]
    shapes = {name: tuple(one.shape) for name, one in open_clip.CLIP(**tower).state_dict().items()}
    save_file(filled(shapes), folder / "clip" / "open_clip_model.safetensors")
    return folder


def picture() -> Image.Image:
    """32 x 32 pixels, as the encoder wants them: nothing is resized."""
    pixels = (numbers("picture", (32, 32, 3), 1.0) * 127 + 128).to(torch.uint8)
    return Image.fromarray(pixels.numpy())


@torch.no_grad()
def computed(model: AdaptedModel) -> dict[str, Tensor]:
    """Logits of two rows, where the adapter sees pictures the first with one; and the loss of an answer."""
    image = picture() if model.vision is not None else None
    features = None if image is None else [model.features.encode([image])[0], None]
    return {
        "logits": model.logits(ROWS, features),
        "loss": model.loss_of([(QUESTION, ANSWER, image), (QUESTION, ANSWER, None)]),
    }


def loaded(name: str, folder: Path) -> AdaptedModel:
    """A stored adapter on the models of `folder`."""
    vision = None if name == "lora" else folder / "clip"
    return mmadapter.load(STORED / name, host=folder / "host", vision=vision, device="cpu")


def main() -> None:
    folder = write_models(Path(sys.argv[1]))
    for name, methods in METHODS.items():
        vision = VisionSettings(enabled=False)
        if name != "lora":
            vision = OpenClipSettings(model=str(folder / "clip"), layers=[1, 2])
        host = HostConf(path=str(folder / "host"), max_tokens=64, dtype="float32")
        model = AdaptedModel.build(host, vision, AdapterConf(methods=dict(methods)), 0, "cpu")
        with torch.no_grad():
            for item in model.trainable_parameters():
                start = 1.0 if item.role in ("scale", "norm") else 0.0
                item.parameter.copy_(start + numbers(item.name, tuple(item.parameter.shape), 0.5))
        model.save(STORED / name)
        save_file(computed(loaded(name, folder)), STORED / f"{name}.safetensors")
        print(name, computed(model)["loss"].item())


if __name__ == "__main__":
    main()
