"""READ SECOND: the page that tells a run, from checked settings to the report.

`run` is what train.py calls: it finds the ranks and the folder, and goes through the run and the runs beside it
(comparisons, variants). `train_and_evaluate` is one of these, top to bottom. Below this page nobody sees the whole
settings of a run: each room gets its own, or plain objects.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmadapter.config import RunConf, comparison_conf, embedded_notice, save_config, variant_conf
from mmadapter.data.embedded import unpack_missing_world
from mmadapter.data.mixture import StepShape
from mmadapter.data.readers import MissingData
from mmadapter.data.samples import Sample
from mmadapter.data.settings import trained_system, trained_template
from mmadapter.data.tokens import SampleEncoder
from mmadapter.data.training import Remarks, RunData, Samples, read_samples
from mmadapter.distributed.deepspeed import end_engines
from mmadapter.distributed.ranks import Ranks, connected
from mmadapter.distributed.start import thread_count
from mmadapter.errors import InputError
from mmadapter.files import read_json, write_json
from mmadapter.hosts.load import hide_library_bars, load_tokenizer
from mmadapter.hosts.settings import HostConf, host_folder
from mmadapter.hosts.sharded import Sharding, gather_in_forward
from mmadapter.methods.folder import CARD
from mmadapter.methods.groups import Group, parameter_groups, trainable_table
from mmadapter.methods.settings import GroupConf
from mmadapter.model import AdaptedModel
from mmadapter.reports.report import write_report
from mmadapter.runs.attempt import attempt, clear_leftovers, note, wall_time
from mmadapter.runs.folder import (
    FINISHED_FILE,
    changed_settings,
    has_checkpoints,
    is_finished,
    run_folder,
    take_over,
)
from mmadapter.runs.journal import Journal
from mmadapter.runs.state import RunFolder
from mmadapter.runs.versions import versions
from mmadapter.tasks import task_of
from mmadapter.tasks.asking import cut_prompts
from mmadapter.tasks.task import evaluate
from mmadapter.terminal import Display, quiet_console
from mmadapter.training.by_data import decided_by_data
from mmadapter.training.determinism import deterministic, random_state, restore_random_state, seed_all
from mmadapter.training.dry_run import show_data, show_memory
from mmadapter.training.finished import show_finished
from mmadapter.training.loop import Loop
from mmadapter.training.memory import MemoryAdvice, of_a_task, peak_of_ranks, reset_peak
from mmadapter.training.optimizer import check_sources
from mmadapter.training.preemption import end_interrupted, interrupts, refuse_new_folders, release_signals, way_on
from mmadapter.training.schedule import Schedule
from mmadapter.training.settings import ENGINES, OptimizerConf, SizedOptimizerConf
from mmadapter.training.summary import show_results
from mmadapter.training.watched import WatchedAnswers
from mmadapter.vision.features import FeatureStore

UNKNOWN_SAMPLES = 1000  # that a dry run without data assumes, to choose batch and micro-batch


def run(conf: RunConf) -> dict[str, Any]:
    """Train, evaluate, compare and report what `conf` (checked settings) describes.

    Returns the summary, and the run's folder as "folder"; for a dry run the table, the memory and the learning rate. A
    finished run is not trained again: its results are shown. Raises InputError for what the user can fix, RunStopped
    (a SystemExit) when a signal asked to stop. Where a launcher has started several ranks, each calls this; rank 0
    writes and speaks for all.
    """
    torch.set_num_threads(int(thread_count(conf.threads)))
    device = device_of(conf.engine.device)
    needs_group = conf.engine.name != "single" and not conf.dry_run
    with connected(device, conf.launch, needs_group) as ranks, deterministic(conf.engine.deterministic):
        reset_peak()
        refuse_other_ranks(conf, ranks)
        display = Display(None if ranks.is_first else quiet_console(), conf.training.log_every_steps)
        if not display.console.is_terminal:  # other libraries' bars only at a terminal, their remarks on one rank
            hide_library_bars()
        with interrupts():
            try:
                release_signals()
                if notice := embedded_notice(conf.experiment, conf.embedded):
                    display.say(notice)
                conf, lines = decided_by_data(conf)  # every rank reads all data, and finds the same
                for line in lines:
                    display.say_once(line)
                if conf.dry_run:
                    return train_and_evaluate(conf, None, ranks, display)
                return run_whole(conf, ranks, display)
            except KeyboardInterrupt as error:
                display.close()
                end_interrupted(ranks, error, way_on(conf.resume), display.say)
            finally:
                display.close()


def run_whole(conf: RunConf, ranks: Ranks, display: Display) -> dict[str, Any]:
    """The run and the runs beside it, in a folder that this command alone works in; then reports and the table."""
    # A folder for these settings; a finished run is shown.
    ranks.decide(lambda: refuse_new_folders(conf.resume))
    folder = Path(ranks.decide(lambda: str(run_folder(conf))))
    if ranks.decide(lambda: is_finished(folder, conf)):
        return show_finished(folder, display) if ranks.is_first else {**RunFolder(folder).summary, "folder": folder}

    # The embedded world, where the settings ask for it.
    ranks.decide(lambda: unpack_missing_world(conf.data.made, conf.data.root, display.say))
    display.say(f"run folder: {folder}")

    with contextlib.ExitStack() as held:
        if ranks.is_first:
            held.enter_context(attempt(folder, ranks.world_size))
        ranks.barrier()  # for the lock

        # The run itself; with variants, these are the runs.
        summary: dict[str, Any] = {"experiment": conf.experiment, "images": conf.vision.enabled}
        if not conf.variants:
            summary |= train_and_evaluate(conf, folder, ranks, display, page=folder)
            end_engines()
        elif ranks.is_first:
            save_config(conf, folder)
            write_json(folder / "versions.json", versions(ranks))

        # The runs beside it, each in a folder of its own; finished ones are left alone.
        beside = [("comparison", name, comparison_conf(conf, name), one.train) for name, one in conf.comparison.items()]
        beside += [("variants", name, variant_conf(conf, name, folder), True) for name in conf.variants]
        for kind, name, part, trains in beside:
            own_folder = folder / kind / name
            if ranks.decide(partial(is_finished, own_folder, part)):
                continue
            display.say(f"{kind} {name}: {own_folder}")
            with attempt(own_folder, ranks.world_size) if ranks.is_first else contextlib.nullcontext():
                own = train_and_evaluate(part, own_folder, ranks, display, trains, page=folder)
                end_engines()
                own |= {"peak": peak_of_ranks(ranks), "images": part.vision.enabled}
                if ranks.is_first:
                    own |= wall_time(own_folder)
                    write_json(own_folder / "summary.json", own)
                    write_json(own_folder / FINISHED_FILE, own)

        # Summary and reports.
        summary |= ranks.decide(lambda: wall_time(folder)) | {"peak": peak_of_ranks(ranks)}
        if ranks.is_first:
            write_json(folder / "summary.json", summary)
            write_report(folder)
            write_json(folder / FINISHED_FILE, summary)
    if ranks.is_first:
        show_results(folder, summary, display)
    return {**summary, "folder": folder}


def train_and_evaluate(
    conf: RunConf,
    folder: Path | None,
    ranks: Ranks,
    display: Display,
    trains: bool = True,
    page: Path | None = None,
) -> dict[str, Any]:
    """One model from settings to scores, in `folder`; it continues where an earlier attempt ended.

    A dry run (`folder` None) is the same, and stops before weights are read. Without `trains` the host alone is
    evaluated. `page` is the folder whose report is written anew at each validation: the run's own, or that of the run
    that this one is compared with. Everything that can be refused is refused before the work: settings, then what the
    host cannot carry (on the meta device), then data. All ranks do the work, and rank 0 writes.
    """
    device = device_of(conf.engine.device)
    dtype = conf.host.dtype_on(device)  # of the frozen weights

    # 1. The run folder: what an interrupted attempt left, and the settings that are to hold here.
    changed: list[str] = []
    if folder is not None:
        changed = ranks.decide(lambda: changed_settings(folder, conf))
        if ranks.is_first:
            clear_leftovers(folder)
            if not (trains and changed):  # else the loop does, once it has really continued
                take_over(folder, conf)
                write_json(folder / "versions.json", versions(ranks))

    # 2. The model without weights: depth, width and kinds of layers fit the adapter, or it is refused here.
    parts = (conf.host, conf.vision.cached_below(Path(conf.runs_root)), conf.adapter, conf.seed)
    shape = AdaptedModel.build(*parts, device="meta")

    # An adapter that the training starts from; one that continues needs it no more.
    start = conf.adapter.start if trains and folder is not None else None
    if folder is not None and start is not None and ranks.decide(partial(has_checkpoints, folder)):
        start = None
    if start is not None and not any((Path(start).expanduser() / part / CARD).is_file() for part in ("", "adapter")):
        raise InputError(
            f"adapter.start={start}: there is no {CARD} there, nor in its adapter/. Name an adapter folder or a run "
            "folder that has saved one, e.g. adapter.start=runs/NAME; null starts afresh."
        )

    # 3. All data: training and validation samples, the questions of tasks that no earlier attempt has finished.
    tasks = {name: task_of(conf.tasks[name], conf.data.root) for name in conf.evaluate}
    data: RunData | None = None
    samples: Samples | None = None
    questions: dict[str, list[Sample]] = {}
    remarks = Remarks()  # of the readers
    try:
        tokenizer = tokenizer_of(conf.host, needed=folder is not None)
        with remarks:
            if trains:
                pictures = bool(conf.vision.enabled)
                samples = read_samples(conf.data, images=pictures, seed=conf.seed, tokenizer=tokenizer)
            waiting = list(tasks)
            if folder is not None and not changed:
                files = {name: folder / "eval" / name / "metrics.json" for name in tasks}
                waiting = ranks.decide(
                    lambda: [name for name, file in files.items() if not isinstance(read_json(file), dict)]
                )
            templates = {
                name: trained_template(conf.data.sources, tokenizer, task.settings) for name, task in tasks.items()
            }
            system = trained_system(conf.data.sources)
            questions = {name: tasks[name].read(tokenizer, templates[name], system) for name in waiting}
        if not conf.vision.enabled:
            questions = {name: [replace(one, image=None) for one in asked] for name, asked in questions.items()}
        if samples is not None:
            limits = shape.max_tokens, conf.data.long_answers, conf.host.begin_of_text
            encoder = SampleEncoder(tokenizer, *limits)
            optimizer = conf.optimizer.sized(samples.count, conf.adapter.lr)
            sizes = optimizer.batch_size, optimizer.micro_batch_size
            steps = StepShape(*sizes, conf.seed, ranks.rank, ranks.world_size, optimizer.micro_batch_tokens)
            data = RunData(conf.data, samples, encoder, steps, conf.group_sources)
    except MissingData as error:
        if folder is not None:
            raise
        display.say(f"data: not read, so steps and lengths are not known. {error}")
    for remark in remarks.messages:
        display.say_once(remark)
    if data is None:
        optimizer = conf.optimizer.sized(UNKNOWN_SAMPLES, conf.adapter.lr)
    memory = MemoryAdvice(optimizer, conf.host, conf.engine, conf.resume, ranks.world_size)

    # 4. What trains: groups of roles, the schedule, the table.
    groups = groups_of(conf, shape) if trains else []
    if data is not None:
        check_sources(groups, data.sources)
    layout, layout_line = layout_of(conf.training.layout, shape, device)
    schedule = Schedule.of(optimizer, data.steps_per_epoch if data is not None else 1)
    rows = trainable_table(groups, shape.trainable_parameters(), schedule.lr, optimizer.weight_decay, shape.host_size)
    if trains:
        show_trainable(rows, display)
        display.say(adapted_layers_text(shape))
        if data is not None and samples is not None:
            display.say(data.describe())
            if by_size := conf.optimizer.by_size(samples.count):
                display.say(by_size)
        length_is_known = data is not None or optimizer.steps is None  # that of an epoch is not, without data
        if length_is_known and (shortened := schedule.cut_warmup(optimizer)):
            display.say(shortened)
        display.say(rate_text(conf.optimizer, optimizer, schedule, data is not None))
        if layout_line and folder is None:
            display.say(layout_line)

    # 5. A dry run stops here, with what it would take.
    if folder is None:
        count = conf.launch.processes or 1
        show_data(data, {name: len(asked) for name, asked in questions.items()}, display)
        memory_facts = show_memory(optimizer, conf.host, conf.engine, count, shape, device, data, display)
        parameters = sum(row["parameters"] for row in rows)
        length = schedule.total_steps if data is not None else None
        found = {"trainable": rows, "parameters": parameters, **memory_facts, "lr": schedule.lr}
        return {**found, "batch_size": optimizer.batch_size, "steps": length}
    del shape

    # 6. Weights; the adapter fresh, or from the one that the settings start from.
    sharding = Sharding(conf.engine.offload) if conf.engine.stage == 3 else None
    with memory.explained("while the host was loaded"):
        model = AdaptedModel.build(*parts, device, sharding)
    if trains:
        model.template = trained_template(conf.data.sources, model.tokenizer)
        model.system = trained_system(conf.data.sources)
    else:
        gather_in_forward(model.host)
    for name, asked in questions.items():
        if cut := cut_prompts(model, asked, conf.tasks[name]):
            display.say(f"task {name}: {cut:,} of {len(asked):,} prompts are too long and will be cut")
    if start is not None:
        display.say(model.start_from(start))
    seed_all(conf.seed)

    # 7. Engine and loop, at the newest checkpoint where there is one.
    loop = None
    writes = ranks.is_first and data is not None
    journal = Journal(folder, writes=writes, name=f"{conf.experiment}-{folder.name}", boards=conf.training.boards)
    if data is not None:
        data.features = model.features
        for item in model.trainable_parameters():  # what is frozen in this run needs no activations kept
            item.parameter.requires_grad_(item.role not in conf.adapter.frozen)
        groups = groups_of(conf, model)
        if ranks.is_first:
            note(folder, total_steps=schedule.total_steps)
        engine = ENGINES.load(conf.engine.name)(model, groups, optimizer, conf.seed, conf.engine, ranks)
        watched = WatchedAnswers(model, tasks, questions, conf.training.watch_samples, ranks, conf.engine.deterministic)
        show = partial(show_progress, watched, journal, display, page if ranks.is_first else None)
        loop = Loop(
            *(engine, data, schedule, folder, journal, display, memory, conf.training, dtype, conf.resume),
            host_weights=getattr(model.host, "weights_digest", None) or "", layout=layout, after_validation=show,
        )  # fmt: skip

    with contextlib.closing(journal):
        if loop is not None:
            continues = loop.resume()
            if loop.position.layout != layout:
                layout_line = f"layout: {loop.position.layout}, as this run began (training.layout={layout} changes it)"
            if layout_line:
                display.say(layout_line)
            loop.data.lay_out(loop.position.layout)

            def write_settings() -> list[str]:
                write_json(folder / "trainable.json", rows)
                write_json(folder / "versions.json", versions(ranks))
                return take_over(folder, conf)

            changed = ranks.decide(write_settings)
            if continues:
                text = f"continuing at step {loop.position.step} of {schedule.total_steps}"
                if changed:
                    text = "\n  ".join([f"{text} under changed settings (there -> now):", *changed])
                display.say(text)
                facts: dict[str, Any] = {"step": loop.position.step, "engine": conf.engine.name}
                facts |= {"processes": ranks.world_size, "micro_batch_size": optimizer.micro_batch_size}
                facts |= {"layout": loop.position.layout}
                journal.event("resumed", **facts, **({"changed": changed} if changed else {}))

        # 8. Pictures: each is read and encoded once, whatever it is drawn for; no random number moves.
        model.read_pictures_once()
        if loop is not None:
            loop.data.features = model.features
        paths = [sample.image for asked in questions.values() for sample in asked if sample.image is not None]
        if loop is not None and not loop.is_finished:
            paths = [*loop.data.image_paths(), *paths]
        if paths:
            if isinstance(model.features, FeatureStore) and (line := model.features.size_on_disk(len(set(paths)))):
                display.say(line)
            random = random_state()
            with memory.explained("while pictures were encoded"):
                model.prepare_images(paths, partial(display.report, "image features"), ranks)
            restore_random_state(*random)

        # 9. Train, and save the adapter.
        training = None if loop is None else loop.run()
    if training is not None:
        ranks.decide(lambda: model.save(folder / "adapter", training))

    # 10. Evaluate every task.
    model.eval()
    for name, asked in questions.items():
        smaller = of_a_task(f"tasks.{name}", tasks[name].settings)
        explained = memory.explained(f"while task {name} was evaluated", smaller=smaller)
        progress = partial(lambda task, what, *counts: display.report(f"{task}: {what}", *counts), name)
        with explained, deterministic(conf.engine.deterministic, strictly=False):  # top_p has no such algorithm
            evaluate(model, tasks[name], asked, folder / "eval" / name, ranks, progress)
    files = {name: folder / "eval" / name / "metrics.json" for name in sorted(tasks)}  # earlier attempts' too
    results = ranks.decide(lambda: {name: read_json(file) for name, file in files.items()})
    return {"training": training, "evaluation": {name: tasks[name].summary(one) for name, one in results.items()}}


# Steps of the page.


def show_progress(watched: WatchedAnswers, journal: Journal, display: Display, page: Path | None, step: int) -> None:
    """Asks the watched questions, and writes the report of `page` (None: of no folder) anew.

    A report that cannot be written stops no training: the reason is said, once.
    """
    watched.write(step, journal, display.say)
    if page is None:
        return
    try:
        report = write_report(page)
    except Exception as error:  # it is written again after the next validation, and at the end
        display.say_once(f"the report cannot be written while the run trains: {type(error).__name__}: {error}")
    else:
        display.say_once(f"report, written anew at each validation: {report}")


def device_of(asked: str) -> str:
    """The device that engine.device asks for."""
    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise InputError("engine.device=cuda, but torch sees no GPU here. Use engine.device=cpu, or auto.")
    return asked if asked != "auto" else "cuda" if available else "cpu"


def tokenizer_of(host: HostConf, *, needed: bool) -> Any:
    """The host's tokenizer. Raises InputError where there is none, MissingData where it is not `needed`: a dry run then
    reads no data.
    """
    try:
        return load_tokenizer(host_folder(host.path, weights=False), host.tokenizer)
    except InputError as error:
        if needed:
            raise
        raise MissingData(str(error)) from error


def refuse_other_ranks(conf: RunConf, ranks: Ranks) -> None:
    """Raises InputError where the settings do not fit the ranks that were started."""
    count, wanted = ranks.world_size, conf.launch.processes
    if wanted is not None and wanted != count and not conf.dry_run:
        raise InputError(
            f"launch.processes={wanted}, but {ranks.launcher} has started {count}. Leave launch.processes away: with "
            "a launcher of your own it has nothing to start."
        )
    if count > 1 and conf.engine.name == "single":
        raise InputError(
            f"engine=single is one process, but {ranks.launcher} has started {count}. Use engine=zero1 (or another "
            "zeroN), or start one."
        )


def groups_of(conf: RunConf, model: AdaptedModel) -> list[Group]:
    """The groups of `adapter.groups`; one with everything in it where there are none. Frozen roles are in none."""
    trainable, frozen = model.trainable_parameters(), conf.adapter.frozen
    settings = conf.adapter.groups
    if not settings:
        settings = {"all": GroupConf(roles=sorted({item.role for item in trainable}.difference(frozen)))}
    return parameter_groups(trainable, settings, frozen)


def layout_of(asked: str, model: AdaptedModel, device: str) -> tuple[str, str]:
    """The layout of micro-batches that training.layout asks for, and a line that says so; "" where nothing was asked.

    Raises InputError for a forest that would not give the same loss.
    """
    if asked == "padded":
        return asked, ""
    reason = model.without_forest()
    if asked == "forest" and reason is not None:
        raise InputError(f"training.layout=forest: {reason}. Set training.layout=padded, or auto.")
    if asked == "auto" and reason is None and device != "cpu":
        reason = "a forest is not yet measured on a GPU (training.layout=forest tries it)"
    if reason is not None:
        return "padded", f"layout: padded, for {reason}"
    return "forest", "layout: forest (what samples of a micro-batch begin with alike is computed once; no padding)"


def adapted_layers_text(model: AdaptedModel) -> str:
    """Which of the host's layers each method adapts, in one line."""
    found = model.adapter.adapted_layers()
    each = [f"{name} {layers[0] + 1} to {layers[-1] + 1}" for name, layers in found.items()]
    return f"adapted layers, of {model.host.config.num_hidden_layers}: {', '.join(each) or 'none'}"


