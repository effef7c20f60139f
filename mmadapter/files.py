"""Files: atomic and durable writes, JSON, JSON lines, their types, a lock on a folder; which packages are installed.

A rename alone is not durable: a file system may write the new name before the content, and after a power cut the name
then stands for an empty file. So the content goes to the disk first, then the name.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, get_args, get_origin, get_type_hints, is_typeddict

from mmadapter.errors import InputError, described

LEFTOVERS = ".*.writing"  # pattern of the temporary files that a killed process leaves
LARGEST_OBJECT = 64 * 2**20  # bytes of a JSON file of settings
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of a file system without locks (Lustre without flock)


def write_durably(path: Path, content: bytes) -> None:
    """Write a file in place and wait until its content is on the disk; its name is not, before `sync`."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file that appears whole or not at all, and make its folder where there is none.

    Until then it is called .NAME.MACHINE.PROCESS.writing (`LEFTOVERS`), as several processes may write the same file on
    a shared disk. A write that fails removes it.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.writing")
    try:
        # Half of a character, which no encoding has, is written as JSON and Python write it: \ud83d.
        encoded = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
        write_durably(temporary, encoded)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents; their names are on the disk when this returns."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(temporary: Path, folder: Path) -> None:
    """Put `temporary` (.NAME-..., beside it) in the place of `folder`, keeping the old one until the new one has its
    name. After a kill `recover_folder` tidies up.
    """
    old = None
    if folder.exists():
        old = folder.with_name(f".{folder.name}-old-{os.getpid()}")
        folder.rename(old)
    temporary.rename(folder)
    sync(folder.parent)
    if old is not None:
        shutil.rmtree(old)


