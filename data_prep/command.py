"""How the commands of data_prep are said: options, exit codes, and the folder that checked data is written to."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import PIL

import mmadapter
from data_prep.checks import ABSENT, DECODED, DECODED_BY_SAMPLE, SPLITS, Check, path_below
from mmadapter.errors import InputError, exit_status, printable

SOUND, UNSOUND, UNUSABLE = 0, 1, 2
MANIFEST = "manifest.json"
Files = Mapping[str, Iterable[Mapping[str, Any]]]


def options(name: str, description: str, root: str) -> argparse.ArgumentParser:
    """The parser of `mmadapter check NAME` with the options of all commands that check data."""
    parser = argparse.ArgumentParser(
        prog=f"mmadapter check {name}",
        description=f"{description} Training reads these files as they are; --out writes the checked items as JSON "
        "lines as well. Exit code 0: sound, 1: defects (listed), 2: cannot be read.",
    )
    parser.add_argument("--root", type=Path, required=True, help=root)
    parser.add_argument("--out", type=Path, help=f"folder for SPLIT.jsonl and {MANIFEST} (default: no files)")
    parser.add_argument(
        "--check",
        nargs="?",
        const="all",
        default="sample",
        choices=tuple(DECODED),
        help=f"pictures: not looked for (none), {DECODED_BY_SAMPLE} of them decoded (default), all (--check alone)",
    )
    parser.add_argument("--on-bad", choices=("error", "skip"), default="error", help="bad items: stop, or leave out")
    parser.add_argument(
        "--missing-image",
        choices=("error", "skip", "no_image"),
        default="error",
        help="items whose picture is absent: as --on-bad says (error), leave out, or keep without a picture",
    )
    parser.add_argument(
        "--pictures-anywhere",
        action="store_true",
        help="pictures may lie outside of the data's folder (and be named so)",
    )
    parser.add_argument("--strict", action="store_true", help="repeated items and overlaps of splits are defects, too")
    parser.add_argument("--limit", type=int, help="only the first N usable items of each split")
    parser.add_argument("--workers", type=int, default=4, help="threads that decode pictures (default 4)")
    return parser


def run(
    parser: argparse.ArgumentParser,
    arguments: list[str] | None,
    read: Callable[[argparse.Namespace], Check],
    further: Callable[[Check], Files] = lambda check: {},
) -> int:
    """Reads and checks, shows what was found, and writes the items that are kept, and `further` files, to --out.

    Returns 0 where the data is sound (or every loss was asked for), 1 where it is not, 2 where it cannot be read.
    """
    settings = parser.parse_args(arguments)

    def work() -> int:
        check = read(settings)
        ranks = {name: rank for rank, name in enumerate(SPLITS)}
        names = sorted(check.splits, key=lambda name: (ranks.get(name, len(ranks)), name))
        check.splits = {name: check.splits[name][: settings.limit] for name in names}
        check.compare_splits()
        check.look_at_pictures(settings.check, max(settings.workers, 1), settings.missing_image == "no_image")

        # What was found is a defect, or a loss that was asked for.
        harmless = {*check.defects.harmless, *([ABSENT] if settings.missing_image == "skip" else [])}
        lines = {reason: check.defects.line(reason) for reason in check.defects.counts}
        skipped = set(lines) if settings.on_bad == "skip" else harmless
        failures = [*check.refusals, *(line for reason, line in lines.items() if reason not in skipped)]
        losses = [f"{line} (left out)" for reason, line in lines.items() if reason in skipped]
        (failures if settings.strict else check.notes).extend(check.repetitions)
        print(printable(check.summary(failures, losses)))
        if failures:
            return UNSOUND
        if settings.out is not None:
            files: Files = {f"{name}.jsonl": [one.line for one in kept] for name, kept in check.splits.items()}
            told = manifest(check, losses, parser, settings)
            written = write_folder(settings.out, {**files, **further(check)}, told)
            print(f"Written: {', '.join(written)} in {settings.out}")
        return SOUND

    return exit_status(work)


def manifest(
    check: Check, losses: list[str], parser: argparse.ArgumentParser, settings: argparse.Namespace
) -> dict[str, Any]:
    """What was read, kept and left out, and by which command; without the places of this machine and its workers.

    So the same files give the same manifest anywhere.
    """
    words = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in vars(settings).items()
        if name != "workers" and value != parser.get_default(name) and not isinstance(value, Path)
    ]
    inputs = {}
    for file in check.files:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        name = path_below(file, check.root) if file.is_relative_to(check.root) else file.name
        inputs[name] = {"bytes": file.stat().st_size, "sha256": digest}
    lost = check.defects.captions
    return {
        "command": " ".join([parser.prog, *words]),
        "inputs": inputs,
        "facts": check.facts,
        "left_out": {
            reason: {"items": count} | ({"captions": lost[reason]} if lost[reason] else {})
            for reason, count in check.defects.counts.items()
        },
        "splits": {name: check.counts(name) for name in check.splits},
        "notes": losses + check.notes,
    }


def write_folder(out: Path, entries: Files, manifest: Mapping[str, Any]) -> list[str]:
    """Writes a JSON-lines file for every name in `entries`, and manifest.json with versions, lines and sha256 added.

    Byte-equal whenever the entries and the manifest are. Raises InputError where the folder cannot be written; then no
    half-written file stands under a final name. Gives the names.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=out) as folder:
            outputs = {name: _write_lines(Path(folder, name), listed) for name, listed in entries.items()}
            python = platform.python_version()
            versions = {"mmadapter": mmadapter.__version__, "python": python, "pillow": PIL.__version__}
            content = {**manifest, "versions": versions, "outputs": outputs}
            Path(folder, MANIFEST).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            # The manifest comes last: where it stands, everything that it lists is whole.
            (out / MANIFEST).unlink(missing_ok=True)
            for name in [*outputs, MANIFEST]:
                os.replace(Path(folder, name), out / name)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{out}: cannot be written ({reason}). Free space or name another --out.") from error
    return [*outputs, MANIFEST]


def _write_lines(file: Path, entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    digest, count = hashlib.sha256(), 0
    with file.open("wb") as stream:
        for entry in entries:
            line = (json.dumps(entry, ensure_ascii=False) + "\n").encode()
            digest.update(line)
            stream.write(line)
            count += 1
    return {"lines": count, "sha256": digest.hexdigest()}
