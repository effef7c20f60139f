"""JSON files read strictly: BOM and CRLF accepted; truncation, duplicate keys and bad text told by file and byte."""

from __future__ import annotations

import codecs
import gc
import json
import logging
import re
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

from mmadapter.data.readers.defects import EXAMPLES
from mmadapter.errors import InputError, described

OTHER_KINDS = (".csv", ".tsv", ".parquet")
_BLANKS = " \t\r\n"
HALVES = re.compile(r"\\u[dD][89a-fA-F]")  # how JSON writes one
LONE = re.compile("[\ud800-\udfff]")  # json joins those that belong together
log = logging.getLogger(__name__)


@contextmanager
def collection_paused() -> Iterator[None]:
    """No search for reference cycles meanwhile (half of the time that COCO's 567K captions take); JSON has none."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@collection_paused()
def read_json(path: Path, without: Collection[str] = ()) -> Any:
    """The content of a JSON file; raises InputError with byte offset and last whole entry where it is damaged.

    Fields named in `without` are dropped while reading, in every object: they take no memory.
    """
    refuse_other_kinds(path)
    text = read_text(path)
    try:
        content = json.loads(text, object_pairs_hook=lambda pairs: _object(path, pairs, without))
        return whole_characters(path, text, content)
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode())
        ended = not text[error.pos :].strip() or error.msg.startswith("Unterminated")
        cut = "ends too early" if ended else "is damaged"
        raise InputError(
            f"{path}: the JSON {cut} at byte {offset} of {path.stat().st_size} ({error.msg}); "
            f"the last whole entry is {last_whole_entry(text) or 'none'}. Fetch the file again, or mend it there."
        ) from error
    except RecursionError as error:
        raise InputError(f"{path}: the JSON is nested too deeply to be a data file.") from error
    except ValueError as error:
        raise InputError(f"{path}, {_long_number(text)}") from error


@collection_paused()
def read_json_lines(path: Path) -> list[Any]:
    """The entries of a JSON-lines file; raises InputError with file and line where one is damaged."""
    entries: list[Any] = []
    text = read_text(path)
    if text.lstrip().startswith("[") and text.rstrip().endswith("]"):
        raise InputError(
            f"{path}: this is one JSON list, not an object a line. Call the file {path.with_suffix('.json').name}"
        )
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entries.append(json.loads(line, object_pairs_hook=lambda pairs: _object(path, pairs)))
        except json.JSONDecodeError as error:
            where = f"{path}, line {number}, column {error.colno}"
            raise InputError(f"{where}: this is no JSON ({error.msg}). Fix the line.") from error
        except RecursionError as error:
            raise InputError(f"{path}, line {number}: the JSON is nested too deeply to be an item.") from error
        except ValueError as error:
            raise InputError(f"{path}, line {number}, {_long_number(line)}") from error
    return whole_characters(path, text, entries)


def _long_number(text: str) -> str:
    """What to say of a number that Python does not read, and where it stands."""
    found = re.search(r"\d{4000,}", text)
    place = "" if found is None else f"byte {len(text[: found.start()].encode('utf-8', 'surrogatepass'))}: "
    return f"{place}a number has more than {sys.get_int_max_str_digits():,} digits. Shorten it, or write it as text."


def whole_characters(path: Path, text: str, content: Any) -> Any:
    """The content of a JSON text with U+FFFD in place of half characters, and a warning that counts them.

    JSON can write the halves of a surrogate pair apart ("\\ud83d" without its other half: a caption that was cut
    within an emoji). No text that a tokenizer or a file takes holds such a half.
    """
    if HALVES.search(text) is None:
        return content
    places: list[str] = []
    content = _without_halves(content, "", places)
    if places:
        log.warning(
            "%s: %d texts hold half of a character (a surrogate without its other half), which is read as \ufffd; the "
            "first: %s.",
            *(path, len(places), "; ".join(places[:EXAMPLES])),
        )
    return content


def _without_halves(value: Any, place: str, places: list[str]) -> Any:
    if isinstance(value, str):
        whole = LONE.sub("\ufffd", value)
        if whole != value:
            places.append(place or "the whole")
        return whole
    if isinstance(value, list):
        return [_without_halves(one, f"{place}[{number}]", places) for number, one in enumerate(value)]
    if isinstance(value, dict):
        found = {}
        for name, one in value.items():
            key = _without_halves(name, f"{place}, a name", places)
            found[key] = _without_halves(one, f"{place}.{key}" if place else key, places)
        return found
    return value


def is_json_lines(path: Path) -> bool:
    """Whether a file is JSON lines: its name ends in .jsonl, or its first two lines are an object each."""
    if path.suffix.lower() == ".jsonl":
        return True
    try:
        with path.open(encoding="utf-8-sig") as lines:
            first, second = lines.readline(1 << 20).strip(), lines.readline(1 << 20).strip()
        return second.startswith("{") and isinstance(json.loads(first), dict)
    except (OSError, ValueError, RecursionError):
        return False


def read_items(path: Path) -> list[Any]:
    """The list in a JSON file (itself, or the only one, `data`), or JSON lines."""
    items = read_json_lines(path) if is_json_lines(path) else read_json(path)
    if isinstance(items, dict) and isinstance(items.get("data"), list):
        items = items["data"]
    if not isinstance(items, list):
        raise InputError(f"{path}: expected a list of items, got {described(items)}.")
    return items


def last_whole_entry(text: str) -> str | None:
    """Where in a cut-off JSON text the last complete entry stands, such as `"17"` or `images[41]`."""
    text = text.lstrip()
    if not text.startswith(("{", "[")):
        return None
    is_object = text.startswith("{")
    last, name, begin, position, place = None, "", 0, 1, 0
    decoder = json.JSONDecoder()
    try:
        while True:
            position = _behind(text, position, "," if place else "")
            if is_object:
                name, position = decoder.raw_decode(text, position)
                position = begin = _behind(text, position, ":")
            _, position = decoder.raw_decode(text, position)
            last = f'"{name}"' if is_object else f"[{place}]"
            begin, place = 0, place + 1
    except json.JSONDecodeError:
        # The entry that breaks off may be a long list of entries itself (COCO's files): name the last one in there.
        inner = last_whole_entry(text[begin:]) if begin else None
        return f"{name}{inner}" if inner and inner.startswith("[") else last


def _behind(text: str, position: int, sign: str) -> int:
    """The position of the next value: behind blanks, `sign` and blanks."""
    while text[position : position + 1] in _BLANKS and position < len(text):
        position += 1
    if sign:
        if text[position : position + 1] != sign:
            raise json.JSONDecodeError("no separator", text, position)
        return _behind(text, position + 1, "")
    return position


def read_text(path: Path) -> str:
    """A file of text; raises InputError where it cannot be read, is empty, or is not UTF-8."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: the file cannot be read ({error.strerror}). Check the path.") from error
    if not content.strip():
        raise InputError(f"{path}: the file is empty. Fetch it again.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            told, encoding = "the file is UTF-16, not UTF-8", "UTF-16"
        else:
            told, encoding = f"byte {error.start} is not UTF-8 ({error.reason})", "WINDOWS-1252"
        raise InputError(
            f"{path}: {told}. Save the file as UTF-8 (if it is {encoding}: iconv -f {encoding} -t UTF-8 "
            f"{quote(str(path))} > {quote(str(path.with_name(f'utf8-{path.name}')))}), or fetch it again."
        ) from error


def refuse_other_kinds(path: Path) -> None:
    """Raises InputError for a file that is meant to be no JSON, by its name."""
    if path.suffix.lower() in OTHER_KINDS:
        raise InputError(
            f"{path}: this is a table, not JSON. Questions and answers in a table are read by reader=own; "
            "pictures with captions, url<TAB>caption, by reader=caption_table."
        )


def _object(path: Path, pairs: list[tuple[str, Any]], without: Collection[str] = ()) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{path}: the key {twice!r} stands twice in one object; ids and field names must be unique.")
    for name in without:
        entries.pop(name, None)
    return entries
