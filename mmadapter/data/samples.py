"""What every reader yields: a sample as labelled text segments plus an optional picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

BEGIN = "begin"  # template text that opens a sequence by itself: no begin-of-text is put in front of it
TEMPLATE = "template"
INSTRUCTION = "instruction"
CONTEXT = "context"
FIXED = "fixed"  # text of the data, or around it, that is never cut: a system text, ScienceQA's choices
ANSWER = "answer"
END = "end"  # what ends an answer, directly behind it; without one, end-of-text does
KINDS = (BEGIN, TEMPLATE, INSTRUCTION, CONTEXT, FIXED, ANSWER, END)
CONTROLS = (BEGIN, TEMPLATE, END)
"""The kinds whose text may hold control tokens; in all others a text such as "</s>" stays text."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text. Only `answer` and `end` are supervised; only `context` and `instruction` may be cut."""

    text: str
    kind: str

    def __post_init__(self) -> None:
        assert self.kind in KINDS, f"segment kind {self.kind!r}, allowed: {KINDS}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One item: segments in order; a turn is a prompt and the answer behind it, and a dialog has several turns.

    Behind an answer stands an `end`, or end-of-text is implied. Where a prompt stands last, the sample is to be
    answered, and answers in front of it are its history.
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
        place = self._last_answer
        return None if place is None else self.segments[place].text

    def without_answer(self) -> Sample:
        """The same sample with its last turn to be answered; what stands in front of that is history and stays."""
        place = self._last_answer
        return self if place is None else replace(self, segments=self.segments[:place])

    @property
    def _last_answer(self) -> int | None:
        """The place of the answer that only the template's own text follows."""
        for place in reversed(range(len(self.segments))):
            if self.segments[place].kind not in CONTROLS:
                return place if self.segments[place].kind == ANSWER else None
        return None
