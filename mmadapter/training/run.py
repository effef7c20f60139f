"""The story of one run: what train.py does from checked settings to the final table."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mmadapter.config import comparison_conf, entry, save_config, variant_conf
from mmadapter.config.host import TINY
from mmadapter.config.models import SHIPPED
from mmadapter.config.run_folder import is_finished, mark_finished, run_folder
from mmadapter.config.signals import ended_by
from mmadapter.data.embedded import unpack_missing_world
from mmadapter.errors import InputError
from mmadapter.files import write_json
from mmadapter.processes import here, joined
from mmadapter.runs.objective import metric_of, value_in
from mmadapter.terminal import Display, quiet_console
from mmadapter.training.attempt import attempt, wall_time
from mmadapter.training.determinism import deterministic
from mmadapter.training.dry_run import dry_run
from mmadapter.training.memory import peak_of_processes, reset_peak
from mmadapter.training.one_run import device_of, run_one
from mmadapter.training.preemption import end_attempt, interrupt, release_signals, termination_interrupts
from mmadapter.training.record import only_process, versions
from mmadapter.training.requeue import refuse_anew
from mmadapter.training.summary import show_results, stored_summary
from mmadapter.training.trouble import the_way_on


def run(conf: Any) -> dict[str, Any]:
    """Trains, evaluates, compares and reports what `conf` (a checked RunConf) describes.

    Returns the summary, and the run's folder as "folder".

    A finished run is not trained again: its results are shown. Raises InputError for what the user can mend, RunStopped
    (a SystemExit) when a signal asked to stop. Where a launcher has started several processes, each calls this; the
    first one writes and speaks for all.
    """
    set_threads(conf.threads)
    needs_group = conf.engine.name != "single" and not conf.dry_run
    with joined(device_of(conf), needs_group, conf.launch.meet_seconds), deterministic(conf):
        reset_peak()
        check_processes(conf)
        console = None if here().is_first else quiet_console()
        return run_here(conf, Display(console, conf.training.log_every_steps))


def check_processes(conf: Any) -> None:
    """Raises InputError where the settings do not fit the processes that were started."""
    count, wanted = here().count, conf.launch.processes
    if wanted is not None and wanted != count and not conf.dry_run:
        raise InputError(
            f"launch.processes={wanted}, but {here().launcher} has started {count}. Leave launch.processes away: with "
            "a launcher of your own it has nothing to start."
        )
    if count > 1 and conf.engine.name == "single":
        raise InputError(
            f"engine=single is one process, but {here().launcher} has started {count}. Use engine=zero1 (or another "
            "zeroN), or start one."
        )


def run_here(conf: Any, display: Display) -> dict[str, Any]:
    """What this process does of the run."""
    with termination_interrupts():
        try:
            release_signals()
            quieten_libraries(display)
            return dry_run(conf, display) if conf.dry_run else run_whole(conf, display)
        except KeyboardInterrupt as error:
            number = ended_by(error)
            display.close()
            display.say(f"interrupted by {number.name}. {the_way_on(conf)} to go on from the last checkpoint.")
            end_attempt(number, interrupt, display.say)
        finally:
            display.close()


def run_for_metric(conf: Any) -> float | None:
    """Does what `run` does; returns the number that `sweep.metric` names, None where the run has none."""
    summary = run(conf)
    return None if conf.dry_run else value_in(summary["folder"], metric_of(conf))


def run_whole(conf: Any, display: Display) -> dict[str, Any]:
    """Data, training, evaluation, comparison, report, table; one run a folder, which the first process owns."""
    processes = here()
    processes.decide(lambda: refuse_anew(conf))
    folder = processes.decide(lambda: run_folder(conf))
    if processes.decide(lambda: is_finished(folder, conf)):
        return {**(show_finished(folder, display) if processes.is_first else {}), "folder": folder}
    check_tiny_models(conf)
    processes.decide(lambda: unpack_missing_world(conf.data.made, conf.data.root, display.say))
    display.say(f"run folder: {folder}")
    with contextlib.ExitStack() as held:
        if processes.is_first:
            held.enter_context(only_process(folder))
            held.enter_context(attempt(folder))
        summary = run_in(folder, conf, display)
    if processes.is_first:
        show_results(folder, summary, display)
    return {**summary, "folder": folder}


def check_tiny_models(conf: Any) -> None:
    """Raises InputError where the settings ask for the shipped models and they are not there."""
    wanted = [(conf.host.path, "llama")] + ([(conf.vision.model, "clip")] if conf.vision.enabled else [])
    for name, part in wanted:
        if name == TINY and not (SHIPPED / part).is_dir():
            raise InputError(
                f"The small {part} model is not in {SHIPPED / part}, where it comes with the package. Fetch that "
                f"again, or make it: python -m data_prep.tiny_models --part {part} --out {SHIPPED} (takes hours)."
            )


def run_in(folder: Path, conf: Any, display: Display) -> dict[str, Any]:
    """Everything that writes into the run folder."""
    here().wait()  # for the lock
    own = {} if conf.variants else run_one(conf, folder, display, trains=True)
    run_parts(conf, folder, display)
    summary = {
        "experiment": conf.experiment,
        "images": conf.vision.enabled,
        **own,
        **here().decide(lambda: wall_time(folder)),
        "peak": peak_of_processes(),
    }
    if here().is_first:
        write_json(folder / "summary.json", summary)
        write_reports(conf, folder, display)
        mark_finished(folder, summary)
    return summary


def run_parts(conf: Any, folder: Path, display: Display) -> None:
    """The runs beside this one: comparisons and variants, each in a folder of its own; finished ones are left alone."""
    if conf.variants and here().is_first:
        save_config(conf, folder)
        write_json(folder / "versions.json", versions())
    parts = [("comparison", name, comparison_conf(conf, name), item.train) for name, item in conf.comparison.items()]
    parts += [("variants", name, variant_conf(conf, name, folder), True) for name in conf.variants]
    for kind, name, part, trains in parts:
        own_folder = folder / kind / name
        if here().decide(partial(is_finished, own_folder, part)):
            continue
        display.say(f"{kind} {name}: {own_folder}")
        with attempt(own_folder) if here().is_first else contextlib.nullcontext():
            summary = run_one(part, own_folder, display, trains)
            summary |= {"peak": peak_of_processes(), "images": part.vision.enabled}
            if here().is_first:
                summary |= wall_time(own_folder)
                write_json(own_folder / "summary.json", summary)
                mark_finished(own_folder, summary)


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
    """Keeps other libraries' bars off anything that is no terminal, and their remarks to one process."""
    if not display.console.is_terminal:
        from mmadapter.assistant import hide_library_bars

        hide_library_bars()
    if not here().is_first:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
