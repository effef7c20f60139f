"""Captions as the official V2 pre-trains on them: a YAML list of files, each with lines of url TAB caption.

`url` is the path of a picture. Deviates: the official code reads these files with pandas' quoting and NaN detection
on, which joins lines at a quote and turns the captions "None" and "NA" into nan. Here a line is a line, a text a text.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mmadapter.data.readers import Purpose, only_file
from mmadapter.data.readers.captions import WHOLE, CaptionFiles, caption_samples
from mmadapter.data.readers.meta_list import read_meta_list
from mmadapter.data.readers.pictures import ImageFolders
from mmadapter.data.samples import Sample
from mmadapter.data.settings import CaptionTableSettings
from mmadapter.errors import InputError

LISTS, TABLES = (".yaml", ".yml"), (".tsv", ".csv")
HEADER = ("url", "caption")
OTHER_FIELDS = "lines that have not two fields"


def read_caption_table(settings: CaptionTableSettings, purpose: Purpose) -> list[Sample]:
    """The captioned pictures of such files; `path` names the YAML list or one table, `root` the pictures' folder.

    Lines of one picture count as its captions (see `caption_samples`).
    """
    assert settings.root is not None
    found = table_files(Path(settings.root), settings.path, settings.may_leave)
    return caption_samples(found, settings, purpose, settings.captions_per_image)


def table_files(root: Path, path: str | Path | None, may_leave: bool = False) -> CaptionFiles:
    """All tables that the list names. Raises InputError naming file and line where one is no such table.

    `may_leave`: whether pictures may lie outside of the root.
    """
    file = Path(path) if path is not None else only_file(root, LISTS + TABLES, "one list of tables or table")
    tables = read_meta_list(file, root, "image_text") if file.suffix in LISTS else [(file, "")]
    found = CaptionFiles([file, *(table for table, _ in tables if table != file)], ImageFolders(root), may_leave)
    pictures: dict[str, tuple[list[tuple[int | str, str]], str]] = {}
    captions = 0
    for table, folder in tables:
        for number, url, caption in _rows(found, table):
            captions += 1
            name = f"{folder}/{url}" if folder else url
            pictures.setdefault(name, ([], f"{table.name}, line {number}"))[0].append((captions, caption))
    for name, (texts, where) in pictures.items():
        found.add(WHOLE, name, name, texts, where)
    return found


def _rows(found: CaptionFiles, table: Path) -> Iterator[tuple[int, str, str]]:
    """(line number, picture, caption); a line that has not two fields is a defect."""
    picture = None  # the column of `url`; the other one is the caption
    try:
        # newline="\n": a carriage return inside of a caption ends no line.
        with table.open(encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                fields = line.rstrip("\r\n").split("\t")
                if picture is None:
                    if sorted(fields) != sorted(HEADER):
                        raise InputError(
                            f"{table}, line 1: the header is {'<TAB>'.join(fields)[:80]!r}; expected url<TAB>caption. "
                            "(CC3M's own list is caption<TAB>url without a header: fetch its pictures with "
                            "img2dataset first.)"
                        )
                    picture = fields.index("url")
                elif len(fields) == len(HEADER) and fields[picture].strip():
                    yield number, fields[picture].strip(), fields[1 - picture]
                else:
                    found.lose(OTHER_FIELDS, f"{table.name}, line {number}: {line.strip()[:60]!r}", 1)
    except OSError as error:
        raise InputError(f"{table}: the file cannot be read ({error.strerror}). Check the path.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{table}: it is not UTF-8 ({error.reason}). Save the file as UTF-8.") from error
    if picture is None:
        raise InputError(f"{table}: the file is empty. Fetch it again.")
