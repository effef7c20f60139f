"""ScienceQA (Lu et al. 2022): multiple-choice questions, accuracy of parsed answers and of the likeliest options."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from mmadapter.data.readers import read
from mmadapter.data.readers.scienceqa import find_file, read_splits
from mmadapter.data.samples import Sample
from mmadapter.errors import InputError
from mmadapter.tasks.papers import BESIDE_OURS, SCIENCEQA, PaperRow
from mmadapter.tasks.scienceqa_scores import (
    COLUMNS,
    Question,
    Questions,
    is_official_test,
    parse_answer,
    random_choice,
    read_predictions,
    score,
    topic_accuracy,
)
from mmadapter.tasks.section import Bars, Card, Choice, Result, Row, Section, Table, Tile, percent, shortened
from mmadapter.tasks.settings import ScienceqaTaskSettings
from mmadapter.tasks.task import Answers, Covered, Progress, Scored, Task

if TYPE_CHECKING:
    from mmadapter.distributed.ranks import Ranks
    from mmadapter.model import AdaptedModel

CARDS, OF_EACH = 12, 8  # samples that are shown as they are drawn; right ones and wrong ones at least
ABOUT_COLUMNS = (
    "NAT, SOC, LAN: natural, social and language science. TXT: the question has a textual context; IMG: it has a "
    "picture; NO: neither (a question with both counts in TXT and in IMG)."
)


class OfTopic(TypedDict):
    accuracy: float | None
    count: int


class ScienceqaMetrics(TypedDict, total=False):
    """metrics.json, as far as it is shown."""

    accuracy: dict[str, float | None]
    likelihood_accuracy: dict[str, float | None]
    counts: dict[str, int]
    by_topic: dict[str, OfTopic]
    coverage: Covered
    label: str
    official: bool
    remarks: list[str]
    unanswered: int
    guessed: int
    fallback: str


class ScienceqaRow(TypedDict, total=False):
    """A line of predictions.jsonl, as far as it is shown."""

    id: str
    question: str
    hint: str | None
    choices: list[str]
    answer: int
    output: str | None
    prediction: int | None
    correct: bool
    image: str | None
    subject: str
    grade: str
    topic: str


class ScienceQA(Task[ScienceqaTaskSettings]):
    """Greedy answers through the parser and, where asked, a second score by option likelihood."""

    TITLE = "ScienceQA"
    SCORES = tuple(COLUMNS)
    MAIN_SCORES = ("Avg", "IMG")
    METRICS, ROW = ScienceqaMetrics, ScienceqaRow
    IN_SUMMARY = ("accuracy", "likelihood_accuracy", "counts", "unanswered")

    def ask(
        self, model: AdaptedModel, samples: Sequence[Sample], ranks: Ranks, progress: Progress | None = None
    ) -> Answers:
        texts = super().ask(model, samples, ranks, progress).texts
        if not self.settings.likelihood:
            return Answers(texts)
        from mmadapter.tasks.asking import most_likely_options

        # The answer as training data word it: candidates differ in one letter, so their sums are comparable.
        options = [sample.meta["answers"] for sample in samples]
        return Answers(texts, most_likely_options(model, samples, options, self.settings, ranks, progress))

    def score(self, samples: Sequence[Sample], answers: Answers) -> Scored:
        questions, settings = {sample.id: sample.meta for sample in samples}, self.settings
        predictions = {
            sample.id: parse_answer(output, sample.meta["choices"])
            for sample, output in zip(samples, answers.texts, strict=True)
        }
        is_whole = not settings.limit and settings.missing_image != "skip"
        size = self.size_of_split() or (len(samples) if is_whole else None)
        metrics = self.metrics(questions, predictions, size)
        likely: dict[str, int | None] = dict.fromkeys(questions)
        if answers.options is not None:
            likely = dict(zip(questions, answers.options, strict=True))
            scores = score(questions, likely, split=settings.split, split_size=size)
            metrics["likelihood_accuracy"] = scores["accuracy"]
        rows = []
        for sample, output in zip(samples, answers.texts, strict=True):
            row = self.row(sample.id, sample.meta, output, predictions[sample.id])
            row["likelihood_prediction"] = likely[sample.id]
            row["prompt"] = sample.prompt
            row["hint"] = sample.meta["hint"]
            row["image"] = None if sample.image is None else str(sample.image)
            rows.append(row)
        return Scored(metrics, rows)

    def judged(self, sample: Sample, answer: str) -> dict[str, Any]:
        meta = sample.meta
        options = [f"({letter(index)}) {choice}" for index, choice in enumerate(meta["choices"])]
        own = {"question": f"{meta['question']} {' '.join(options)}", "references": [options[meta["answer"]]]}
        own["right"] = parse_answer(answer, meta["choices"]) == meta["answer"]
        return super().judged(sample, answer) | own

    def score_file(self, file: Path) -> Scored:
        settings, questions = self.settings, self.questions()
        indices, outputs, remarks = read_predictions(file, questions, settings.predictions_from)
        wanted = set(list(questions)[: settings.limit])
        indices = {id: index for id, index in indices.items() if id in wanted}
        metrics = self.metrics(questions, indices, self.size_of_split() or len(questions))
        metrics["predictions"] = {"file": str(file), "scored": settings.predictions_from}
        metrics["remarks"] = remarks
        return Scored(metrics, [self.row(id, questions[id], outputs.get(id), index) for id, index in indices.items()])

    def questions(self) -> dict[str, Mapping[str, Any]]:
        """All questions of the split that the problems file holds, by id; neither prompts nor pictures are wanted."""
        reader = replace(self.settings, limit=None, captions=None, prompt_format="QCM-A").as_reader()
        samples = read(reader, self.data_root, source=self.settings.name, training=False, images=False, key="task")
        return {sample.id: sample.meta for sample in samples}

    def size_of_split(self) -> int | None:
        """How many questions pid_splits.json lists for the split; None where there is no such file or list.

        With another file named, the longer list counts, so that a file of fewer questions is known as a subset.
        """
        settings, sizes = self.settings, []
        folder = settings.root or self.data_root or (settings.problems and str(Path(settings.problems).parent))
        own = None if settings.pid_splits is None else Path(settings.pid_splits).expanduser()
        for named in dict.fromkeys((own, None)) if folder else ():
            with suppress(InputError):
                splits = read_splits(find_file(Path(str(folder)).expanduser(), named, "pid_splits.json"))
                sizes += [len(splits[settings.split])] if settings.split in splits else []
        return max(sizes, default=None)

    def metrics(self, questions: Questions, predictions: Mapping[str, int | None], size: int | None) -> dict[str, Any]:
        """The content of metrics.json; `size` is the number of questions in the whole split."""
        settings = self.settings
        seed = settings.seed if settings.fallback == "random" else None
        return {
            "split": settings.split,
            "official": is_official_test(questions),
            **score(questions, predictions, split=settings.split, split_size=size, fallback_seed=seed),
            "fallback": "none" if seed is None else f"random, seed {seed}",
            "by_topic": topic_accuracy(questions, predictions),
            "prompt_format": settings.prompt_format,
        }

    def row(self, id: str, question: Question, output: str | None, prediction: int | None) -> dict[str, Any]:
        """One line of predictions.jsonl; `correct` says what was scored, the guess of the fallback included."""
        guessed = prediction is None and self.settings.fallback == "random"
        scored = random_choice(id, question, self.settings.seed) if guessed else prediction
        return {
            "id": id,
            "question": question["question"],
            "prompt": None,
            "choices": question["choices"],
            "answer": question["answer"],
            "output": output,
            "prediction": prediction,
            "likelihood_prediction": None,
            "correct": scored == question["answer"],
            "guessed": guessed,
            "image": None,
            **{name: question[name] for name in ("subject", "grade", "topic", "has_hint", "has_image")},
        }

    @classmethod
    def values(cls, metrics: Mapping[str, Any]) -> dict[str, float]:
        accuracy = metrics.get("accuracy")
        return super().values(accuracy if isinstance(accuracy, dict) else {})

    @classmethod
    def section(cls, results: Sequence[Result], with_papers: bool = True) -> Section:
        own = results[-1]
        metrics, accuracy = own.metrics, own.metrics.get("accuracy") or {}
        scored = [one for one in results if one.metrics.get("accuracy")]
        # Columns without a question (one's own data may have no subjects and grades) are left out.
        columns = [name for name in COLUMNS if any(one.metrics["accuracy"].get(name) is not None for one in scored)]

        # Accuracy of this run and the compared ones, by option likelihood too; the papers below.
        rows = []
        for one in scored:
            rows.append(accuracy_row(one.label, one.metrics["accuracy"], columns, "own" if one is own else ""))
            if likelihood := one.metrics.get("likelihood_accuracy"):
                rows.append(accuracy_row("– by option likelihood", likelihood, columns))
        if counts := metrics.get("counts"):
            rows.append(Row(["questions", *(str(counts.get(name, "")) for name in columns)], "count"))
        notes = [*remarks(metrics), ABOUT_COLUMNS]
        papers: list[PaperRow] = []
        if with_papers and metrics.get("official"):
            papers = [row for row in SCIENCEQA if row.model in BESIDE_OURS]
            rows += [
                Row(["The papers, on the real ScienceQA test split"], "between"),
                *(paper_row(row, columns) for row in papers),
            ]
            notes += paper_notes(papers)
        title = f"By subject, context and grade: {metrics.get('label', '')}"
        header = ("accuracy, %", *columns)
        tables = [Table(header, rows, title, notes=notes, main=cls.MAIN_SCORES)] if scored else []

        # Everything published, and topics, for those who want to see it.
        if papers:
            sources = f"Sources: {'; '.join(dict.fromkeys(row.source for row in SCIENCEQA))}."
            published, notes = [paper_row(row, tuple(COLUMNS)) for row in SCIENCEQA], [*paper_notes(SCIENCEQA), sources]
            tables.append(
                Table(
                    ("accuracy, %", *COLUMNS),
                    published,
                    "All published rows, with sources",
                    is_folded=True,
                    notes=notes,
                )
            )
        tables += topic_tables(results)

        bars = []
        if len(scored) > 1:
            panels = {"Questions with a picture (IMG), % right": "IMG", "All questions (Avg), % right": "Avg"}
            bars = [
                Bars(title, [(one.label, one.metrics["accuracy"].get(column), one is own) for one in scored])
                for title, column in panels.items()
            ]
        tiles = [Tile("ScienceQA average", percent(accuracy.get("Avg")), "% of questions right")] if accuracy else []
        if accuracy.get("IMG") is not None:
            tiles.append(Tile("With a picture", percent(accuracy["IMG"]), "% right, column IMG"))
        return Section(
            cls.TITLE,
            tiles=tiles,
            coverage=metrics.get("label", ""),
            bars=bars,
            tables=tables,
            cards=question_cards(results),
            cards_title="Test questions",
            cards_remark="Drawn with a fixed seed, one topic after the other, whether right or wrong; with a picture "
            "where questions have one.",
        )


def letter(index: int) -> str:
    """A, B, C, ... of an option's index."""
    return chr(ord("A") + index)


