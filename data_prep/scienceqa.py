"""Checks a ScienceQA folder in upstream's layout and writes its splits as JSON lines: python -m data_prep.scienceqa."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_prep.picture_check import DECODED, DECODED_BY_SAMPLE
from data_prep.scienceqa_findings import Findings, examine
from data_prep.scienceqa_output import write_splits
from mmadapter.errors import InputError

SOUND, UNSOUND, UNUSABLE = 0, 1, 2


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where the data is sound (or every loss was asked for), 1 where it is not, 2 where it cannot be read."""
    settings = _parser().parse_args(arguments)
    try:
        findings = examine(
            settings.root, DECODED[settings.check], settings.limit, max(settings.workers, 1), settings.captions
        )
        findings.settle(skip_bad=settings.on_bad == "skip", missing_image=settings.missing_image)
        print(summary(findings))
        if findings.failures:
            return UNSOUND
        if settings.out is not None:
            command = (
                f"python -m data_prep.scienceqa --check {settings.check} --on-bad {settings.on_bad} "
                f"--missing-image {settings.missing_image}" + (f" --limit {settings.limit}" if settings.limit else "")
            )
            write_splits(findings, settings.out, command)
            print(f"Written: {', '.join(f'{name}.jsonl' for name in findings.splits)}, manifest.json in {settings.out}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    return SOUND


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.scienceqa",
        description="Checks ScienceQA as downloaded (problems.json, pid_splits.json, images/SPLIT/ID/image.png). "
        "Training reads that folder as it is; --out writes the checked splits as JSON lines as well. "
        "Exit code 0: sound, 1: defects (listed), 2: cannot be read.",
    )
    parser.add_argument("--root", type=Path, required=True, help="folder with problems.json, or its parent")
    parser.add_argument(
        "--check",
        nargs="?",
        const="all",
        default="sample",
        choices=("none", "sample", "all"),
        help=f"which images are decoded: none, {DECODED_BY_SAMPLE} of them (default), all (--check alone)",
    )
    parser.add_argument("--out", type=Path, help="folder for SPLIT.jsonl and manifest.json (default: no files)")
    parser.add_argument("--on-bad", choices=("error", "skip"), default="error", help="bad items: stop, or leave out")
    parser.add_argument(
        "--missing-image",
        choices=("error", "skip", "blank"),
        default="error",
        help="image named but absent: stop, leave the item out, or keep it without an image",
    )
    parser.add_argument("--captions", type=Path, help="captions.json to be checked too (default: the root's)")
    parser.add_argument("--limit", type=int, help="only the first N ids of each split")
    parser.add_argument("--workers", type=int, default=4, help="threads that decode images (default 4)")
    return parser


def summary(findings: Findings) -> str:
    """One screen: a line a split, then defects and notes with counts and the first examples."""
    lines = [f"ScienceQA: {findings.file} ({len(findings.problems):,} questions), images under {findings.images}"]
    lines.append(f"{'split':<10}{'ids':>8}{'here':>8}{'image':>8}{'absent':>8}{'kept':>8}")
    for name, split in findings.splits.items():
        counts = (len(split.named), len(split.here), split.with_image, split.image_absent, len(split.kept))
        lines.append(f"{name:<10}" + "".join(f"{count:>8,}" for count in counts))
    lines.append(f"images decoded: {findings.decoded:,}")
    lines += [f"defect: {line}" for line in findings.failures]
    lines += [f"note:   {line}" for line in findings.notes]
    verdict = "Sound, but for the notes." if findings.notes else "Sound."
    lines.append("NOT SOUND: mend the defects, or see --on-bad and --missing-image." if findings.failures else verdict)
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
