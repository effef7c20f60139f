"""Settings composed as train.py and eval.py compose them, without running anything."""

from __future__ import annotations

from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra

from mmadapter.cli import register_schemas, version_base
from mmadapter.config import EvalConf, RunConf, typed

CONF = Path(__file__).parents[2] / "conf"


def run_conf(*overrides: str) -> RunConf:
    """The typed settings of `mmadapter train OVERRIDES`."""
    return typed(composed("train", *overrides), RunConf)


def eval_conf(*overrides: str) -> EvalConf:
    """The typed settings of `mmadapter eval OVERRIDES`."""
    return typed(composed("eval", *overrides), EvalConf)


def composed(name: str, *overrides: str):
    register_schemas()
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), **version_base()):
        return hydra.compose(name, list(overrides))


def choices(group: str) -> list[str]:
    """The names of a group's files."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))
