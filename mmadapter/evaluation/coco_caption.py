"""The task coco_caption: one caption an image, of a model or of a results file, and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

from mmadapter.evaluation.caption_files import read_annotations, read_results
from mmadapter.evaluation.caption_scores import caption_scores
from mmadapter.evaluation.generation import Answers
from mmadapter.evaluation.recreate import samples_of_task
from mmadapter.evaluation.versions import Answered, versions
from mmadapter.files import write_json, write_json_lines

CAPTIONS_FILE = "captions.json"


def first_of_images(samples: Sequence[Any]) -> list[Any]:
    """One sample an image: the first of those that share it."""
    return list({sample.meta["image_id"]: sample for sample in reversed(samples)}.values())[::-1]


def evaluate_captions(answers: Answers, task: Any, samples: Sequence[Any], folder: Path, root: str | None) -> Answered:
    """One caption an image (`first_of_images`); besides predictions.jsonl, captions.json in the COCO results format.

    A part of the split (task.limit, or pictures that are missing) is scored only where task.allow_subset says so.
    """
    captions = {
        sample.meta["image_id"]: " ".join(output.split()) for sample, output in zip(samples, answers.texts, strict=True)
    }
    references = {sample.meta["image_id"]: list(sample.meta.get("references", ())) for sample in samples}
    write_json(folder / CAPTIONS_FILE, [{"image_id": id, "caption": caption} for id, caption in captions.items()])
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
    metrics = caption_metrics(task, references, captions, task.split, images_of_split(task, len(captions), root))
    return {**metrics, "results_file": CAPTIONS_FILE, "generation": dict(vars(task.generation))}, rows


def images_of_split(task: Any, asked: int, root: str | None) -> int:
    """How many captioned images the whole split has; `asked` where the task leaves none out."""
    if task.limit is None and task.missing_image != "skip":
        return asked
    whole = copy(task)
    whole.limit, whole.missing_image = None, "no_image"
    return len(samples_of_task(whole, root))


def score_caption_file(conf: Any) -> dict[str, Any]:
    """Scores a results file against annotations; imports no torch. Writes into `conf.output` where it is set."""
    task, file = conf.task, Path(conf.predictions)
    split_list = Path(task.split_list) if task.split_list else None
    annotated = read_annotations(Path(task.annotations), task.split, split_list)
    captions = read_results(file, annotated, allow_subset=task.allow_subset)
    references = {id: annotated.references[id] for id in captions}
    metrics = caption_metrics(task, references, captions, annotated.split, len(annotated.references))
    metrics["predictions"] = {"file": str(file), "annotations": str(task.annotations)}
    if conf.output:
        rows = [
            {"id": str(id), "image_id": id, "prompt": None, "output": caption, "references": references[id]}
            for id, caption in captions.items()
        ]
        write_json_lines(Path(conf.output) / "predictions.jsonl", rows)
        write_json(Path(conf.output) / "metrics.json", metrics)
    return metrics


def caption_metrics(
    task: Any, references: Mapping[int, Sequence[str]], captions: Mapping[int, str], split: str, whole: int
) -> dict[str, Any]:
    """The content of metrics.json: scores as fractions, what they cover, and what was not computed and why.

    Without scores (and with the reason) where the captions are a part of the split that nobody asked to score.
    """
    complete = len(captions) == whole
    metrics: dict[str, Any] = {}
    if complete or task.allow_subset:
        scores, missing = caption_scores(references, captions, java_metrics=task.java_metrics)
        metrics = {**scores, "not_computed": missing}
    else:
        metrics["not_scored"] = (
            f"{len(captions)} of {whole} images are no {split} score; task.allow_subset=true scores them"
        )
    return {
        **metrics,
        "task": "coco_caption",
        "images": len(captions),
        "split": split,
        "label": f"{split}, all {whole} images"
        if complete
        else f"subset: {len(captions)} of {whole} images of {split}",
        "coverage": {"scored": len(captions), "split": whole, "complete": complete},
        "empty": sum(not caption.strip() for caption in captions.values()),
        "versions": versions("pycocoevalcap", "pycocotools"),
    }
