"""The page of eval.py: what an evaluation does, from its settings to the printed scores.

Scoring a file of predictions loads neither torch nor Java.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmadapter.config import PACKAGE, EvalConf
from mmadapter.data.embedded import unpack_missing_world
from mmadapter.data.settings import trained_system, trained_template
from mmadapter.distributed.launchers import launched
from mmadapter.errors import InputError
from mmadapter.files import read_json
from mmadapter.hosts.settings import host_folder
from mmadapter.reports.report import write_report
from mmadapter.runs.folder import find_run, finished_runs
from mmadapter.tasks import task_of
from mmadapter.tasks.section import Result, show_section
from mmadapter.tasks.settings import TaskSettings
from mmadapter.tasks.task import evaluate, with_versions
from mmadapter.terminal import Display, quiet_console

if TYPE_CHECKING:
    from mmadapter.distributed.ranks import Ranks

SHIPPED = PACKAGE / "tiny" / "run"  # a run folder: the quick start's adapter for the tiny models
SHIPPED_RESULTS = "shipped_adapter"  # below runs_root
# keys of a task that change no result, or have a place of their own in the name of the results
SAME_RESULTS = ("root", "problems", "batch_size", "split", "limit")


def run_evaluation(conf: EvalConf) -> dict[str, Any]:
    """What eval.py does: ask the model of a run, or score a file of predictions. Returns the metrics.

    Where a launcher has started several ranks, each calls this to ask a run: they share the questions out, and rank 0
    writes and speaks for all.
    """
    if conf.predictions:
        refuse_several_ranks()
        return score_predictions(conf, Display())

    import torch

    from mmadapter.distributed.ranks import connected

    on_gpu = conf.device == "cuda" or (conf.device == "auto" and torch.cuda.is_available())
    with connected("cuda" if on_gpu else "cpu", conf.launch) as ranks:
        return evaluate_run(conf, ranks, Display(None if ranks.is_first else quiet_console()))


def refuse_several_ranks() -> None:
    """Raises InputError where a launcher has started several processes, for what one process does."""
    place = launched(os.environ)
    if place is not None and place.world_size > 1:
        raise InputError(
            f"predictions= is scored by one process, but {place.launcher} has started {place.world_size}; each would "
            "write the same files. Start it alone (under srun: srun -n 1 mmadapter eval ...)."
        )


def score_predictions(conf: EvalConf, display: Display) -> dict[str, Any]:
    """Score a file of predictions without a model; write into `conf.output` where it is set."""
    task = task_of(conf.task)
    scored = task.score_file(Path(str(conf.predictions)).expanduser())
    scored = replace(scored, metrics=with_versions(task, scored.metrics))
    if conf.output:
        scored.write(Path(conf.output))
    show_section(task.section([Result("these answers", scored.metrics, [])]), display)
    if conf.output:
        display.say(f"written: {Path(conf.output) / 'metrics.json'}")
    return scored.metrics


def evaluate_run(conf: EvalConf, ranks: Ranks, display: Display) -> dict[str, Any]:
    """Build a run's model and evaluate it in one task, into RUN/eval/TASK or `conf.output`. Collective."""
    from mmadapter.hosts.load import hide_library_bars, load_tokenizer  # here, as these load torch
    from mmadapter.runs.model import model_of_run, settings_of_run
    from mmadapter.training.memory import explain_memory, of_a_task

    # The run: the one that is named, else the newest that does this task. Host and CLIP may lie elsewhere by now.
    if conf.run:
        folder = find_run(conf.run, conf.runs_root)
    elif newest := ranks.decide(lambda: str(newest_run(conf.task.name, Path(conf.runs_root)) or "")):
        folder = Path(newest)
        display.say(f"run: {folder}, the newest finished one that evaluates {conf.task.name}")
    else:
        folder = SHIPPED
    run_conf = settings_of_run(folder, conf)
    if folder == SHIPPED:
        if conf.task.name not in run_conf.evaluate:
            raise InputError(
                f"Nothing to evaluate: no finished run in {conf.runs_root} evaluates {conf.task.name}, nor does the "
                "adapter that comes with the package. Name a run (run=RUN_FOLDER), score answers that are there "
                f"(predictions=FILE), or train one: mmadapter train 'evaluate=[{conf.task.name}]'"
            )
        display.say(
            f"No finished run in {conf.runs_root} evaluates {conf.task.name}: this is the adapter that comes with the "
            "package, trained as the quick start does, with the shipped models. For a run of yours: run=RUN_FOLDER"
        )
        ranks.decide(lambda: unpack_missing_world(run_conf.data.made, run_conf.data.root, display.say))

    # The task, as the run has it but for what the command line gives, and its samples.
    own = run_conf.tasks.get(conf.task.name)
    settings = task_of_run(conf.task, own, conf.given)
    settings.images = settings.images and bool(run_conf.vision.enabled)
    task = task_of(settings, run_conf.data.root)
    tokenizer = load_tokenizer(host_folder(run_conf.host.path), run_conf.host.tokenizer)
    trained = trained_template(run_conf.data.sources, tokenizer, settings)
    card = read_json(folder / "adapter" / "adapter.json")
    if isinstance(card, dict) and "template" not in card:  # older: there was no other
        trained = "alpaca" if trained == "auto" else trained
    samples = task.read(tokenizer, trained, trained_system(run_conf.data.sources), key="task")

    # The model with the run's adapter, and the features of the pictures.
    if not display.console.is_terminal:
        hide_library_bars()
    smaller_type = ["host.dtype=bfloat16 (half the frozen weights and activations; the answers may differ)"]
    general = [*(smaller_type if run_conf.host.dtype == "float32" else []), "a machine with more memory"]
    beside = folder != SHIPPED and not folder.resolve().is_relative_to(Path(conf.runs_root).resolve())
    run_conf.vision = run_conf.vision.cached_below(folder.parent if beside else Path(conf.runs_root))
    with explain_memory("while the host was loaded", lambda: general):
        model = model_of_run(folder, run_conf, conf.device)
    with explain_memory("while pictures were encoded", lambda: general):
        paths = [sample.image for sample in samples if sample.image is not None]
        model.prepare_images(paths, lambda done, total: display.report("image features", done, total), ranks)

    # Ask, score, write.
    holder = Path(conf.runs_root) / SHIPPED_RESULTS if folder == SHIPPED else folder  # the package is not written to
    output = Path(conf.output) if conf.output else holder / "eval" / results_name(settings, own, conf.given)
    switches = [*of_a_task("task", settings, changes="other answers"), *general]
    with explain_memory(f"while task {settings.name} was evaluated", lambda: switches):
        scored = evaluate(model, task, samples, output, ranks, display.report)
    display.close()

    # Show the scores, and bring the report up to date.
    if not ranks.is_first:
        return scored.metrics
    if cut := scored.metrics["cut_prompts"]:
        display.say(f"prompts that were too long and were cut: {cut} of {len(samples)}")
    show_section(task.section([Result("this run", scored.metrics, scored.rows)]), display)
    display.say(f"written: {output / 'metrics.json'}")
    if (folder / "report.html").is_file() and not conf.output:
        display.say(f"written: {write_report(folder)}")
    return scored.metrics


