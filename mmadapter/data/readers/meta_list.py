"""The official V2's lists of data files: YAML with `META:`, of paths or LLaMA2-Accessory's {path, root, type}."""

from __future__ import annotations

from pathlib import Path

import yaml

from mmadapter.errors import InputError


def read_meta_list(file: Path, root: Path | None, kind: str | None = None) -> list[tuple[Path, str]]:
    """The files that `META` lists, each with the folder of its pictures ("" where none is named).

    A file is looked for beside the list, under `root` and as it is named. Raises InputError on another layout, on an
    entry of another type than `kind`, on a file that is absent and on one that is listed twice.
    """
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{file}: the file cannot be read ({error.strerror}). Check the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: this is no YAML ({' '.join(str(error).split())}).") from error
    entries = content.get("META") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{file}: expected `META:` with a list of files, as in the official V2 code.")
    listed: dict[Path, str] = {}
    for number, entry in enumerate(entries):
        where = f"{file}, META[{number}]"
        fields = {"path": entry} if isinstance(entry, str) else entry
        if not isinstance(fields, dict) or not isinstance(fields.get("path"), str):
            raise InputError(f"{where}: expected a path, or an object with `path`; got {str(entry)[:80]!r}.")
        if kind is not None and fields.get("type", kind) != kind:
            raise InputError(f"{where}: its type is {fields['type']!r}; expected is {kind}. Take it out.")
        named = Path(fields["path"])
        places = dict.fromkeys((file.parent / named, *([root / named] if root is not None else []), named))
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise InputError(f"{where}: there is no file {named}. Looked at: {', '.join(map(str, places))}.")
        if found in listed:
            raise InputError(f"{where}: {named} stands there twice. Take one out.")
        listed[found] = str(fields.get("root") or "")
    return list(listed.items())