def recover_folder(folder: Path) -> None:
    """Removes what killed saves of `folder` left; the previous one gets its name back where none has it."""
    for old in folder.parent.glob(f".{folder.name}-old-*"):
        if not folder.exists():
            old.rename(folder)
    for path in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(path)


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON atomically; what JSON does not know (a path) is written as text."""
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file that we wrote; None where there is no file, or half of one (a run is going on)."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def read_object(path: Path, fix: str) -> dict[str, Any]:
    """The JSON object in a file that others may have written. Raises InputError, which ends with `fix`, for anything
    else: no such file, no JSON, nested too deeply, a number that is not finite, another kind of value.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"it holds the number {constant}")

    try:
        if path.stat().st_size > LARGEST_OBJECT or not path.is_file():
            raise ValueError("it is no ordinary file of settings")
        content = json.loads(path.read_text(encoding="utf-8-sig"), parse_constant=refuse)
    except (OSError, ValueError, RecursionError) as error:
        said = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition(";")[0]
        raise InputError(f"{path} cannot be read: {said}. {fix}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__} and not a JSON object. {fix}")
    return content


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write one JSON value a line, atomically."""
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))


def read_json_lines(path: Path) -> list[Any]:
    """The values of a JSON-lines file that we wrote, without a torn last line; empty where there is no file."""
    found = []
    with contextlib.suppress(OSError):
        for line in path.read_bytes().split(b"\n"):  # not splitlines: a text may hold U+2028
            with contextlib.suppress(ValueError, RecursionError):
                found.append(json.loads(line))
    return found


# Our own files may come from a broken disk, an editor or a stranger. What in them is not of the type that we write
# counts as missing.

MISSING = object()
MOST_TOLD = 5  # fields
LARGEST_NUMBER = 1e300  # what is computed of it is finite, too
TYPE_NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false"}


class LeftOut:
    """What stands in files where a run writes something else, and therefore counts as missing: to be told."""

    def __init__(self) -> None:
        self._first: dict[tuple[str, str], str] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def add(self, file: str, field: str, what: str) -> None:
        """`field`: its name in the file, such as gates[3]; places in lists are counted together."""
        key = (file, re.sub(r"\[\d+\]", "[]", field))
        self._first.setdefault(key, f"{file}: {f'`{field}` is' if field else 'it is'} {what}")
        self._counts[key] = self._counts.get(key, 0) + 1

    def lines(self) -> list[str]:
        """The first fields, each with its first place and how often it is so."""
        told = []
        for key, first in self._first.items():
            more = self._counts[key] - 1
            told.append(f"{first}, and {more:,} more like it" if more else first)
        if len(told) > MOST_TOLD:
            told = [*told[:MOST_TOLD], f"{len(told) - MOST_TOLD} more such fields"]
        return told


def as_written(value: Any, kind: Any, file: str, left_out: LeftOut, field: str = "") -> Any:
    """`value`, out of the JSON of `file`, as far as it is of the type `kind`: a TypedDict, dict, list or plain type, or
    one of them or None.

    What is not is taken out of the mapping or list that it stands in, and told to `left_out`; so is a mapping that
    lacks what its type requires. MISSING where nothing is left. Names that a TypedDict does not know stay as they are.
    A number that is not finite is read as null where null is allowed: that is how we write one.
    """
    if is_typeddict(kind) or get_origin(kind) is dict:
        if not isinstance(value, dict):
            left_out.add(file, field, f"{described(value)}, no mapping")
            return MISSING
        kinds = _field_types(kind) if is_typeddict(kind) else dict.fromkeys(value, get_args(kind)[1])
        kept = {}
        for name, one in value.items():
            if name in kinds:
                one = as_written(one, kinds[name], file, left_out, f"{field}.{name}" if field else str(name))
            if one is not MISSING:
                kept[name] = one
        lacking: set[str] = set(getattr(kind, "__required_keys__", ())) - kept.keys()
        if lacking:
            left_out.add(file, field, f"without {', '.join(sorted(lacking))}")
        return MISSING if lacking else kept
    if get_origin(kind) is list:
        if not isinstance(value, list):
            left_out.add(file, field, f"{described(value)}, no list")
            return MISSING
        of_each = get_args(kind)[0]
        read = [as_written(one, of_each, file, left_out, f"{field}[{n}]") for n, one in enumerate(value)]
        return [one for one in read if one is not MISSING]

    # A plain type, or `X | None`.
    allowed = get_args(kind) or (kind,)
    if value is None and type(None) in allowed:
        return None
    plain = next(one for one in allowed if one is not type(None))
    if plain is Any:
        return value
    if get_origin(plain) is not None or is_typeddict(plain):
        return as_written(value, plain, file, left_out, field)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and plain in (int, float):
        if abs(value) <= LARGEST_NUMBER and (plain is float or isinstance(value, int)):
            return value
        if plain is float and type(None) in allowed:
            return None
    elif isinstance(value, plain) and (plain is bool or not isinstance(value, bool)):
        return value
    left_out.add(file, field, f"{described(value)}, no {TYPE_NAMES.get(plain, plain.__name__)}")
    return MISSING


@cache
def _field_types(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def read_as_written(path: Path, kind: Any, file: str, left_out: LeftOut) -> Any:
    """The content of a JSON file of ours (`as_written`). MISSING where there is none; where it is not whole, too."""
    content = read_json(path)
    if content is None:
        if os.path.exists(path):  # False, and no error, for a name that no file can have
            left_out.add(file, "", "no whole JSON")
        return MISSING
    return as_written(content, kind, file, left_out)


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside `target` to be filled while inside; it gets that name when it is complete.

    After an error nothing is left of it. Raises InputError where something of this name is there already.
    """
    if target.exists():
        raise InputError(f"{target} exists already. Choose another folder, or remove it first.")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield temporary
        for path in (temporary, *temporary.rglob("*")):  # safetensors' files are the owner's only
            path.chmod(0o755 if path.is_dir() else 0o644)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold an advisory lock on the file `path` while inside; the file is removed afterwards.

    The lock ends with the process that holds it. Raises InputError with the text `busy` where another process of this
    machine holds it. Where system or file system have no locks, it only makes the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # a system without such locks
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
                    continue  # its last owner removed the file while it was opened here: another may lock a new one
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


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are installed; none is imported."""
    found = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
