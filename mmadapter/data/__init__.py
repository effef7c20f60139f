"""Data: readers, templates, tokens, pictures, batches and mixtures; stands on its own.

Importing this package loads no torch; `batches` and `mixture` do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from mmadapter.data.readers.alpaca import read_alpaca
from mmadapter.data.readers.caption_shards import read_caption_shards
from mmadapter.data.readers.caption_table import read_caption_table
from mmadapter.data.readers.coco import read_coco_captions
from mmadapter.data.readers.dialogs import read_llava, read_sharegpt, read_v2_instructions
from mmadapter.data.readers.llava_pretrain import read_llava_pretrain
from mmadapter.data.readers.scienceqa import read_scienceqa
from mmadapter.data.readers.visual_instructions import read_visual_instructions
from mmadapter.data.samples import Sample
from mmadapter.errors import InputError

READERS: Mapping[str, Callable[..., list[Sample]]] = {
    "scienceqa": read_scienceqa,
    "alpaca": read_alpaca,
    "coco_captions": read_coco_captions,
    "llava": read_llava,
    "sharegpt": read_sharegpt,
    "v2_instructions": read_v2_instructions,
    "visual_instructions": read_visual_instructions,
    "caption_table": read_caption_table,
    "caption_shards": read_caption_shards,
    "llava_pretrain": read_llava_pretrain,
}
# Settings that say something for some readers only and are harmless at others.
IMAGE_SETTINGS = ("missing_image", "with_images")


def read(
    reader: str,
    root: Path | str | None = None,
    *,
    images: bool | None = None,
    **settings: Any,
) -> list[Sample]:
    """Reads a source by the config's own names, plus `source` and `training`; None means not given.

    `images` is the config's word for `with_images`. Raises InputError on an unknown reader and on a setting that the
    reader does not have.
    """
    if reader not in READERS:
        raise InputError(f"reader is {reader!r}; allowed: {', '.join(READERS)}.")
    function = READERS[reader]
    known = signature(function).parameters
    with_images = True if images is None else images
    settings = {"with_images": with_images, **settings, **_place(reader, root, settings.pop("path", None))}
    given = {name: value for name, value in settings.items() if value is not None}
    given = {name: value for name, value in given.items() if name in known or name not in IMAGE_SETTINGS}
    if unknown := sorted(set(given) - set(known)):
        raise InputError(f"The reader {reader} has no setting {unknown[0]!r}; it has: {', '.join(sorted(known))}.")
    if missing := [name for name, one in known.items() if one.default is one.empty and name not in given]:
        raise InputError(f"The reader {reader} needs the setting {missing[0]!r} (source {given.get('source')}).")
    return function(**given)


def _place(reader: str, root: Path | str | None, path: Path | str | None) -> dict[str, Path]:
    """Where to read: `path` names the file itself, taken under `root` where it is there."""
    file = None if path is None else Path(path)
    folder = None if root is None else Path(root)
    if file is not None and folder is not None and (folder / file).exists():
        file = folder / file
    if reader in ("alpaca", "sharegpt", "visual_instructions"):
        place = {"path": file or folder}
    elif reader in ("llava", "v2_instructions"):
        place = {"path": file or folder, "root": folder}
    elif "path" in signature(READERS[reader]).parameters and folder is not None:
        place = {"root": folder, "path": file}  # captions here, their pictures there
    else:
        place = {"root": file or folder}
    return {name: value for name, value in place.items() if value is not None}


__all__ = [
    "READERS",
    "Sample",
    "read",
    "read_alpaca",
    "read_caption_shards",
    "read_caption_table",
    "read_coco_captions",
    "read_llava",
    "read_llava_pretrain",
    "read_scienceqa",
    "read_sharegpt",
    "read_v2_instructions",
    "read_visual_instructions",
]
