"""Frozen multi-scale CLIP features: the tokens of several blocks, concatenated (LLaMA-Adapter, section 3.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmadapter.errors import InputError
from mmadapter.vision.load_clip import load_visual_tower, open_clip_folder


class ImageEncoder(nn.Module):
    """A frozen CLIP visual tower that gives an image's features: `feature_shape` numbers.

    `layers` are block numbers from 0. `tokens` "class" takes each block's class token, the global feature, and joins
    the blocks' to one vector; "all" takes every token, class token first, and joins the blocks' along the channels.
    With `project_scales` each token passes CLIP's own final norm and projection (768 numbers for ViT-L/14), without it
    the token is taken as it is (1024). The last block alone, all tokens, projected: what the released V2 model sees.
    `channel_order` "bgr" serves weights that were trained on swapped channels (the released V2 files).
    `model` and `quick_gelu` are kept for an adapter's card: open_clip's name for the tower (None: a folder in
    open_clip's layout, which says it itself), and the activation where it was asked for.
    """

    def __init__(
        self,
        tower: Any,
        layers: Sequence[int],
        project_scales: bool = True,
        channel_order: str = "rgb",
        tokens: str = "class",
        model: str | None = None,
        quick_gelu: bool | None = None,
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
        if tokens not in ("class", "all"):
            raise InputError(f"vision.tokens={tokens}: allowed are class, all")
        self.tower: Any = tower  # open_clip's VisionTransformer
        self.layers = list(layers)
        self.project_scales = project_scales
        self.channel_order = channel_order
        self.tokens = tokens
        self.model, self.quick_gelu = model, quick_gelu
        self._transform = _evaluation_transform(tower)

    @classmethod
    def load(
        cls, model, pretrained, layers, project_scales, channel_order, quick_gelu=None, tokens="class"
    ) -> ImageEncoder:
        """An encoder from what the configuration's `vision` group says."""
        tower = load_visual_tower(model, pretrained, quick_gelu)
        name = None if open_clip_folder(model) is not None else model
        return cls(tower, layers, project_scales, channel_order, tokens, name, quick_gelu)

    @property
    def width(self) -> int:
        """Channels of a feature vector: of the picture's only one, or of each of its tokens."""
        scale = self.tower.proj.shape[1] if self.project_scales else self.tower.class_embedding.shape[0]
        return scale * len(self.layers)

    @property
    def token_count(self) -> int:
        """Tokens of one image in the tower, the class token among them (257 for ViT-L/14 at 224 pixels)."""
        return self.tower.positional_embedding.shape[0]

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """(width,) or, with all tokens, (token_count, width): the shape of one image's features."""
        return (self.width,) if self.tokens == "class" else (self.token_count, self.width)

    def pixels(self, image: Image.Image) -> Tensor:
        """(3, height, width) of one RGB image, resized, cropped and normalised as CLIP's own evaluation does."""
        return self.preparation(image)

    @property
    def preparation(self) -> Callable[[Image.Image], Tensor]:
        """What `pixels` does, without the weights: light enough for other processes."""
        return partial(_pixels, self._transform, self.channel_order)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """(images, 3, height, width) -> (images, features), or (images, tokens, features), in float32.

        On a CPU an image's features do not depend on its batch: a single image goes as two, for libraries multiply a
        matrix by one row in another order than by several, and the last places would differ.
        """
        if len(pixels) == 1:
            return self(pixels.repeat(2, 1, 1, 1))[:1]
        listed = sorted(set(self.layers))
        found = self.tower.forward_intermediates(
            pixels.to(self.tower.conv1.weight),
            indices=listed,
            intermediates_only=True,
            output_fmt="NLC",
            output_extra_tokens=True,
        )
        firsts, patches = found["image_intermediates_prefix"], found["image_intermediates"]  # (images, 1 or more, C)
        if self.tokens == "class":
            taken = {layer: first[:, 0] for layer, first in zip(listed, firsts, strict=True)}
        else:
            taken = {layer: torch.cat(both, dim=1) for layer, *both in zip(listed, firsts, patches, strict=True)}
        scales = [taken[layer] for layer in self.layers]
        if self.project_scales:
            scales = [self.tower.ln_post(tokens) @ self.tower.proj for tokens in scales]
        return torch.cat(scales, dim=-1).float()

    def digest(self) -> str:
        """16 hex digits that change with the weights and with every setting that changes the features."""
        settings = (self.layers, self.project_scales, self.channel_order, self.tokens)
        found = hashlib.sha256(repr(settings).encode())
        found.update(repr(self._transform).encode())
        for name, tensor in sorted(self.tower.state_dict().items()):
            found.update(name.encode())
            found.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]


def _pixels(transform: Callable[[Image.Image], Tensor], channel_order: str, image: Image.Image) -> Tensor:
    if channel_order == "bgr":
        image = Image.merge("RGB", image.split()[::-1])
    return transform(image)


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
