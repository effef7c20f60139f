"""The checked splits of ScienceQA as JSON lines with a manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.output_folder import described_inputs, write_folder
from data_prep.scienceqa_findings import Findings
from mmadapter.data.readers.scienceqa import image_path
from mmadapter.data.templates import LETTERS, scienceqa_context, scienceqa_options


def write_splits(findings: Findings, out: Path, command: str) -> None:
    """Writes SPLIT.jsonl for every split and manifest.json; byte-equal whenever the inputs and settings are.

    Raises InputError where the folder cannot be written; then no half-written file stands under a final name.
    """
    entries = {f"{name}.jsonl": (_line(findings, pid) for pid in split.kept) for name, split in findings.splits.items()}
    write_folder(out, entries, _manifest(findings, command))


def _line(findings: Findings, pid: str) -> dict[str, Any]:
    problem: Mapping[str, Any] = findings.problems[pid]
    image = None if pid in findings.without_image else image_path(Path(findings.images.name), pid, problem)
    return {
        "id": pid,
        "question": problem["question"],
        "context": scienceqa_context(problem, None),
        "options": scienceqa_options(problem["choices"]),
        "choices": problem["choices"],
        "lecture": problem.get("lecture", ""),
        "solution": problem.get("solution", ""),
        "answer": problem["answer"],
        "target": f"The answer is {LETTERS[problem['answer']]}.",
        "image": None if image is None else image.as_posix(),
        "subject": problem["subject"],
        "grade": problem["grade"],
        "topic": problem.get("topic", ""),
        "has_hint": bool(problem["hint"]),
        "has_image": problem["image"] is not None,
    }


def _manifest(findings: Findings, command: str) -> dict[str, Any]:
    return {
        "command": command,
        "inputs": described_inputs(findings.inputs, findings.file.parent),
        "images_decoded": findings.decoded,
        "splits": {
            name: {
                "ids": len(split.named),
                "with_image": split.with_image,
                "image_absent": split.image_absent,
                "kept": len(split.kept),
                "dropped": dict(sorted(split.dropped.items())),
            }
            for name, split in findings.splits.items()
        },
        "notes": findings.notes,
    }
