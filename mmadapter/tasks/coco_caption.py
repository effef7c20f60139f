"""COCO captions: one caption a picture, of a model or of a results file, scored as the reference scorers do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from mmadapter.data.readers.coco import scored_captions
from mmadapter.data.readers.defects import BadEntry, entry_field
from mmadapter.data.readers.json_file import read_json
from mmadapter.data.samples import Sample
from mmadapter.errors import InputError
from mmadapter.settings import to_plain
from mmadapter.tasks.caption_scores import CAPTION_SCORES, JAVA_SCORES, caption_scores
from mmadapter.tasks.papers import CAPTION_ROWS
from mmadapter.tasks.section import Card, Result, Row, Section, Table, percent, shortened
from mmadapter.tasks.settings import CocoCaptionTaskSettings
from mmadapter.tasks.task import AnswerRow, Answers, Covered, Scored, Task, drawn
from mmadapter.tasks.text_scores import words

CAPTIONS_FILE = "captions.json"
REFERENCES = 5  # of a caption that are shown
ABOUT_PAPERS = "The papers, on COCO, Karpathy's test split; PT and FT: image-text pairs of pre-training and fine-tuning"
KARPATHY_TEST = 5000  # images of the test split of which the papers' scores are


class CaptionCounts(TypedDict):
    right: int
    captions: int


class OfAttribute(TypedDict):
    named: float
    captions: int


class CaptionMetrics(TypedDict, total=False):
    """metrics.json, as far as it is shown, besides the scores."""

    counts: CaptionCounts
    coverage: Covered
    images: int
    split: str
    label: str
    not_scored: str
    not_computed: dict[str, str]
    without_meaning: list[str]
    by_attribute: dict[str, OfAttribute]
    empty: int


class CaptionRow(AnswerRow, total=False):
    references: list[str]
    correct: bool


class CocoCaption(Task[CocoCaptionTaskSettings]):
    """Besides predictions.jsonl, captions.json in the COCO results format.

    A part of the split (`limit`, or pictures that are missing) is scored only where `allow_subset` says so.
    """

    TITLE = "Captions of test pictures"
    SCORES = (*CAPTION_SCORES, *JAVA_SCORES, "exact_match")
    MAIN_SCORES = ("CIDEr", "BLEU-4")
    PACKAGES = ("pycocoevalcap",)
    METRICS, ROW = CaptionMetrics, CaptionRow

    def score(self, samples: Sequence[Sample], answers: Answers) -> Scored:
        captions = {s.meta["image_id"]: " ".join(text.split()) for s, text in zip(samples, answers.texts, strict=True)}
        references = {sample.meta["image_id"]: list(sample.meta.get("references", ())) for sample in samples}
        rows = [
            {
                "id": sample.id,
                "image_id": id,
                "prompt": sample.prompt,
                "output": captions[id],
                "references": references[id],
                "image": None if sample.image is None else str(sample.image),
            }
            for id, sample in zip(captions, samples, strict=True)
        ]
        for row, sample in zip(rows, samples, strict=True):
            if "attributes" in sample.meta:
                row["attributes"] = dict(sample.meta["attributes"])
        metrics = self.metrics(references, captions, self.settings.split, self.images_of_split(len(captions)))
        if self.settings.exact:
            for row in rows:
                row["correct"] = is_one_of(row["output"], row["references"])
            if "not_scored" not in metrics:
                metrics["exact_match"] = sum(row["correct"] for row in rows) / len(rows)
            metrics["counts"] = {"right": sum(row["correct"] for row in rows), "captions": len(rows)}
        if "not_scored" not in metrics and (by_attribute := attribute_scores(rows)):
            metrics["by_attribute"] = by_attribute
        metrics |= {"results_file": CAPTIONS_FILE, "generation": to_plain(self.settings.generation)}
        results = [{"image_id": id, "caption": caption} for id, caption in captions.items()]
        return Scored(metrics, rows, {CAPTIONS_FILE: results})

    def judged(self, sample: Sample, answer: str) -> dict[str, Any]:
        found = super().judged(sample, answer)
        is_right = is_one_of(answer, found["references"])
        return found | {"right": is_right if self.settings.exact else is_right or None}

    def images_of_split(self, asked: int) -> int:
        """How many captioned images the whole split has; `asked` where the settings leave none out."""
        if self.settings.limit is None and self.settings.missing_image != "skip":
            return asked
        return len(CocoCaption(replace(self.settings, limit=None, images=False), self.data_root).read())

    def score_file(self, file: Path) -> Scored:
        settings = self.settings
        split_list = Path(settings.split_list).expanduser() if settings.split_list else None
        annotated, split = read_annotations(Path(str(settings.annotations)).expanduser(), settings.split, split_list)
        captions = read_results(file, annotated, split, settings.allow_subset)
        references = {id: annotated[id] for id in captions}
        metrics = self.metrics(references, captions, split, len(annotated))
        metrics["predictions"] = {"file": str(file), "annotations": str(settings.annotations)}
        rows = [
            {"id": str(id), "image_id": id, "prompt": None, "output": caption, "references": references[id]}
            for id, caption in captions.items()
        ]
        return Scored(metrics, rows)

    def metrics(
        self, references: Mapping[int, Sequence[str]], captions: Mapping[int, str], split: str, whole: int
    ) -> dict[str, Any]:
        """The content of metrics.json: scores as fractions, what they cover, and what was not computed and why.

        Without scores (and with the reason) where the captions are a part of the split that nobody asked to score.
        """
        is_complete, counts = len(captions) == whole, f"{len(captions)} of {whole} images"
        metrics: dict[str, Any] = {}
        if is_complete or self.settings.allow_subset:
            scores, missing = caption_scores(references, captions, java_metrics=self.settings.java_metrics)
            metrics = {**scores, "not_computed": missing}
            if empty := scores_without_meaning(references):
                metrics["without_meaning"] = empty
        else:
            metrics["not_scored"] = f"{counts} are no {split} score; task.allow_subset=true scores them"
        return {
            **metrics,
            "images": len(captions),
            "split": split,
            "label": f"{split}, all {whole} images" if is_complete else f"subset: {counts} of {split}",
            "coverage": {"scored": len(captions), "split": whole, "complete": is_complete},
            "empty": sum(not caption.strip() for caption in captions.values()),
        }

    def scores(self) -> list[str]:
        return [name for name in super().scores() if self.why_no_score(name, "") is None]

    def why_no_score(self, score: str, key: str) -> str | None:
        if self.settings.limit and not self.settings.allow_subset:
            return (
                f"{key}.limit={self.settings.limit} leaves a part of the split, which is not scored. "
                f"Set {key}.allow_subset=true, or {key}.limit=null"
            )
        if score == "exact_match" and not self.settings.exact:
            return f"exact_match is computed with {key}.exact=true only."
        if score in JAVA_SCORES and not self.settings.java_metrics:
            return f"{score} is computed with {key}.java_metrics=true only (slow; needs Java)."
        return None

    @classmethod
    def values(cls, metrics: Mapping[str, Any]) -> dict[str, float]:
        hidden = metrics.get("without_meaning") or ()
        return {name: value for name, value in super().values(metrics).items() if name not in hidden}

    @classmethod
    def section(cls, results: Sequence[Result], with_papers: bool = True) -> Section:
        own, metrics = results[-1], results[-1].metrics
        counts = metrics.get("counts")
        remark = f"{counts['right']} of {counts['captions']} captions equal a reference." if counts else ""
        scored = [one for one in results if all(name in one.metrics for name in CAPTION_SCORES)]
        names = [name for name in cls.SCORES if any(name in one.metrics for one in scored)]
        rows, notes, table_notes = [], remarks(metrics), []
        for one in scored:  # three decimals of percent: the five digits that the reference scorers print
            own_values = cls.values(one.metrics)
            values = [
                f"{100 * own_values[name]:.3f}" if name in own_values else "–" if name in one.metrics else ""
                for name in names
            ]
            rows.append(Row([one.label, "", "", *values], "own" if one is own else ""))
        whole = metrics.get("coverage", {}).get("complete") and metrics.get("images") == KARPATHY_TEST
        whole = whole and "test" in metrics.get("split", "")  # the validation split has as many
        if with_papers and whole:  # the papers' scores are of Karpathy's whole test split
            rows.append(Row([ABOUT_PAPERS], "between"))
            for paper in CAPTION_ROWS:
                printed = {"BLEU-4": str(paper.bleu_4), "CIDEr": str(paper.cider)}
                cells = [paper.pretraining_pairs, paper.fine_tuning_pairs, *(printed.get(name, "") for name in names)]
                rows.append(Row([paper.model + " *" * bool(paper.note), *cells], "paper", paper.source))
            table_notes = [f"* {paper.model}: {paper.note}." for paper in CAPTION_ROWS if paper.note]
        header = ["score × 100", "PT pairs", "FT pairs", *names]
        if not table_notes:  # without the papers, without their columns
            header = [header[0], *names]
            rows = [replace(row, cells=[row.cells[0], *row.cells[3:]]) for row in rows]
        tables = []
        if scored:
            title = f"Scores: {metrics.get('label', '')}"
            tables = [Table(header, rows, title, notes=table_notes, main=cls.MAIN_SCORES), *attribute_tables(scored)]
        return Section(
            cls.TITLE,
            coverage=metrics.get("label", ""),
            tables=tables,
            notes=notes,
            cards=[cls.card(row) for row in drawn(own.rows)],
            cards_remark=remark,
        )

    @classmethod
    def card(cls, row: Mapping[str, Any]) -> Card:
        references = [shortened(text, 120) for text in row.get("references") or ()]
        foot = ["references:", *(f"– {text}" for text in references[:REFERENCES])]
        if len(references) < 2:
            foot = [f"reference: {text}" for text in references]
        own = Card(answer=row.get("output") or "", picture=row.get("image"), foot=foot)
        if (is_right := row.get("correct")) is None:
            return own
        return replace(
            own, verdict="✓ right" if is_right else "✗ wrong", is_right=is_right, foot=() if is_right else foot
        )


def is_one_of(caption: str, references: Sequence[str]) -> bool:
    """Whether a caption equals a reference up to case, blanks and the full stop."""

    def plain(text: str) -> str:
        return " ".join(text.lower().split()).rstrip(". ")

    return plain(caption) in map(plain, references)


def attribute_scores(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each attribute that the data tell of their pictures: `named`, the share of the captions in which its words
    stand, and the number of `captions` that were looked at.
    """
    hits: dict[str, list[bool]] = {}
    for row in rows:
        said = f" {' '.join(words(row['output']))} "
        for name, value in row.get("attributes", {}).items():
            hits.setdefault(name, []).append(f" {' '.join(words(value))} " in said)
    return {name: {"named": sum(own) / len(own), "captions": len(own)} for name, own in hits.items()}


