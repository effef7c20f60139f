"""Loss over batches that are not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmadapter.processes import here
from mmadapter.terminal import Display
from mmadapter.training.engine import Engine
from mmadapter.training.preemption import StopRequest


def token_average(
    engine: Engine, batches: Sequence[Any], stop: StopRequest, display: Display
) -> tuple[float, dict[str, float]] | None:
    """Loss per supervised token over all processes' batches, and by source; None where a stop request cut it off.

    `batches` are this process's; every process has as many, and of the same sources.
    """
    totals: dict[str, float] = {}
    tokens: dict[str, float] = {}
    for number, batch in enumerate(batches, 1):
        if stop.agreed():
            display.end("validation")
            return None
        totals[batch.source] = totals.get(batch.source, 0.0) + engine.loss_sum(batch)
        tokens[batch.source] = tokens.get(batch.source, 0) + batch.supervised_tokens
        display.report("validation", number, len(batches))
    sums = here().sum([*totals.values(), *tokens.values()])
    totals, tokens = dict(zip(totals, sums, strict=False)), dict(zip(totals, sums[len(totals) :], strict=True))
    by_source = {source: total / max(tokens[source], 1) for source, total in totals.items()}
    return sum(totals.values()) / max(sum(tokens.values()), 1), by_source
