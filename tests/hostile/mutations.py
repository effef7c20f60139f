"""Valid files spoiled by chance: cut, bytes changed, types swapped, nested, numbers that are none, half characters."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.hostile.judging import Case
from tests.hostile.layouts import Layout, data_layouts, other_layouts

RAW = "RAW-{}-WAR"  # put in by the number of a text of RAWS, which json.dumps would not write; replaced afterwards
RAWS = (
    "9" * 5000,
    "1e999",
    "NaN",
    "-Infinity",
    "[" * 3000 + "]" * 3000,
    "[" * 100_000,
    '"\\ud83d"',
    '"\\u0000\\u001b[2J"',
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    10**30,
    1.5,
    "",
    "text",
    [],
    {},
    [[]],
    [None],
    {"a": None},
    "x" * 5000,
    "../" * 30 + "etc/passwd",
    "/etc/hostname",
    "\x1b]0;title\x07",
    "<script>alert(1)</script>",
    "\u202e",
    "a\x00b",
    "=1+1",
    "{{ 1 }}",
    "${x}",
)
INSERTED = (b"\x00", b"\x1b[2J", b'"', b"\t", b"\n", b"\r", b",", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x80\xa8")


def mutated(count: int, seed: int) -> Iterator[Case]:
    """`count` cases, in turns of every layout."""
    data, others = list(data_layouts()), list(other_layouts())
    for number in range(count):
        place = number % len(data + others)
        yield case([*data, *others][place], f"{seed}/{number}", keeps_marks=place < len(data))


def case(layout: Layout, seed: str, keeps_marks: bool) -> Case:
    """One layout with one of its files spoiled as the seed says. Where it is still valid, nothing of it may be lost."""

    def act(folder: Path) -> str:
        layout.write(folder)
        rng = random.Random(f"{layout.name} {seed}")
        files = sorted(file for pattern in layout.files for file in folder.glob(pattern) if file.is_file())
        chosen.append(rng.choice(files))
        spoil(chosen[0], rng)
        return layout.read(folder)

    def given(folder: Path) -> str:  # a list of files may name fewer of them
        return chosen[0].read_bytes().decode(errors="ignore")

    chosen: list[Path] = []

    return Case("mutated", f"{layout.name}, {seed}", act, "either", given=given if keeps_marks else None)


def spoil(file: Path, rng: random.Random) -> None:
    """Changes one file in one way: its bytes, or what JSON says in it."""
    content = file.read_bytes()
    if file.suffix in (".json", ".jsonl") and rng.random() < 0.7:
        try:
            file.write_text(spoiled_json(content.decode(), file.suffix == ".jsonl", rng), encoding="utf-8")
            return
        except ValueError:
            pass
    file.write_bytes(rng.choice(BYTES)(bytearray(content), rng))


def _cut(content: bytearray, rng: random.Random) -> bytes:
    return bytes(content[: rng.randrange(len(content) + 1)])


def _flip(content: bytearray, rng: random.Random) -> bytes:
    for _ in range(rng.choice((1, 1, 5))):
        if content:
            content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def _insert(content: bytearray, rng: random.Random) -> bytes:
    place = rng.randrange(len(content) + 1)
    return bytes(content[:place] + rng.choice(INSERTED) + content[place:])


def _drop(content: bytearray, rng: random.Random) -> bytes:
    start = rng.randrange(len(content) + 1)
    return bytes(content[:start] + content[start + rng.randrange(1, 40) :])


def _twice(content: bytearray, rng: random.Random) -> bytes:
    return bytes(content + content)


def _utf16(content: bytearray, rng: random.Random) -> bytes:
    return bytes(content).decode("utf-8", "replace").encode("utf-16")


Way = Callable[[bytearray, random.Random], bytes]
BYTES: tuple[Way, ...] = (
    _cut,
    _cut,
    _flip,
    _insert,
    _insert,
    _drop,
    _twice,
    _utf16,
)  # cut and insert come twice as often


def spoiled_json(text: str, is_lines: bool, rng: random.Random) -> str:
    """A JSON text, or JSON lines, with one place changed."""
    content = [json.loads(line) for line in text.splitlines()] if is_lines else json.loads(text)
    whole = [content]  # so that the content itself has a holder, too
    places = list(_places(whole))
    holder, key = rng.choice(places[1:] or places)
    way = rng.choice(("value", "value", "raw", "raw", "drop", "rename", "again", "end", "control"))
    value, raw = holder[key], None
    if way == "raw":
        raw = rng.randrange(len(RAWS))
        holder[key] = RAW.format(raw)
    elif way == "drop":
        del holder[key]
    elif way == "rename" and isinstance(holder, dict):
        holder[f"{key}{rng.choice(('s', ' ', '_2', chr(0x1B) + '[31m'))}"] = holder.pop(key)
    elif way == "again" and isinstance(holder, list):
        holder.insert(key, value)
    elif way in ("end", "control") and isinstance(value, str):
        holder[key] = value + ("\ud83d" if way == "end" else "\x1b[2J\x00\x9b")
    else:
        holder[key] = rng.choice(VALUES)
    content = whole[0] if whole else None
    if is_lines and isinstance(content, list):
        written = "".join(json.dumps(one) + "\n" for one in content)
    else:
        written = json.dumps(content)
    return written if raw is None else written.replace(f'"{RAW.format(raw)}"', RAWS[raw])


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every holder and key in nested lists and dicts."""
    for key, child in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(child, dict | list):
            yield from _places(child)