def newest_run(task: str, runs_root: Path) -> Path | None:
    """The folder of the run that finished last among those that have an adapter and evaluate this task."""
    return next((folder for folder, conf in finished_runs(runs_root) if task in conf.evaluate), None)


def task_of_run(asked: TaskSettings, own: TaskSettings | None, given: Sequence[str]) -> TaskSettings:
    """The run's own settings of a task, with those of `asked` that were `given` (keys, such as generation.beams).

    So a run is asked in the prompt format it was trained in, on the files it was made for. A run without this task is
    asked as `asked` says.
    """
    if own is None:
        return asked
    settings = deepcopy(own)
    for key in given:
        part, _, name = key.rpartition(".")
        source, target = (getattr(asked, part), getattr(settings, part)) if part else (asked, settings)
        setattr(target, name, getattr(source, name))
    return settings


def results_name(settings: TaskSettings, own: TaskSettings | None, given: Sequence[str] = ()) -> str:
    """The folder in RUN/eval: the task's name; with another split, limit or other setting than the run's own task one
    beside it (scienceqa-first-20, instruct-beams-4), so that a quick look never replaces the run's scores."""

    def value_of(of: Any, key: str) -> Any:
        for part in key.split("."):
            of = getattr(of, part, None)
        if is_dataclass(of):  # generation={...}
            return "-".join(str(value) for value in vars(of).values())
        return Path(of).stem if isinstance(of, str) else of

    name = settings.name
    if own is not None and settings.split != own.split:
        name += f"-{settings.split}"
    if settings.limit and (own is None or settings.limit != own.limit):
        name += f"-first-{settings.limit}"
    for key in given:
        if key not in SAME_RESULTS and (value := value_of(settings, key)) != value_of(own, key):
            name += f"-{key.rpartition('.')[2]}-{value}"
    return name
