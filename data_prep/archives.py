"""Pack the worlds that come with the package: `python -m data_prep.archives --out mmadapter/tiny`.

The same files give the same archive; other versions of Pillow may write other bytes of a picture.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import tarfile
import tempfile
from collections.abc import Collection
from pathlib import Path

from data_prep.observatory import main as make_observatory
from data_prep.shapes import INTERFERENCE_FILES, make_world


def pack(folder: Path, archive: Path, tops: Collection[str]) -> None:
    """A tar.gz of the files below those top entries of `folder`: sorted, without times, owners and machine."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).parts[0] in tops)
    with (
        archive.open("wb") as stream,
        gzip.GzipFile("", "wb", 9, stream, mtime=0) as zipped,
        tarfile.open(mode="w", fileobj=zipped, format=tarfile.USTAR_FORMAT) as packed,
    ):
        for path in files:
            member = tarfile.TarInfo(path.relative_to(folder).as_posix())
            member.size = path.stat().st_size
            with path.open("rb") as content:
                packed.addfile(member, content)


def main(arguments: list[str] | None = None) -> int:
    """Makes the worlds and packs them."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.archives", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("mmadapter/tiny"), help="folder for the archives")
    out = parser.parse_args(arguments).out
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder) / "world"
        make_world(world, interference=True)
        pack(world, out / "shapes.tar.gz", {path.name for path in world.iterdir()} - set(INTERFERENCE_FILES))
        pack(world, out / "interference.tar.gz", INTERFERENCE_FILES)
        desk = Path(folder) / "observatory"
        make_observatory(["--out", str(desk / "instructions.json")])
        pack(desk, out / "observatory.tar.gz", {"instructions.json"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
