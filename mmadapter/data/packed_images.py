"""Pictures inside of tar archives, named as paths: ARCHIVE.tar/MEMBER@OFFSET; read without unpacking or scanning.

A path needs no other type than a picture on the disk, survives being written to a file and read again, and says which
archive and member it means. OFFSET is where the member's content begins; the header that stands before it is compared
with MEMBER, so an archive that was made anew since is an error and never another picture.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path, PurePosixPath

from mmadapter.errors import InputError

PACKED = re.compile(r"(?P<archive>.+\.tar)/(?P<member>.+)@(?P<offset>\d+)", re.DOTALL)
LONGEST_NAME = 100  # bytes of a name that the header itself holds; the rest of a longer one stands elsewhere


def packed_path(archive: Path, member: str, offset: int) -> Path:
    """The path that names the content of `member`, which begins at byte `offset` of `archive`."""
    return archive / f"{member}@{offset}"


def picture_exists(path: Path) -> bool:
    """Whether the picture is there, on the disk or in an archive that is."""
    if path.is_file():
        return True
    match = PACKED.fullmatch(str(path))
    return match is not None and Path(match["archive"]).is_file()


def packed_content(path: Path) -> bytes | None:
    """The member's bytes; None where `path` names no place in an archive. Raises InputError where it is not there."""
    match = PACKED.fullmatch(str(path))
    if match is None or not Path(match["archive"]).is_file():
        return None
    archive, member, offset = Path(match["archive"]), match["member"], int(match["offset"])
    try:
        with archive.open("rb") as stream:
            stream.seek(max(offset - tarfile.BLOCKSIZE, 0))
            header = tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
            content = stream.read(header.size)
    except tarfile.HeaderError as error:
        raise InputError(f"{archive}: {_changed(member, offset)} ({error})") from error
    except OSError as error:
        raise InputError(f"{archive}: the archive cannot be read ({error.strerror}).") from error
    if not _same_name(header.name, member):
        raise InputError(f"{archive}: {_changed(member, offset)} ({header.name!r} is there)")
    if len(content) < header.size:
        raise InputError(f"{archive}: it is cut off inside of {member}. Fetch the archive again.")
    return content


def _same_name(stored: str, member: str) -> bool:
    if len(member.encode()) >= LONGEST_NAME or not member.isascii():
        return True  # such names stand in an extra header
    return PurePosixPath(stored) == PurePosixPath(member)


def _changed(member: str, offset: int) -> str:
    return f"no file {member} begins at byte {offset}; the archive was changed. Read it (or prepare the data) again"
