"""The user's own tables as rows: CSV, TSV and Parquet."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

from mmadapter.data.readers.json_file import read_text
from mmadapter.errors import InputError

TABLES = (".csv", ".tsv", ".parquet")
DELIMITERS = ",;\t|"
MOST_IN_A_FIELD = 1 << 30


def read_table(file: Path) -> list[dict[str, Any]]:
    """The rows of a table by the names in its header. Raises InputError naming file and line where one is damaged."""
    return _parquet(file) if file.suffix.lower() == ".parquet" else _csv(file)


def _csv(file: Path) -> list[dict[str, Any]]:
    """The rows; fields may be quoted and hold newlines. The delimiter is the one that occurs most in the header."""
    text = read_text(file)
    header = text.lstrip("\r\n").split("\n", 1)[0]
    if said := re.fullmatch(r"sep=(.)\r?", header):  # a line for Excel, in front of the header
        delimiter, text = said[1], text.lstrip("\r\n")[len(header) :]
    else:
        delimiter = "\t" if file.suffix.lower() == ".tsv" else max(DELIMITERS, key=header.count)
    csv.field_size_limit(MOST_IN_A_FIELD)
    # newline="": newlines within quotes stay as they are.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    rows: list[dict[str, Any]] = []
    try:
        for fields in reader:
            if not names:
                names = [name.strip() for name in fields]
                if twice := next((name for name in names if names.count(name) > 1), None):
                    raise InputError(
                        f"{file}: the column {twice!r} stands twice in the first line. Rename one of them."
                    )
            elif len(fields) == len(names):
                rows.append(dict(zip(names, fields, strict=True)))
            elif fields:  # an empty line is none
                raise InputError(
                    f"{file}, line {reader.line_num}: it has {len(fields)} fields, the first line has {len(names)} "
                    f"({', '.join(names)[:80]}). Put quotes around a field that holds {delimiter!r} or a newline."
                )
    except csv.Error as error:
        told = f"{error}; a quote within a quoted field is written twice"
        raise InputError(f"{file}, line {reader.line_num}: the table is damaged ({told}).") from error
    return rows


def _parquet(file: Path) -> list[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(f"{file}: reading Parquet needs pyarrow. Install it: pip install 'mmadapter[data]'") from error
    try:
        rows: list[dict[str, Any]] = parquet.read_table(file).to_pylist()
        return rows
    except (OSError, UnicodeDecodeError, pyarrow.ArrowException) as error:
        raise InputError(f"{file}: it cannot be read as Parquet ({str(error).splitlines()[0]}).") from error
