"""Contradictions in the settings, refused before any model is built."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from mmadapter.config.checks_cluster import cluster_problems
from mmadapter.config.checks_data import (
    data_problems,
    lies_below,
    picture_problems,
    reader_problems,
    reading_problems,
)
from mmadapter.config.checks_vision import vision_problems
from mmadapter.config.compose import CONFIG_FILE
from mmadapter.config.derived import VARIANT, comparison_conf, variant_conf
from mmadapter.config.mixture import holds_every_source
from mmadapter.config.optimizer import OptimizerConf
from mmadapter.config.run import EvalConf, RunConf
from mmadapter.config.run_folder import has_checkpoints, run_folder
from mmadapter.config.sweep import sweep_problems
from mmadapter.config.task import TASKS, TaskConf
from mmadapter.errors import InputError
from mmadapter.settings import problems_of, values_outside

GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, Windows' subsystem for Linux


def validate(conf: RunConf | EvalConf) -> None:
    """Raises InputError that lists every contradiction: the key, what it got, what is allowed, how to mend it."""
    found = list(problems_of(conf))
    if not any(values_outside(conf)):  # a contradiction is judged among values that are allowed
        found += run_problems(conf) if isinstance(conf, RunConf) else eval_problems(conf)
    found = list(dict.fromkeys(found))
    if len(found) == 1:
        raise InputError(found[0])
    if found:
        raise InputError(f"{len(found)} settings cannot be used:\n" + "\n".join(f"- {problem}" for problem in found))


def run_problems(conf: RunConf) -> Iterator[str]:
    """What does not fit together in the settings of one run, its comparison runs and its variants."""
    own = list(_own_problems(conf))
    yield from own
    own += problems_of(conf)
    yield from cluster_problems(conf)
    yield from sweep_problems(conf.sweep, {name: conf.tasks[name] for name in conf.evaluate if name in conf.tasks})
    for name, compared in conf.comparison.items():
        unknown = [source for source in compared.sources or [] if source not in conf.data.sources]
        if unknown:
            yield _no_such(f"comparison.{name}.sources", unknown, list(conf.data.sources), "data.sources")
        elif compared.train:
            derived = comparison_conf(conf, name)
            yield from _within(f"comparison.{name}", [*problems_of(derived), *_own_problems(derived)], own)
    for name in conf.variants:
        try:
            variant = variant_conf(conf, name)
        except InputError as error:
            yield str(error)
            continue
        yield from _within(f"variants.{name}", [*problems_of(variant), *_own_problems(variant)], own)


def _within(where: str, problems: Iterable[str], said: Container[str]) -> Iterator[str]:
    """The problems of a run within the run, without those that were `said` of the whole."""
    for problem in problems:
        if problem not in said:
            yield f"{where}: {problem}"


def _own_problems(conf: RunConf) -> Iterator[str]:
    yield from optimizer_problems(conf)
    yield from vision_problems(conf)
    yield from _start_problems(conf)
    for name, group in conf.adapter.groups.items():
        if unknown := [source for source in group.sources or [] if source not in conf.data.sources]:
            yield _no_such(f"adapter.groups.{name}.sources", unknown, list(conf.data.sources), "data.sources")
    yield from data_problems(conf)
    yield from picture_problems(conf)
    yield from _task_problems(conf)
    yield from _machine_problems(conf)
    if "/" in conf.experiment or not conf.experiment:
        yield f"experiment={conf.experiment!r}: it names the run folder, so it must be a name without a slash."


def _start_problems(conf: RunConf) -> Iterator[str]:
    start = conf.adapter.start
    if start is None or conf.dry_run:
        return
    if start.startswith(VARIANT):
        yield f"adapter.start={start} names a variant, which only another variant can start from. Name a folder."
    elif any((Path(start).expanduser() / part / "adapter.json").is_file() for part in ("", "adapter")):
        return
    elif not has_checkpoints(run_folder(conf)):  # else it goes on from these, and needs that adapter no more
        yield (
            f"adapter.start={start}: there is no adapter.json there, nor in its adapter/. Name an adapter folder or a "
            "run folder that has saved one, e.g. adapter.start=runs/NAME; null starts afresh."
        )


def optimizer_problems(conf: RunConf) -> Iterator[str]:
    optimizer = conf.optimizer
    if optimizer.batch_size % optimizer.micro_batch_size and not holds_every_source(conf):
        fitting = [n for n in range(optimizer.micro_batch_size, 0, -1) if optimizer.batch_size % n == 0][0]
        yield (
            f"optimizer.micro_batch_size={optimizer.micro_batch_size} does not divide "
            f"optimizer.batch_size={optimizer.batch_size}. Set optimizer.micro_batch_size={fitting}"
        )
    yield from _warmup_problems(optimizer)
    if len(optimizer.betas) != 2 or not all(0 <= beta < 1 for beta in optimizer.betas):
        yield f"optimizer.betas={optimizer.betas}: two numbers from 0 up to (not including) 1; the paper: [0.9,0.95]"
    actual = optimizer.base_lr * optimizer.batch_size / 256
    if optimizer.min_lr > actual:
        yield f"optimizer.min_lr={optimizer.min_lr:g} is above the actual rate, base_lr x batch_size/256 = {actual:g}."


def _warmup_problems(optimizer: OptimizerConf) -> Iterator[str]:
    steps, warmup = optimizer.steps, optimizer.warmup_steps
    if (steps is None) != (warmup is None):
        missing, given = ("warmup_steps", "steps") if warmup is None else ("steps", "warmup_steps")
        example = (steps or 0) // 10 if warmup is None else 10 * (warmup or 1)
        yield f"optimizer.{given} needs optimizer.{missing} beside it, e.g. optimizer.{missing}={example}"
    elif steps is not None and warmup is not None and warmup > steps:
        yield (
            f"optimizer.warmup_steps={warmup} exceeds optimizer.steps={steps}: the full learning rate would never be "
            f"reached. Set optimizer.warmup_steps={steps // 10}"
        )
    elif steps is None and optimizer.warmup_epochs > optimizer.epochs:
        yield (
            f"optimizer.warmup_epochs={optimizer.warmup_epochs:g} exceeds optimizer.epochs={optimizer.epochs:g}: "
            f"the full learning rate would never be reached. Set optimizer.warmup_epochs={optimizer.epochs / 10:g}"
        )


def _task_problems(conf: RunConf) -> Iterator[str]:
    unknown = [name for name in conf.evaluate if name not in conf.tasks]
    if unknown:
        yield _no_such("evaluate", unknown, list(conf.tasks), "tasks")
    for name in conf.evaluate:
        if name in conf.tasks:
            task, key = conf.tasks[name], f"tasks.{name}"
            yield from task_problems(task, key)
            if not conf.dry_run:
                yield from reading_problems(task, key, conf.data.root, conf.data.made is not None)


def task_problems(task: TaskConf, key: str) -> Iterator[str]:
    if task.name not in TASKS:
        yield f"{key}.name={task.name!r}: allowed are {', '.join(TASKS)}."
    yield from reader_problems(task, key)


def _machine_problems(conf: RunConf) -> Iterator[str]:
    if conf.engine.name == "single" and (conf.launch.processes or 1) > 1 and not conf.dry_run:
        yield (
            f"launch.processes={conf.launch.processes} with engine=single, which is one process. Set engine=zero1 (the "
            "same result; or another zeroN), or launch.processes=1"
        )
    on_cluster = conf.cluster.name != "local"
    processes = conf.cluster.nodes * conf.cluster.tasks_per_node if on_cluster else conf.launch.processes or 1
    if conf.optimizer.batch_size < processes:
        yield (
            f"optimizer.batch_size={conf.optimizer.batch_size} is shared out over {processes} processes: some would "
            f"have nothing to do in every step. Set optimizer.batch_size={processes} or more, or start fewer processes"
        )
    here_is_none = not on_cluster and not gpu_seems_present()  # jobs are submitted from machines without GPUs
    on_cpu = conf.engine.device == "cpu" or (conf.engine.device == "auto" and here_is_none)
    if conf.host.attention == "flex" and on_cpu:
        yield "host.attention=flex needs a GPU: FlexAttention has no backward on CPU. Set host.attention=sdpa"
    if conf.training.wandb and find_spec("wandb") is None:
        yield "training.wandb=true, but wandb is not installed: pip install -e .[wandb], or training.wandb=false"


def gpu_seems_present() -> bool:
    """Whether this machine has a GPU driver, asked without importing torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(Path(device).exists() for device in GPU_DEVICES)


