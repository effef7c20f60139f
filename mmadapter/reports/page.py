"""What all pages share: the files of a run folder, templates, pictures inside the page."""

from __future__ import annotations

import base64
import io
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from mmadapter.errors import InputError
from mmadapter.files import read_json
from mmadapter.runs.state import Record, RunFolder
from mmadapter.terminal import number_text
from mmadapter.vision.images import read_image

TEMPLATES = Path(__file__).parent / "templates"
LONGEST_SIDE = 288


class ReportedRun(RunFolder):
    """A run folder as pages show it; what is missing (unfinished run) reads as empty."""

    @cached_property
    def config_text(self) -> str:
        file = self.folder / "config.yaml"
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""

    @cached_property
    def summary(self) -> Record:
        """summary.json, which is there before the report is written and the run counts as finished."""
        return self._json("summary.json") or self._json("finished.json")

    @cached_property
    def versions(self) -> Record:
        return self._json("versions.json")

    @cached_property
    def trainable(self) -> list[Record]:
        """The rows of the table of what trains."""
        rows = read_json(self.folder / "trainable.json")
        return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []

    @cached_property
    def variants(self) -> dict[str, ReportedRun]:
        """The runs inside it by name, in the order of the settings."""
        found = {path.name: path for path in sorted(self.folder.glob("variants/*")) if path.is_dir()}
        named = [name for name in self.config.get("variants") or () if name in found]
        return {name: ReportedRun(found[name]) for name in dict.fromkeys([*named, *found])}


def render(template: str, *folders: Path, **content: Any) -> str:
    """Fills a template of this room, or of one of `folders`; everything that is no Markup is escaped."""
    environment = Environment(
        loader=FileSystemLoader([TEMPLATES, *folders]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"grouped": "{:,}".format, "number": number_text, "data_uri": data_uri}
    return environment.get_template(template).render(**content)


def data_uri(file: str) -> str | None:
    """A picture, small, inside the page: PNG where that is as small as JPEG; None where it cannot be read."""
    try:
        image = read_image(Path(file))
    except InputError:
        return None
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    encoded = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        encoded[kind] = buffer.getvalue()
    kind = min(encoded, key=lambda name: len(encoded[name]))
    return f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode()}"
