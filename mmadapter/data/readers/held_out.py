"""Which items are kept apart for validation: those whose key has the smallest hash, however the file is ordered."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from mmadapter.errors import InputError

SPLITS = ("train", "val", "all")


def places_of_split(keys: Sequence[Sequence[str]], split: str, val_size: int, source: str) -> list[int]:
    """The places of the items in `split`; items with equal keys stand on the same side.

    `val` holds the `val_size` keys (at most a tenth of them, at least one) with the smallest hash, `train` the others,
    `all` everything. Raises InputError on another split.
    """
    if split not in SPLITS:
        raise InputError(f"The split of source {source} is {split!r}; allowed: {', '.join(SPLITS)}.")
    if split == "all":
        return list(range(len(keys)))
    hashes = [hashlib.sha256(json.dumps(list(key)).encode()).hexdigest() for key in keys]
    distinct = sorted(set(hashes))
    held_out = set(distinct[: min(val_size, max(len(distinct) // 10, 1))])
    return [place for place, one in enumerate(hashes) if (one in held_out) == (split == "val")]
