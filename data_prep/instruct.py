"""Checks instruction files and dialogs and writes them as JSON lines: python -m data_prep.instruct."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.instruct_findings import KINDS, Entry, Findings, examine
from data_prep.output_folder import described_inputs, write_folder
from data_prep.picture_check import DECODED, DECODED_BY_SAMPLE
from mmadapter.data.readers.instruction_items import ROLES
from mmadapter.errors import InputError

VAL_SIZE = 200
SOUND, UNSOUND, UNUSABLE = 0, 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where the data is sound (or every loss was asked for), 1 where it is not, 2 where it cannot be read."""
    settings = _parser().parse_args(arguments)
    try:
        workers = max(settings.workers, 1)
        findings = examine(
            settings.root,
            settings.kind,
            settings.images,
            DECODED[settings.check],
            settings.limit,
            workers,
            settings.val_size,
        )
        findings.settle(skip_bad=settings.on_bad == "skip", strict=settings.strict)
        print(summary(findings))
        if findings.failures:
            return UNSOUND
        if settings.out is not None:
            entries = {
                f"{name}.jsonl": (_line(findings.kind, entry) for entry in split.kept)
                for name, split in findings.splits.items()
            }
            write_folder(settings.out, entries, manifest(findings, _command(settings)))
            print(f"Written: {', '.join(entries)}, manifest.json in {settings.out}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    return SOUND


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.instruct",
        description="Checks Alpaca, GPT-4-LLM, LLaVA-Instruct and ShareGPT files. Training reads them as they are; "
        "--out writes the checked items as JSON lines as well. "
        "Exit code 0: sound, 1: defects (listed), 2: cannot be read.",
    )
    parser.add_argument("--root", type=Path, required=True, help="a file, or a folder with one (or train, val, test)")
    parser.add_argument("--out", type=Path, help="folder for SPLIT.jsonl and manifest.json (default: no files)")
    parser.add_argument("--kind", choices=("auto", *KINDS), default="auto", help="the layout (default: by the items)")
    parser.add_argument("--images", type=Path, help="folder that the pictures' names start at (default: the root)")
    parser.add_argument(
        "--check",
        nargs="?",
        const="all",
        default="sample",
        choices=("none", "sample", "all"),
        help=f"which pictures are decoded: none, {DECODED_BY_SAMPLE} of them (default), all (--check alone)",
    )
    parser.add_argument("--on-bad", choices=("error", "skip"), default="error", help="bad items: stop, or leave out")
    parser.add_argument("--strict", action="store_true", help="repeated items and overlaps of splits are defects, too")
    parser.add_argument("--val-size", type=int, default=VAL_SIZE, help=f"items kept for val (default {VAL_SIZE})")
    parser.add_argument("--limit", type=int, help="only the first N items of each file")
    parser.add_argument("--workers", type=int, default=4, help="threads that decode pictures (default 4)")
    return parser


def summary(findings: Findings) -> str:
    """One screen: a line a split, then defects and notes with counts and the first examples."""
    lines = [f"{findings.kind}: {', '.join(str(file) for file in findings.inputs)}"]
    lines.append(f"{'split':<8}{'items':>10}{'turns':>10}{'image':>10}{'dropped':>10}{'kept':>10}")
    for name, split in findings.splits.items():
        turns = sum(len(entry.item.turns) for entry in split.kept)
        pictures = sum(entry.item.image is not None for entry in split.kept)
        counts = (split.items, turns, pictures, split.dropped.total(), len(split.kept))
        lines.append(f"{name:<8}" + "".join(f"{count:>10,}" for count in counts))
    lines.append(f"pictures decoded: {findings.decoded:,}")
    lines += [f"defect: {line}" for line in findings.failures]
    lines += [f"note:   {line}" for line in findings.notes]
    verdict = "Sound, but for the notes." if findings.notes else "Sound."
    lines.append("NOT SOUND: mend the defects, or see --on-bad." if findings.failures else verdict)
    return "\n".join(lines)


def manifest(findings: Findings, command: str) -> dict[str, Any]:
    """What was read, kept and left out, and by which command."""
    return {
        "command": command,
        "kind": findings.kind,
        "inputs": described_inputs(findings.inputs, findings.inputs[0].parent),
        "images_decoded": findings.decoded,
        "splits": {
            name: {
                "items": split.items,
                "with_image": sum(entry.item.image is not None for entry in split.kept),
                "kept": len(split.kept),
                "dropped": dict(sorted(split.dropped.items())),
            }
            for name, split in findings.splits.items()
        },
        "notes": findings.notes,
    }


def _command(settings: argparse.Namespace) -> str:
    """The command without its paths and workers, which change nothing in the files."""
    parts = [f"--kind {settings.kind} --check {settings.check} --on-bad {settings.on_bad}"]
    parts += [f"--val-size {settings.val_size}"] + (["--strict"] if settings.strict else [])
    parts += [f"--limit {settings.limit}"] if settings.limit else []
    return f"python -m data_prep.instruct {' '.join(parts)}"


def _line(kind: str, entry: Entry) -> Mapping[str, Any]:
    """The item in its own layout, without the picture's mark; the readers read it again."""
    item = entry.item
    if kind in ("alpaca", "gpt4llm"):
        ((asked, answer),) = item.turns
        return {"instruction": asked, "input": item.context, "output": answer}
    said = [{"from": role, "value": text} for turn in item.turns for role, text in zip(ROLES, turn, strict=True)]
    image = {} if item.image is None else {"image": item.image}
    return {"id": entry.id, **image, "conversations": said}


if __name__ == "__main__":
    sys.exit(main())
