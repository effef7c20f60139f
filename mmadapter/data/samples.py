"""What every reader yields: a sample as labelled text segments plus an optional picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TEMPLATE = "template"
INSTRUCTION = "instruction"
CONTEXT = "context"
ANSWER = "answer"
KINDS = (TEMPLATE, INSTRUCTION, CONTEXT, ANSWER)


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text. Only `answer` is supervised; only `context` and `instruction` may be cut."""

    text: str
    kind: str

    def __post_init__(self) -> None:
        assert self.kind in KINDS, f"segment kind {self.kind!r}, allowed: {KINDS}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One item: prompt segments in order, then (training) one answer segment, after which end-of-text is implied."""

    id: str
    source: str
    segments: tuple[Segment, ...]
    image: Path | None
    where: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The prompt's text, without the answer."""
        return "".join(segment.text for segment in self.segments if segment.kind != ANSWER)

    @property
    def answer(self) -> str | None:
        """The supervised text with its leading blank, None where the sample is only to be answered."""
        return next((segment.text for segment in self.segments if segment.kind == ANSWER), None)