def scores_without_meaning(references: Mapping[int, Sequence[str]]) -> list[str]:
    """The BLEU-N of references that all have fewer than N words: even a perfect caption gets almost nothing there."""
    longest = max((len(words(text)) for of_image in references.values() for text in of_image), default=0)
    return [f"BLEU-{length}" for length in (1, 2, 3, 4) if longest < length]


def attribute_tables(results: Sequence[Result]) -> list[Table]:
    """How often captions name each attribute, one column a run; no table where the data tell none."""
    by_run = [one.metrics.get("by_attribute") or {} for one in results]
    rows = []
    for name in dict.fromkeys(name for own in by_run for name in own):
        cells = [percent(100 * own[name]["named"] if name in own else None) for own in by_run]
        rows.append(Row([name, str(max(own[name]["captions"] for own in by_run if name in own)), *cells]))
    header = ["attribute", "captions", *(one.label for one in results)]
    notes = ["Percent of the captions in which the picture's own word for the attribute stands."]
    return [Table(header, rows, "By attribute", True, notes, header[1:2] + header[-1:])] if rows else []


def remarks(metrics: Mapping[str, Any]) -> list[str]:
    """What the reader must know of the scores, or why there are none."""
    found = []
    if metrics.get("not_scored"):
        found.append(f"Not scored: {metrics['not_scored']}.")
    elif not metrics.get("coverage", {}).get("complete", True):
        found.append(f"Ours is a {metrics.get('label')}, not the {metrics.get('split')} score.")
    if metrics.get("empty"):
        found.append(f"{metrics['empty']} captions are empty.")
    if names := metrics.get("without_meaning"):
        found.append(f"{' and '.join(names)}: counts longer runs of words than any reference has.")
    by_reason: dict[str, list[str]] = {}
    for name, reason in metrics.get("not_computed", {}).items():
        by_reason.setdefault(reason, []).append(name)
    return found + [f"{' and '.join(names)}: not computed, {reason}." for reason, names in by_reason.items()]


