"""One evaluation: answers of a model, or of a predictions file, into predictions.jsonl and metrics.json."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from mmadapter.errors import InputError
from mmadapter.evaluation.coco_caption import evaluate_captions, first_of_images, score_caption_file
from mmadapter.evaluation.generation import Answers, Progress, cut_prompts, generate_answers, most_likely_options
from mmadapter.evaluation.out_of_memory import memory_explained, smaller_pictures, smaller_task
from mmadapter.evaluation.papers import CAPTION_ROWS, scienceqa_rows
from mmadapter.evaluation.predictions import read_predictions
from mmadapter.evaluation.questions import read_questions
from mmadapter.evaluation.recreate import samples_of_task, task_of_run
from mmadapter.evaluation.report import write_report
from mmadapter.evaluation.table import print_caption_scores, print_scores
from mmadapter.evaluation.tasks import (
    evaluate_instructions,
    evaluate_scienceqa,
    prediction_row,
    scienceqa_metrics,
)
from mmadapter.evaluation.versions import Answered
from mmadapter.evaluation.visual_instructions import evaluate_visual_instructions
from mmadapter.files import write_json, write_json_lines

SHOWN_ANSWERS, SHOWN_CHARACTERS = 3, 160
SAME_RESULTS = (
    "root",
    "problems",
    "annotations",
    "batch_size",
    "split",
    "limit",
)  # change no result, or have a name of their own
TASKS: dict[str, Callable[[Answers, Any, Sequence[Any], Path, str | None], Answered]] = {
    "scienceqa": evaluate_scienceqa,
    "coco_caption": evaluate_captions,
    "instruct": evaluate_instructions,
    "visual_instruct": evaluate_visual_instructions,
}


def run(conf: Any) -> dict[str, Any]:
    """What eval.py calls with an EvalConf: evaluates a run folder's model, or scores a predictions file without one."""
    if conf.predictions and conf.run:
        raise InputError("run= and predictions= are both set; give the model to ask, or the answers to score.")
    if conf.predictions:
        return score_file(conf)
    if not conf.run:
        raise InputError("Nothing to evaluate: give run=RUN_FOLDER (a model), or predictions=FILE (answers to score).")
    return evaluate_run(conf)


def score_file(conf: Any) -> dict[str, Any]:
    """Scores an existing predictions file; imports no torch. Writes into `conf.output` where it is set."""
    task, file = conf.task, Path(conf.predictions)
    if task.name == "coco_caption":
        metrics = score_caption_file(conf)
        print_caption_scores(metrics, papers=CAPTION_ROWS)
        if conf.output:
            print(f"written: {Path(conf.output) / 'metrics.json'}")
        return metrics
    files = {name: Path(value) for name in ("root", "problems", "pid_splits") if (value := getattr(task, name))}
    questions, split_size = read_questions(task.split, **files)
    predictions = read_predictions(file, questions, predictions_from=task.predictions_from)
    chosen = set(list(questions)[: task.limit])
    indices = {id: index for id, index in predictions.indices.items() if id in chosen}
    metrics = scienceqa_metrics(task, questions, indices, split_size)
    metrics["predictions"] = {"file": str(file), "scored": task.predictions_from}
    metrics["remarks"] = list(predictions.remarks)
    if conf.output:
        folder = Path(conf.output)
        rows = [
            prediction_row(task, questions[id], predictions.outputs.get(id), index) for id, index in indices.items()
        ]
        write_json_lines(folder / "predictions.jsonl", rows)
        write_json(folder / "metrics.json", metrics)
    print_scores(metrics, papers=scienceqa_rows())
    if conf.output:
        print(f"written: {Path(conf.output) / 'metrics.json'}")
    return metrics


def evaluate_run(conf: Any) -> dict[str, Any]:
    """Re-creates a run's assistant and evaluates one task with it, into RUN/eval/TASK or `conf.output`."""
    from mmadapter.runs.model import find_run, model_of_run, settings_of_run  # imports torch

    folder = find_run(conf.run, conf.runs_root)
    run_conf = settings_of_run(folder, conf)
    own = run_conf.tasks.get(conf.task.name)
    task = task_of_run(conf.task, own, conf.given)
    task.images = task.images and run_conf.vision.enabled
    samples = samples_of_task(task, run_conf.data.root)
    if not sys.stderr.isatty():
        from mmadapter.hosts.load import hide_library_bars

        hide_library_bars()
    with memory_explained(run_conf, "while the host was loaded"):
        assistant = model_of_run(folder, run_conf, conf.device)
    progress = line_progress()
    paths = [sample.image for sample in samples if sample.image is not None]
    with memory_explained(run_conf, "while pictures were encoded", smaller_pictures(run_conf.vision)):
        assistant.prepare_images(paths, lambda done, total: progress("image features", done, total))
    output = Path(conf.output) if conf.output else folder / "eval" / results_name(task, own, conf.given)
    root = task.root or run_conf.data.root
    with memory_explained(run_conf, f"while task {task.name} was evaluated", smaller_task(task)):
        metrics = evaluate(assistant, task, samples, output, root=root, quiet=False, progress=progress)
    if (folder / "report.html").is_file() and not conf.output:
        print(f"written: {write_report(folder)}")
    return metrics


