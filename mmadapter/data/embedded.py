"""The embedded world of coloured shapes: shipped as archives, unpacked where a run looks for it.

`python -m data_prep.archives` makes the archives; `python -m data_prep.shapes` (`--interference`) what is in them.
"""

from __future__ import annotations

import errno
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from mmadapter.errors import InputError

ARCHIVES = Path(__file__).parents[1] / "tiny"
PARTS = {"shapes": ("shapes",), "interference": ("shapes", "interference"), "observatory": ("observatory",)}
# what is in a world, and what makes the same
CONTENTS = {
    "shapes": ("coloured shapes", "pictures, questions, captions, instructions", "data_prep.shapes"),
    "interference": (
        "coloured shapes",
        "pictures, questions, captions, instructions",
        "data_prep.shapes --interference",
    ),
    "observatory": ("an observatory's visitors' desk", "instructions in Alpaca's layout", "data_prep.observatory"),
}
LATER = "short_captions.json"  # of shapes: what a world lacks that an earlier version has unpacked


def unpack_missing_world(made: str | None, root: str | None, say: Callable[[str], None]) -> bool:
    """Unpacks the world `made` (data.made) to `root` (data.root) where nothing is there; True if it did so now.

    The folder appears under its name only when it is whole. Raises InputError where an archive is not there.
    """
    if made is None or root is None:
        return False
    if (folder := Path(root).expanduser()).exists():
        archive = ARCHIVES / "shapes.tar.gz"
        if (
            "shapes" in PARTS[made]
            and (folder / "manifest.json").is_file()
            and not (folder / LATER).exists()
            and archive.is_file()
        ):
            with tarfile.open(archive) as packed, tempfile.TemporaryDirectory(dir=folder) as beside:
                packed.extract(LATER, beside, filter="data")
                os.replace(Path(beside) / LATER, folder / LATER)
            say(f"{folder / LATER} is missing, and was unpacked")
        return False
    world, content, again = CONTENTS[made]
    say(
        f"{folder} is missing: unpacking the embedded world of {world} there, so that training needs no "
        f"download ({content}; python -m {again} makes the same)"
    )
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        for part in PARTS[made]:
            archive = ARCHIVES / f"{part}.tar.gz"
            if not archive.is_file():
                raise InputError(
                    f"The embedded data is not in {archive}, where it comes with the package. Fetch that again, or "
                    "give data of your own with data=NAME data.root=FOLDER."
                )
            with tarfile.open(archive) as packed:
                packed.extractall(partial, filter="data")
        os.rename(partial, folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another process has just done it
            return False
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True
