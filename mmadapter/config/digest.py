"""The digest of the settings that change a run's result; it names the run folder (design decision 10)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from mmadapter.config.run import RunConf
from mmadapter.hosts.settings import TINY
from mmadapter.settings import leaves


def settings_digest(conf: RunConf) -> str:
    """8 hexadecimal digits over `result_settings`; the same for the same result wherever it is computed."""
    text = json.dumps(result_settings(conf), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def result_settings(conf: RunConf) -> dict[str, Any]:
    """Dotted key -> value of the settings that change the result.

    Left out: names and places of outputs, engine, threads, logging, how often is saved, how many samples are in memory
    at a time (a run that went out of memory goes on with fewer). Of an input only the last part of its path counts, so
    that a moved folder is the same run; the host counts by its own configuration file too.
    """
    settings: dict[str, Any] = {}
    for leaf in leaves(conf):
        task = leaf.key.split(".")[1] if leaf.key.startswith("tasks.") else None
        if leaf.metadata.get("without_influence") or (task is not None and task not in conf.evaluate):
            continue
        is_path = leaf.metadata.get("input_path") and leaf.value is not None
        settings[leaf.key] = Path(leaf.value).name if is_path else leaf.value
    settings["host.identity"] = _host_identity(conf.host.path)
    return settings


def differing_settings(one: RunConf, other: RunConf) -> list[str]:
    """Lines "key: value -> value" for every result setting in which two runs differ."""
    before, after = result_settings(one), result_settings(other)
    keys = sorted(before.keys() | after.keys())
    absent = "(absent)"
    return [
        f"{key}: {before.get(key, absent)} -> {after.get(key, absent)}"
        for key in keys
        if before.get(key, absent) != after.get(key, absent)
    ]


def _host_identity(path: str | None) -> str | None:
    """Digest of the host's configuration file; None for the shipped host, which `path` names already."""
    file = None if path is None or path == TINY else Path(path).expanduser() / "config.json"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:8] if file is not None and file.is_file() else None
