"""COCO captions: one caption a picture, of a model or of a results file, scored as the reference scorers do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmadapter.data.samples import Sample
from mmadapter.settings import to_plain
from mmadapter.tasks.caption_files import read_annotations, read_results
from mmadapter.tasks.caption_scores import CAPTION_SCORES, JAVA_SCORES, caption_scores
from mmadapter.tasks.papers import CAPTION_ROWS
from mmadapter.tasks.section import Card, Result, Row, Section, Table, shortened
from mmadapter.tasks.settings import CocoCaptionTaskSettings
from mmadapter.tasks.task import Answers, Scored, Task

CAPTIONS_FILE = "captions.json"
CARDS, REFERENCES = 6, 5
ABOUT_PAPERS = "The papers, on COCO, Karpathy's test split; PT and FT: image-text pairs of pre-training and fine-tuning"
MADE_WORLD = (
    "Our rows are scores on the made-up world. The papers' rows are on COCO, Karpathy's test split: they stand here "
    "for orientation and cannot be compared with ours."
)


class CocoCaption(Task[CocoCaptionTaskSettings]):
    """Besides predictions.jsonl, captions.json in the COCO results format.

    A part of the split (`limit`, or pictures that are missing) is scored only where `allow_subset` says so.
    """

    TITLE = "Captions of test pictures"
    SCORES = (*CAPTION_SCORES, *JAVA_SCORES)
    MAIN_SCORES = ("CIDEr", "BLEU-4")
    PACKAGES = ("pycocoevalcap",)

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
        metrics = self.metrics(references, captions, self.settings.split, self.images_of_split(len(captions)))
        metrics |= {"results_file": CAPTIONS_FILE, "generation": to_plain(self.settings.generation)}
        results = [{"image_id": id, "caption": caption} for id, caption in captions.items()]
        return Scored(metrics, rows, {CAPTIONS_FILE: results})

    def images_of_split(self, asked: int) -> int:
        """How many captioned images the whole split has; `asked` where the settings leave none out."""
        if self.settings.limit is None and self.settings.missing_image != "skip":
            return asked
        return len(CocoCaption(replace(self.settings, limit=None, missing_image="no_image"), self.data_root).read())

    def score_file(self, file: Path) -> Scored:
        settings = self.settings
        split_list = Path(settings.split_list) if settings.split_list else None
        annotated = read_annotations(Path(str(settings.annotations)), settings.split, split_list)
        captions = read_results(file, annotated, allow_subset=settings.allow_subset)
        references = {id: annotated.references[id] for id in captions}
        metrics = self.metrics(references, captions, annotated.split, len(annotated.references))
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
        if self.is_unscored_part():
            return []
        left_out = () if self.settings.java_metrics else JAVA_SCORES
        return [name for name in super().scores() if name not in left_out]

    def is_unscored_part(self) -> bool:
        """Whether `limit` makes the captions a part of the split, which nobody asked to score."""
        return bool(self.settings.limit) and not self.settings.allow_subset

    def why_no_score(self, score: str, key: str) -> str | None:
        if self.is_unscored_part():
            return (
                f"{key}.limit={self.settings.limit} leaves a part of the split, which is not scored. "
                f"Set {key}.allow_subset=true, or {key}.limit=null"
            )
        if score in JAVA_SCORES and not self.settings.java_metrics:
            return f"{score} is computed with {key}.java_metrics=true only (slow; needs Java)."
        return None

    @classmethod
    def section(cls, results: Sequence[Result], with_papers: bool = True, made_world: bool = False) -> Section:
        own, metrics = results[-1], results[-1].metrics
        scored = [one for one in results if all(name in one.metrics for name in CAPTION_SCORES)]
        names = [name for name in cls.SCORES if any(name in one.metrics for one in scored)]
        rows, notes, table_notes = [], remarks(metrics), []
        for one in scored:  # three decimals of percent: the five digits that the reference scorers print
            values = ["" if name not in one.metrics else f"{100 * one.metrics[name]:.3f}" for name in names]
            rows.append(Row([one.label, "", "", *values], "own" if one is own else ""))
        if with_papers and metrics.get("coverage", {}).get("complete"):  # the papers' scores are of the whole split
            rows.append(Row([ABOUT_PAPERS], "between"))
            for paper in CAPTION_ROWS:
                printed = {"BLEU-4": str(paper.bleu_4), "CIDEr": str(paper.cider)}
                cells = [paper.pretraining_pairs, paper.fine_tuning_pairs, *(printed.get(name, "") for name in names)]
                rows.append(Row([paper.model + " *" * bool(paper.note), *cells], "paper", paper.source))
            table_notes = [f"* {paper.model}: {paper.note}." for paper in CAPTION_ROWS if paper.note]
            notes += [MADE_WORLD] if made_world else []
        header = ["score × 100", "PT pairs", "FT pairs", *names]
        return Section(
            cls.TITLE,
            coverage=metrics.get("label", ""),
            tables=[Table(header, rows, f"Scores: {metrics.get('label', '')}", notes=table_notes)] if scored else [],
            notes=notes,
            cards=caption_cards(own.rows),
        )


def remarks(metrics: Mapping[str, Any]) -> list[str]:
    """What the reader must know of the scores, or why there are none."""
    found = []
    if metrics.get("not_scored"):
        found.append(f"Not scored: {metrics['not_scored']}.")
    elif not metrics.get("coverage", {}).get("complete", True):
        found.append(f"Ours is a {metrics['label']}, not the {metrics['split']} score.")
    if metrics.get("empty"):
        found.append(f"{metrics['empty']} captions are empty.")
    by_reason: dict[str, list[str]] = {}
    for name, reason in metrics.get("not_computed", {}).items():
        by_reason.setdefault(reason, []).append(name)
    return found + [f"{' and '.join(names)}: not computed, {reason}." for reason, names in by_reason.items()]


def caption_cards(rows: Sequence[Mapping[str, Any]]) -> list[Card]:
    cards = []
    for row in rows[:CARDS]:
        references = [shortened(text, 120) for text in row.get("references") or ()]
        foot = ["references:", *(f"– {text}" for text in references[:REFERENCES])]
        if len(references) < 2:
            foot = [f"reference: {text}" for text in references]
        cards.append(Card(answer=row.get("output") or "", picture=row.get("image"), foot=foot))
    return cards
