"""What a task shows of its results, as plain data: numbers, bars, tables, and cards of single samples.

A task gives one `Section`: `show_section` prints it at a terminal, a run's report makes HTML of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mmadapter.files import read_json, read_json_lines
from mmadapter.terminal import Display

LABELS = {"host": "Host alone", "text_only": "Text-only adapter"}
"""Names of runs in RUN/comparison, as tables and charts show them, in this order."""


@dataclass(frozen=True)
class Result:
    """One run's results in a task; the last of several is the run that the report is about."""

    label: str
    metrics: Mapping[str, Any]  # metrics.json
    rows: Sequence[Mapping[str, Any]]  # predictions.jsonl


@dataclass(frozen=True)
class Tile:
    """A number at the top of the page."""

    name: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Bars:
    """Percentages as horizontal bars: (label, percent or None, whether it is the run itself)."""

    title: str
    rows: Sequence[tuple[str, float | None, bool]]


@dataclass(frozen=True)
class Row:
    """One row of a table; a single cell spans all columns."""

    cells: Sequence[str]
    kind: Literal["", "own", "count", "paper", "between"] = ""
    source: str = ""  # shown on hover


@dataclass(frozen=True)
class Table:
    """A table; the first column holds text, the others numbers."""

    header: Sequence[str]
    rows: Sequence[Row]
    title: str = ""
    is_folded: bool = False  # the reader opens it by its title
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Choice:
    """One option of a question."""

    text: str
    is_truth: bool
    is_picked: bool


@dataclass(frozen=True)
class Card:
    """One sample."""

    question: str = ""
    context: str = ""
    picture: str | None = None  # file; None: the sample has none
    choices: Sequence[Choice] = ()
    answer: str | None = None  # shown as a quotation; None: the choices show it
    verdict: str = ""
    is_right: bool = True  # the verdict's colour
    foot: Sequence[str] = ()  # small lines


@dataclass(frozen=True)
class Section:
    """All that a task shows; whatever is empty is left out."""

    title: str
    tiles: Sequence[Tile] = ()
    coverage: str = ""  # what the numbers cover: "test split, all 4241 questions"
    bars: Sequence[Bars] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    cards: Sequence[Card] = ()
    cards_title: str = ""  # a heading above the cards
    cards_remark: str = ""


def own_label(images: bool) -> str:
    """The name of the run itself beside those of `LABELS`."""
    return "Adapter with images" if images else "Adapter"


def percent(value: float | None) -> str:
    """Two decimals, or "n/a" where there was nothing to score."""
    return "n/a" if value is None else f"{value:.2f}"


def shortened(text: str | None, most: int) -> str:
    """The text, cut at a blank where it has more than `most` characters."""
    text = text or ""
    return text if len(text) <= most else f"{text[: most - 3].rsplit(' ', 1)[0]}..."


def results_of(folder: Path) -> dict[str, Result]:
    """Task's name -> what RUN/eval/NAME holds, of all evaluations of a run folder."""
    found = {}
    for file in sorted(folder.glob("eval/*/metrics.json")):
        if (metrics := read_json(file)) is not None:
            found[file.parent.name] = Result("", metrics, read_json_lines(file.with_name("predictions.jsonl")))
    return found


SHOWN_CARDS, SHOWN_CHARACTERS = 3, 120  # at a terminal


def show_section(section: Section, display: Display) -> None:
    """Print a section at a terminal: what it covers, the tables that are not folded, notes, some free answers."""
    is_said = any(section.coverage in table.title for table in section.tables)
    display.say(section.title if is_said or not section.coverage else f"{section.title}: {section.coverage}")
    for table in section.tables:
        if table.is_folded:
            continue
        rows = [row for row in table.rows if len(row.cells) > 1]
        labels = [f"{row.cells[0]} [paper]" if row.kind == "paper" else row.cells[0] for row in rows]
        cells = [[label, *row.cells[1:]] for label, row in zip(labels, rows, strict=True)]
        display.table(table.title, list(table.header), cells)
        for note in table.notes:
            display.say(note)
    for note in section.notes:
        display.say(note)
    if cards := [card for card in section.cards if card.answer is not None]:
        columns, cells = ["sample", "answer", ""], []
        for card in cards[:SHOWN_CARDS]:
            asked = f"{card.question} {card.context}".strip() or Path(card.picture or "").name
            texts = [asked, card.answer or "", " ".join([card.verdict, *card.foot])]
            cells.append([shortened(" ".join(text.split()), SHOWN_CHARACTERS) for text in texts])
        display.table("", columns, cells, text_columns=columns)
        if section.cards_remark:
            display.say(section.cards_remark)
