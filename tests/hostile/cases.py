"""Inputs picked by hand."""
from __future__ import annotations
from collections.abc import Iterator
from pathlib import Path
from tests.hostile.judging import Case
from tests.hostile.layouts import data_layouts, other_layouts

def picked(shared: Path) -> Iterator[Case]:
    for layout in [*data_layouts(), *other_layouts()]:
        def act(folder: Path, layout=layout) -> str:
            layout.write(folder)
            return layout.read(folder)
        def given(folder: Path, layout=layout) -> str:
            return " ".join(f.read_bytes().decode(errors="ignore") for p in layout.files for f in folder.glob(p))
        yield Case("valid", layout.name, act, "accepted", given=None if "predictions" in layout.name else given)
