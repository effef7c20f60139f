"""Alpaca-style instructions (GPT-4-LLM's as well): a JSON list (or JSON lines) of instruction, input, output."""

from __future__ import annotations

from pathlib import Path

from mmadapter.data.readers.instruction_files import InstructionSettings, instruction_file, instruction_samples
from mmadapter.data.readers.instruction_items import instruction_item
from mmadapter.data.samples import Sample


def read_alpaca(
    path: Path,
    *,
    training: bool,
    split: str = "train",
    val_size: int = 200,
    source: str = "alpaca",
    limit: int | None = None,
) -> list[Sample]:
    """The items of one split, in the file's order; items with an empty output are left out and counted.

    Deviates: V1's validation items are the first 200 of the training items. Here `val` holds the `val_size` items (at
    most a tenth) whose (instruction, input) has the smallest hash, and `train` all others: the same ones however the
    file is ordered. Items with equal (instruction, input) stand on the same side.
    Deviates: V2's fine-tuning code takes the template with input where `input` is empty; here as in V1 and Alpaca it
    is the one without.
    """
    file = instruction_file(Path(path), "alpaca_data.json")
    settings = InstructionSettings(training, split, val_size, source, limit)
    return instruction_samples([file], instruction_item, settings)
