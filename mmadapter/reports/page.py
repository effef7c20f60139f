"""What all pages share: templates, pictures inside the page, the sections of tasks."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from mmadapter.errors import InputError
from mmadapter.reports.run import ReportedRun
from mmadapter.tasks import TASKS
from mmadapter.tasks.section import LABELS, Result, Section, own_label
from mmadapter.terminal import number_text
from mmadapter.vision.images import read_image

TEMPLATES = Path(__file__).parent / "templates"
LONGEST_SIDE = 288


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


def sections_of(run: ReportedRun) -> dict[str, Section]:
    """What the tasks show of a run, beside the runs in its comparison/: task's name -> section, in the tasks' order.

    Left out: evaluations that the run did not ask for by that name (eval/scienceqa-first-20).
    """
    named = run.config.get("tasks") or {}
    order = [*LABELS, *(name for name in run.comparison if name not in LABELS)]
    compared = [(LABELS.get(name, name), run.comparison[name]) for name in order if name in run.comparison]
    own = own_label(bool((run.config.get("vision") or {}).get("enabled")))
    found = {}
    for kind in TASKS.names():
        for name, metrics in run.evaluations.items():
            if metrics.get("task", name) != kind or (name != kind and name not in named):
                continue
            results = [
                Result(label, one.evaluations[name], one.predictions(name))
                for label, one in [*compared, (own, run)]
                if name in one.evaluations
            ]
            section = TASKS.load(kind).section(results, made_world=bool((run.config.get("data") or {}).get("made")))
            found[name] = section if name == kind else replace(section, title=f"{section.title}: {name}")
    return found