def accuracy_row(label: str, accuracy: Mapping[str, float | None], columns: Sequence[str], kind: Any = "") -> Row:
    return Row([label, *(percent(accuracy.get(name)) for name in columns)], kind)


def paper_row(row: PaperRow, columns: Sequence[str]) -> Row:
    source = f"{row.source}; {row.note}" if row.note else row.source
    values = dict(zip(COLUMNS, row.values, strict=True))
    return Row([row.model + " *" * bool(row.note), *(percent(values[name]) for name in columns)], "paper", source)


def paper_notes(rows: Sequence[PaperRow]) -> list[str]:
    return [f"* {row.model}: {row.note}." for row in rows if row.note]


def remarks(metrics: Mapping[str, Any]) -> list[str]:
    """What the reader must know before comparing numbers."""
    found = [*(metrics.get("remarks") or ())]
    if not metrics.get("coverage", {}).get("complete", True):
        found.append(f"Ours is a {metrics.get('label')}.")
    if unanswered := metrics.get("unanswered"):
        found.append(f"Outputs that named no single option, and count as wrong: {unanswered}.")
    if metrics.get("guessed"):
        found.append(f"Unanswered questions were guessed ({metrics.get('fallback')}), to compare with old tables.")
    return found


def topic_tables(results: Sequence[Result]) -> list[Table]:
    """Accuracy by topic, one column a run; no table where the questions have no topics."""
    by_run = [one.metrics.get("by_topic") or {} for one in results]
    rows = []
    for topic in sorted({topic for by_topic in by_run for topic in by_topic}):
        entries = [by_topic.get(topic) for by_topic in by_run]
        count = max(entry["count"] for entry in entries if entry)
        rows.append(Row([topic, str(count), *(percent(entry and entry["accuracy"]) for entry in entries)]))
    header = ["topic", "questions", *(one.label for one in results)]
    return [Table(header, rows, "By topic", is_folded=True, main=[results[-1].label])] if rows else []


