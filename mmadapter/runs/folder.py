"""Which folder a run writes to, and whether it begins, continues or is finished there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmadapter.config import CONFIG_FILE, RunConf, load_run_config, save_config
from mmadapter.errors import InputError
from mmadapter.hosts.settings import TINY
from mmadapter.settings import leaves

FINISHED_FILE = "finished.json"  # the summary, once the run came to its end
ATTEMPT_FILE = "attempt.json"  # the first file that a run writes


def run_folder(conf: RunConf) -> Path:
    """The folder of this run: RUNS_ROOT/EXPERIMENT-DIGEST, or what `run=` names. Nothing is created.

    EXPERIMENT_embedded-DIGEST where the shipped models and world stand in for host and data. The same settings give the
    same folder, so that a run continues. With `resume=never` an unused folder is chosen; with `resume=changed` the
    folder that `run=` names may hold a run of other settings. Raises InputError where it holds something else, and for
    `resume=changed` without `run=`.
    """
    if conf.run is None:
        if conf.resume == "changed":
            raise InputError(
                "resume=changed continues a run under other settings: say which one, run=NAME. Without run= other "
                "settings have a folder of their own."
            )
        stand_in = "_embedded" if conf.embedded else ""
        folder = Path(conf.runs_root) / f"{conf.experiment}{stand_in}-{settings_digest(conf)}"
        if conf.resume == "auto" or not folder.exists():
            return folder
        number = 2
        while (unused := folder.with_name(f"{folder.name}-{number}")).exists():
            number += 1
        return unused
    folder = Path(conf.run).expanduser() if "/" in conf.run else Path(conf.runs_root) / conf.run
    if folder.is_file():
        raise InputError(f"run={conf.run}: {folder} is a file. Name a folder.")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if all(name == ATTEMPT_FILE or name.startswith(".") for name in names):  # empty, or an attempt that ended at once
        return folder
    if CONFIG_FILE not in names:
        raise InputError(f"run={conf.run}: {folder} holds other files and is no run folder. Name another one.")
    if conf.resume == "never":
        raise InputError(f"run={conf.run}: {folder} holds a run, but resume=never. Name another, or set resume=auto")
    if conf.resume != "changed" and (differing := changed_settings(folder, conf)):
        lines = "\n".join(f"  {line}" for line in differing)
        raise InputError(
            f"run={conf.run}: {folder} holds a run of other settings (there -> now):\n{lines}\n"
            "Leave run= away for a folder of its own, name another one, or give the settings that it has. To go on in "
            "it under the new settings all the same: resume=changed"
        )
    return folder


def find_run(run: str, runs_root: str) -> Path:
    """The existing run folder that `run=` names: a path, or a name under runs_root. Raises InputError for none."""
    for folder in (Path(run).expanduser(), Path(runs_root) / run):
        if (folder / CONFIG_FILE).is_file():
            return folder
    runs = sorted(file.parent.name for file in Path(runs_root).glob(f"*/{CONFIG_FILE}"))
    raise InputError(
        f"run={run}: no run folder (a folder with {CONFIG_FILE}) of that path or name. "
        f"In {runs_root}: {', '.join(runs) or 'none'}."
    )


def finished_runs(runs_root: Path) -> Iterator[tuple[Path, RunConf]]:
    """Folder and settings of each finished run that has an adapter, the newest first."""
    for file in sorted(runs_root.glob(f"*/{FINISHED_FILE}"), key=lambda file: file.stat().st_mtime, reverse=True):
        if (file.parent / "adapter" / "adapter.json").is_file():
            try:
                yield file.parent, load_run_config(file.parent)
            except InputError:  # of another version, or damaged
                continue


def is_finished(folder: Path, conf: RunConf) -> bool:
    """Whether the run of this folder came to its end under these settings."""
    return (folder / FINISHED_FILE).is_file() and not changed_settings(folder, conf)


def has_checkpoints(folder: Path) -> bool:
    """Whether a training has saved something to continue from, its start among it."""
    checkpoints = folder / "checkpoints"
    return (checkpoints / "start.safetensors").is_file() and any(checkpoints.glob("step-*"))


def take_over(folder: Path, conf: RunConf) -> list[str]:
    """Make `conf` the settings of the folder, whose run continues under them; returns what changed.

    Results of the earlier settings are removed: a folder never shows scores beside settings they do not belong to.
    """
    changed = changed_settings(folder, conf)
    if changed:
        (folder / FINISHED_FILE).unlink(missing_ok=True)
        for stale in (*folder.glob("eval/*/metrics.json"), folder / "summary.json", folder / "report.html"):
            stale.unlink(missing_ok=True)
    save_config(conf, folder)
    return changed


# The settings that make a run the run it is.


def settings_digest(conf: RunConf) -> str:
    """8 hexadecimal digits over `result_settings`; the same for the same result wherever it is computed."""
    text = json.dumps(result_settings(conf), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def result_settings(conf: RunConf) -> dict[str, Any]:
    """Dotted key -> value of the settings that change the result.

    Left out: names and places of outputs, engine, threads, logging, how often is saved, how many samples are in memory
    at a time (a run that went out of memory continues with fewer). Of an input only the last part of its path counts,
    so that a moved folder is the same run; the host counts by its own configuration file, too.
    """
    found: dict[str, Any] = {}
    for leaf in leaves(conf):
        task = leaf.key.split(".")[1] if leaf.key.startswith("tasks.") else None
        if leaf.metadata.get("without_influence") or (task is not None and task not in conf.evaluate):
            continue
        if leaf.metadata.get("came_later") and leaf.value == leaf.metadata["allowed"][0]:
            continue
        is_path = leaf.metadata.get("input_path") and leaf.value is not None
        found[leaf.key] = Path(leaf.value).name if is_path else leaf.value
    file = Path(conf.host.path or "").expanduser() / "config.json"
    is_own = conf.host.path not in (None, TINY) and file.is_file()
    found["host.identity"] = hashlib.sha256(file.read_bytes()).hexdigest()[:8] if is_own else None
    return found


def changed_settings(folder: Path, conf: RunConf) -> list[str]:
    """Lines "key: there -> now" of the result settings in which `conf` differs from what the folder was made with."""
    if not (folder / CONFIG_FILE).is_file():
        return []
    before, after = result_settings(load_run_config(folder)), result_settings(conf)
    absent = "(absent)"
    return [
        f"{key}: {before.get(key, absent)} -> {after.get(key, absent)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key, absent) != after.get(key, absent)
    ]
