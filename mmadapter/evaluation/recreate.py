"""What a run is asked: its own settings of a task, and the task's samples."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmadapter.errors import InputError


def task_of_run(asked: Any, own: Any, given: Sequence[str]) -> Any:
    """The run's own settings of a task, with those of `asked` that were `given` (keys, such as generation.beams).

    So a run is asked in the prompt format it was trained in, on the files it was made for. A run without this task is
    asked as `asked` says.
    """
    if own is None:
        return asked
    task = deepcopy(own)
    for key in given:
        part, _, name = key.rpartition(".")
        source, target = (getattr(asked, part), getattr(task, part)) if part else (asked, task)
        setattr(target, name, getattr(source, name))
    return task


def samples_of_task(task: Any, root: str | None) -> list[Any]:
    """The task's samples, read for evaluation (no answer segment); `root` is used where the task names no place."""
    from mmadapter.data.readers import read
    from mmadapter.data.readers.pictures import with_attached_images

    samples = read(task.as_reader(), root, source=task.name, training=False, key=f"tasks.{task.name}")
    if task.attach_images is None:
        return samples
    if not task.images:
        raise InputError(
            f"task {task.name}: attach_images={task.attach_images}, but images=false, or the run has no image encoder. "
            "Set images=true for a run with pictures, or attach_images=null."
        )
    return with_attached_images(samples, Path(task.attach_images).expanduser())
