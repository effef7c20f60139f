"""open_clip as its users write it: pictures read one by one, the tower over batches of them."""

from __future__ import annotations

import json
from collections.abc import Callable

import open_clip
import torch
from open_clip.transform import image_transform
from PIL import Image

from bench.case import Case

BATCH = 64


def encoding(case: Case) -> Callable[[int], list[list[float]]]:
    config = json.loads((case.host / "open_clip_config.json").read_text())["model_cfg"]
    clip = open_clip.CLIP(**config)
    open_clip.load_checkpoint(clip, str(case.host / "open_clip_model.safetensors"))
    clip = clip.to(case.device).eval()
    prepare = image_transform(config["vision_cfg"]["image_size"], is_train=False)

    @torch.no_grad()
    def encode(number: int) -> list[list[float]]:
        found: list[list[float]] = []
        for start in range(0, len(case.pictures), BATCH):
            pixels = torch.stack([prepare(Image.open(file)) for file in case.pictures[start : start + BATCH]])
            found += clip.encode_image(pixels.to(case.device)).tolist()
        return found

    return encode
