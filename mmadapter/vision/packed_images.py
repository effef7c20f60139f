"""Pictures inside of tar archives, named as paths: ARCHIVE.tar/MEMBER@OFFSET; read without unpacking or scanning.

Such a path needs no other type than a picture on the disk, and survives being written to a file and read again. OFFSET
is where the member's content begins; the header before it is compared with MEMBER, so an archive that was made anew
since is an error and never another picture.
"""

from __future__ import annotations

import re
import tarfile
from pathlib import Path, PurePosixPath

from mmadapter.errors import InputError

PACKED = re.compile(r"(?P<archive>.+\.tar)/(?P<member>.+)@(?P<offset>\d+)", re.DOTALL)
LONGEST_NAME = 100  # bytes of a name that a tar header itself holds; the rest of a longer one stands elsewhere


def packed_path(archive: Path, member: str, offset: int) -> Path:
    """The path that names the content of `member`, which begins at byte `offset` of `archive`."""
    return archive / f"{member}@{offset}"


def picture_exists(path: Path) -> bool:
    """Whether the picture is there, on the disk or in an archive that is; a name that no file can have is not."""
    try:
        return path.is_file() or _in_archive(path) is not None
    except (OSError, ValueError):  # of 5,000 letters, say
        return False


def packed_content(path: Path) -> bytes | None:
    """The member's bytes; None where `path` names no place in an archive. Raises InputError where it is not there."""
    packed = _in_archive(path)
    if packed is None:
        return None
    archive, member, offset = Path(packed["archive"]), packed["member"], int(packed["offset"])
    changed = f"{archive}: no file {member} begins at byte {offset}; the archive was changed. Read it (or prepare the "
    changed += "data) again"
    try:
        with archive.open("rb") as stream:
            stream.seek(max(offset - tarfile.BLOCKSIZE, 0))
            header = tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
            content = stream.read(header.size)
    except tarfile.HeaderError as error:
        raise InputError(f"{changed} ({error})") from error
    except OSError as error:
        raise InputError(f"{archive}: the archive cannot be read ({error.strerror}).") from error
    in_another_header = len(member.encode()) >= LONGEST_NAME or not member.isascii()
    if not in_another_header and PurePosixPath(header.name) != PurePosixPath(member):
        raise InputError(f"{changed} ({header.name!r} is there)")
    if len(content) < header.size:
        raise InputError(f"{archive}: it is cut off inside of {member}. Fetch the archive again.")
    return content


def _in_archive(path: Path) -> re.Match[str] | None:
    match = PACKED.fullmatch(str(path))
    return match if match is not None and Path(match["archive"]).is_file() else None