def rate_text(asked: OptimizerConf, optimizer: SizedOptimizerConf, schedule: Schedule, length_is_known: bool) -> str:
    """The rate and where it comes from; how long the run is, where the data are there."""
    batch = f"effective batch {optimizer.batch_size}"
    if asked.lr is not None:
        source = f"; {batch}"
    elif asked.base_lr is not None:
        source = f" = base {asked.base_lr:g} x {batch} / 256"
    else:
        source = f" (the adapter's own for small batches: optimizer.lr); {batch}"
    length = f"micro-batches of {optimizer.micro_batch_size}"
    if length_is_known:
        whole = f"{schedule.total_steps:,} steps = {schedule.total_epochs:.4g} epochs"
        length = f"{whole} of {schedule.steps_per_epoch:,}"
    return f"learning rate {schedule.lr:.4g}{source}; {length}"


def show_trainable(rows: list[dict[str, Any]], display: Display) -> None:
    """Print the table of what trains, with its sum; shares are of the host's parameters."""
    columns = {"group": "{group}", "role": "{role}", "tensors": "{tensors:,}", "parameters": "{parameters:,}"}
    columns |= {"of host": "{share:.3%}", "lr": "{lr:.4g}", "decay": "{weight_decay:g}", "sources": "{sources}"}
    lines = [[form.format(**row) for form in columns.values()] for row in rows]
    tensors, parameters = sum(row["tensors"] for row in rows), sum(row["parameters"] for row in rows)
    lines.append(["sum", "", f"{tensors:,}", f"{parameters:,}", f"{sum(row['share'] for row in rows):.3%}", "", "", ""])
    display.table("what trains", list(columns), lines, text_columns=("role", "sources"))
