"""Frozen features kept in memory for a run, and on disk where a cache folder is given; keyed by image content.

No picture is augmented: each has the one view that CLIP's own evaluation takes (resize, centre crop, normalise), so its
features are computed once and serve every epoch, and kept features equal fresh ones; they are stored as float32 for
that. Deviates: the official V2 code takes a random resized crop of 90 to 100 % of the picture's area in each epoch,
which forbids keeping features. The papers do not mention augmentation.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from math import prod
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

from mmadapter.data.images import image_digest, read_image
from mmadapter.errors import InputError
from mmadapter.vision.clip import ImageEncoder
from mmadapter.vision.reading import in_order

MEMORY_LIMIT = 8 * 2**30  # bytes


class FeatureStore:
    """Features of image files, each computed once per encoder and content, as far as memory or disk keep them.

    Memory holds at most `memory_limit_bytes`. With a cache folder the least recently used go first and are read again.
    Without one the first that fit stay, and each other picture is computed alone whenever it is needed: so a picture's
    features keep their bits through a run even on a GPU, where the batch's size decides the last places.

    A file on disk is CACHE/ENCODER_DIGEST/ab/abcdef….npy, written whole or not at all; an encoder with other weights
    or settings has another folder, an image with other content another file.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        cache: Path | None = None,
        batch_size: int = 64,
        memory_limit_bytes: int = MEMORY_LIMIT,
        workers: int = 0,
    ) -> None:
        self.encoder = encoder
        self.batch_size = batch_size
        self.memory_limit_bytes = memory_limit_bytes
        self.workers = workers
        self.folder = None if cache is None else cache / encoder.digest()
        self._by_path: dict[Path, str] = {}
        self._kept: OrderedDict[str, Tensor] = OrderedDict()  # by content; least recently used first

    @property
    def bytes_per_image(self) -> int:
        """Bytes of one image's features."""
        return 4 * prod(self.encoder.feature_shape)

    def add(self, paths: Iterable[Path], progress: Callable[[int, int], None] | None = None) -> None:
        """Compute what is missing; `progress(done, total)` after each batch. Raises InputError for a bad image.

        `workers` processes read and decode ahead of the encoder. What fits neither memory nor a cache folder is left
        until it is asked for, unread; a warning says so.
        """
        missing: dict[str, Path] = {}
        new = [path for path in dict.fromkeys(paths) if path not in self._by_path]
        with closing(in_order(image_digest, new, self.workers)) as digests:
            for path, digest in zip(new, digests, strict=True):
                self._by_path[path] = digest
                if digest not in self._kept and not self._on_disk(digest):
                    missing[digest] = path
        waiting = self._worth_computing(list(missing.items()))
        read = partial(_read_pixels, self.encoder.preparation)
        with closing(in_order(read, [path for _, path in waiting], self.workers)) as pixels:
            for start in range(0, len(waiting), self.batch_size):
                part = waiting[start : start + self.batch_size]
                for (digest, _), feature in zip(part, self.encode_pixels(list(islice(pixels, len(part)))), strict=True):
                    self._write(digest, feature)
                    self._keep(digest, feature)
                if progress is not None:
                    progress(start + len(part), len(waiting))

    def in_memory(self, paths: Iterable[Path]) -> dict[Path, tuple[str, Tensor]]:
        """Content digest and features of those image files that memory holds."""
        digests = {path: self._by_path[path] for path in paths}
        return {path: (digest, self._kept[digest]) for path, digest in digests.items() if digest in self._kept}

    def take(self, found: Mapping[Path, tuple[str, Tensor]]) -> None:
        """Keep what another process's `in_memory` gave, as far as memory allows."""
        for path, (digest, feature) in found.items():
            self._by_path[path] = digest
            self._keep(digest, feature)

    def encode(self, images: Iterable[Image.Image]) -> Tensor:
        """(images, features) or (images, tokens, features) of pictures in memory, on the CPU."""
        return self.encode_pixels([self.encoder.pixels(image) for image in images])

    def encode_pixels(self, pixels: Sequence[Tensor]) -> Tensor:
        """The same of pictures that are resized and normalised, (3, height, width) each."""
        device = self.encoder.tower.conv1.weight.device
        return self.encoder(torch.stack(list(pixels)).to(device)).cpu()

    def feature(self, path: Path) -> Tensor:
        """(features,) or (tokens, features) of one image file, computed now where it is not kept."""
        digest = self._by_path.get(path)
        if digest is None:
            digest = self._by_path[path] = image_digest(path)
        feature = self._kept.get(digest)
        if feature is None:
            feature = self._read(digest)
        if feature is None:
            feature = self.encode([read_image(path)])[0]
            self._write(digest, feature)
        self._keep(digest, feature)
        return feature

    def _worth_computing(self, missing: list[tuple[str, Path]]) -> list[tuple[str, Path]]:
        """The part of `missing` that will be there when it is asked for: all with a cache folder, else what fits."""
        room = self._capacity - len(self._kept)
        if self.folder is not None or len(missing) <= room:
            return missing
        pictures = len(set(self._by_path.values()))
        logging.getLogger(__name__).warning(
            "The features of %d pictures take %.1f GiB, more than the %.1f GiB that are kept in memory: those of %d "
            "pictures are computed again whenever they are needed. Set vision.cache=FOLDER to keep them on disk.",
            pictures,
            pictures * self.bytes_per_image / 2**30,
            self.memory_limit_bytes / 2**30,
            pictures - self._capacity,
        )
        return missing[:room]

    def _keep(self, digest: str, feature: Tensor) -> None:
        """Hold a feature in memory as the most recently used, as far as the limit allows."""
        if digest not in self._kept:
            if self.folder is None and len(self._kept) >= self._capacity:
                return
            self._kept[digest] = feature.clone()  # a row of a batch would hold on to the whole batch
        self._kept.move_to_end(digest)
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)

    @property
    def _capacity(self) -> int:
        """Pictures whose features fit the memory limit."""
        return self.memory_limit_bytes // self.bytes_per_image

    def _file(self, digest: str) -> Path | None:
        return None if self.folder is None else self.folder / digest[:2] / f"{digest}.npy"

    def _on_disk(self, digest: str) -> bool:
        file = self._file(digest)
        return file is not None and file.is_file()

    def _read(self, digest: str) -> Tensor | None:
        file = self._file(digest)
        if file is None or not file.is_file():
            return None
        try:
            return torch.from_numpy(numpy.load(file))
        except (OSError, ValueError, EOFError):
            return None  # damaged: computed and written again

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
                os.chmod(temporary, 0o644)  # mkstemp's are the owner's only; a cache is shared
                os.replace(temporary, file)
            except BaseException:
                os.unlink(temporary)
                raise
        except OSError as error:
            raise InputError(
                f"vision.cache: {file} cannot be written ({error.strerror or error}). Make room there, name another "
                "folder, or set vision.cache=null."
            ) from error


def _read_pixels(preparation: Callable[[Image.Image], Tensor], path: Path) -> Tensor:
    return preparation(read_image(path))
