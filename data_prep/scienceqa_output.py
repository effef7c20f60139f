"""The checked splits of ScienceQA as JSON lines with a manifest; written under temporary names, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import PIL

import mmadapter
from data_prep.scienceqa_findings import Findings
from mmadapter.data.readers.scienceqa import image_path
from mmadapter.data.templates import LETTERS, scienceqa_context, scienceqa_options
from mmadapter.errors import InputError


def write_splits(findings: Findings, out: Path, command: str) -> None:
    """Writes SPLIT.jsonl for every split and manifest.json; byte-equal whenever the inputs and settings are.

    Raises InputError where the folder cannot be written; then no half-written file stands under a final name.
    """
    temporary = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=out))
        outputs = {}
        for name, split in findings.splits.items():
            lines = [json.dumps(_line(findings, pid), ensure_ascii=False) + "\n" for pid in split.kept]
            content = "".join(lines).encode()
            (temporary / f"{name}.jsonl").write_bytes(content)
            outputs[f"{name}.jsonl"] = {"lines": len(lines), "sha256": hashlib.sha256(content).hexdigest()}
        manifest = json.dumps(_manifest(findings, command, outputs), indent=1, sort_keys=True) + "\n"
        (temporary / "manifest.json").write_text(manifest, encoding="utf-8")
        # The manifest comes last: where it stands, everything that it lists is whole.
        (out / "manifest.json").unlink(missing_ok=True)
        for name in [*outputs, "manifest.json"]:
            os.replace(temporary / name, out / name)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{out}: cannot be written ({reason}). Free space or name another --out.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


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


def _manifest(findings: Findings, command: str, outputs: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "command": command,
        "versions": {
            "mmadapter": mmadapter.__version__,
            "python": platform.python_version(),
            "pillow": PIL.__version__,
        },
        "inputs": {
            file.name: {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
            for file in findings.inputs
        },
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
        "outputs": outputs,
    }