def question_cards(results: Sequence[Result]) -> list[Card]:
    """Some questions, those with a picture first: CARDS as they are drawn, then right and wrong ones, up to OF_EACH."""
    rows = [row for row in results[-1].rows if row.get("image")] or results[-1].rows
    drawn = one_topic_after_the_other(random.Random(0).sample(list(rows), len(rows)))
    chosen = drawn[:CARDS]
    for is_right in (True, False):
        lacking = OF_EACH - sum(bool(row.get("correct")) == is_right for row in chosen)
        chosen += [row for row in drawn[CARDS:] if bool(row.get("correct")) == is_right][: max(0, lacking)]
    others = {one.label: {row.get("id"): row for row in one.rows} for one in results[:-1]}
    return [question_card(row, others) for row in chosen]


def one_topic_after_the_other(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows in an order that takes one of each topic in turn."""
    turns: dict[str, int] = {}
    keyed = []
    for row in rows:
        topic = row.get("topic") or ""
        turns[topic] = turns.get(topic, 0) + 1
        keyed.append((turns[topic], row))
    return [row for _, row in sorted(keyed, key=lambda item: item[0])]


def question_card(row: Mapping[str, Any], others: Mapping[str, Mapping[Any, Mapping[str, Any]]]) -> Card:
    """One question with its options; small below what the model said, and what the compared runs (`others`) chose."""
    foot, options = [], row.get("choices") or []
    if row.get("output") is not None:  # on one line, without control characters
        said = "".join(sign if sign.isprintable() else " " for sign in row["output"])
        foot.append(f"said: “{shortened(' '.join(said.split()), 80)}”")
    for label, answers in others.items():
        if (theirs := answers.get(row.get("id"))) is not None:
            chosen = theirs["prediction"] if theirs.get("prediction") in range(len(options)) else None
            foot.append(f"{label}: {'no answer' if chosen is None else letter(chosen)}")
    grade = (row.get("grade") or "").replace("grade", "grade ")
    foot.append(", ".join(part for part in (f"question {row.get('id', '')}", row.get("subject"), grade) if part))
    choices = [
        Choice(text, index == row.get("answer"), index == row.get("prediction")) for index, text in enumerate(options)
    ]
    return Card(
        question=row.get("question") or "",
        context=shortened(row.get("hint"), 180),
        picture=row.get("image"),
        choices=choices,
        verdict="✓ right" if row.get("correct") else "✗ wrong",
        is_right=bool(row.get("correct")),
        foot=foot,
    )
