"""Which folder a run writes to, and whether it begins, continues or is finished there (design decision 10)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmadapter.config.compose import CONFIG_FILE, load_run_config, save_config
from mmadapter.config.digest import differing_settings, settings_digest
from mmadapter.config.run import RunConf
from mmadapter.errors import InputError
from mmadapter.files import write_atomically

FINISHED_FILE = "finished.json"
ATTEMPT_FILE = "attempt.json"  # the first that a run writes


def run_folder(conf: RunConf) -> Path:
    """The folder of this run: RUNS_ROOT/EXPERIMENT-DIGEST, or what `run=` names. Nothing is created.

    The same settings give the same folder, so that a run continues. With `resume=never` an unused folder is chosen;
    with `resume=changed` the folder that `run=` names may hold a run of other settings. Raises InputError where it
    holds something else, and for `resume=changed` without `run=`.
    """
    if conf.run is None:
        if conf.resume == "changed":
            raise InputError(
                "resume=changed continues a run under other settings: say which one, run=NAME. Without run= other "
                "settings have a folder of their own."
            )
        folder = Path(conf.runs_root) / f"{conf.experiment}-{settings_digest(conf)}"
        return folder if conf.resume == "auto" else _first_unused(folder)
    folder = Path(conf.run).expanduser() if "/" in conf.run else Path(conf.runs_root) / conf.run
    _refuse_other_content(folder, conf)
    return folder


def is_finished(folder: Path, conf: RunConf | None = None) -> bool:
    """Whether the run of this folder came to its end; with `conf`, also: under these settings."""
    return (Path(folder) / FINISHED_FILE).is_file() and (conf is None or not changed_settings(folder, conf))


def has_checkpoints(folder: Path) -> bool:
    """Whether a training has saved something to go on from, its start among it."""
    checkpoints = folder / "checkpoints"
    return (checkpoints / "start.safetensors").is_file() and any(checkpoints.glob("step-*"))


def changed_settings(folder: Path, conf: RunConf) -> list[str]:
    """Lines "key: there -> now" of the result settings in which `conf` differs from what the folder was made with."""
    return differing_settings(load_run_config(folder), conf) if (folder / CONFIG_FILE).is_file() else []


def take_over(folder: Path, conf: RunConf) -> list[str]:
    """Makes `conf` the settings of the folder, whose run really goes on under them; returns what changed.

    Results of the earlier settings go: a folder never shows scores beside settings that they do not belong to.
    """
    changed = changed_settings(folder, conf)
    if changed:
        (folder / FINISHED_FILE).unlink(missing_ok=True)
        for stale in (*folder.glob("eval/*/metrics.json"), folder / "summary.json", folder / "report.html"):
            stale.unlink(missing_ok=True)
    save_config(conf, folder)
    return changed


def mark_finished(folder: Path, summary: dict[str, Any]) -> None:
    """Record that the run came to its end, with what there is to say about it."""
    write_atomically(Path(folder) / FINISHED_FILE, json.dumps(summary, indent=1) + "\n")


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
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if all(name == ATTEMPT_FILE or name.startswith(".") for name in names):  # none, or ended before it got further
        return
    if CONFIG_FILE not in names:
        raise InputError(f"run={conf.run}: {folder} holds other files and is no run folder. Name another one.")
    if conf.resume == "never":
        raise InputError(f"run={conf.run}: {folder} holds a run, but resume=never. Name another, or set resume=auto")
    differing = [] if conf.resume == "changed" else changed_settings(folder, conf)
    if differing:
        lines = "\n".join(f"  {line}" for line in differing)
        raise InputError(
            f"run={conf.run}: {folder} holds a run of other settings (there -> now):\n{lines}\n"
            "Leave run= away for a folder of its own, name another one, or give the settings that it has. To go on in "
            "it under the new settings all the same: resume=changed"
        )
