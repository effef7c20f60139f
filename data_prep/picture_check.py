"""Decodes pictures to find the ones that cannot be read: all of them, or the same sample each time."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_prep.output_folder import path_below
from mmadapter.errors import InputError
from mmadapter.vision.images import read_image

DECODED_BY_SAMPLE = 200
DECODED = {"none": 0, "sample": DECODED_BY_SAMPLE, "all": None}


def decode_pictures(
    pictures: Mapping[str, Path], decode: int | None, root: Path, workers: int
) -> tuple[int, dict[str, str]]:
    """How many were decoded, and what is wrong with each bad one, by name; `decode` None: all.

    Which ones make a sample follows from their names alone. Paths in what is wrong are relative to `root`.
    """
    chosen = sorted(pictures, key=lambda name: hashlib.sha256(name.encode()).digest())[:decode]
    with ThreadPoolExecutor(workers) as pool:
        found = pool.map(lambda name: _defect(pictures[name], root), chosen)
        defects = zip(chosen, _with_progress(found, len(chosen)), strict=True)
        return len(chosen), {name: defect for name, defect in defects if defect}


def _defect(path: Path, root: Path) -> str | None:
    try:
        read_image(path)
    except InputError as error:
        return str(error).replace(str(path), path_below(path, root))
    return None


def _with_progress(items: Iterable[str | None], total: int) -> Iterable[str | None]:
    if not sys.stderr.isatty():
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, "decoding images", total, console=Console(stderr=True), transient=True)
