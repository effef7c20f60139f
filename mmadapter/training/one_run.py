"""One assistant from settings to scores: everything is read first, then built, trained, saved, evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmadapter.config.run_folder import changed_settings, has_checkpoints, take_over
from mmadapter.deepspeed_library import end_engines
from mmadapter.errors import InputError
from mmadapter.files import write_json
from mmadapter.processes import here
from mmadapter.terminal import Display
from mmadapter.training.assembly import groups_of, lr_line, schedule_of
from mmadapter.training.attempt import note
from mmadapter.training.determinism import deterministic
from mmadapter.training.journal import Journal, NoJournal
from mmadapter.training.loop import train
from mmadapter.training.out_of_memory import memory_explained, of_a_task
from mmadapter.training.pictures import prepare_images
from mmadapter.training.random_state import seed_all
from mmadapter.training.record import clear_leftovers, results_of, versions
from mmadapter.training.sources import Samples, encode, read_samples
from mmadapter.training.table import show_trainable, trainable_rows

SCORES = ("accuracy", "likelihood_accuracy", "exact_match", "followed", "named", "counts", "unanswered")


def run_one(conf: Any, folder: Path, display: Display, trains: bool) -> dict[str, Any]:
    """Trains (unless it is the host alone) and evaluates one assistant in `folder`; goes on where an attempt ended.

    All data is read, and all pictures are encoded, before the first step: what cannot be used shows before the work.
    Of several processes all do the work, and the first writes.
    """
    from mmadapter.hosts.sharded import sharding_of
    from mmadapter.model import AdaptedModel

    changed = here().decide(lambda: changed_settings(folder, conf))
    if here().is_first:
        clear_leftovers(folder)
        if not (trains and changed):  # else the loop does, once it has really gone on
            take_over(folder, conf)
            write_json(folder / "versions.json", versions())
    samples = read_samples(conf) if trains else None
    questions = open_tasks(conf, folder, all_of_them=bool(changed))
    with memory_explained(conf, "while the host was loaded"):
        parts = (conf.host, conf.vision, conf.adapter, conf.seed)
        assistant = AdaptedModel.build(*parts, device_of(conf), sharding_of(conf.engine.name))
    if not trains:
        assistant.run_without_engine()
    check_lengths(conf, assistant, questions, display)
    prepare_images(conf, assistant, images_of(questions), display)
    kept = here().decide(lambda: has_checkpoints(folder))  # and the start with them
    if trains and conf.adapter.start and not kept:
        display.say(assistant.start_from(conf.adapter.start))
    seed_all(conf.seed)
    training = None if samples is None else train_one(conf, assistant, samples, folder, display)
    for name, asked in questions.items():
        evaluate_task(conf, assistant, name, asked, folder, display)
    del assistant
    end_engines()
    scores = {
        name: {key: metrics[key] for key in SCORES if key in metrics} for name, metrics in results_of(folder).items()
    }
    return {"training": training, "evaluation": scores}


def train_one(conf: Any, assistant: Any, samples: Samples, folder: Path, display: Display) -> dict[str, Any]:
    """Shows what trains, trains, and saves the adapter."""
    for item in assistant.trainable_parameters():  # what is frozen in this run needs no activations kept
        item.parameter.requires_grad_(item.role not in conf.adapter.frozen)
    data = encode(conf, samples, assistant.tokenizer, assistant.max_tokens)
    schedule = schedule_of(conf, data.steps_per_epoch)
    note(folder, total_steps=schedule.total_steps)
    rows = trainable_rows(conf, assistant, groups_of(conf, assistant), schedule.lr)
    show_trainable(rows, display)
    display.say(data.describe())
    display.say(lr_line(conf, schedule))
    journal = open_journal(conf, folder)

    def describe() -> None:
        write_json(folder / "versions.json", versions())
        write_json(folder / "trainable.json", rows)

    def save(facts: dict[str, Any]) -> None:
        assistant.save(folder / "adapter", facts)

    try:
        summary = train(conf, assistant, data, folder, journal, display, save, describe)
    finally:
        journal.close()
    if here().is_first:
        save(summary)
    return summary


def open_journal(conf: Any, folder: Path) -> Journal:
    """The run's journal, which only the first process writes."""
    if not here().is_first:
        return NoJournal()
    name, settings = f"{conf.experiment}-{folder.name}", conf.training
    return Journal(folder, tensorboard=settings.tensorboard, wandb=settings.wandb, name=name)


def open_tasks(conf: Any, folder: Path, all_of_them: bool = False) -> dict[str, list[Any]]:
    """The samples of every task of `evaluate` that no earlier attempt has finished."""
    from mmadapter.evaluation.recreate import samples_of_task

    def unfinished() -> list[str]:
        return [name for name in conf.evaluate if not (folder / "eval" / name / "metrics.json").is_file()]

    waiting = conf.evaluate if all_of_them else here().decide(unfinished)
    read = {name: samples_of_task(conf.tasks[name], conf.data.root) for name in waiting}
    return read if conf.vision.enabled else {name: without_images(samples) for name, samples in read.items()}


def check_lengths(conf: Any, assistant: Any, questions: dict[str, list[Any]], display: Display) -> None:
    """Says how many prompts of each task are too long and will be cut. Raises InputError where one cannot be cut."""
    from mmadapter.evaluation.generation import cut_prompts

    for name, samples in questions.items():
        if cut := cut_prompts(assistant, samples, conf.tasks[name]):
            display.say(f"task {name}: {cut:,} of {len(samples):,} prompts are too long and will be cut")


def images_of(questions: dict[str, list[Any]]) -> list[Path]:
    """The pictures of all tasks, each once."""
    paths = [sample.image for samples in questions.values() for sample in samples if sample.image is not None]
    return list(dict.fromkeys(paths))


def evaluate_task(conf: Any, assistant: Any, name: str, samples: Sequence[Any], folder: Path, display: Display) -> None:
    """One task into FOLDER/eval/NAME."""
    from mmadapter.evaluation.run import evaluate

    def progress(what: str, done: int, total: int) -> None:
        display.report(f"{name}: {what}", done, total)

    task = conf.tasks[name]
    assistant.eval()
    target, root = folder / "eval" / name, task.root or conf.data.root
    explained = memory_explained(conf, f"while task {name} was evaluated", smaller=of_a_task(f"tasks.{name}", task))
    with explained, deterministic(conf, strictly=False):  # top_p has no deterministic algorithm on a GPU
        evaluate(assistant, task, samples, target, progress=progress, root=root)


def device_of(conf: Any) -> str:
    """The device that engine.device asks for."""
    available = torch.cuda.is_available()
    if conf.engine.device == "cuda" and not available:
        raise InputError("engine.device=cuda, but torch sees no GPU here. Use engine.device=cpu, or auto.")
    if conf.engine.device != "auto":
        return conf.engine.device
    return "cuda" if available else "cpu"


def without_images(samples: Sequence[Any]) -> list[Any]:
    """The same samples, text only."""
    return [replace(sample, image=None) for sample in samples]
