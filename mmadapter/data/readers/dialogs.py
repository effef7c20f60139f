"""Dialogs with and without pictures: LLaVA-Instruct, ShareGPT, and the file lists of official V2's fine-tuning."""

from __future__ import annotations

from pathlib import Path

from mmadapter.data.readers.instruction_files import InstructionSettings, instruction_file, instruction_samples
from mmadapter.data.readers.instruction_items import dialog_item, mixed_item
from mmadapter.data.readers.meta_list import read_meta_list
from mmadapter.data.samples import Sample
from mmadapter.data.templates import CHAT_SYSTEM


def read_llava(
    path: Path,
    *,
    training: bool,
    root: Path | None = None,
    split: str = "train",
    val_size: int = 200,
    source: str = "llava",
    limit: int | None = None,
    template: str = "alpaca",
    system: str = CHAT_SYSTEM,
    missing_image: str = "error",
    with_images: bool = True,
) -> list[Sample]:
    """LLaVA-Instruct's dialogs, every answer of which is learned; pictures are named from the folder `root`.

    Items may lack a picture. `val` holds the dialogs of the `val_size` pictures with the smallest hash (at most a
    tenth), `train` all others: several dialogs are about one picture, and they stand on the same side.
    """
    place = None if root is None else Path(root)
    settings = InstructionSettings(
        training, split, val_size, source, limit, template, system, place, missing_image, with_images
    )
    return instruction_samples([instruction_file(Path(path), "llava_instruct_150k.json")], dialog_item, settings)


def read_sharegpt(
    path: Path,
    *,
    training: bool,
    split: str = "train",
    val_size: int = 200,
    source: str = "sharegpt",
    limit: int | None = None,
    template: str = "chat",
    system: str = CHAT_SYSTEM,
) -> list[Sample]:
    """ShareGPT's dialogs in the chat template, without pictures; what does not alternate human and gpt is left out."""
    settings = InstructionSettings(training, split, val_size, source, limit, template, system)
    return instruction_samples([instruction_file(Path(path), "sharegpt.json")], dialog_item, settings)


def read_v2_instructions(
    path: Path,
    *,
    training: bool,
    root: Path | None = None,
    split: str = "train",
    val_size: int = 200,
    source: str = "v2_instructions",
    limit: int | None = None,
    missing_image: str = "error",
    with_images: bool = True,
) -> list[Sample]:
    """Everything that official V2's YAML lists: files whose items are dialogs about pictures, or instructions.

    Deviates: V2 reads the first turn of a dialog only, leaves `<image>` in its text, and gives an item without a
    picture a black one. Here all turns are learned, the mark is taken out, and no picture is none.
    """
    place = None if root is None else Path(root)
    settings = InstructionSettings(
        training, split, val_size, source, limit, root=place, missing_image=missing_image, with_images=with_images
    )
    return instruction_samples(read_meta_list(Path(path), place), mixed_item, settings)
