"""The story of one run: what train.py does from checked settings to the final table."""

from __future__ import annotations

import gc
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmadapter.config import comparison_conf, entry, save_config, variant_conf
from mmadapter.config.run_folder import is_finished, mark_finished, run_folder
from mmadapter.errors import InputError
from mmadapter.training.assembly import groups_of, lr_line, schedule_of
from mmadapter.training.display import Display
from mmadapter.training.dry_run import dry_run
from mmadapter.training.journal import Journal
from mmadapter.training.loop import train
from mmadapter.training.made_data import check_tiny_models, make_missing_data
from mmadapter.training.memory import peak_memory
from mmadapter.training.preemption import RunStopped
from mmadapter.training.random_state import seed_all
from mmadapter.training.record import clear_leftovers, results_of, versions, write_json
from mmadapter.training.sources import read_data
from mmadapter.training.summary import show_results, stored_summary
from mmadapter.training.table import show_trainable, trainable_rows


def run(conf: Any) -> dict[str, Any]:
    """Trains, evaluates, compares and reports what `conf` (a checked RunConf) describes; returns the summary.

    A finished run is not trained again: its results are shown. Raises InputError for what the user can mend, RunStopped
    (a SystemExit) when a signal asked to stop.
    """
    set_threads(conf.threads)
    display = Display(log_every_steps=conf.training.log_every_steps)
    try:
        quieten_libraries(display)
        return dry_run(conf, display) if conf.dry_run else run_whole(conf, display)
    except KeyboardInterrupt:
        display.close()
        display.say("interrupted. Run the same command again to go on from the last checkpoint.")
        raise RunStopped(130) from None
    finally:
        display.close()


def run_whole(conf: Any, display: Display) -> dict[str, Any]:
    """Data, training, evaluation, comparison, report, table."""
    started = time.perf_counter()
    folder = run_folder(conf)
    if is_finished(folder):
        return show_finished(folder, display)
    check_tiny_models(conf)
    make_missing_data(conf, display)
    display.say(f"run folder: {folder}")
    own = {} if conf.variants else run_one(conf, folder, display, trains=True)
    run_parts(conf, folder, display)
    summary = {
        "experiment": conf.experiment,
        "images": conf.vision.enabled,
        **own,
        "wall_seconds": time.perf_counter() - started,
        "peak": peak_memory(),
    }
    write_json(folder / "summary.json", summary)
    write_reports(conf, folder, display)
    mark_finished(folder, summary)
    show_results(folder, summary, display)
    return summary


def run_parts(conf: Any, folder: Path, display: Display) -> None:
    """The runs beside this one: comparisons and variants, each in a folder of its own; finished ones are left alone."""
    if conf.variants:
        save_config(conf, folder)
        write_json(folder / "versions.json", versions())
    parts = [("comparison", name, comparison_conf(conf, name), item.train) for name, item in conf.comparison.items()]
    parts += [("variants", name, variant_conf(conf, name), True) for name in conf.variants]
    for kind, name, part, trains in parts:
        own_folder = folder / kind / name
        if is_finished(own_folder):
            continue
        display.say(f"{kind} {name}: {own_folder}")
        started = time.perf_counter()
        summary = run_one(part, own_folder, display, trains)
        summary |= {"wall_seconds": time.perf_counter() - started, "peak": peak_memory(), "images": part.vision.enabled}
        write_json(own_folder / "summary.json", summary)
        mark_finished(own_folder, summary)


def run_one(conf: Any, folder: Path, display: Display, trains: bool) -> dict[str, Any]:
    """One assistant: built, trained (unless it is the host alone), saved, evaluated."""
    from mmadapter.assistant import Assistant

    clear_leftovers(folder)
    save_config(conf, folder)
    write_json(folder / "versions.json", versions())
    seed_all(conf.seed)
    assistant = Assistant.build(conf, device=device_of(conf))
    training = train_one(conf, assistant, folder, display) if trains else None
    evaluate_tasks(conf, assistant, folder, display)
    del assistant
    gc.collect()
    return {
        "training": training,
        "evaluation": {name: _scores(metrics) for name, metrics in results_of(folder).items()},
    }


