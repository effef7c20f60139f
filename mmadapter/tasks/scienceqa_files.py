"""ScienceQA predictions files: upstream's, LLaVA's and our own layouts, read for scoring."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmadapter.data.readers.json_file import read_json, read_json_lines
from mmadapter.errors import InputError
from mmadapter.tasks.scienceqa_scores import Question, parse_answer

LAYOUTS = """recognised layouts:
  1. JSON {"results": {id: option index}, "outputs": {id: text}, ...}: ScienceQA's and LLaVA's result files
     (either map may be missing)
  2. JSON {"correct": [...], "incorrect": [...]} with question_id and pred in each item: LLaVA's scored outputs
  3. JSON lines {"question_id": id, "text": ...}: LLaVA's answers
  4. JSON lines {"id": id, "prediction": index or null, "output": text}: mmadapter's predictions.jsonl"""


@dataclass(frozen=True)
class Predictions:
    """Option index by question id (None: unanswered), the texts they came from, and remarks for the reader."""

    indices: dict[str, int | None]
    outputs: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def read_predictions(
    path: Path, questions: Mapping[str, Question], *, predictions_from: str = "results"
) -> Predictions:
    """Reads a predictions file in any of LAYOUTS.

    Indices in the file are scored as they stand; `predictions_from="outputs"` parses the texts instead. An id that is
    not among `questions`, an id that comes twice, or an index out of range is an InputError with file and id; -1 and
    null mean unanswered.
    """
    indices, outputs, remarks = _read_layout(path)
    use = predictions_from
    if use == "results" and not indices and outputs:
        use = "outputs"
        remarks = (*remarks, "the file holds texts and no indices: the texts were parsed")
    chosen: Mapping[str, Any] = indices if use == "results" else outputs
    if not chosen:
        raise InputError(f"{path}: holds no {use}. With task.predictions_from={use} it must; {LAYOUTS}")
    _check_ids(path, chosen, questions)
    if use == "outputs":
        parsed = {id: parse_answer(text, questions[id].choices) for id, text in outputs.items()}
        return Predictions(parsed, outputs, remarks)
    checked = {id: _checked_index(path, id, value, questions[id]) for id, value in indices.items()}
    return Predictions(checked, {id: text for id, text in outputs.items() if id in questions}, remarks)


def _read_layout(path: Path) -> tuple[dict[str, Any], dict[str, str], tuple[str, ...]]:
    """(indices, texts, remarks) as they stand in the file, whatever its layout."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; predictions= takes a file; {LAYOUTS}")
    if path.suffix == ".jsonl":
        return _read_lines(path)
    content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("results", content.get("outputs")), dict):
        indices, outputs = content.get("results") or {}, content.get("outputs") or {}
        remarks = () if "acc" not in content else (f"the file's own acc field says {content['acc']}; it is not used",)
        return indices, _texts(path, outputs), remarks
    if isinstance(content, dict) and isinstance(content.get("correct"), list):
        return _collect(path, [*content["correct"], *content.get("incorrect", [])], "question_id", "pred")
    raise InputError(f"{path}: the layout is not recognised ({_shape(content)}); {LAYOUTS}")


def _shape(content: Any) -> str:
    if isinstance(content, dict):
        return "an object with the keys " + ", ".join(map(str, list(content)[:6]))
    return f"a JSON {type(content).__name__}"


def _read_lines(path: Path) -> tuple[dict[str, Any], dict[str, str], tuple[str, ...]]:
    items = read_json_lines(path)
    if items and all(isinstance(item, dict) and "question_id" in item and "text" in item for item in items):
        return _collect(path, items, "question_id", "text")
    if items and all(isinstance(item, dict) and "id" in item and "prediction" in item for item in items):
        indices, outputs, remarks = _collect(path, items, "id", "output")
        return {str(item["id"]): item["prediction"] for item in items}, outputs, remarks
    raise InputError(f"{path}: the layout is not recognised (its first line: {_shape(items[0])}); {LAYOUTS}")


def _collect(
    path: Path, items: list[Any], id_key: str, text_key: str
) -> tuple[dict[str, Any], dict[str, str], tuple[str, ...]]:
    outputs: dict[str, Any] = {}
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict) or id_key not in item:
            raise InputError(f"{path}, item {number}: has no {id_key}; {LAYOUTS}")
        id = str(item[id_key])
        if id in outputs:
            raise InputError(f"{path}, item {number}: the id {id!r} comes twice; every id may come once.")
        outputs[id] = item.get(text_key) or ""
    return {}, _texts(path, outputs), ()


def _texts(path: Path, outputs: Any) -> dict[str, str]:
    if not isinstance(outputs, dict):
        raise InputError(f"{path}: outputs is {_shape(outputs)}, allowed: an object of id -> text.")
    for id, text in outputs.items():
        if not isinstance(text, str):
            raise InputError(f"{path}, id {id}: the output is {text!r}, allowed: a text.")
    return outputs


def _check_ids(path: Path, chosen: Iterable[str], questions: Mapping[str, Question]) -> None:
    unknown = [id for id in chosen if id not in questions]
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise InputError(
            f"{path}: {len(unknown)} of its ids are not among the {len(questions)} questions of this split that the "
            f"problems file holds: {shown}. Check task.split and task.problems, or remove them."
        )


def _checked_index(path: Path, id: str, value: Any, question: Question) -> int | None:
    if value is None or value == -1:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < len(question.choices):
        raise InputError(
            f"{path}, id {id}: the prediction is {value!r}, allowed: an option's index from 0 to "
            f"{len(question.choices) - 1}, or -1 or null for unanswered."
        )
    return value
