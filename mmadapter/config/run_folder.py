"""Which folder a run writes to, and whether it begins, continues or is finished there (design decision 10)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmadapter.config.compose import CONFIG_FILE, load_run_config
from mmadapter.config.digest import differing_settings, settings_digest
from mmadapter.config.run import RunConf
from mmadapter.errors import InputError

FINISHED_FILE = "finished.json"


def run_folder(conf: RunConf) -> Path:
    """The folder of this run: RUNS_ROOT/EXPERIMENT-DIGEST, or what `run=` names. Nothing is created.

    The same settings give the same folder, so that a run continues. With `resume=never` an unused folder is chosen.
    Raises InputError only where `run=` names a folder that holds something else.
    """
    if conf.run is None:
        folder = Path(conf.runs_root) / f"{conf.experiment}-{settings_digest(conf)}"
        return folder if conf.resume == "auto" else _first_unused(folder)
    folder = Path(conf.run).expanduser() if "/" in conf.run else Path(conf.runs_root) / conf.run
    _refuse_other_content(folder, conf)
    return folder


def is_finished(folder: Path) -> bool:
    """Whether the run of this folder came to its end."""
    return (Path(folder) / FINISHED_FILE).is_file()


def mark_finished(folder: Path, summary: dict[str, Any]) -> None:
    """Record that the run came to its end, with what there is to say about it."""
    unfinished = Path(folder) / f"{FINISHED_FILE}.unfinished"
    unfinished.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    unfinished.replace(Path(folder) / FINISHED_FILE)


def _first_unused(folder: Path) -> Path:
    number = 1
    candidate = folder
    while candidate.exists():
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def _refuse_other_content(folder: Path, conf: RunConf) -> None:
    if folder.is_file():
        raise InputError(f"run={conf.run}: {folder} is a file. Name a folder.")
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"run={conf.run}: {folder} holds other files and is no run folder. Name another one.")
    if conf.resume == "never":
        raise InputError(f"run={conf.run}: {folder} holds a run, but resume=never. Name another, or set resume=auto")
    differing = differing_settings(load_run_config(folder), conf)
    if differing:
        lines = "\n".join(f"  {line}" for line in differing)
        raise InputError(
            f"run={conf.run}: {folder} holds a run of other settings (there -> now):\n{lines}\n"
            "Leave run= away for a folder of its own, name another one, or give the settings that it has."
        )
