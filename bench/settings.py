"""Settings as train.py composes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import hydra

from mmadapter.cli import register_schemas, version_base
from mmadapter.config import RunConf, typed

CONF = Path(__file__).parents[1] / "conf"


def composed(overrides: Sequence[str]) -> RunConf:
    """What `python train.py OVERRIDES` would run with."""
    register_schemas()
    with hydra.initialize_config_dir(str(CONF), **version_base()):
        return typed(hydra.compose("train", list(overrides)), RunConf)
