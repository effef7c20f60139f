"""From what Hydra composed, or what a run folder holds, to typed and checked config objects."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmadapter import settings
from mmadapter.config.run import EvalConf, RunConf
from mmadapter.errors import InputError
from mmadapter.files import write_atomically
from mmadapter.methods import version_0_1
from mmadapter.settings import explained, to_plain, unknown_keys, unknown_message

Conf = TypeVar("Conf", RunConf, EvalConf)
CONFIG_FILE = "config.yaml"
METHOD_KEY = re.compile(r"adapter\.(?!(groups|frozen|start)\b)[\w.]+=")
# Key of version 0.1 -> today's.
RENAMED = {
    f"adapter.{old}": " and ".join(f"adapter.{new}" for new in places) for old, places in version_0_1.RENAMED.items()
}


def typed(composed: DictConfig, schema: type[Conf], entry: str = "train.py") -> Conf:
    """The composed settings as an object of `schema`, with interpolations resolved.

    Raises InputError for a key that is not in the schema, and for an interpolation that leads nowhere.
    """
    content: Any = OmegaConf.to_container(composed, resolve=False)
    content.pop("hydra", None)
    refuse_unknown(content, schema, entry)  # before interpolations, which an unknown key may break
    try:
        content = OmegaConf.to_container(OmegaConf.create(content), resolve=True)
    except OmegaConfBaseException as error:
        raise InputError(f"the settings: {explained(error, schema, content, '', entry)}") from error
    return settings.typed(schema, content, "", entry)


def with_methods(words: Sequence[str]) -> list[str]:
    """The words of a command line, in which `adapter.lora.rank=16` has become `++adapter.lora.rank=16`.

    The methods of an adapter are a mapping that presets leave open, in which Hydra changes only what is there already.
    What is misspelt is refused afterwards (`typed`).
    """
    return [f"++{word}" if METHOD_KEY.match(word) else word for word in words]


def refuse_unknown(content: Any, schema: type, entry: str = "train.py") -> None:
    """Raises InputError for keys that the schema does not know: `+key=value` slips through Hydra's own check."""
    if unknown := list(unknown_keys(content, schema)):
        known = list(settings.known_keys(schema, content))
        raise InputError("\n".join(renamed_message(key) or unknown_message(key, known, entry) for key in unknown))


def renamed_message(key: str) -> str | None:
    """What to say of a key of version 0.1; None for any other."""
    return f"The setting {key!r} is now {RENAMED[key]} (CHANGELOG.md lists all new names)." if key in RENAMED else None


def save_config(conf: RunConf | EvalConf, folder: Path) -> Path:
    """Write the resolved settings to FOLDER/config.yaml, under that name only when complete."""
    target = folder / CONFIG_FILE
    write_atomically(target, yaml.safe_dump(to_plain(conf), sort_keys=False, allow_unicode=True, width=120))
    return target


def load_run_config(folder: Path) -> RunConf:
    """The settings of a run folder; raises InputError where there are none, or where they cannot be read."""
    file = Path(folder) / CONFIG_FILE
    if not file.is_file():
        raise InputError(f"{folder} is not a run folder: it has no {CONFIG_FILE}. Name a folder that train.py wrote.")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{file} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no settings. Remove the folder, or name another one with run=.")
    adapter = content.get("adapter")
    if isinstance(adapter, dict) and version_0_1.is_old(adapter):
        pictures = (content.get("vision") or {}).get("enabled", True)
        content["adapter"] = version_0_1.settings(adapter, pictures)
    try:
        return settings.typed(RunConf, content)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
