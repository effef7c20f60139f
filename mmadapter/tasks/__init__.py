"""Benchmarks, a file each: what is read and asked, how answers are parsed and scored, what is shown. No torch here.

A new task is a settings class, a class that derives from `tasks.task.Task`, and one line like those below. Everything
else (summary.json, the terminal, reports, sweeps, eval.py) asks this register.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mmadapter.settings import Register
from mmadapter.tasks.settings import (
    CocoCaptionTaskSettings,
    InstructTaskSettings,
    ScienceqaTaskSettings,
    TaskSettings,
    VisualInstructTaskSettings,
)

if TYPE_CHECKING:
    from mmadapter.tasks.task import Task

TASKS = Register("task")
TASKS.add("scienceqa", ScienceqaTaskSettings, "mmadapter.tasks.scienceqa:ScienceQA")
TASKS.add("coco_caption", CocoCaptionTaskSettings, "mmadapter.tasks.coco_caption:CocoCaption")
TASKS.add("instruct", InstructTaskSettings, "mmadapter.tasks.instruct:Instruct")
TASKS.add("visual_instruct", VisualInstructTaskSettings, "mmadapter.tasks.visual_instruct:VisualInstruct")


def task_of(settings: TaskSettings, data_root: str | None = None) -> Task[Any]:
    """The task under these settings; `data_root` is the folder that it reads where it names no place of its own."""
    return TASKS.load(settings.name)(settings, data_root)


def task_class(metrics: Mapping[str, Any], name: str) -> type[Task[Any]] | None:
    """The class of the task that wrote a metrics.json into eval/NAME; None for a task that is not registered here."""
    kind = metrics.get("task", name)
    return TASKS.load(kind) if kind in TASKS else None
