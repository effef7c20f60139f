"""What an image encoder is: frozen, from pixels to features; whatever implements this class can be registered."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmadapter.vision.settings import VisionSettings


class VisionEncoder(nn.Module, ABC):
    """A frozen image encoder. `vision.encoder` names it; it is made from its settings alone, a `VisionSettings`.

    The constructor loads the weights, on the CPU, and raises InputError for what cannot be loaded exactly.
    `feature_shape` is that of one picture's features, (features,) or (tokens, features), and equals
    `settings.feature_shape()`, which reads no weights.
    """

    settings: VisionSettings
    feature_shape: tuple[int, ...]

    @abstractmethod
    def preparation(self) -> Callable[[Image.Image], Tensor]:
        """What makes (3, height, width) pixels of an upright RGB picture.

        It is sent to the processes that read pictures: it can be pickled and holds no weights.
        """

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """(pictures, 3, height, width) -> (pictures, *feature_shape)."""

    @abstractmethod
    def digest(self) -> str:
        """Hex digits that change with the weights and with every setting that changes the features."""

    def identity(self) -> dict[str, Any]:
        """What an adapter's card says of the encoder: an adapter is loaded beside one of the same identity only."""
        return {"features": self.feature_shape[-1], "encoder_digest": self.digest()}

    @torch.no_grad()
    def encode_one(self, pixels: Tensor) -> Tensor:
        """(3, height, width) -> `feature_shape`, in float32 on the CPU.

        Every picture goes through the encoder alone. In a batch, the last bits of its features would depend on how many
        neighbours it has, as libraries choose another order of summation for another shape.
        """
        device = next(chain(self.parameters(), self.buffers()), pixels).device  # an encoder may have no weights
        feature = self.encode(pixels[None].to(device))[0].float().cpu()
        return feature.clone(memory_format=torch.contiguous_format)  # a view would hold on to all that was computed


def weights_digest(module: nn.Module, *facts: object) -> str:
    """16 hex digits of a module's weights, and of facts by their `repr`."""
    found = hashlib.sha256("".join(map(repr, facts)).encode())
    for name, tensor in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
