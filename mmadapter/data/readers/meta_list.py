"""Official V2's data configuration: a YAML file with `META:`, a list of files."""

from __future__ import annotations

from pathlib import Path

import yaml

from mmadapter.errors import InputError


def read_meta_list(path: Path, root: Path | None = None) -> list[Path]:
    """The files that `META` lists, taken as they are named, beside the YAML file or under `root`.

    Raises InputError on another layout, on a file that is absent and on one that is listed twice.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror}). Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: this is no YAML ({error}).") from error
    named = content.get("META") if isinstance(content, dict) else None
    if not isinstance(named, list) or not named or not all(isinstance(name, str) for name in named):
        raise InputError(f"{path}: expected `META:` with a list of file names, as in the official V2 code.")
    if twice := [name for name in dict.fromkeys(named) if named.count(name) > 1]:
        raise InputError(f"{path}: META lists {twice[0]} twice. Take one out.")
    return [_listed_file(path, name, root) for name in named]


def _listed_file(path: Path, name: str, root: Path | None) -> Path:
    candidates = [path.parent / name, Path(name)] + ([root / name] if root is not None else [])
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InputError(f"{path}: META lists {name}, which is neither beside this file nor under {root or 'a root'}.")
