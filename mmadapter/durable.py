"""Files and folders that appear whole or not at all, and are still there after a power cut.

A rename alone does not promise that: a file system may write the new name before the content, and after a power cut
the name then stands for an empty file. So the content goes to the disk first, then the name.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

LEFTOVERS = ".*.writing"  # what a killed process leaves of a file


def write_durably(path: Path, content: bytes) -> None:
    """Writes a file in place and waits until its content is on the disk; its name is not, before `sync`."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, content: bytes | str) -> None:
    """Puts `content` in the place of `path`, making its folder where there is none.

    Until then it is called .NAME.MACHINE.PROCESS.writing (`LEFTOVERS`), as several may write the same file on a shared
    disk; a write that fails takes it away again.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.writing")
    try:
        write_durably(temporary, content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def make_folder(folder: Path) -> None:
    """Makes a folder and those above it that are missing; their names are on the disk when this returns."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Waits until a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
