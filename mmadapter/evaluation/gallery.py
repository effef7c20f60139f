"""The report's gallery: test pictures with question, choices, answer and truth, right and wrong ones, and captions."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmadapter.errors import InputError
from mmadapter.evaluation.run_files import Record, RunFiles

LONGEST_SIDE = 288
QUESTIONS, CAPTIONS, INSTRUCTIONS = 12, 6, 6


@dataclass(frozen=True)
class Choice:
    letter: str
    text: str
    is_truth: bool
    is_picked: bool


@dataclass(frozen=True)
class Card:
    """One test question as the report shows it."""

    id: str
    picture: str | None  # data URI
    question: str
    hint: str
    choices: tuple[Choice, ...]
    correct: bool
    output: str | None
    others: tuple[tuple[str, str], ...]  # what the compared runs said: (label, "C" or "no answer")
    about: str


@dataclass(frozen=True)
class CaptionCard:
    picture: str | None
    caption: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class InstructionCard:
    instruction: str
    input: str
    output: str
    reference: str
    exact: bool


def letter(index: int | None) -> str:
    """A, B, C, ... of an option's index."""
    return "no answer" if index is None else chr(ord("A") + index)


def question_cards(run: RunFiles, labels: Mapping[str, str], most: int = QUESTIONS) -> list[Card]:
    """Up to `most` questions, wrong ones at most half of them, spread over topics; those with a picture first."""
    evaluation = run.evaluations.get("scienceqa")
    if evaluation is None:
        return []
    rows = [row for row in evaluation.predictions if row.get("image")] or evaluation.predictions
    wrong = spread([row for row in rows if not row.get("correct")])[: most // 2]
    right = spread([row for row in rows if row.get("correct")])[: most - len(wrong)]
    others = {
        labels.get(name, name): {row["id"]: row for row in other.evaluations["scienceqa"].predictions}
        for name, other in run.comparison.items()
        if "scienceqa" in other.evaluations
    }
    return [card_of(row, others) for row in [*right, *wrong]]


def spread(rows: Sequence[Record]) -> list[Record]:
    """The rows in an order that takes one of each topic in turn."""
    turns: dict[str, int] = {}
    keyed = []
    for place, row in enumerate(rows):
        topic = row.get("topic") or ""
        turns[topic] = turns.get(topic, -1) + 1
        keyed.append((turns[topic], place, row))
    return [row for _, _, row in sorted(keyed, key=lambda item: item[:2])]


def card_of(row: Record, others: Mapping[str, Mapping[str, Record]]) -> Card:
    choices = tuple(
        Choice(letter(index), text, index == row["answer"], index == row["prediction"])
        for index, text in enumerate(row["choices"])
    )
    said = tuple((label, letter(rows[row["id"]]["prediction"])) for label, rows in others.items() if row["id"] in rows)
    grade = (row.get("grade") or "").replace("grade", "grade ")
    about = ", ".join(part for part in (row.get("subject"), grade) if part)
    return Card(
        id=str(row["id"]),
        picture=picture_uri(row.get("image")),
        question=row.get("question") or "",
        hint=row.get("hint") or "",
        choices=choices,
        correct=bool(row.get("correct")),
        output=visible(row.get("output")),
        others=said,
        about=about,
    )


def visible(text: str | None) -> str | None:
    """The text on one line, without control characters."""
    return None if text is None else " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def caption_cards(run: RunFiles, most: int = CAPTIONS) -> list[CaptionCard]:
    """The first captions of the task coco_caption."""
    evaluation = run.evaluations.get("coco_caption")
    rows = evaluation.predictions[:most] if evaluation else []
    return [
        CaptionCard(picture_uri(row.get("image")), row.get("output") or "", tuple(row.get("references") or ()))
        for row in rows
    ]


def instruction_cards(run: RunFiles, most: int = INSTRUCTIONS) -> list[InstructionCard]:
    """The first answers of the instruct task."""
    evaluation = run.evaluations.get("instruct")
    rows = evaluation.predictions[:most] if evaluation else []
    texts = ("instruction", "input", "output", "reference")
    return [
        InstructionCard(**{name: row.get(name) or "" for name in texts}, exact=bool(row.get("exact"))) for row in rows
    ]


def picture_uri(path: Any, longest_side: int = LONGEST_SIDE) -> str | None:
    """The picture, small, as a data URI: PNG where that is as small as JPEG; None where it cannot be read."""
    from PIL import Image

    from mmadapter.vision.images import read_image

    if not path:
        return None
    try:
        image = read_image(Path(path))
    except InputError:
        return None
    image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    encoded = [_encoded(image, "PNG"), _encoded(image, "JPEG")]
    kind, content = min(encoded, key=lambda item: len(item[1]))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content).decode()}"


def _encoded(image: Any, kind: str) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 85} if kind == "JPEG" else {"optimize": True}))
    return kind, buffer.getvalue()
