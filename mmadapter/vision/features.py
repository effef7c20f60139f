"""The features of picture files: each picture is read and encoded once, and its features are kept by its content.

No picture is augmented: each has the one view that the encoder's own evaluation takes (for CLIP: resize, centre crop,
normalise), so its features serve every epoch, and kept features equal fresh ones; they are stored as float32 for that.
Deviates: the official V2 code takes a random resized crop of 90 to 100 % of the picture's area in each epoch, which
forbids keeping features. The papers do not mention augmentation.
"""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Callable, Container, Iterable, Sequence
from contextlib import closing, suppress
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor

from mmadapter.distributed.ranks import Ranks
from mmadapter.errors import InputError
from mmadapter.files import LEFTOVERS, make_folder, write_atomically
from mmadapter.vision.encoder import TOGETHER, VisionEncoder
from mmadapter.vision.images import content_digest, decoded, image_content, read_image
from mmadapter.vision.reading import in_order

MEMORY_LIMIT = 8 * 2**30  # bytes
PACK_BYTES, PACK_SECONDS = 64 * 2**20, 60.0  # a pack is written when it has this size, or after this time
LEFT_FREE = 2**30  # bytes of the disk that features never take: the run's own files need a place, too
WORTH_SAYING = 10**9  # bytes
ABANDONED_SECONDS = 86400.0  # after this time nobody still writes a half-written pack
WORTH_BATCHES = 8 * TOGETHER  # pictures: fewer are encoded alone sooner than a batch is compared with that
EXCHANGED_BYTES = 16 * 2**20  # of each rank at a time: what is on its way stands in the memory of all
log = logging.getLogger(__name__)


