"""What a task shows in a run's report, as plain data: numbers, bars, tables, and cards of single samples.

A task's `report_section(results, made_world)` returns a `Section`; the report turns it into HTML.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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


def percent(value: float | None) -> str:
    """Two decimals, or "n/a" where there was nothing to score."""
    return "n/a" if value is None else f"{value:.2f}"


def shortened(text: str | None, most: int) -> str:
    """The text, cut at a blank where it has more than `most` characters."""
    text = text or ""
    return text if len(text) <= most else f"{text[: most - 3].rsplit(' ', 1)[0]}..."
