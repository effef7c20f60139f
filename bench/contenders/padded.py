"""mmadapter with training.layout=padded: a row for each sample, filled up to the longest of the micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bench.case import Case
from bench.contenders import ours


def training(case: Case) -> Callable[[int], float]:
    return ours.training(replace(case, overrides=("training.layout=padded", *case.overrides)))
