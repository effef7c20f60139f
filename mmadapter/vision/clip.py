"""Frozen multi-scale CLIP features: the class token of several blocks, concatenated (LLaMA-Adapter, section 3.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmadapter.errors import InputError
from mmadapter.vision.load_clip import load_visual_tower


class ImageEncoder(nn.Module):
    """A frozen CLIP visual tower that gives one feature vector per image, (images, len(layers) * width).

    `layers` are block numbers from 0. With `project_scales` each block's class token passes CLIP's own final norm and
    projection (768 numbers for ViT-L/14), without it the token is taken as it is (1024). `channel_order` "bgr" serves
    weights that were trained on swapped channels (the released V2 files).
    """

    def __init__(
        self,
        tower: Any,
        layers: Sequence[int],
        project_scales: bool = True,
        channel_order: str = "rgb",
    ) -> None:
        super().__init__()
        blocks = len(tower.transformer.resblocks)
        outside = [layer for layer in layers if not 0 <= layer < blocks]
        if outside or not layers:
            raise InputError(
                f"vision.layers={list(layers)}: the tower has blocks 0 to {blocks - 1}; name at least one."
            )
        if channel_order not in ("rgb", "bgr"):
            raise InputError(f"vision.channel_order={channel_order}: allowed are rgb, bgr")
        self.tower: Any = tower  # open_clip's VisionTransformer
        self.layers = list(layers)
        self.project_scales = project_scales
        self.channel_order = channel_order
        self._transform = _evaluation_transform(tower)

    @classmethod
    def load(cls, model, pretrained, layers, project_scales, channel_order, quick_gelu=None) -> ImageEncoder:
        """An encoder from what the configuration's `vision` group says."""
        return cls(load_visual_tower(model, pretrained, quick_gelu), layers, project_scales, channel_order)

    @property
    def width(self) -> int:
        scale = self.tower.proj.shape[1] if self.project_scales else self.tower.class_embedding.shape[0]
        return scale * len(self.layers)

    def pixels(self, image: Image.Image) -> Tensor:
        """(3, height, width) of one RGB image, resized, cropped and normalised as CLIP's own evaluation does."""
        if self.channel_order == "bgr":
            image = Image.merge("RGB", image.split()[::-1])
        return self._transform(image)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """(images, 3, height, width) -> (images, features) in float32."""
        found = self.tower.forward_intermediates(
            pixels.to(self.tower.conv1.weight),
            indices=sorted(set(self.layers)),
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        tokens = dict(zip(sorted(set(self.layers)), found["image_intermediates_prefix"], strict=True))
        scales = [tokens[layer][:, 0] for layer in self.layers]
        if self.project_scales:
            scales = [self.tower.ln_post(token) @ self.tower.proj for token in scales]
        return torch.cat(scales, dim=-1).float()

    def digest(self) -> str:
        """16 hex digits that change with the weights and with every setting that changes the features."""
        found = hashlib.sha256(repr((self.layers, self.project_scales, self.channel_order)).encode())
        found.update(repr(self._transform).encode())
        for name, tensor in sorted(self.tower.state_dict().items()):
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]


def _evaluation_transform(tower: nn.Module):
    from open_clip.transform import image_transform

    settings = getattr(tower, "preprocess_cfg", None) or {}
    return image_transform(
        tower.image_size,
        is_train=False,
        mean=settings.get("mean"),
        std=settings.get("std"),
        interpolation=settings.get("interpolation", "bicubic"),
    )
