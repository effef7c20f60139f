"""What prep scripts write: JSON lines and a manifest, under temporary names, then renamed; whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import PIL

import mmadapter
from mmadapter.errors import InputError

MANIFEST = "manifest.json"


def write_folder(out: Path, entries: Mapping[str, Iterable[Mapping[str, Any]]], manifest: Mapping[str, Any]) -> None:
    """Writes a JSON-lines file for every name in `entries`, and manifest.json with versions, lines and sha256 added.

    Byte-equal whenever the entries and the manifest are. Raises InputError where the folder cannot be written; then no
    half-written file stands under a final name.
    """
    temporary = None
    try:
        out.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=out))
        outputs = {name: _write_lines(temporary / name, listed) for name, listed in entries.items()}
        content = json.dumps({**manifest, "versions": _versions(), "outputs": outputs}, indent=1, sort_keys=True) + "\n"
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


def described_inputs(files: Iterable[Path], root: Path, workers: int = 1) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each file that was read, by its name below `root` (or its own where it lies elsewhere)."""
    listed = list(files)
    with ThreadPoolExecutor(workers) as pool:
        digests = list(pool.map(_digest, listed))
    return {
        path_below(file, root): {"bytes": file.stat().st_size, "sha256": digest}
        for file, digest in zip(listed, digests, strict=True)
    }


def path_below(path: Path, root: Path) -> str:
    """`path` relative to `root` with slashes; its bare name where it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    """What the written files may depend on."""
    return {"mmadapter": mmadapter.__version__, "python": platform.python_version(), "pillow": PIL.__version__}


def _write_lines(file: Path, entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    digest, count = hashlib.sha256(), 0
    with file.open("wb") as stream:
        for entry in entries:
            line = (json.dumps(entry, ensure_ascii=False) + "\n").encode()
            digest.update(line)
            stream.write(line)
            count += 1
    return {"lines": count, "sha256": digest.hexdigest()}
