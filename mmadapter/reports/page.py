"""What all pages share: the files of a run folder, templates, pictures inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from mmadapter.errors import InputError
from mmadapter.files import MISSING, read_as_written
from mmadapter.reports import charts
from mmadapter.runs.state import Record, RunFolder, Summary
from mmadapter.terminal import number_text
from mmadapter.vision.images import read_image

TEMPLATES = Path(__file__).parent / "templates"
LONGEST_SIDE = 288  # pixels of a picture inside a page
SMALL_SIDE = 128  # up to here a picture is enlarged pixel by pixel
NEARLY_NOTHING = 0.01  # nats


class Answered(TypedDict, total=False):
    """One sample of a line of metrics.jsonl about answers (`training/watched.py`)."""

    task: str
    sample: str
    image: str | None
    question: str
    answer: str
    references: list[str]
    right: bool | None


class AnswersAtStep(TypedDict):
    step: int
    samples: list[Answered]


class TrainableRow(TypedDict, total=False):
    """A row of trainable.json."""

    group: str
    role: str
    tensors: int
    parameters: int
    share: float
    lr: float
    weight_decay: float
    sources: str


class ReportedRun(RunFolder):
    """A run folder as pages show it; what is missing (unfinished run) reads as empty."""

    @cached_property
    def config_text(self) -> str:
        file = self.folder / "config.yaml"
        return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""

    @cached_property
    def summary(self) -> Record:
        """summary.json, which is there before the report is written and the run counts as finished."""
        return self._json("summary.json", Summary) or self._json("finished.json", Summary)

    @cached_property
    def versions(self) -> Record:
        return self._json("versions.json", dict[str, Any])

    @cached_property
    def answers(self) -> list[Record]:
        """What a few fixed samples were answered at the start and at each validation, in the order of the steps."""
        found = {one["step"]: one for one in self._lines("answers", AnswersAtStep) if one["samples"]}
        return [found[step] for step in sorted(found)]

    @cached_property
    def trainable(self) -> list[Record]:
        """The rows of the table of what trains."""
        name = "trainable.json"
        rows = read_as_written(self.folder / name, list[TrainableRow], name, self.left_out)
        return [] if rows is MISSING else rows

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
    environment.filters |= {"grouped": "{:,}".format, "number": number_text, "picture": picture, "columns": columns}
    environment.filters |= {"importance": importance, "attention_map": attention_map}
    return environment.get_template(template).render(**content)


class Inlined(NamedTuple):
    """A picture inside the page."""

    uri: str
    is_small: bool  # it is drawn larger than it is


@lru_cache(maxsize=64)
def picture(file: str) -> Inlined | None:
    """A picture, shrunk where it is large: PNG where that is as small as JPEG; None where it cannot be read."""
    try:
        image = read_image(Path(file))
    except InputError:
        return None
    is_small = max(image.size) <= SMALL_SIDE
    image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
    encoded = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 85})):
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        encoded[kind] = buffer.getvalue()
    kind = min(encoded, key=lambda name: len(encoded[name]))
    return Inlined(f"data:image/{kind};base64,{base64.b64encode(encoded[kind]).decode()}", is_small)


def columns(count: int, most: int) -> int:
    """In how many columns, up to `most`, so many things leave the fewest places of the last row empty; the more."""
    widest = min(count, most) or 1
    return min(range(-(-widest // 2), widest + 1), key=lambda number: (-count % number, -number))


class Importance(NamedTuple):
    """Which parts of a picture an answer rests on."""

    shares: list[list[float]]  # of each square, from 0 to 1
    text: str


def importance(changes: Sequence[Sequence[float]]) -> Importance | None:
    """By how much hiding each square lowers the answer's log-likelihood (`changes`), against the square that matters
    most; None where there are no numbers.
    """
    drops = [[max(0.0, -change) for change in row] for row in changes]
    most = max((drop for row in drops for drop in row), default=None)
    if most is None:
        return None
    if most < NEARLY_NOTHING:
        shares = [[1.0 for _ in row] for row in drops]
        return Importance(shares, f"hiding any part of the picture changes less than {NEARLY_NOTHING} nats")
    shares = [[drop / most for drop in row] for row in drops]
    return Importance(shares, f"where hiding a part makes the answer less likely (by up to {most:.2f} nats)")


def attention_map(rows: Sequence[Sequence[float]]) -> Markup:
    """The attention of early fusion: a row a layer, a square a visual token; nothing where there is none."""
    if not rows:
        return Markup("")
    names = [f"layer {number}" for number in range(1, len(rows) + 1)]
    return charts.heat_map("Attention to the visual tokens", rows, names, "token")
