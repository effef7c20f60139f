"""What a task shows of its results, as plain data: numbers, bars, tables, and cards of single samples.

A task gives one `Section`: `show_section` prints it at a terminal, a run's report makes HTML of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict

from mmadapter.files import MISSING, LeftOut, as_written, read_as_written, read_json, read_json_lines
from mmadapter.tasks import TASKS, task_class
from mmadapter.terminal import Display

LABELS = {"host": "Host alone", "text_only": "Text-only adapter"}
"""Names of runs in RUN/comparison, as tables and charts show them."""
PICTURES_FILE = "pictures.json"
"""Beside predictions.jsonl: a few samples looked at closely (tasks/pictures.py)."""


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
    main: Sequence[str] = ()  # columns that a narrow screen shows at first, besides the first one; none: all


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
class Look:
    """One sample looked at closely (pictures.json): with another picture, and which parts of its own one matter."""

    picture: str  # file
    question: str
    answer: str
    other_picture: str | None = None
    other_answer: str = ""
    other_truth: str | None = None  # where the task knows it
    hidden: Sequence[Sequence[float]] = ()  # change of the answer's log-likelihood, a number a square of the picture
    attention: Sequence[Sequence[float]] = ()  # a row a layer with early fusion, a number a visual token


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
    looks: Sequence[Look] = ()


def percent(value: float | None) -> str:
    """Two decimals, or "n/a" where there was nothing to score."""
    return "n/a" if value is None else f"{value:.2f}"


def shortened(text: str | None, most: int) -> str:
    """The text, cut at a blank where it has more than `most` characters."""
    text = text or ""
    return text if len(text) <= most else f"{text[: most - 3].rsplit(' ', 1)[0]}..."


def sections_of(folder: Path, config: Mapping[str, Any], with_papers: bool = True) -> dict[str, Section]:
    """What the tasks show of a run folder: evaluation's name -> its section, in the tasks' order.

    Beside the run's own results, which come last, stand those of the runs in its comparison/ and variants/. `config`:
    the content of its config.yaml. Left out: evaluations that the run did not ask for by that name
    (eval/scienceqa-first-20). What in the files is not as a task writes it is not shown, and told in the section.
    """
    beside = sorted(path for part in ("comparison", "variants") for path in folder.glob(f"{part}/*") if path.is_dir())
    own = "Adapter with images" if (config.get("vision") or {}).get("enabled") else "Adapter"
    runs = [*((LABELS.get(path.name, path.name), path) for path in beside), (own, folder)]
    found: dict[str, list[tuple[str, Section]]] = {kind: [] for kind in TASKS.names()}
    shown = [folder] if any(folder.glob("eval/*/metrics.json")) else [path for _, path in runs]  # variants: all of them
    for name in sorted({file.parent.name for path in shown for file in path.glob("eval/*/metrics.json")}):
        left_out = LeftOut()
        results = [
            result
            for label, path in runs
            if (result := result_of(label, folder, (path / "eval" / name).relative_to(folder).as_posix(), left_out))
        ]
        kind = results[-1].metrics.get("task", name) if results else None
        if kind in found and (name == kind or name in (config.get("tasks") or ())):
            section = TASKS.load(kind).section(results, with_papers)
            notes = [*section.notes, *(f"Not shown: {line}." for line in left_out.lines())]
            section = replace(section, looks=looks_of(folder / "eval" / name / PICTURES_FILE), notes=notes)
            found[kind].append((name, section if name == kind else replace(section, title=f"{section.title}: {name}")))
    return dict(pair for pairs in found.values() for pair in pairs)


class OfTask(TypedDict, total=False):
    """What every metrics.json says."""

    task: str


def metrics_of(folder: Path, place: str, left_out: LeftOut) -> dict[str, Any]:
    """FOLDER/PLACE/metrics.json as its task writes it; empty where there is none."""
    file = f"{place}/metrics.json"
    metrics = read_as_written(folder / file, OfTask, file, left_out)
    if metrics is MISSING:
        return {}
    task = task_class(metrics, Path(place).name)
    return metrics if task is None else as_written(metrics, task.METRICS, file, left_out)


def result_of(label: str, folder: Path, place: str, left_out: LeftOut) -> Result | None:
    """What a run's evaluation wrote into FOLDER/PLACE; None where there are no metrics."""
    metrics = metrics_of(folder, place, left_out)
    if not metrics:
        return None
    rows, file = read_json_lines(folder / place / "predictions.jsonl"), f"{place}/predictions.jsonl"
    if (task := task_class(metrics, Path(place).name)) is not None:
        rows = as_written(rows, list[task.ROW], file, left_out, "lines")  # type: ignore[name-defined]
    return Result(label, metrics, rows)


def looks_of(file: Path) -> list[Look]:
    """What an evaluation's pictures.json holds; nothing where there is none."""
    entries, found = read_json(file), []
    for entry in entries if isinstance(entries, list) else ():
        if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
            continue
        other = entry["other"] if isinstance(entry.get("other"), dict) else {}
        found.append(
            Look(
                picture=entry["image"],
                question=shortened(str(entry.get("question") or ""), 300),
                answer=shortened(str(entry.get("answer") or ""), 500),
                other_picture=other["image"] if isinstance(other.get("image"), str) else None,
                other_answer=shortened(str(other.get("answer") or ""), 500),
                other_truth=None if other.get("truth") is None else shortened(str(other["truth"]), 300),
                hidden=numbers_in_rows(entry.get("hidden")),
                attention=numbers_in_rows(entry.get("attention")),
            )
        )
    return found


def numbers_in_rows(value: Any) -> list[list[float]]:
    """Rows of finite numbers, all as long as the first; nothing where `value` is anything else."""
    rows = value if isinstance(value, list) and all(isinstance(row, list) for row in value) else []
    is_whole = len({len(row) for row in rows}) == 1 and bool(rows[0])
    numbers = [number for row in rows for number in row]
    fit = is_whole and all(type(number) in (int, float) and math.isfinite(number) for number in numbers)
    return rows if fit else []


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
