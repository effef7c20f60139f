"""Captioned web pictures in webdataset shards, as img2dataset writes CC3M and SBU: NNNNN.tar of KEY.jpg, .txt, .json.

Read with the standard library: shards are plain tar files, and random access to their pictures (`packed_images`) is
what the `webdataset` package, made for streams, does not have.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from mmadapter.data.readers import Purpose
from mmadapter.data.readers.captions import WHOLE, CaptionFiles, caption_samples
from mmadapter.data.readers.pictures import ImageFolders
from mmadapter.data.samples import Sample
from mmadapter.data.settings import CaptionShardsSettings
from mmadapter.errors import InputError
from mmadapter.vision.packed_images import packed_path

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
CAPTION, FACTS = "txt", "json"
BESIDE = (".parquet", "_stats.json")  # what img2dataset writes next to its shards
NO_PICTURE = "keys without a picture"
NO_TEXT = "keys without a .txt"
NOT_FETCHED = "keys whose status is not success"
KEY_TWICE = "keys that stand in an earlier shard, too"
FILE_TWICE = "files that stand twice in a shard"
CUT_OFF = "shards that are cut off or no tar archives"
UNREADABLE = "keys whose .txt or .json cannot be read"
Member = tuple[str, int, int]  # name, where its content begins, its bytes
Members = Mapping[str, Member]


def read_caption_shards(settings: CaptionShardsSettings, purpose: Purpose) -> list[Sample]:
    """The captioned pictures of all *.tar under the root, in the shards' order, or of the one that `path` names.

    The pictures stay in their shards. With `limit`, later shards are not opened. See `caption_samples`.
    """
    assert settings.root is not None
    return caption_samples(shard_files(Path(settings.root), settings.path, settings.limit), settings, purpose)


def shard_files(root: Path, path: str | Path | None, limit: int | None = None) -> CaptionFiles:
    """What the shards hold, up to `limit` pictures. Raises InputError where there is no readable shard."""
    named = Path(path) if path is not None else root
    shards = sorted(named.glob("*.tar")) if named.is_dir() else [named]
    if not shards or not shards[0].is_file():
        packed = sum(1 for _ in named.glob("*.tar.*"))
        more = f" ({packed} compressed ones are; unpack them with gunzip: nothing can be read in their middle)"
        raise InputError(f"{named}: there are no shards *.tar there{more if packed else ''}. Check the data root.")
    found = CaptionFiles([], ImageFolders(root))
    for folder in dict.fromkeys(shard.parent for shard in shards):
        for kind in BESIDE:
            found.ignored[f"*{kind} beside the shards"] += sum(1 for _ in folder.glob(f"*{kind}"))
    found.ignored = +found.ignored
    seen: set[str] = set()
    for shard in shards:
        found.files.append(shard)
        _read_shard(found, shard, seen)
        if limit is not None and len(found.splits.get(WHOLE, ())) >= limit:
            break
    return found


def _read_shard(found: CaptionFiles, shard: Path, seen: set[str]) -> None:
    keys, whole = _members(found, shard)
    if not whole:
        after = f"its last key is {list(keys)[-1]}" if keys else "nothing can be read"
        found.lose(CUT_OFF, f"{shard.name} ({shard.stat().st_size:,} bytes, {after})", 0)
    with shard.open("rb") as stream:
        for key, members in keys.items():
            where = f"{shard.name}, key {key}"
            if key in seen:
                found.lose(KEY_TWICE, where, CAPTION in members)
                continue
            seen.add(key)
            caption = _caption(found, stream, members, where)
            if caption is not None:
                member, offset, _ = next(members[ending] for ending in PICTURES if ending in members)
                found.add(WHOLE, key, packed_path(shard, member, offset), [(1, caption)], where)


def _members(found: CaptionFiles, shard: Path) -> tuple[dict[str, dict[str, Member]], bool]:
    """Key to ending to member, and whether the archive is whole up to its end mark."""
    keys: dict[str, dict[str, Member]] = {}
    size = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as archive:
            while (member := archive.next()) is not None:
                if member.offset_data + member.size > size:
                    return keys, False
                if member.isfile():
                    _sort_in(found, keys, member, shard.name)
            stream = archive.fileobj
            assert stream is not None
            stream.seek(archive.offset)  # type: ignore[attr-defined]  # where the next header would begin
            return keys, stream.read(tarfile.BLOCKSIZE) == tarfile.NUL * tarfile.BLOCKSIZE
    except tarfile.TarError:
        return keys, False
    except OSError as error:
        raise InputError(f"{shard}: the shard cannot be read ({error.strerror}).") from error


def _sort_in(found: CaptionFiles, keys: dict[str, dict[str, Member]], member: tarfile.TarInfo, where: str) -> None:
    """Webdataset's rule: what stands before the first dot of the name is the key."""
    folder, _, name = member.name.removeprefix("./").rpartition("/")
    key, _, ending = name.partition(".")
    key, ending = f"{folder}/{key}" if folder else key, ending.lower()
    if ending not in (*PICTURES, CAPTION, FACTS):
        found.ignored["other files in the shards"] += 1
    elif ending in keys.setdefault(key, {}):
        found.lose(FILE_TWICE, f"{where}, {member.name}", ending == CAPTION)
    else:
        keys[key][ending] = (member.name, member.offset_data, member.size)


def _caption(found: CaptionFiles, stream: BinaryIO, members: Members, where: str) -> str | None:
    """The key's caption; None, and a defect, where the key cannot be used."""

    def content(ending: str) -> bytes:
        _, offset, size = members[ending]
        stream.seek(offset)
        return stream.read(size)

    lost = CAPTION in members
    try:
        facts = json.loads(content(FACTS)) if FACTS in members else {}
        text = content(CAPTION).decode("utf-8-sig") if lost else ""
    except ValueError as error:  # of JSON or of UTF-8
        found.lose(UNREADABLE, f"{where}: {error}", lost)
        return None
    status = facts.get("status", "success") if isinstance(facts, dict) else None
    if status != "success":
        found.lose(NOT_FETCHED, f"{where}: {status}", lost)
    elif not any(ending in members for ending in PICTURES):
        found.lose(NO_PICTURE, where, lost)
    elif not lost:
        found.lose(NO_TEXT, where, 0)
    else:
        return text
    return None
