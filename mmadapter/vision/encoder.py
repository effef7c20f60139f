"""What an image encoder is: frozen, from pixels to features; whatever implements this class can be registered."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mmadapter.vision.settings import VisionSettings

TOGETHER = 8  # pictures: more at a time are not quicker (measured on a CPU), and take more memory


class VisionEncoder(nn.Module, ABC):
    """A frozen image encoder. `vision.encoder` names it; it is made from its settings alone, a `VisionSettings`.

    The constructor loads the weights, on the CPU, and raises InputError for what cannot be loaded exactly.
    `feature_shape` is that of one picture's features, (features,) or (tokens, features), and equals
    `settings.feature_shape()`, which reads no weights.
    """

    settings: VisionSettings
    feature_shape: tuple[int, ...]

    def __init__(self) -> None:
        super().__init__()
        self._exact_together: dict[tuple[object, ...], bool] = {}  # by threads and shape of the pixels

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

    def encode_one(self, pixels: Tensor) -> Tensor:
        """(3, height, width) -> `feature_shape`, in float32 on the CPU."""
        return self._encoded(pixels[None])[0]

    def encode_all(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """The features of pictures of one size, each to the bit what `encode_one` gives, TOGETHER at a time.

        In a batch, the last bits of a picture's features may depend on how many neighbours it has: libraries choose the
        order of summation by shapes and threads. So the first batch is computed both ways. Where a bit differs, every
        picture goes through the encoder alone, and so do those that are left over.
        """
        found: list[Tensor] = []
        for start in range(0, len(pixels), TOGETHER):
            some = list(pixels[start : start + TOGETHER])
            key = (torch.get_num_threads(), some[0].shape)
            if len(some) < TOGETHER or self._exact_together.get(key) is False:
                found += map(self.encode_one, some)
                continue
            features = self._encoded(torch.stack(some))
            if key not in self._exact_together:
                alone = list(map(self.encode_one, some))
                self._exact_together[key] = all(map(torch.equal, features, alone))
                features = alone
            found += features
        return found

    @torch.no_grad()
    def _encoded(self, pixels: Tensor) -> list[Tensor]:
        device = next(chain(self.parameters(), self.buffers()), pixels).device  # an encoder may have no weights
        features = self.encode(pixels.to(device)).float().cpu()
        # A view would hold on to all that was computed.
        return [feature.clone(memory_format=torch.contiguous_format) for feature in features]


def weights_digest(module: nn.Module, *facts: object) -> str:
    """16 hex digits of a module's weights, and of facts by their `repr`."""
    found = hashlib.sha256("".join(map(repr, facts)).encode())
    for name, tensor in sorted(module.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
