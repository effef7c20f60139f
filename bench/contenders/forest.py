"""mmadapter with training.layout=forest: what samples of a micro-batch begin with alike is computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bench.case import Case
from bench.contenders import ours


def training(case: Case) -> Callable[[int], float]:
    return ours.training(replace(case, overrides=("training.layout=forest", *case.overrides)))
