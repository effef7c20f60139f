"""A run folder back into an assistant: its settings, its host, and its newest adapter (design.md, decision 10)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

from mmadapter.errors import InputError


def run_folder(run: str, runs_root: str) -> Path:
    """The run folder that `run=` names: a path, or a name under runs_root."""
    for folder in (Path(run), Path(runs_root) / run):
        if (folder / "config.yaml").is_file():
            return folder
    raise InputError(
        f"run={run}: neither {run} nor {Path(runs_root) / run} is a run folder (a folder with a config.yaml). "
        f"Give the path of one, or a name under runs_root={runs_root}."
    )


def conf_of_run(folder: Path, eval_conf: Any) -> Any:
    """The run's settings with what the EvalConf overrides (where the host and CLIP lie now, dtype, ...)."""
    from mmadapter.config.compose import load_run_config

    conf = load_run_config(folder)
    for part in ("host", "vision"):
        for key, value in vars(getattr(eval_conf, part)).items():
            if value is not None:
                setattr(getattr(conf, part), key, value)
    return conf


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


def assistant_of_run(folder: Path, conf: Any, device: str = "auto") -> Any:
    """Builds the run's assistant and puts its adapter in: the finished one, else that of the newest checkpoint."""
    from mmadapter.assistant import Assistant
    from mmadapter.store import load_adapter

    assistant = Assistant.build(conf, device=None if device == "auto" else device)
    if (folder / "adapter" / "adapter.json").is_file():
        load_adapter(assistant, folder / "adapter")
    elif not (folder / "finished.json").is_file():  # finished without an adapter: the host alone, with closed gates
        load_checkpoint(assistant, folder)
    return assistant.eval()


def load_checkpoint(assistant: Any, folder: Path) -> None:
    """Puts the tensors of a run's newest checkpoint into the assistant; frozen roles are as the run started."""
    import torch
    from safetensors.torch import load_file

    pointer = folder / "checkpoints" / "last.json"
    if not pointer.is_file():
        raise InputError(
            f"{folder}: there is neither an adapter/ nor a checkpoint yet (training.save_every_steps says when one is "
            "saved). Let the run go on, then evaluate it."
        )
    file = pointer.parent / json.loads(pointer.read_text())["folder"] / "trainable.safetensors"
    if not file.is_file():
        raise InputError(f"{pointer} names {file}, which is not there. Run train.py again: it repairs its checkpoints.")
    start = pointer.with_name("start.safetensors")
    tensors = (load_file(start) if start.is_file() else {}) | load_file(file)
    parameters = {item.name: item.parameter for item in assistant.trainable()}
    if tensors.keys() != parameters.keys():
        differing = ", ".join(sorted(tensors.keys() ^ parameters.keys())[:5])
        raise InputError(f"{file} does not fit the run's settings; only one of the two has: {differing}.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if tensors[name].shape != parameter.shape:
                stored, wanted = tuple(tensors[name].shape), tuple(parameter.shape)
                raise InputError(f"{file}, {name}: its shape is {stored}, the run's settings give {wanted}.")
            parameter.copy_(tensors[name])


def samples_of_task(task: Any, root: str | None) -> list[Any]:
    """The task's samples, read for evaluation (no answer segment); `root` is used where the task names no place."""
    from mmadapter import data
    from mmadapter.config.data import ReadingConf
    from mmadapter.data.attached_images import with_attached_images

    settings = {field.name: getattr(task, field.name) for field in fields(ReadingConf)}
    if settings["root"] is None and settings["path"] is None and settings["problems"] is None:
        settings["root"] = root
        if root is None:
            raise InputError(f"task {task.name} has no place to read from. Set task.root=FOLDER.")
    if settings["root"] is None and settings["problems"]:
        settings["root"] = str(Path(settings["problems"]).parent)
    reader = settings.pop("reader")
    samples = data.read(reader, source=task.name, training=False, **settings)
    if task.attach_images is None:
        return samples
    if not task.images:
        raise InputError(
            f"task {task.name}: attach_images={task.attach_images}, but images=false, or the run has no image encoder. "
            "Set images=true for a run with pictures, or attach_images=null."
        )
    return with_attached_images(samples, Path(task.attach_images).expanduser())
