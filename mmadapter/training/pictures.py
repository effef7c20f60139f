"""The frozen features of pictures, before the work: each process encodes a part, and all get all.

Every process needs any picture over the epochs, so each could encode them all; sharing makes it faster by their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmadapter.distributed.ranks import Ranks
from mmadapter.terminal import Display
from mmadapter.training.out_of_memory import memory_explained

EXCHANGED_BYTES = 16 * 2**20  # of each process at a time: what is on its way stands in all processes' memory


def prepare_images(conf: Any, assistant: Any, paths: Sequence[Path], display: Display, ranks: Ranks) -> None:
    """Features of `paths` on every rank, which all name the same. Raises InputError where a picture is broken, or
    memory runs out."""
    with memory_explained(conf, ranks.world_size, "while pictures were encoded"):
        _prepare(assistant, paths, display, ranks)


def _prepare(assistant: Any, paths: Sequence[Path], display: Display, ranks: Ranks) -> None:
    """What another rank has encoded is found in the cache folder; else it is sent, as far as memory keeps it."""
    store = assistant.features
    own = paths[ranks.rank :: ranks.world_size]
    assistant.prepare_images(own, lambda done, total: display.report("image features", done, total))
    if ranks.world_size == 1 or store is None:
        return
    ranks.barrier()  # encoding may take longer than a collective may wait
    most = -(-len(paths) // ranks.world_size)  # of a rank
    size = max(1, EXCHANGED_BYTES // store.bytes_per_image)
    for start in range(0, most, size):
        for content in ranks.gather_bytes(store.exported(own[start : start + size])):
            store.take(content)
    store.add(paths)  # what a cache folder of another machine has, and what did not fit
