"""Contradictions in the settings, refused before any model is built."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from mmadapter.config.checks_adapter import adapter_problems, group_problems, projection_problems
from mmadapter.config.derived import comparison_conf, variant_conf
from mmadapter.config.run import EvalConf, RunConf
from mmadapter.data.settings import ReaderSettings, samples_per_step, sharing_problems
from mmadapter.errors import InputError
from mmadapter.settings import problems_of
from mmadapter.sweeps.settings import cluster_problems, metric_problems
from mmadapter.tasks import scores_of, task_of

GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, Windows' subsystem for Linux


def validate(conf: RunConf | EvalConf) -> None:
    """Raises InputError that lists every contradiction: the key, what it got, what is allowed, how to mend it."""
    found = list(dict.fromkeys(problems_of(conf)))
    if not found and isinstance(conf, RunConf):
        found = list(dict.fromkeys(run_problems(conf)))
    if len(found) == 1:
        raise InputError(found[0])
    if found:
        raise InputError(f"{len(found)} settings cannot be used:\n" + "\n".join(f"- {problem}" for problem in found))


def run_problems(conf: RunConf) -> Iterator[str]:
    """What does not fit together in the settings of one run, its comparison runs and its variants."""
    own = list(_own_problems(conf))
    yield from own
    yield from cluster_problems(
        conf.cluster, resume=conf.resume, engine=conf.engine.name, processes=conf.launch.processes
    )
    scores = {name: scores_of(conf.tasks[name]) for name in conf.evaluate if name in conf.tasks}
    yield from metric_problems(
        conf.sweep.metric, scores, lambda name, score: task_of(conf.tasks[name]).why_no_score(score, f"tasks.{name}")
    )
    for name, compared in conf.comparison.items():
        unknown = [source for source in compared.sources or [] if source not in conf.data.sources]
        if unknown:
            yield _no_such(f"comparison.{name}.sources", unknown, list(conf.data.sources), "data.sources")
        elif compared.train:
            alone = comparison_conf(conf, name)
            yield from _within(f"comparison.{name}", [*problems_of(alone), *_own_problems(alone)], own)
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
    yield from adapter_problems(conf)
    yield from projection_problems(conf)
    yield from group_problems(conf)
    yield from sharing_problems(conf.data.sources, conf.optimizer.batch_size, group_sources(conf))
    yield from picture_problems(conf)
    yield from _task_problems(conf)
    yield from _machine_problems(conf)
    if "/" in conf.experiment or not conf.experiment:
        yield f"experiment={conf.experiment!r}: it names the run folder, so it must be a name without a slash."


def optimizer_problems(conf: RunConf) -> Iterator[str]:
    optimizer = conf.optimizer
    shares = samples_per_step(conf.data.sources, optimizer.batch_size, group_sources(conf))
    if optimizer.batch_size % optimizer.micro_batch_size and shares is None:
        fitting = [n for n in range(optimizer.micro_batch_size, 0, -1) if optimizer.batch_size % n == 0][0]
        yield (
            f"optimizer.micro_batch_size={optimizer.micro_batch_size} does not divide "
            f"optimizer.batch_size={optimizer.batch_size}. Set optimizer.micro_batch_size={fitting}"
        )


def picture_problems(conf: RunConf) -> Iterator[str]:
    """Pictures are read if and only if there is an encoder for them."""
    readings: dict[str, ReaderSettings] = {f"data.sources.{name}": source for name, source in conf.data.sources.items()}
    readings |= {f"data.validation.{name}": held_out for name, held_out in conf.data.validation.items()}
    tasks = {f"tasks.{name}": conf.tasks[name] for name in conf.evaluate if name in conf.tasks}
    readings |= tasks
    with_pictures = [key for key, reading in readings.items() if reading.uses_pictures]
    attached = [key for key, task in tasks.items() if task.attach_images is not None]
    if attached and not conf.vision.enabled:
        yield f"{attached[0]}.attach_images is set, but vision.enabled is false. Leave the task out of evaluate."
    if attached and not tasks[attached[0]].images:
        yield f"{attached[0]}.attach_images is set, but {attached[0]}.images is false. Set {attached[0]}.images=true"
    if with_pictures and not conf.vision.enabled:
        keys = ", ".join(f"{key}.images" for key in with_pictures)
        yield (
            f"vision.enabled is false, but pictures are asked for by {keys}. "
            "Set these to false for text only, or choose an encoder: vision=clip_vit_l14"
        )
    learns = conf.vision.enabled and "visual_projection" not in conf.adapter.frozen
    if learns and conf.data.sources and not any(key.startswith("data.sources.") for key in with_pictures):
        yield (
            "vision.enabled is true, but no source in data.sources has pictures: the visual projection would never "
            "learn. Set vision=none adapter=v1, or images=true on a source."
        )


def group_sources(conf: RunConf) -> dict[str, list[str] | None]:
    """Group -> the sources that move it; None: all."""
    return {name: group.sources for name, group in conf.adapter.groups.items()}


def _task_problems(conf: RunConf) -> Iterator[str]:
    unknown = [name for name in conf.evaluate if name not in conf.tasks]
    if unknown:
        yield _no_such("evaluate", unknown, list(conf.tasks), "tasks")


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


def gpu_seems_present() -> bool:
    """Whether this machine has a GPU driver, asked without importing torch."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(Path(device).exists() for device in GPU_DEVICES)


def _no_such(key: str, unknown: list[str], known: list[str], where: str) -> str:
    has = ", ".join(known) or "nothing"
    return f"{key} names {', '.join(unknown)}, which {where} does not have. It has: {has}."
