"""From what Hydra composed, or what a run folder holds, to typed and checked config objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmadapter.config.keys import known_keys, refuse_unknown, unknown_message
from mmadapter.config.run import EvalConf, RunConf
from mmadapter.durable import write_whole
from mmadapter.errors import InputError

Conf = TypeVar("Conf", RunConf, EvalConf)
CONFIG_FILE = "config.yaml"


def typed(composed: DictConfig, schema: type[Conf], entry: str = "train.py") -> Conf:
    """The composed settings as an object of `schema`, with interpolations resolved.

    Raises InputError for a key that is not in the schema, and for an interpolation that leads nowhere.
    """
    content = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(content, dict)
    content.pop("hydra", None)
    refuse_unknown(content, schema, entry)  # type: ignore[arg-type]
    return merged(schema, content, "the settings")


def merged(schema: type[Conf], content: Any, where: str) -> Conf:
    """`content` (nested dict) over the defaults of `schema`; raises InputError that begins with `where`."""
    try:
        merged_config = OmegaConf.merge(OmegaConf.structured(schema), content)
        return OmegaConf.to_object(merged_config)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise InputError(f"{where}: {explained(error, schema, content)}") from error


def explained(error: OmegaConfBaseException, schema: type, content: Any = None, entry: str = "train.py") -> str:
    """One sentence for an OmegaConf error: an unknown key with its nearest name, a wrong type with its key."""
    key = error.full_key or ""
    if type(error).__name__ in ("ConfigKeyError", "ConfigAttributeError") and key:
        return unknown_message(key, list(known_keys(schema, content)), entry)
    first = str(error).strip().splitlines()[0]
    if "is not a subclass of" in first:  # data.sources.mine.reader=alpaca
        return (
            f"{key}: a new entry cannot be made on the command line. Change one that is there, or write the settings "
            "into a file of your own (conf/data/NAME.yaml, chosen by data=NAME)."
        )
    if "is not Optional" in first:
        return f"{key}=null: it needs a value."
    return f"{key}: {first}" if key and key not in first else first


def with_overrides(conf: RunConf, overrides: list[str], where: str) -> RunConf:
    """A copy of `conf` with `key=value` strings applied; raises InputError for an unknown key or a wrong type."""
    from dataclasses import asdict

    content = asdict(conf)
    try:
        changed = OmegaConf.merge(OmegaConf.structured(conf), OmegaConf.from_dotlist(overrides))
        return OmegaConf.to_object(changed)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise InputError(f"{where}: {explained(error, RunConf, content)}") from error


def save_config(conf: RunConf | EvalConf, folder: Path) -> Path:
    """Write the resolved settings to FOLDER/config.yaml, under that name only when complete."""
    target = folder / CONFIG_FILE
    write_whole(target, OmegaConf.to_yaml(OmegaConf.structured(conf), resolve=True))
    return target


def load_run_config(folder: Path) -> RunConf:
    """The settings of a run folder; raises InputError where there are none, or where they cannot be read."""
    file = Path(folder) / CONFIG_FILE
    if not file.is_file():
        raise InputError(f"{folder} is not a run folder: it has no {CONFIG_FILE}. Name a folder that train.py wrote.")
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except Exception as error:  # the YAML parser's own exceptions have no common base that is ours to know
        raise InputError(f"{file} cannot be read as YAML: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file} holds no settings. Remove the folder, or name another one with run=.")
    return merged(RunConf, content, str(file))
