"""Data: readers, templates, tokens, pictures, batches and mixtures; stands on its own.

Importing this package loads no torch; `batches` and `mixture` do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from pathlib import Path
from typing import Any

from mmadapter.data.readers.alpaca import read_alpaca
from mmadapter.data.readers.coco import read_coco_captions
from mmadapter.data.readers.scienceqa import read_scienceqa
from mmadapter.data.samples import Sample
from mmadapter.errors import InputError

READERS: Mapping[str, Callable[..., list[Sample]]] = {
    "scienceqa": read_scienceqa,
    "alpaca": read_alpaca,
    "coco_captions": read_coco_captions,
}
# Settings that say something for some readers only and are harmless at others.
PICTURE_SETTINGS = ("missing_image", "with_images")


def read(reader: str, *, images: bool | None = None, weight: float | None = None, **settings: Any) -> list[Sample]:
    """Reads a source by the config's own names, plus `source` and `training`; None means not given.

    `images` is the config's word for `with_images`; `weight` belongs to the mixture and is ignored here. Raises
    InputError on an unknown reader and on a setting that the reader does not have.
    """
    if reader not in READERS:
        raise InputError(f"reader is {reader!r}; allowed: {', '.join(READERS)}.")
    function = READERS[reader]
    known = signature(function).parameters
    given = {name: value for name, value in {"with_images": images, **settings}.items() if value is not None}
    if reader == "alpaca":
        given = _alpaca_settings(given)
    given = {name: value for name, value in given.items() if name in known or name not in PICTURE_SETTINGS}
    if unknown := sorted(set(given) - set(known)):
        raise InputError(f"The reader {reader} has no setting {unknown[0]!r}; it has: {', '.join(sorted(known))}.")
    if missing := [name for name, one in known.items() if one.default is one.empty and name not in given]:
        raise InputError(f"The reader {reader} needs the setting {missing[0]!r} (source {settings.get('source')}).")
    return function(**given)


def _alpaca_settings(given: dict[str, Any]) -> dict[str, Any]:
    """Alpaca is one file: `path`, taken under `root` where there is one, or `root` itself."""
    settings = dict(given)
    root, path = settings.pop("root", None), settings.pop("path", None)
    if root is not None and path is not None:
        under = Path(root) / path
        settings["path"] = under if under.exists() else Path(path)
    elif root is not None or path is not None:
        settings["path"] = Path(path if path is not None else root)
    return settings


__all__ = ["READERS", "Sample", "read", "read_alpaca", "read_coco_captions", "read_scienceqa"]
