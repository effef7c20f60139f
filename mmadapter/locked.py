"""One process at a time in a folder: an advisory lock on a file in it, gone with the process that holds it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from mmadapter.errors import InputError

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of a file system that has none (Lustre without flock)


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """While inside, no other process of this machine is, for the same `path`; the file is taken away afterwards.

    Raises InputError with the text `busy` where one is. Without locks (system, file system) it only makes the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # no such locks on this system
        yield
        return
    while True:
        with open(path, "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise InputError(busy) from error
            else:
                if not _is_still_there(file, path):
                    continue  # its last owner took it away while it was opened here: another may lock a new one
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_still_there(file: IO[str], path: Path) -> bool:
    """Whether an open file is the one that the path names."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
