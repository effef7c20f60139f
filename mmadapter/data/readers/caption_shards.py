"""Captioned web pictures in webdataset shards, as img2dataset writes CC3M and SBU: NNNNN.tar of KEY.jpg, .txt, .json.

Read with the standard library: shards are plain tar files, and random access to their pictures (`packed_images`) is
what the `webdataset` package, made for streams, does not have.
"""

from __future__ import annotations

import json
import tarfile
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
    """Takes in the keys of a shard; `seen` are those of earlier ones. A key that cannot be used is a defect."""
    keys, is_whole = _members(found, shard)
    if not is_whole:
        after = f"its last key is {list(keys)[-1]}" if keys else "nothing can be read"
        found.lose(CUT_OFF, f"{shard.name} ({shard.stat().st_size:,} bytes, {after})", 0)
    with shard.open("rb") as stream:
        for key, members in keys.items():
            where, captions = f"{shard.name}, key {key}", int(CAPTION in members)
            if key in seen:
                found.lose(KEY_TWICE, where, captions)
                continue
            seen.add(key)
            try:
                facts = json.loads(_content(stream, members[FACTS])) if FACTS in members else {}
                text = _content(stream, members[CAPTION]).decode("utf-8-sig") if captions else ""
            except ValueError as error:  # of JSON or of UTF-8
                found.lose(UNREADABLE, f"{where}: {error}", captions)
                continue
            status = facts.get("status", "success") if isinstance(facts, dict) else None
            picture = next((members[ending] for ending in PICTURES if ending in members), None)
            if status != "success":
                found.lose(NOT_FETCHED, f"{where}: {status}", captions)
            elif picture is None:
                found.lose(NO_PICTURE, where, captions)
            elif not captions:
                found.lose(NO_TEXT, where, 0)
            else:
                found.add(WHOLE, key, packed_path(shard, picture.name, picture.offset_data), [(1, text)], where)


def _members(found: CaptionFiles, shard: Path) -> tuple[dict[str, dict[str, tarfile.TarInfo]], bool]:
    """Key to ending to member, and whether the archive is whole up to its end mark.

    The key is webdataset's: what stands before the first dot of the name.
    """
    keys: dict[str, dict[str, tarfile.TarInfo]] = {}
    size = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as archive:
            while (member := archive.next()) is not None:
                if member.offset_data + member.size > size:
                    return keys, False
                if not member.isfile():
                    continue
                folder, _, name = member.name.removeprefix("./").rpartition("/")
                key, _, ending = name.partition(".")
                key, ending = f"{folder}/{key}" if folder else key, ending.lower()
                if ending not in (*PICTURES, CAPTION, FACTS):
                    found.ignored["other files in the shards"] += 1
                elif ending in keys.setdefault(key, {}):
                    found.lose(FILE_TWICE, f"{shard.name}, {member.name}", ending == CAPTION)
                else:
                    keys[key][ending] = member
            stream = archive.fileobj
            assert stream is not None
            stream.seek(archive.offset)  # type: ignore[attr-defined]  # where the next header would begin
            return keys, stream.read(tarfile.BLOCKSIZE) == tarfile.NUL * tarfile.BLOCKSIZE
    except tarfile.TarError:
        return keys, False
    except OSError as error:
        raise InputError(f"{shard}: the shard cannot be read ({error.strerror}).") from error


def _content(stream: BinaryIO, member: tarfile.TarInfo) -> bytes:
    stream.seek(member.offset_data)
    return stream.read(member.size)
