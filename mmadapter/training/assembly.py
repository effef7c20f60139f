"""From settings to the parts of a training: groups, schedule, engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mmadapter.methods.groups import Group, parameter_groups
from mmadapter.methods.settings import GroupConf
from mmadapter.training.deepspeed_start import ZeroSettings
from mmadapter.training.engine import Engine, SingleDeviceEngine
from mmadapter.training.optimizer import OptimizerSettings
from mmadapter.training.schedule import Schedule, actual_lr


def groups_of(conf: Any, assistant: Any) -> list[Group]:
    """The groups of `adapter.groups`; one with everything in it where there are none. Frozen roles are in none."""
    trainable, frozen = assistant.trainable_parameters(), conf.adapter.frozen
    settings = conf.adapter.groups
    if not settings:
        settings = {"all": GroupConf(roles=sorted({item.role for item in trainable}.difference(frozen)))}
    return parameter_groups(trainable, settings, frozen)


def schedule_of(conf: Any, steps_per_epoch: int) -> Schedule:
    """The learning rates of `optimizer`."""
    settings = conf.optimizer
    lr = actual_lr(settings.base_lr, settings.batch_size)
    in_epochs = (settings.epochs, settings.warmup_epochs)
    return Schedule(lr, steps_per_epoch, *in_epochs, settings.min_lr, settings.steps, settings.warmup_steps)


def build_engine(conf: Any, assistant: Any, groups: Sequence[Group]) -> Engine:
    """The engine that `engine.name` asks for, on the device where the adapter is."""
    settings = conf.optimizer
    options = OptimizerSettings(tuple(settings.betas), settings.weight_decay, settings.clip_norm)
    trainable = assistant.trainable_parameters()
    parts = (assistant, groups, trainable, options, trainable[0].parameter.device, conf.seed)
    if conf.engine.name == "single":
        return SingleDeviceEngine(*parts)
    from mmadapter.training.zero import ZeroEngine

    own = {"cpu_adam": conf.engine.cpu_adam, "gathered": conf.engine.gathered_parameters}
    return ZeroEngine(*parts, zero=ZeroSettings.of(conf.engine.name, **own))


def lr_line(conf: Any, schedule: Schedule) -> str:
    """One line that says how the actual learning rate came about, and how long the run is."""
    settings = conf.optimizer
    return (
        f"learning rate {schedule.lr:.4g} = base {settings.base_lr:g} x effective batch {settings.batch_size} / 256; "
        f"{schedule.total_steps:,} steps = {schedule.total_epochs:.4g} epochs of {schedule.steps_per_epoch:,}"
    )


def host_dtype(conf: Any) -> str:
    """The type of the frozen weights that `host.dtype` means on this machine."""
    if conf.host.dtype != "auto":
        return conf.host.dtype
    on_gpu = conf.engine.device == "cuda" or (conf.engine.device == "auto" and torch.cuda.is_available())
    return "bfloat16" if on_gpu else "float32"
