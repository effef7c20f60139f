"""Checked captions as JSON lines, references in the official layout, and a manifest."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data_prep.coco_caption_findings import Findings, Split
from data_prep.output_folder import described_inputs, write_folder
from mmadapter.data.readers.captions import Captioned

REFERENCES = "captions_{}.json"


def write_captions(findings: Findings, out: Path, command: str, workers: int) -> list[str]:
    """Writes SPLIT.jsonl, captions_SPLIT.json for val and test, and manifest.json; gives the names."""
    files: dict[str, Iterable[dict[str, Any]]] = {}
    for name, split in findings.splits.items():
        files[f"{name}.jsonl"] = [_line(findings, picture) for picture in split.kept]
        if name != "train":
            files[REFERENCES.format(name)] = [_references(findings, name, split)]
    write_folder(out, files, _manifest(findings, command, workers))
    return [*files, "manifest.json"]


def _line(findings: Findings, picture: Captioned) -> dict[str, Any]:
    line: dict[str, Any] = {
        "image_id": picture.image_id,
        "image": _name(findings, picture),
        "captions": [{"id": number, "caption": text} for number, text in picture.captions],
    }
    return line if picture.instruction is None else {**line, "instruction": picture.instruction}


def _name(findings: Findings, picture: Captioned) -> str:
    """Below the root that is given at run time; as it was named where it lies elsewhere."""
    image, root = picture.image, findings.root
    return image.relative_to(root).as_posix() if image.is_relative_to(root) else image.as_posix()


def _references(findings: Findings, name: str, split: Split) -> dict[str, Any]:
    """The official layout, which `pycocotools` reads."""
    return {
        "info": {"description": f"split {name} of {findings.found.files[0].name}, whitespace collapsed"},
        "licenses": [],
        "type": "captions",
        "images": [{"id": one.image_id, "file_name": one.image.name} for one in split.kept],
        "annotations": [
            {"image_id": one.image_id, "id": number, "caption": text}
            for one in split.kept
            for number, text in one.captions
        ],
    }


def _manifest(findings: Findings, command: str, workers: int) -> dict[str, Any]:
    found, defects = findings.found, findings.defects
    return {
        "command": command,
        "inputs": described_inputs(found.files, findings.root, workers),
        "pictures_decoded": findings.decoded,
        "captions_read": found.captions_read,
        "captions_beyond_limit": findings.beyond_limit,
        "dropped": {
            reason: {"items": count, "captions": defects.captions[reason]}
            for reason, count in sorted(defects.counts.items())
        },
        "splits": {
            name: {
                "pictures_read": split.pictures,
                "captions_read": split.captions,
                "pictures": len(split.kept),
                "captions": split.captions_kept,
                "pictures_dropped": dict(sorted(split.dropped.items())),
            }
            for name, split in findings.splits.items()
        },
        "notes": findings.notes,
    }
