"""Loss over batches that are not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmadapter.training.display import Display
from mmadapter.training.engine import Engine
from mmadapter.training.preemption import StopRequest


def token_average(engine: Engine, batches: Sequence[Any], stop: StopRequest, display: Display) -> float | None:
    """Loss per supervised token over all batches; None where a stop request cut it off."""
    total, tokens = 0.0, 0
    for number, batch in enumerate(batches, 1):
        if stop:
            display.end("validation")
            return None
        total += engine.loss_sum(batch)
        tokens += batch.supervised_tokens
        display.report("validation", number, len(batches))
    return total / tokens if tokens else 0.0