def train_one(conf: Any, assistant: Any, folder: Path, display: Display) -> dict[str, Any]:
    """Reads the data, shows what trains, trains, and saves the adapter."""
    from mmadapter.store import save_adapter

    data = read_data(conf, assistant.tokenizer, assistant.max_tokens)
    groups = groups_of(conf, assistant)
    schedule = schedule_of(conf, data.steps_per_epoch)
    rows = trainable_rows(conf, assistant, groups, schedule.lr)
    write_json(folder / "trainable.json", rows)
    show_trainable(rows, display)
    display.say(data.describe())
    display.say(lr_line(conf, schedule))
    journal = Journal(
        folder,
        tensorboard=conf.training.tensorboard,
        wandb=conf.training.wandb,
        name=f"{conf.experiment}-{folder.name}",
    )
    try:
        summary = train(
            conf,
            assistant,
            data,
            folder,
            journal,
            display,
            lambda facts: save_adapter(assistant, folder / "adapter", facts),
        )
    finally:
        journal.close()
    save_adapter(assistant, folder / "adapter", summary)
    return summary


def evaluate_tasks(conf: Any, assistant: Any, folder: Path, display: Display) -> None:
    """The tasks of `evaluate`; one that an earlier attempt finished is not repeated."""
    from mmadapter.evaluation.recreate import samples_of_task
    from mmadapter.evaluation.run import evaluate

    for name in conf.evaluate:
        task = conf.tasks[name]
        output = folder / "eval" / name
        if (output / "metrics.json").is_file():
            continue
        samples = samples_of_task(task, conf.data.root)
        if not conf.vision.enabled:
            samples = without_images(samples)
        paths = [sample.image for sample in samples if sample.image is not None]
        assistant.eval()
        assistant.prepare_images(paths, lambda done, total: display.report("image features", done, total))
        evaluate(assistant, task, samples, output, progress=reporter(display, name), root=task.root or conf.data.root)
    display.close()


def write_reports(conf: Any, folder: Path, display: Display) -> None:
    """report.html of the run, of its variants, and the comparison of the variants."""
    from mmadapter.evaluation.comparison import write_comparison
    from mmadapter.evaluation.report import write_report

    for part in [folder / "variants" / name for name in conf.variants] or [folder]:
        write_report(part)
    if conf.variants:
        write_comparison(folder)


def show_finished(folder: Path, display: Display) -> dict[str, Any]:
    """A finished run started again: its results, no training."""
    summary = stored_summary(folder) or {}
    display.say(
        f"{folder} is finished; nothing is trained again. For a new run: other settings, run=NAME, or resume=never."
    )
    show_results(folder, summary, display)
    return summary


def set_threads(threads: int | None) -> None:
    """Sets torch's threads; the entry has set the libraries' before they were imported."""
    entry.set_threads(threads)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def quieten_libraries(display: Display) -> None:
    """Keeps other libraries' bars off anything that is no terminal."""
    if not display.console.is_terminal:
        from transformers.utils import logging

        logging.disable_progress_bar()


def device_of(conf: Any) -> str:
    """The device that engine.device asks for."""
    available = torch.cuda.is_available()
    if conf.engine.device == "cuda" and not available:
        raise InputError("engine.device=cuda, but torch sees no GPU here. Use engine.device=cpu, or auto.")
    if conf.engine.device != "auto":
        return conf.engine.device
    return "cuda" if available else "cpu"


def without_images(samples: list[Any]) -> list[Any]:
    return [replace(sample, image=None) for sample in samples]


def reporter(display: Display, task: str) -> Any:
    return lambda what, done, total: display.report(f"{task}: {what}", done, total)


def _scores(metrics: Any) -> Any:
    return {key: metrics[key] for key in ("accuracy", "likelihood_accuracy", "counts", "unanswered") if key in metrics}
