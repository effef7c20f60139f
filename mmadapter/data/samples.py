"""What every reader yields: a sample as labelled text segments plus an optional picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
    """One item: segments in order; a turn is a prompt and the answer behind it, and a dialog has several turns.

    Behind every answer, end-of-text is implied. Where the last segment is no answer, the sample is to be answered, and
    answers further in front are its history.
    """

    id: str
    source: str
    segments: tuple[Segment, ...]
    image: Path | None
    where: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The text in front of the last turn's answer, earlier turns included."""
        return "".join(segment.text for segment in self.without_answer().segments)

    @property
    def answer(self) -> str | None:
        """The last turn's answer with its leading blank, None where the sample is to be answered."""
        return self.segments[-1].text if self._is_answered else None

    def without_answer(self) -> Sample:
        """The same sample with its last turn to be answered; what stands in front of that is history and stays."""
        return replace(self, segments=self.segments[:-1]) if self._is_answered else self

    @property
    def _is_answered(self) -> bool:
        return bool(self.segments) and self.segments[-1].kind == ANSWER
