"""Captions as the official V2 pre-trains on them: a YAML list of files, each with lines of url TAB caption.

`url` is the path of a picture. Deviates: the official code reads these files with pandas' quoting and NaN detection
on, which joins lines at a quote and turns the captions "None" and "NA" into nan. Here a line is a line, a text a text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mmadapter.data.readers.captions import WHOLE, CaptionFiles, caption_samples, named_file
from mmadapter.data.readers.images_on_disk import ImageFolders, check_missing_image
from mmadapter.data.readers.many_objects import collection_paused
from mmadapter.data.samples import Sample
from mmadapter.errors import InputError

LISTS, TABLES = (".yaml", ".yml"), (".tsv", ".csv")
HEADER = ("url", "caption")
OTHER_FIELDS = "lines that have not two fields"


def read_caption_table(
    root: Path,
    split: str = WHOLE,
    *,
    training: bool,
    source: str = "caption_table",
    limit: int | None = None,
    template: str = "alpaca",
    captions_per_image: str = "all",
    seed: int = 0,
    missing_image: str = "error",
    with_images: bool = True,
    path: Path | None = None,
    on_bad: str = "error",
) -> list[Sample]:
    """The captioned pictures of such files; `path` names the YAML list or one table, `root` the pictures' folder.

    There is one split, train. Lines of one picture count as its captions (see `caption_samples`).
    """
    check_missing_image(missing_image)
    return caption_samples(
        table_files(Path(root), path),
        split,
        training=training,
        source=source,
        limit=limit,
        template=template,
        captions_per_image=captions_per_image,
        seed=seed,
        missing_image=missing_image,
        with_images=with_images,
        on_bad=on_bad,
    )


@collection_paused()
def table_files(root: Path, path: Path | None) -> CaptionFiles:
    """All tables that the list names. Raises InputError naming file and line where one is no such table."""
    file = named_file(root, path, LISTS + TABLES, "list of tables or table")
    if root.is_file():
        root = root.parent
    tables = _listed(file, root) if file.suffix in LISTS else [(file, "")]
    found = CaptionFiles([file, *(table for table, _ in tables if table != file)], ImageFolders(root))
    pictures: dict[str, tuple[list[tuple[int | str, str]], str]] = {}
    captions = 0
    for table, folder in tables:
        for number, url, caption in _rows(found, table):
            captions += 1
            name = f"{folder}/{url}" if folder else url
            pictures.setdefault(name, ([], f"{table.name}, line {number}"))[0].append((captions, caption))
    for name, (texts, where) in pictures.items():
        found.add(WHOLE, name, found.folders.find(name), texts, where)
    return found


def _listed(file: Path, root: Path) -> list[tuple[Path, str]]:
    """The tables of `META:` with the folder of their pictures; entries are paths, or LLaMA2-Accessory's objects."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{file}: the YAML cannot be read ({' '.join(str(error).split())}).") from error
    entries = content.get("META") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{file}: expected `META:` with a list of tab-separated files.")
    return [_table(file, root, number, entry) for number, entry in enumerate(entries)]


def _table(file: Path, root: Path, number: int, entry: Any) -> tuple[Path, str]:
    where = f"{file}, META[{number}]"
    fields = {"path": entry} if isinstance(entry, str) else entry
    if not isinstance(fields, dict) or not isinstance(fields.get("path"), str):
        raise InputError(f"{where}: expected a path, or an object with `path`; got {str(entry)[:80]!r}.")
    if fields.get("type", "image_text") != "image_text":
        raise InputError(f"{where}: its type is {fields['type']!r}; captions are of type image_text. Take it out.")
    named = Path(fields["path"])
    places = (file.parent / named, root / named, named)
    table = next((place for place in places if place.is_file()), None)
    if table is None:
        raise InputError(f"{where}: there is no file {named}. Looked at: {', '.join(map(str, dict.fromkeys(places)))}.")
    return table, str(fields.get("root") or "")


def _rows(found: CaptionFiles, table: Path) -> Iterator[tuple[int, str, str]]:
    """(line number, picture, caption); a line that has not two fields is a defect."""
    order: tuple[int, ...] | None = None
    try:
        # newline="\n": a carriage return inside of a caption ends no line.
        with table.open(encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                fields = line.rstrip("\r\n").split("\t")
                if order is None:
                    order = _order(table, fields)
                elif len(fields) == len(HEADER) and fields[order[0]].strip():
                    yield number, fields[order[0]].strip(), fields[order[1]]
                else:
                    found.lose(OTHER_FIELDS, f"{table.name}, line {number}: {line.strip()[:60]!r}", 1)
    except OSError as error:
        raise InputError(f"{table}: the file cannot be read ({error.strerror}). Check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{table}: it is not UTF-8 ({error.reason}). Save the file as UTF-8.") from error
    if order is None:
        raise InputError(f"{table}: the file is empty. Fetch it again.")


def _order(table: Path, header: list[str]) -> tuple[int, ...]:
    if sorted(header) != sorted(HEADER):
        shown = "<TAB>".join(header)[:80]
        raise InputError(
            f"{table}, line 1: the header is {shown!r}; expected url<TAB>caption. "
            "(CC3M's own list is caption<TAB>url without a header: fetch its pictures with img2dataset first.)"
        )
    return tuple(header.index(name) for name in HEADER)