def eval_problems(conf: EvalConf) -> Iterator[str]:
    """What does not fit together in the settings of one evaluation."""
    if (conf.run is None) == (conf.predictions is None):
        got = "neither is given" if conf.run is None else "both are given"
        yield f"run= (a model to ask) or predictions= (answers to score): {got}. Give one of them, e.g. run=runs/NAME"
        return
    yield from task_problems(conf.task, "task")
    if conf.predictions is not None:
        yield from _missing_file("predictions", conf.predictions)
        if conf.task.name == "coco_caption":
            yield from _caption_file_problems(conf.task)
            return
        if conf.task.name != "scienceqa":
            yield f"predictions= can be scored for task=scienceqa and task=coco_caption, not for task={conf.task.name}."
            return
        if conf.task.problems is None and conf.task.root is None:
            yield "predictions= needs the questions they answer: give task.problems=problems.json or task.root=FOLDER"
        beside = conf.task.root or (conf.task.problems and str(Path(conf.task.problems).parent))
        for key in ("problems", "pid_splits", "captions"):
            named = getattr(conf.task, key)
            if named is not None and not lies_below(beside, named):
                yield from _missing_file(f"task.{key}", named)
        return
    assert conf.run is not None
    if conf.task.annotations is not None or conf.task.split_list is not None:
        yield "task.annotations and task.split_list go with predictions=; a run reads task.root, or task.path."
    if not any((folder / CONFIG_FILE).is_file() for folder in (Path(conf.run), Path(conf.runs_root) / conf.run)):
        runs = sorted(file.parent.name for file in Path(conf.runs_root).glob(f"*/{CONFIG_FILE}"))
        there = f"In {conf.runs_root}: {', '.join(runs) or 'none'}."
        yield f"run={conf.run}: no run folder (a folder with {CONFIG_FILE}) of that path or name. {there}"


def _caption_file_problems(task: TaskConf) -> Iterator[str]:
    if task.annotations is None:
        yield (
            "predictions= needs the captions that they are scored against: give task.annotations=FILE "
            "(captions_val2014.json, or dataset_coco.json with task.split=test)"
        )
    yield from _missing_file("task.annotations", task.annotations)
    yield from _missing_file("task.split_list", task.split_list)


def _missing_file(key: str, path: str | None) -> Iterator[str]:
    if path is not None and not Path(path).expanduser().is_file():
        yield f"{key}={path}: no such file."


def _no_such(key: str, unknown: list[str], known: list[str], where: str) -> str:
    has = ", ".join(known) or "nothing"
    return f"{key} names {', '.join(unknown)}, which {where} does not have. It has: {has}."
