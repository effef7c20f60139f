"""Settings that follow from a run's own: its comparison runs and its variants."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from mmadapter.config.compose import with_overrides
from mmadapter.config.data import CAPTION_READERS, ReadingConf
from mmadapter.config.run import RunConf

VISUAL_ROLES = ("visual_projection",)


def comparison_conf(conf: RunConf, name: str) -> RunConf:
    """The settings of the comparison run `name`: fewer sources, and without pictures where it says so."""
    compared = conf.comparison[name]
    derived = _alone(conf)
    if compared.sources is not None:
        derived.data.sources = {key: derived.data.sources[key] for key in compared.sources}
    if not compared.images:
        _remove_pictures(derived)
    for group in derived.adapter.groups.values():
        if group.sources is not None:
            group.sources = [source for source in group.sources if source in derived.data.sources]
    return derived


def variant_conf(conf: RunConf, name: str) -> RunConf:
    """The settings of the variant `name`: this run's, with the variant's overrides."""
    return with_overrides(_alone(conf), list(conf.variants[name]), f"variants.{name}")


def _alone(conf: RunConf) -> RunConf:
    derived = deepcopy(conf)
    derived.comparison, derived.variants = {}, {}
    return derived


def _remove_pictures(conf: RunConf) -> None:
    """Text only: no encoder, no visual role, no source or task that is nothing without its picture."""
    conf.vision.enabled = False
    conf.data.sources = _without_pictures(conf.data.sources)
    conf.data.validation = _without_pictures(conf.data.validation)
    conf.tasks = _without_pictures(conf.tasks)
    conf.evaluate = [name for name in conf.evaluate if name in conf.tasks]
    for group in conf.adapter.groups.values():
        group.roles = [role for role in group.roles if role not in VISUAL_ROLES]
    conf.adapter.groups = {name: group for name, group in conf.adapter.groups.items() if group.roles}


def _without_pictures(readings: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, ReadingConf] = {name: r for name, r in readings.items() if r.reader not in CAPTION_READERS}
    for reading in kept.values():
        reading.images = False
    return kept
