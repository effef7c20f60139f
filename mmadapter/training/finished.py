"""A finished run is shown and not trained again. Loads no torch: what is printed is stored in the run's folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmadapter.config import RunConf, embedded_notice
from mmadapter.distributed.launchers import launched
from mmadapter.runs.attempt import settle_finished
from mmadapter.runs.folder import is_finished, run_folder
from mmadapter.runs.state import RunFolder
from mmadapter.terminal import Display
from mmadapter.training.preemption import release_signals
from mmadapter.training.summary import show_results


def show_if_finished(conf: RunConf) -> dict[str, Any] | None:
    """Shows the run of these settings where it is finished, as `training/run.py: run` does; returns its summary.

    None where it is not, and where only `run` can tell: in one of several ranks, for a dry run, where the data decide
    the settings and with them the folder, and where the device must be there. Raises InputError for a folder that
    holds something else.
    """
    can_tell = launched(os.environ) is None and not conf.dry_run and conf.vision.enabled is not None
    if not can_tell or conf.resume == "never" or conf.engine.device == "cuda":
        return None
    folder = run_folder(conf)
    if not is_finished(folder, conf):
        return None
    release_signals()  # only now: until `run` has its own handlers, they wait
    display = Display()
    if notice := embedded_notice(conf.experiment, conf.embedded):
        display.say(notice)
    return show_finished(folder, display)


def show_finished(folder: Path, display: Display) -> dict[str, Any]:
    """Prints what the finished run of `folder` has stored; returns its summary, with the folder. On the first rank."""
    finished = RunFolder(folder)
    stored = finished.summary
    display.say(
        f"{folder} is finished; nothing is trained again. For a new run: other settings, run=NAME, or resume=never."
    )
    for line in finished.left_out.lines():
        display.say(f"not shown: {line}")
    settle_finished(folder)
    show_results(folder, stored, display)
    return {**stored, "folder": folder}
