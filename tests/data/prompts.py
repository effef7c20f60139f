"""Instructions and dialogs as segments, as tests ask for them."""

from __future__ import annotations

from collections.abc import Sequence

from mmadapter.data.samples import Segment
from mmadapter.data.templates import Turn, rendered


def alpaca_segments(instruction: str, context: str = "", answer: str | None = None) -> tuple[Segment, ...]:
    """One instruction in Alpaca's frame."""
    return rendered([Turn(instruction, answer, context)], None, "alpaca", None)


def dialog_segments(
    turns: Sequence[tuple[str, str | None]], template: str = "chat", system: str | None = None
) -> tuple[Segment, ...]:
    """Turns of (user, assistant) in a template that needs no tokenizer."""
    return rendered([Turn(*turn) for turn in turns], system, template, None)
