"""Readers: files in their publishers' layouts to lists of samples; `read` is the door to all of them.

A reader is a function (settings, purpose) -> list of samples, registered with its settings class in `data.settings`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from mmadapter.data.readers.json_file import collection_paused
from mmadapter.data.samples import Sample
from mmadapter.data.settings import READERS, ReaderSettings
from mmadapter.errors import InputError
from mmadapter.settings import problems_of

Settings = TypeVar("Settings", bound=ReaderSettings)


class MissingData(InputError):
    """No place to read from is named, or there is no such file or folder."""


@dataclass(frozen=True)
class Purpose:
    """What samples are read for."""

    source: str  # the name that the samples bear
    training: bool  # with their answers; else their last turn is to be answered
    seed: int = 0  # of what is drawn (captions_per_image=one)
    tokenizer: Any = None  # the host's, for template=auto; None where no model is asked


@collection_paused()
def read(
    settings: ReaderSettings,
    root: str | Path | None = None,
    *,
    source: str,
    training: bool,
    images: bool = True,
    seed: int = 0,
    key: str = "",
    tokenizer: Any = None,
) -> list[Sample]:
    """The samples of one source, in the order of its files.

    `root` is where settings without a place of their own are read from; `images=False` leaves pictures out whatever
    the settings say; `key` is where the settings stand, for messages; `tokenizer` is the host's, whose chat template
    template=auto means. Raises InputError naming file and place for what cannot be used, MissingData where nothing is
    there.
    """
    key = key or settings.reader
    for problem in problems_of(settings, key):
        raise InputError(problem)
    placed = replace(placed_settings(settings, root, key), images=settings.images and images)
    return READERS.load(settings.reader)(placed, Purpose(source, training, seed, tokenizer))


def placed_settings(settings: Settings, root: str | Path | None, key: str) -> Settings:
    """The settings with their places resolved: ~ is the home folder, `path` is looked for below `root` first.

    A reader of folders gets the folder as `root`, and a file as `path` where one is named. Raises MissingData.
    """
    paths = {item.name: getattr(settings, item.name) for item in fields(settings) if "input_path" in item.metadata}
    found = {name: str(Path(value).expanduser()) for name, value in paths.items() if value is not None}
    named = {name: f"{key}.{name}={value}" for name, value in paths.items()}
    if not settings.reads_file and root is not None and not found.keys() & {"root", "path", "problems"}:
        found["root"], named["root"] = str(Path(root).expanduser()), f"data.root={root}"
    elif "problems" in found and not found.keys() & {"root", "path"}:
        found["root"] = str(Path(found["problems"]).parent)
        named["root"] = named["problems"]
    if not found.keys() & {"root", "path"}:
        wanted = f"{key}.path=FILE" if settings.reads_file else f"data.root=FOLDER (or {key}.root, {key}.path)"
        raise MissingData(f"{key} has nothing to read. Set {wanted}")
    if {"root", "path"} <= found.keys() and (below := Path(found["root"], found["path"])).exists():
        found["path"] = str(below)
    for name in ("root", "path"):
        if name in found and not Path(found[name]).exists():
            path = Path(found[name]).absolute()
            above = next((parent for parent in path.parents if parent.exists()), Path("/"))
            raise MissingData(f"{named[name]}: no such file or folder ({above} is there, what follows is not).")
    places: dict[str, Any] = {"root": None, "path": None, **found}
    if not settings.reads_file and None in (places["root"], places["path"]):
        place = Path(places["root"] or places["path"])
        is_file, folder = place.is_file(), place
        if is_file:  # pictures stand beside the folder of the annotations
            folder = place.parent.parent if place.parent.name == "annotations" else place.parent
        places |= {"root": str(folder), "path": str(place) if is_file else None}
    return replace(settings, **places)


def only_file(folder: Path, endings: Sequence[str], what: str) -> Path:
    """The only file of the folder that has one of the endings; files with an earlier ending hide those with a later.

    Raises InputError, which says `what` is expected.
    """
    found: list[Path] = []
    for ending in endings:
        found = found or sorted(file for file in folder.glob(f"*{ending}") if file.is_file())
    if len(found) == 1:
        return found[0]
    got = f"found {', '.join(file.name for file in found[:5])}" if found else "found none"
    raise InputError(f"{folder}: expected {what} (*{', *'.join(endings)}); {got}. Name the file with `path`.")
