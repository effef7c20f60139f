"""What the commands that check data share: their options, their exit codes, and the folder that they write."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import PIL

import mmadapter
from data_prep.checks import DECODED, DECODED_BY_SAMPLE, Check, Entry, path_below
from mmadapter.errors import InputError

SOUND, UNSOUND, UNUSABLE = 0, 1, 2
MANIFEST = "manifest.json"
Files = Mapping[str, Iterable[Mapping[str, Any]]]


def options(name: str, description: str, root: str) -> argparse.ArgumentParser:
    """The parser of `python -m data_prep.NAME` with the options that all these commands have."""
    parser = argparse.ArgumentParser(
        prog=f"python -m data_prep.{name}",
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
        help=f"which pictures are decoded: none, {DECODED_BY_SAMPLE} of them (default), all (--check alone)",
    )
    parser.add_argument("--on-bad", choices=("error", "skip"), default="error", help="bad items: stop, or leave out")
    parser.add_argument("--limit", type=int, help="only the first N items of each split")
    parser.add_argument("--workers", type=int, default=4, help="threads that decode pictures (default 4)")
    return parser


def run(
    parser: argparse.ArgumentParser,
    arguments: list[str] | None,
    examine: Callable[[argparse.Namespace], Check],
    line: Callable[[Check, Entry], Mapping[str, Any]],
    further: Callable[[Check], Files] = lambda check: {},
) -> int:
    """Checks, shows what was found, and writes a `line` for every kept item, and `further` files, where --out says so.

    Returns 0 where the data is sound (or every loss was asked for), 1 where it is not, 2 where it cannot be read.
    """
    settings = parser.parse_args(arguments)
    settings.workers = max(settings.workers, 1)
    try:
        check = examine(settings)
        print(check.summary())
        if check.failures:
            return UNSOUND
        if settings.out is not None:
            files: Files = {
                f"{name}.jsonl": [line(check, one) for one in split.kept] for name, split in check.splits.items()
            }
            written = write_folder(settings.out, {**files, **further(check)}, manifest(check, parser, settings))
            print(f"Written: {', '.join(written)} in {settings.out}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNUSABLE
    return SOUND


def manifest(check: Check, parser: argparse.ArgumentParser, settings: argparse.Namespace) -> dict[str, Any]:
    """What was read, kept and left out, and by which command; without the places of this machine and its workers.

    So the same files give the same manifest anywhere.
    """
    given = {name: value for name, value in vars(settings).items() if name not in ("out", "workers")}
    words = [
        f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        for name, value in given.items()
        if value != parser.get_default(name) and not isinstance(value, Path)
    ]
    with ThreadPoolExecutor(settings.workers) as pool:
        digests = list(pool.map(_digest, check.files))
    dropped = {reason: {"items": count} for reason, count in check.defects.counts.items()}
    for reason, captions in check.defects.captions.items():
        dropped[reason] |= {"captions": captions} if captions else {}
    return {
        "command": " ".join([parser.prog, *words]),
        "inputs": {
            path_below(file, check.root) if file.is_relative_to(check.root) else file.name: {
                "bytes": file.stat().st_size,
                "sha256": digest,
            }
            for file, digest in zip(check.files, digests, strict=True)
        },
        "facts": check.facts,
        "unusable": dropped,
        "splits": {name: check.counts(name) for name in check.splits},
        "notes": check.notes,
    }


def write_folder(out: Path, entries: Files, manifest: Mapping[str, Any]) -> list[str]:
    """Writes a JSON-lines file for every name in `entries`, and manifest.json with versions, lines and sha256 added.

    Byte-equal whenever the entries and the manifest are. Raises InputError where the folder cannot be written; then no
    half-written file stands under a final name. Gives the names.
    """
    temporary = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=out))
        outputs = {name: _write_lines(temporary / name, listed) for name, listed in entries.items()}
        versions = {"mmadapter": mmadapter.__version__, "python": platform.python_version(), "pillow": PIL.__version__}
        content = json.dumps({**manifest, "versions": versions, "outputs": outputs}, indent=1, sort_keys=True) + "\n"
        (temporary / MANIFEST).write_text(content, encoding="utf-8")
        # The manifest comes last: where it stands, everything that it lists is whole.
        (out / MANIFEST).unlink(missing_ok=True)
        for name in [*outputs, MANIFEST]:
            os.replace(temporary / name, out / name)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{out}: cannot be written ({reason}). Free space or name another --out.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return [*outputs, MANIFEST]


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_lines(file: Path, entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    digest, count = hashlib.sha256(), 0
    with file.open("wb") as stream:
        for entry in entries:
            line = (json.dumps(entry, ensure_ascii=False) + "\n").encode()
            digest.update(line)
            stream.write(line)
            count += 1
    return {"lines": count, "sha256": digest.hexdigest()}