# Files, read for scoring. Captions are taken word for word: readers of training data leave empty ones out, which the
# reference scorers count.


def read_annotations(file: Path, split: str, split_list: Path | None = None) -> tuple[dict[int, list[str]], str]:
    """The captions of each image that belongs to the split, in the file's order, and the split's name.

    Of an official captions_*.json all images, or those of `split_list`; of dataset_coco.json Karpathy's `split`.
    """
    found = scored_captions(file, split)
    references: dict[int, list[str]] = {}
    for one in found.splits.get(split, []):
        if not isinstance(one.image_id, int):
            raise InputError(f"{file}: the image id {one.image_id!r} is no number, so that no result can name it.")
        references[one.image_id] = [text for _, text in one.captions]
    name = split if found.has_splits else file.stem
    if split_list is not None:
        references, name = of_list(file, references, split_list), split_list.stem
    bare = [id for id, captions in references.items() if not captions]
    if bare or not references:
        what = f"{len(bare)} images have no caption: {some(bare)}" if bare else "there is no image in this split"
        raise InputError(f"{file}, {name}: {what}; nothing can be scored against them. Check the file and task.split.")
    return references, name


def of_list(file: Path, references: Mapping[int, list[str]], split_list: Path) -> dict[int, list[str]]:
    """The images that a split list names: lines such as "val2014/COCO_val2014_000000391895.jpg 391895" (the id is what
    counts), a file name, or an id alone."""
    wanted = []
    try:
        lines = split_list.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{split_list}: the list of images cannot be read ({error}). Check task.split_list."
        ) from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            digits = re.search(r"(\d+)(?:\.\w+)?\s*$", line)
            if digits is None:
                raise InputError(f"{split_list}, line {number}: {line[:80]!r} names no image id.")
            wanted.append(int(digits[1]))
    refuse_twice(split_list, wanted)
    if absent := [id for id in wanted if id not in references]:
        raise InputError(
            f"{split_list}: {len(absent)} of its {len(wanted)} images are not in {file}: {some(absent)}. "
            "Give the annotations that hold them all (Karpathy's splits lie in captions_val2014.json)."
        )
    return {id: references[id] for id in wanted}


