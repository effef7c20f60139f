"""The readers by name and with keywords, as tests ask them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from mmadapter.data import readers
from mmadapter.data.samples import Sample
from mmadapter.data.settings import READERS
from mmadapter.settings import typed


def read(
    reader: str,
    place: Path | None = None,
    *,
    training: bool,
    source: str | None = None,
    seed: int = 0,
    tokenizer: Any = None,
    **settings: Any,
) -> list[Sample]:
    """What `reader` makes of the file or folder `place`, with these settings of its own."""
    given = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    if place is not None:
        given["path" if READERS.settings(reader).reads_file and "path" not in given else "root"] = str(place)
    conf = typed(READERS.settings(reader), {name: value for name, value in given.items() if value is not None}, reader)
    return readers.read(conf, source=source or reader, training=training, seed=seed, tokenizer=tokenizer)


read_scienceqa = partial(read, "scienceqa")
read_alpaca = partial(read, "alpaca")
read_coco_captions = partial(read, "coco_captions")
read_caption_table = partial(read, "caption_table")
read_caption_shards = partial(read, "caption_shards")
read_llava_pretrain = partial(read, "llava_pretrain")
read_llava = partial(read, "llava")
read_sharegpt = partial(read, "sharegpt")
read_v2_instructions = partial(read, "v2_instructions")
read_visual_instructions = partial(read, "visual_instructions")