class FeatureStore:
    """Features of picture files by the SHA-256 of their bytes, as float32 tensors on the CPU.

    With a cache folder they lie in CACHE/ENCODER_DIGEST/PACK.safetensors, whose tensors are named by picture digest and
    mapped into memory: all ranks of a machine share the pages, and nothing is read before it is used. A pack appears
    whole or not at all; a file that is cut off all the same is removed, and its pictures are encoded again. An encoder
    with other weights or settings has another folder. Several processes may fill one folder: each writes what no other
    has written by then. Where the folder cannot be written (any more), a warning says so.

    Without a folder to write, the features are in memory, at most `memory_limit_bytes`. The first that fit stay, each
    other picture is encoded again whenever it is needed.
    """

    def __init__(
        self,
        encoder: VisionEncoder,
        cache: Path | None = None,
        workers: int = 0,
        memory_limit_bytes: int = MEMORY_LIMIT,
    ) -> None:
        self.encoder, self.workers, self.memory_limit_bytes = encoder, workers, memory_limit_bytes
        self.folder = None if cache is None else cache / encoder.digest()
        self._digests: dict[Path, str] = {}  # of the files that were read
        self._kept: dict[str, Tensor] = {}  # by picture digest; with a folder: what is in no pack yet
        self._packed: dict[str, Any] = {}  # picture digest -> open pack
        self._opened: set[Path] = set()  # packs
        self._writes = cache is not None
        self._pack_begun, self._told_full = 0.0, False

    def behind(self, encoder: VisionEncoder) -> FeatureStore:
        """An empty store for another encoder, kept in the same place."""
        cache = None if self.folder is None else self.folder.parent
        return FeatureStore(encoder, cache, self.workers, self.memory_limit_bytes)

    def __contains__(self, digest: object) -> bool:
        """Whether the features of the picture of this digest are kept."""
        return digest in self._kept or digest in self._packed

    @property
    def bytes_per_image(self) -> int:
        """Bytes of one picture's features."""
        return 4 * prod(self.encoder.feature_shape)

    def size_on_disk(self, pictures: int) -> str | None:
        """What to say of the disk before so many pictures are encoded; None where it is not worth a line."""
        size = pictures * self.bytes_per_image
        if not self._writes or size < WORTH_SAYING:
            return None
        return (
            f"image features: {pictures:,} pictures take up to {size / 1e9:.1f} GB in {self.folder}, which no run "
            "removes (vision.cache; null keeps them in memory)"
        )

    def add(self, paths: Iterable[Path], progress: Callable[[int, int], None] | None = None) -> None:
        """Encode what is missing; `progress(done, total)` after each picture. Raises InputError for a bad picture.

        `workers` processes read and decode ahead of the encoder. What fits neither memory nor a cache folder is left
        until it is asked for, unread; a warning says so.
        """
        self._remove_abandoned()
        self._open_packs()
        known = self._kept.keys() | self._packed.keys()
        missing = [path for path in dict.fromkeys(paths) if self._digests.get(path) not in known]
        read = partial(_read, self.encoder.preparation(), known)
        at_a_time = TOGETHER if len(missing) >= WORTH_BATCHES else 1
        waiting: dict[str, Tensor] = {}  # pixels of pictures that are read and not yet encoded, by digest

        def encode_waiting() -> None:
            for digest, feature in zip(waiting, self.encoder.encode_all(list(waiting.values())), strict=True):
                self._keep(digest, feature)
            waiting.clear()

        try:
            with closing(in_order(read, missing, self.workers)) as pictures:
                for done, path in enumerate(missing):
                    if self._is_full_beside(len(waiting)):
                        self._tell_full(len(missing) - done, len(waiting))
                        break
                    digest, pixels = next(pictures)
                    self._digests[path] = digest
                    if pixels is not None and digest not in self:
                        waiting[digest] = torch.from_numpy(pixels)
                    if len(waiting) == at_a_time or (waiting and done + 1 == len(missing)):
                        encode_waiting()
                        if progress is not None:
                            progress(done + 1, len(missing))
        except InputError:
            encode_waiting()  # what was read before the bad picture is not lost
            raise
        else:
            encode_waiting()
        finally:
            self._write_pack()

    def add_together(
        self, paths: Sequence[Path], ranks: Ranks, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """`add` for a run of several ranks, which all name the same `paths`: each encodes a part, and all get all.

        Every rank needs any picture over the epochs. What another rank has encoded is found in the cache folder; else
        it is sent, as far as memory keeps it.
        """
        own = paths[ranks.rank :: ranks.world_size]
        self.add(own, progress)
        if ranks.world_size == 1:
            return
        ranks.barrier()  # encoding may take longer than a collective may wait
        most = -(-len(paths) // ranks.world_size)  # of a rank
        size = max(1, EXCHANGED_BYTES // self.bytes_per_image)
        for start in range(0, most, size):
            digests = {str(path): self._digests[path] for path in own[start : start + size] if path in self._digests}
            features = {digest: self._kept[digest] for digest in digests.values() if digest in self._kept}
            for of_a_rank in ranks.gather(digests):
                self._digests |= {Path(path): digest for path, digest in of_a_rank.items()}
            for content in ranks.gather_bytes(save(features)):
                for digest, feature in load(content).items():
                    if not self._is_full_beside():
                        self._kept.setdefault(digest, feature)
        self.add(paths)  # what a cache folder of another machine has, and what did not fit

    def feature(self, path: Path) -> Tensor:
        """(features,) or (tokens, features) of one picture file, encoded now where they are not kept."""
        digest = self._digests.get(path)
        feature = None if digest is None else self._find(digest)
        if feature is None:
            digest, pixels = _read(self.encoder.preparation(), self, path)
            self._digests[path] = digest
            feature = self._find(digest) if pixels is None else self.encoder.encode_one(torch.from_numpy(pixels))
            assert feature is not None
            self._keep(digest, feature)
            self._write_pack()
        return feature

    def of(self, images: Sequence[Path | None]) -> tuple[Tensor | None, ...]:
        """The features of each row's picture, None for a row without one; rows of one picture share a tensor."""
        found = {image: self.feature(image) for image in dict.fromkeys(images) if image is not None}
        return tuple(None if image is None else found[image] for image in images)

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """(pictures, features) or (pictures, tokens, features) of upright RGB pictures in memory; nothing is kept."""
        prepare = self.encoder.preparation()
        return torch.stack([self.encoder.encode_one(prepare(image)) for image in images])

    def _is_full_beside(self, waiting: int = 0) -> bool:
        """Whether memory has no place for one more picture beside so many that are to be kept."""
        return not self._writes and (len(self._kept) + waiting + 1) * self.bytes_per_image > self.memory_limit_bytes

    def _tell_full(self, left: int, waiting: int) -> None:
        if not self._told_full:
            pictures = len(self._kept) + waiting + left
            log.warning(
                "The features of %d pictures take %.1f GiB, more than the %.1f GiB that are kept in memory: those of "
                "%d pictures are computed again whenever they are needed. Set vision.cache=FOLDER, on a disk with "
                "room, to keep them there.",
                pictures,
                pictures * self.bytes_per_image / 2**30,
                self.memory_limit_bytes / 2**30,
                left,
            )
        self._told_full = True

    def _find(self, digest: str) -> Tensor | None:
        pack = self._packed.get(digest)
        return self._kept.get(digest) if pack is None else pack.get_tensor(digest)

    def _keep(self, digest: str, feature: Tensor) -> None:
        if self._is_full_beside() or digest in self._packed:
            return
        if not self._kept:
            self._pack_begun = time.monotonic()
        self._kept[digest] = feature
        large = len(self._kept) * self.bytes_per_image >= PACK_BYTES
        if large or time.monotonic() - self._pack_begun > PACK_SECONDS:
            self._write_pack()

    def _write_pack(self) -> None:
        """Write what is kept and that no other process has written meanwhile; from then on it is mapped."""
        if self.folder is None or not self._writes or not self._kept:
            return
        self._open_packs()
        self._kept = {digest: feature for digest, feature in self._kept.items() if digest not in self._packed}
        if not self._kept:
            return
        name = content_digest("".join(sorted(self._kept)).encode())[:16]
        file = self.folder / f"{name}.safetensors"
        try:
            make_folder(self.folder)
            content = save(self._kept)
            if shutil.disk_usage(self.folder).free < len(content) + LEFT_FREE:
                raise OSError(errno.ENOSPC, f"less than {LEFT_FREE / 2**30:.0f} GiB would be left on the disk")
            write_atomically(file, content)
        except OSError as error:
            log.warning(
                "vision.cache: %s cannot be written (%s). From here on features stay in the memory of this run. To "
                "keep them on disk, make room there or set vision.cache=FOLDER; vision.cache=null does not try.",
                file,
                error.strerror or error,
            )
            self._writes = False
            return
        self._open_pack(file)
        self._kept = {}

    def _remove_abandoned(self) -> None:
        """Remove packs that a killed process has left half-written under a temporary name."""
        for file in () if self.folder is None else self.folder.glob(LEFTOVERS):
            with suppress(OSError):  # another process has removed it, or the folder is for reading only
                if time.time() - file.stat().st_mtime > ABANDONED_SECONDS:
                    file.unlink()

    def _open_packs(self) -> None:
        if self.folder is not None:
            for file in sorted(set(self.folder.glob("*.safetensors")) - self._opened):
                self._open_pack(file)

    def _open_pack(self, file: Path) -> None:
        """Map a pack into memory; a damaged one is removed."""
        try:
            pack = safe_open(file, framework="pt")
        except (SafetensorError, OSError) as error:
            log.warning("%s is damaged (%s). It is removed, and its pictures are encoded again.", file, error)
            with suppress(OSError):
                file.unlink()
            return
        self._opened.add(file)
        self._packed |= dict.fromkeys(pack.keys(), pack)


class PixelReader:
    """In place of a FeatureStore where nothing is to be kept (`vision.cache=false`).

    Batches then carry the pixels of their pictures, (3, height, width) as the encoder prepares them, and the model
    encodes them in its forward, each alone: the numbers are those of kept features, to the bit.
    """

    def __init__(self, encoder: VisionEncoder) -> None:
        self.encoder = encoder

    def of(self, images: Sequence[Path | None]) -> tuple[Tensor | None, ...]:
        """The pixels of each row's picture, None for a row without one."""
        return tuple(None if image is None else self.encode([read_image(image)])[0] for image in images)

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """(pictures, 3, height, width) of upright RGB pictures in memory."""
        prepare = self.encoder.preparation()
        return torch.stack([prepare(image) for image in images])


def _read(
    prepare: Callable[[Image.Image], Tensor], kept: Container[str], path: Path
) -> tuple[str, numpy.ndarray | None]:
    """A file's digest, and (3, height, width) pixels unless its features are kept: the file is read once."""
    content = image_content(path)
    digest = content_digest(content)
    return digest, None if digest in kept else prepare(decoded(content, path)).numpy()