def read_results(
    file: Path, references: Mapping[int, Sequence[str]], split: str, allow_subset: bool = False
) -> dict[int, str]:
    """The caption of each image of COCO's list of {"image_id": int, "caption": str}, in the order of `references`;
    every image must have one, unless a subset is allowed."""
    entries = read_json(file)
    if not isinstance(entries, list) or not entries:
        got = "an empty list" if entries == [] else f"a JSON {type(entries).__name__}"
        raise InputError(f'{file}: holds {got}; it must be a list of {{"image_id": 42, "caption": "a dog"}}.')
    captions: list[tuple[int, str]] = []
    for number, entry in enumerate(entries):
        where = f"{file}, entry {number}"
        try:
            id, caption = entry_field(entry, "image_id", int), entry_field(entry, "caption", str)
        except BadEntry as error:
            raise InputError(f"{where}: {error}.") from error
        if id not in references:
            raise InputError(
                f"{where}: image_id {id} is not among the {len(references)} images of {split}. "
                "Check task.annotations, task.split and task.split_list."
            )
        captions.append((id, caption))
    refuse_twice(file, [id for id, _ in captions])
    of_image = dict(captions)
    missing = [id for id in references if id not in of_image]
    if missing and not allow_subset:
        raise InputError(
            f"{file}: {len(missing)} of the {len(references)} images of {split} have no caption: {some(missing)}. "
            "One caption an image is scored; task.split_list=FILE or task.split choose the images, "
            "task.allow_subset=true scores a part and labels it so."
        )
    return {id: of_image[id] for id in references if id in of_image}


def refuse_twice(file: Path, ids: Sequence[int]) -> None:
    if twice := [id for id, count in Counter(ids).items() if count > 1]:
        raise InputError(f"{file}: {len(twice)} image ids stand there more than once: {some(twice)}.")


def some(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