def results_name(task: Any, own: Any, given: Sequence[str] = ()) -> str:
    """The folder in RUN/eval: the task's name; with another split, limit or other setting than the run's own task one
    beside it (scienceqa-first-20, instruct-beams-4), so that a quick look never replaces the run's scores."""
    name = task.name
    if own is not None and task.split != own.split:
        name += f"-{task.split}"
    if task.limit and (own is None or task.limit != own.limit):
        name += f"-first-{task.limit}"
    for key in given:
        value = setting(task, key)
        if key not in SAME_RESULTS and value != setting(own, key):
            name += f"-{key.rpartition('.')[2]}-{value}"
    return name


def setting(task: Any, key: str) -> Any:
    """The value of a key such as generation.beams; of a path the name alone."""
    for part in key.split("."):
        task = getattr(task, part, None)
    if is_dataclass(task):  # generation={...}
        return "-".join(str(value) for value in vars(task).values())
    return Path(task).stem if isinstance(task, str) else task


def evaluate(
    assistant: Any,
    task: Any,
    samples: Sequence[Any],
    folder: Path,
    *,
    progress: Progress | None = None,
    root: str | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """Asks the assistant every sample; writes FOLDER/predictions.jsonl and metrics.json, whole or not at all.

    `task` is a TaskConf; `samples` were read for evaluation (no answer segment); `root` is the data root that the
    task falls back on, for the size of the whole split. Returns the metrics. Collective: the processes share the
    samples out, the first one scores, writes and shows.
    """
    from mmadapter.processes import here

    if task.name not in TASKS:
        raise InputError(f"task.name is {task.name!r}, allowed: {', '.join(TASKS)}.")
    if not samples:
        raise InputError(f"task {task.name}: there is no sample to evaluate in split {task.split}. Check task.split.")
    if here().is_first:  # before the work, so that a place that cannot be written to shows early
        folder.mkdir(parents=True, exist_ok=True)
    cut = cut_prompts(assistant, samples, task)
    started = time.perf_counter()
    if task.name == "coco_caption":
        samples = first_of_images(samples)
    answers = ask(assistant, task, samples, progress)
    metrics: dict[str, Any] = {}
    if here().is_first:
        metrics, rows = TASKS[task.name](answers, task, samples, folder, root)
        metrics["cut_prompts"] = cut
        metrics["seconds"] = round(time.perf_counter() - started, 2)
        write_json_lines(folder / "predictions.jsonl", rows)
        write_json(folder / "metrics.json", metrics)
        if not quiet:
            if cut:
                print(f"prompts that were too long and were cut: {cut} of {len(samples)}")
            show_results(metrics, rows)
            print(f"written: {folder / 'metrics.json'}")
    return here().broadcast(metrics)


def ask(assistant: Any, task: Any, samples: Sequence[Any], progress: Progress | None) -> Answers:
    """The assistant's answers, given in evaluation mode, and the likeliest options where the task wants them."""
    was_training = getattr(assistant, "training", False)
    if was_training:
        assistant.eval()
    try:
        texts = generate_answers(assistant, samples, task, progress=progress)
        if task.name != "scienceqa" or not task.likelihood:
            return Answers(texts)
        return Answers(texts, most_likely_options(assistant, samples, task, progress=progress))
    finally:
        if was_training:
            assistant.train()


def show_results(metrics: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints the scores, or some answers and what was counted."""
    if metrics["task"] == "scienceqa":
        print_scores(metrics, papers=scienceqa_rows())
        return
    if metrics["task"] == "coco_caption":
        print_caption_scores(metrics, papers=CAPTION_ROWS)
    for row in rows[:SHOWN_ANSWERS]:
        asked = f"{row['instruction']} {row.get('input', '')}" if "instruction" in row else str(row["id"])
        print(f"{shorten(asked, SHOWN_CHARACTERS)}: {shorten(row['output'], SHOWN_CHARACTERS)}")
    if "exact_match" in metrics:
        counts, share = metrics["counts"], metrics["exact_match"]
        print(f"equal to the reference: {counts['exact']} of {counts['answers']} answers, {share:.2f} %")
    if "followed" in metrics:
        count, named = metrics["counts"]["answers"], metrics["named"]
        print(f"followed: {metrics['followed']:.2f} % of {count} answers; right word named: {named:.2f} %")


def line_progress(every_seconds: float = 5.0) -> Progress:
    """Progress on stderr: one line rewritten at a terminal, a line now and then elsewhere."""
    last = [time.monotonic()]
    terminal = sys.stderr.isatty()

    def show(what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if done < total and now - last[0] < (0.2 if terminal else every_seconds):
            return
        last[0] = now
        start, end = ("\r", "\n" if done == total else "") if terminal else ("", "\n")
        print(f"{start}{what}: {done}/{total}", end=end, file=sys.stderr, flush=True)

    return show
