"""Checks captions in any public layout and writes them as JSON lines: python -m data_prep.coco_caption."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_prep.coco_caption_findings import Findings, examine
from data_prep.coco_caption_inputs import KINDS, caption_input
from data_prep.coco_caption_output import write_captions
from data_prep.picture_check import DECODED, DECODED_BY_SAMPLE
from mmadapter.errors import InputError

SOUND, UNSOUND, UNUSABLE = 0, 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where the data is sound (or every loss was asked for), 1 where it is not, 2 where it cannot be read."""
    settings = _parser().parse_args(arguments)
    workers = max(settings.workers, 1)
    try:
        found = caption_input(settings.root, settings.input, settings.split_lists, settings.instruction, settings.limit)
        findings = examine(found, settings.check != "none", DECODED[settings.check], settings.limit, workers)
        findings.settle(skip_bad=settings.on_bad == "skip")
        print(summary(findings))
        if findings.failures:
            return UNSOUND
        written = write_captions(findings, settings.out, _command(settings), workers)
        print(f"Written: {', '.join(written)} in {settings.out}; pictures are named below {findings.root}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    return SOUND


def _command(settings: argparse.Namespace) -> str:
    """The command without the places of this machine: the same files give the same manifest anywhere."""
    command = f"python -m data_prep.coco_caption --check {settings.check} --on-bad {settings.on_bad}"
    command += " --instruction caption" if settings.instruction == "caption" else ""
    return command + (f" --limit {settings.limit}" if settings.limit else "")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.coco_caption",
        description="Checks captions and their pictures and writes SPLIT.jsonl, references and a manifest. "
        f"Reads {KINDS}. Training reads these layouts as they are, and what is written here as well "
        "(reader coco_captions, path=SPLIT.jsonl). Exit code 0: sound, 1: defects (listed), 2: cannot be read.",
    )
    parser.add_argument(
        "--root", type=Path, required=True, help="folder of the pictures, and of the captions if not --input"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for SPLIT.jsonl, references and manifest.json")
    parser.add_argument(
        "--input", type=Path, help="the file of captions (shards: a folder) where it is not found by name"
    )
    parser.add_argument(
        "--split-lists", type=Path, help="folder of karpathy_{val,test}_images.txt, if not beside the captions"
    )
    parser.add_argument(
        "--instruction",
        choices=("own", "caption"),
        default="own",
        help="LLaVA's dialogs: keep each one's question (default), or drop it for the caption instruction",
    )
    parser.add_argument(
        "--check",
        choices=("none", "sample", "all"),
        default="sample",
        help=f"pictures: not looked for at all, looked for and {DECODED_BY_SAMPLE} decoded (default), all decoded",
    )
    parser.add_argument("--on-bad", choices=("error", "skip"), default="error", help="bad items: stop, or leave out")
    parser.add_argument("--limit", type=int, help="only the first N pictures of each split")
    parser.add_argument("--workers", type=int, default=4, help="threads that decode pictures (default 4)")
    return parser


def summary(findings: Findings) -> str:
    """One screen: a line a split, then defects and notes with counts and the first examples."""
    lines = [f"Captions: {findings.found.what}, pictures below {findings.root}"]
    lines.append(f"{'split':<8}{'pictures':>10}{'captions':>10}{'kept':>10}{'captions':>10}")
    for name, split in findings.splits.items():
        counts = (split.pictures, split.captions, len(split.kept), split.captions_kept)
        lines.append(f"{name:<8}" + "".join(f"{count:>10,}" for count in counts))
    lines.append(f"captions in the files: {findings.found.captions_read:,}; pictures decoded: {findings.decoded:,}")
    lines += [f"defect: {line}" for line in findings.failures]
    lines += [f"note:   {line}" for line in findings.notes]
    verdict = "Sound, but for the notes." if findings.notes else "Sound."
    lines.append(
        "NOT SOUND: mend the defects, or leave bad items out with --on-bad skip." if findings.failures else verdict
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
