"""Frozen features kept in memory for a run, and on disk where a cache folder is given; keyed by image content."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

from mmadapter.data.images import image_digest, read_image
from mmadapter.errors import InputError
from mmadapter.vision.clip import ImageEncoder


class FeatureStore:
    """Features of image files, each computed once per encoder and content.

    A file on disk is CACHE/ENCODER_DIGEST/ab/abcdef….npy, written whole or not at all; an encoder with other weights
    or settings has another folder, an image with other content another file.
    """

    def __init__(self, encoder: ImageEncoder, cache: Path | None = None, batch_size: int = 64) -> None:
        self.encoder = encoder
        self.batch_size = batch_size
        self.folder = None if cache is None else cache / encoder.digest()
        self._by_path: dict[Path, str] = {}
        self._features: dict[str, Tensor] = {}

    def add(self, paths: Iterable[Path], progress: Callable[[int, int], None] | None = None) -> None:
        """Compute what is missing; `progress(done, total)` after each batch. Raises InputError for a bad image."""
        missing: dict[str, Path] = {}
        for path in dict.fromkeys(paths):
            if path not in self._by_path:
                digest = self._by_path[path] = image_digest(path)
                if digest not in self._features and not self._read(digest):
                    missing[digest] = path
        waiting = list(missing.items())
        for start in range(0, len(waiting), self.batch_size):
            part = waiting[start : start + self.batch_size]
            features = self.encode([read_image(path) for _, path in part])
            for (digest, _), feature in zip(part, features, strict=True):
                self._features[digest] = feature
                self._write(digest, feature)
            if progress is not None:
                progress(start + len(part), len(waiting))

    def encode(self, images: Iterable[Image.Image]) -> Tensor:
        """(images, features) of pictures in memory, on the CPU."""
        device = self.encoder.tower.conv1.weight.device
        return self.encoder(torch.stack([self.encoder.pixels(image) for image in images]).to(device)).cpu()

    def feature(self, path: Path) -> Tensor:
        """(features,) of one image file, computed now if it was not added before."""
        if path not in self._by_path:
            self.add([path])
        return self._features[self._by_path[path]]

    def _file(self, digest: str) -> Path | None:
        return None if self.folder is None else self.folder / digest[:2] / f"{digest}.npy"

    def _read(self, digest: str) -> bool:
        file = self._file(digest)
        if file is None or not file.is_file():
            return False
        try:
            feature = numpy.load(file)
        except (OSError, ValueError):
            return False  # damaged: computed and written again
        self._features[digest] = torch.from_numpy(feature)
        return True

    def _write(self, digest: str, feature: Tensor) -> None:
        file = self._file(digest)
        if file is None:
            return
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=file.parent)
            try:
                with os.fdopen(handle, "wb") as stream:
                    numpy.save(stream, feature.numpy())
                os.replace(temporary, file)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            raise InputError(
                f"vision.cache: {file} cannot be written ({error.strerror or error}). Make room there, name another "
                "folder, or set vision.cache=null."
            ) from error
