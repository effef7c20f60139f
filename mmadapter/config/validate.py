"""Contradictions in the settings, refused before any model is built."""

from __future__ import annotations

from mmadapter.config.run import EvalConf, RunConf
from mmadapter.errors import InputError


def validate(conf: RunConf | EvalConf) -> None:
    """Raises InputError that lists every contradiction with its key, value, what is allowed and how to mend it."""
    return None
