"""Model folders that are there whole or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from mmadapter.errors import InputError


def refuse_existing(target: Path) -> None:
    """Raises InputError where something of this name is there already."""
    if target.exists():
        raise InputError(f"{target} exists already. Choose another folder, or remove it first.")


def whole_or_not_at_all(target: Path, write: Callable[[Path], None]) -> None:
    """Have `write` fill a temporary folder beside `target`, and give it that name when it is complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        write(temporary)
        for path in (temporary, *temporary.rglob("*")):  # safetensors' files are the owner's only
            path.chmod(0o755 if path.is_dir() else 0o644)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
