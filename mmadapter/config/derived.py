"""Settings that follow from a run's own: its comparison runs and its variants."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

from mmadapter.config.data import CAPTION_READERS, ReadingConf
from mmadapter.config.mixture import mixture_problems, samples_per_step
from mmadapter.config.run import RunConf
from mmadapter.errors import InputError
from mmadapter.settings import with_overrides

PICTURE_READERS = (*CAPTION_READERS, "visual_instructions")  # without a picture nothing is left to learn or to score
VARIANT = "variant:"  # adapter.start=variant:NAME, another variant of the same run


def comparison_conf(conf: RunConf, name: str) -> RunConf:
    """The settings of the comparison run `name`: fewer sources, and without pictures where it says so."""
    compared = conf.comparison[name]
    derived = _alone(conf)
    shares = None if any(mixture_problems(conf)) else samples_per_step(conf)
    if compared.sources is not None:
        derived.data.sources = {key: derived.data.sources[key] for key in compared.sources}
    if not compared.images:
        _remove_pictures(derived)
    for group in derived.adapter.groups.values():
        if group.sources is not None:
            group.sources = [source for source in group.sources if source in derived.data.sources]
    if shares is not None and derived.data.sources:
        _keep_shares(derived, shares)
    return derived


def variant_conf(conf: RunConf, name: str, folder: Path | None = None) -> RunConf:
    """The settings of the variant `name`: this run's, with the variant's overrides.

    `key=value` sets, `~key` takes an entry of a named list away (`~data.sources.captions`). An `adapter.start` of
    `variant:OTHER` becomes the folder of that variant below the run's `folder`, and null where no folder is given (the
    settings are only to be checked). Raises InputError for what cannot be applied, and for a start at a variant that
    does not come before this one.
    """
    where, overrides = f"variants.{name}", list(conf.variants[name])
    removed = [override[1:] for override in overrides if override.startswith("~")]
    set_ = [override for override in overrides if not override.startswith("~")]
    derived = with_overrides(_alone(conf), set_, where)
    for key in removed:
        _remove_entry(derived, key, where)
    start = derived.adapter.start
    if start is not None and start.startswith(VARIANT):
        earlier = list(conf.variants)[: list(conf.variants).index(name)]
        other = _known_variant(start.removeprefix(VARIANT), earlier, where)
        derived.adapter.start = None if folder is None else str(folder / "variants" / other)
    return derived


def _known_variant(name: str, earlier: list[str], where: str) -> str:
    if name not in earlier:
        before = ", ".join(earlier) or "none"
        raise InputError(f"{where}: adapter.start={VARIANT}{name} is no variant before this one. Before it: {before}.")
    return name


def _remove_entry(conf: RunConf, key: str, where: str) -> None:
    """Takes `data.sources.captions` or another entry with a name of its own out of the settings."""
    *path, last = key.split(".")
    holder: Any = conf
    for part in path:
        holder = holder.get(part) if isinstance(holder, dict) else getattr(holder, part, None)
    if not isinstance(holder, dict) or last not in holder:
        has = (
            f"{'.'.join(path)} has: {', '.join(holder) or 'nothing'}" if isinstance(holder, dict) else "it has no name"
        )
        raise InputError(
            f"{where}: ~{key} cannot be taken away; {has}. Entries with names are those of data.sources, "
            "data.validation, adapter.groups and tasks."
        )
    del holder[last]


def _keep_shares(conf: RunConf, shares: Mapping[str, int]) -> None:
    """The sources that are left keep their samples per step, and the groups their actual learning rate."""
    for name, source in conf.data.sources.items():
        source.samples_per_step = shares[name]
    left = sum(shares[name] for name in conf.data.sources)
    conf.optimizer.base_lr *= conf.optimizer.batch_size / left
    conf.optimizer.batch_size = left


def _alone(conf: RunConf) -> RunConf:
    derived = deepcopy(conf)
    derived.comparison, derived.variants = {}, {}
    return derived


def _remove_pictures(conf: RunConf) -> None:
    """Text only: no encoder, no visual method, no source or task that is nothing without its picture."""
    conf.vision.enabled = False
    conf.data.sources = _without_pictures(conf.data.sources)
    conf.data.validation = _without_pictures(conf.data.validation)
    conf.tasks = _without_pictures(conf.tasks)
    conf.evaluate = [name for name in conf.evaluate if name in conf.tasks]
    conf.adapter.without_pictures()


def _without_pictures(readings: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, ReadingConf] = {
        name: reading
        for name, reading in readings.items()
        if reading.reader not in PICTURE_READERS and getattr(reading, "attach_images", None) is None
    }
    for reading in kept.values():
        reading.images = False
    return kept
