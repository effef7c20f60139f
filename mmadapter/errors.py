"""The one exception that means: what the user gave cannot be used. And what is said of disks and memory."""

import errno
import re
import sys
from collections.abc import Callable
from typing import Any

# C0 without tab and newline, delete, C1, and halves of characters, which no terminal's encoding has
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_ALLOWED = (errno.EROFS, errno.EACCES, errno.EPERM)
NO_SUCH_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)


class InputError(Exception):
    """Bad input. The message says what is wrong, where, what was given, what is allowed and how to mend it.

    The entries print the message without a traceback and exit with status 2.
    """


def printable(text: str) -> str:
    """A text for a terminal: control characters but newline and tab are written out, so that none is obeyed.

    Names, data and answers come from strangers. An escape sequence in them could move the cursor, set the window's
    title or fill the clipboard.
    """
    return CONTROL.sub(
        lambda found: f"\\x{ord(found[0]):02x}" if found[0] < "\ud800" else f"\\u{ord(found[0]):x}", text
    )


def described(value: Any) -> str:
    """A value of a JSON file in a message: its type and its beginning."""
    return "null" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"


def exit_status(work: Callable[[], int | None]) -> int:
    """What a command's `work` returns (nothing: 0); 2 after bad input, which is told in one message on stderr."""
    try:
        return work() or 0
    except InputError as error:
        sys.stdout.flush()
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2


def text_of(error: BaseException) -> str:
    """An error in one message; one that is not the user's to mend says its kind, too."""
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    said = ("allocate memory", "out of memory")  # PyTorch on a CPU; on a GPU, and NCCL
    return isinstance(error, RuntimeError) and any(words in str(error) for words in said)


def disk_trouble(error: OSError, outputs: str) -> str | None:
    """What to say of a disk that is full or may not be used; `outputs` is where was written if the error does not tell.

    None for an error that is not the user's to mend.
    """
    where = error.filename if error.filename is not None else outputs
    if error.errno in NO_ROOM:
        advice = "Make room and run the same command again: it goes on from what is saved."
    elif error.errno in NOT_ALLOWED:
        advice = "Change its permissions, or name another place."
    elif error.errno in NO_SUCH_PLACE and error.filename is not None:
        advice = "Check this path, or name another place."
    else:
        return None
    return f"{where}: {error.strerror}. {advice}"
